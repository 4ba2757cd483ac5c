"""Our model's decoding step with its weights packed for few, larger products: for float32 on a CPU, where a
step over some dozen rows costs more in calls than in arithmetic.

The same function as `Transformer.decode`, with products of weights formed once per `generate` call:

- gains of the norms before a projection are multiplied into it;
- query and W_uk, value and output projection become one matrix each: a head's query meets the cached latent
  directly and its mixed latent goes straight to the residual stream (MLA's absorption, arXiv 2405.04434,
  section 2.1.2, carried to the end); one product gives every head's query and the new cache entry, laid out
  alike, so that one multiplication rotates them all;
- router, all experts and the shared expert are one product in and one out; an expert that was not chosen has
  gate 0.  That computes E / K times more than needed and is faster as long as E / K is small (`fits`).

Sums are formed in another order than in training, so logits differ by float32 rounding; the parity test holds
1e-5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onebase.model.config import ModelConfig
from onebase.model.mla import MLA, RMSNorm
from onebase.model.moe import MoE, SwiGLU
from onebase.model.transformer import Transformer
from onebase.rollout.decoders import RouteLog

MOST_WASTE = 8  # largest E / K that is still computed densely


def fits(config: ModelConfig) -> bool:
    """Whether this model's steps can be packed: plain query projection, no biases, few experts."""
    few = config.n_routed_experts <= MOST_WASTE * config.num_experts_per_tok
    even = config.kv_lora_rank % 2 == 0
    return config.q_lora_rank is None and not config.attention_bias and few and even


def normalise(x: Tensor, eps: Tensor) -> Tensor:
    """x over its root mean square, without a gain."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.addcmul(eps, size, size, value=1 / x.shape[-1]).rsqrt_()


@dataclass(slots=True)
class _Layer:
    project: Tensor
    """[D, (H + 1) (C + R)]: per head the absorbed query [C | R], last the new entry [C | R]."""
    gain: Tensor
    """[C], of the latent's norm."""
    out: Tensor
    """[H C, D]"""
    up: Tensor
    """[D, 2 W] gates then ups of the MLP, or of the shared expert and all experts; in MoE layers E router
    columns follow."""
    down: Tensor
    """[W, D]"""
    moe: MoE | None


class PackedDecoder:
    """As `NativeDecoder`; `begin` must be called before each use, since the weights may have been trained."""

    def __init__(self, model: Transformer, slots: int, length: int, routes: RouteLog | None = None) -> None:
        self.model, self.config, self.routes = model, model.config, routes
        c = model.config
        self.H, self.C, self.R = c.num_attention_heads, c.kv_lora_rank, c.qk_rope_head_dim
        self.caches = [torch.zeros(slots, length, self.C + self.R) for _ in model.layers]
        self.place = torch.arange(length)
        self.row = torch.arange(slots)
        self.eps = torch.tensor(c.rms_norm_eps)
        self.rotation = torch.view_as_complex(model.rope(self.place))
        self.scale = model.blocks()[0].self_attn.scale
        self.packed: list[_Layer] = []

    def begin(self) -> None:
        """Form the packed weights from the model's current ones."""
        self.packed = []
        for block in self.model.blocks():
            project, out = self._attention(block.self_attn, block.input_layernorm)
            up, down = self._mlp(block.mlp, block.post_attention_layernorm)
            moe = block.mlp if isinstance(block.mlp, MoE) else None
            self.packed.append(_Layer(project, block.self_attn.kv_a_layernorm.weight, out, up, down, moe))
        self.head = (self.model.head_weight * self.model.norm.weight).t().contiguous()

    def _attention(self, a: MLA, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        D = a.o_proj.weight.shape[0]
        w_uk, w_uv = a.kv_b_proj.weight.view(a.H, a.N + a.V, a.C).split([a.N, a.V], 1)
        q_nope, q_rope = a.q_proj.weight.view(a.H, a.N + a.R, D).split([a.N, a.R], 1)
        query = torch.cat([w_uk.mT @ q_nope, q_rope], 1)  # [H, C + R, D]
        whole = torch.cat([query.flatten(0, 1), a.kv_a_proj_with_mqa.weight])
        w_o = a.o_proj.weight.view(D, a.H, a.V).permute(1, 2, 0)  # [H, V, D]
        return (whole * norm.weight).t().contiguous(), (w_uv.mT @ w_o).flatten(0, 1).contiguous()

    def _mlp(self, mlp: SwiGLU | MoE, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        if isinstance(mlp, SwiGLU):
            up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
            return (up * norm.weight).t().contiguous(), mlp.down_proj.weight.t().contiguous()
        shared, experts = mlp.shared_experts, mlp.experts
        gates, ups = experts.gate_up_proj.chunk(2, 1)
        parts = [shared.gate_proj.weight, gates.flatten(0, 1), shared.up_proj.weight, ups.flatten(0, 1)]
        up = torch.cat([*parts, mlp.gate.weight])
        down = torch.cat([shared.down_proj.weight.t(), experts.down_proj.mT.flatten(0, 1)])
        return (up * norm.weight).t().contiguous(), down.contiguous()

    def prefill(self, ids_BT: Tensor, length_B: Tensor, row_N: Tensor, slot_N: Tensor) -> Tensor:
        """Logits [B, V] of each last token; row_N's entries go into slot_N."""
        hidden, entries, routes = self.model.prefill(ids_BT)
        if self.routes is not None:
            self.routes.put_rows(routes, row_N, slot_N)
        for cache, entry in zip(self.caches, entries, strict=True):
            cache[slot_N, : entry.shape[1]] = entry[row_N]
        return F.linear(hidden[torch.arange(len(hidden)), length_B - 1], self.model.head_weight)

    def decode(self, ids_N: Tensor, position_N: Tensor, n: int, length: int) -> Tensor:
        """Logits [n, V] after one new token per row."""
        x = self.model.embed_tokens(ids_N)
        rotation = self.rotation[position_N].unsqueeze(1)
        # [n, 1, length]; positions behind a row's own are closed
        bias = torch.where(self.place[:length] > position_N[:, None], -torch.inf, 0.0).unsqueeze(1)
        row = self.row[:n]
        routes: list[Tensor] = []
        for layer, cache in zip(self.packed, self.caches, strict=True):
            made = (normalise(x, self.eps) @ layer.project).view(n, self.H + 1, self.C + self.R)
            torch.view_as_complex(made[..., self.C :].unflatten(-1, (-1, 2))).mul_(rotation)
            entry = made[:, -1]
            latent = entry[:, : self.C]
            latent.copy_(normalise(latent, self.eps) * layer.gain)
            cache[row, position_N] = entry
            seen = cache[:n, :length]
            score = torch.baddbmm(bias, made[:, :-1], seen.mT, alpha=self.scale)
            mixed = torch.bmm(score.softmax(-1), seen[..., : self.C])
            x = torch.addmm(x, mixed.flatten(1), layer.out)
            x = self._mlp_step(x, layer, routes)
        if self.routes is not None:
            self.routes.put_tokens(routes, position_N)
        return normalise(x, self.eps) @ self.head

    def _mlp_step(self, x: Tensor, layer: _Layer, routes: list[Tensor]) -> Tensor:
        """The layer's output; the experts of a MoE layer are added to `routes`."""
        wide = normalise(x, self.eps) @ layer.up
        width = layer.down.shape[0]
        hidden = F.silu(wide[:, :width]).mul_(wide[:, width : 2 * width])
        if layer.moe is not None:
            router, E = layer.moe.gate, self.config.n_routed_experts
            score = wide[:, 2 * width :].sigmoid()
            index, gate = router.choose(score)
            routes.append(index)
            dense = torch.zeros_like(score).scatter_(1, index, gate)
            routed = hidden[:, width - E * self.config.moe_intermediate_size :].unflatten(1, (E, -1))
            routed.mul_(dense[..., None])
        return torch.addmm(x, hidden, layer.down)

    def move(self, source: Tensor, target: Tensor) -> None:
        for cache in self.caches:
            cache[target] = cache[source]
        if self.routes is not None:
            self.routes.slots[target] = self.routes.slots[source]
