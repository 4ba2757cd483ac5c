"""Our model over the latent cache on a GPU, about 25 launches a layer: products by the library, all else in
the fused kernels of kernels/.

The same function as `NativeDecoder`, with fewer roundings to bf16 on the way (scores stay in float32, sums
are rounded once).  Nothing depends on the cached length but the kernels' own loops, so a CUDA graph serves
any.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onebase.kernels import mla_decode
from onebase.kernels.expert_rows import combine, place
from onebase.kernels.grouped_linear import grouped_linear
from onebase.kernels.linear_logprob import head_logits
from onebase.kernels.swiglu import swiglu
from onebase.model.mla import MLA
from onebase.model.moe import MoE
from onebase.model.transformer import Transformer
from onebase.rollout.decoders import NativeDecoder, RouteLog


class FusedDecoder:
    def __init__(self, model: Transformer, slots: int, length: int, routes: RouteLog | None = None) -> None:
        self.model, self.routes = model, routes
        self.plain = NativeDecoder(model, slots, length, routes)  # prefills, and holds the cache
        self.caches = self.plain.caches
        self.prefill = self.plain.prefill
        self.move = self.plain.move

    @staticmethod
    def fits(model: Transformer) -> bool:
        weight, c = model.head_weight, model.config
        size = c.kv_lora_rank + c.qk_rope_head_dim
        cache = torch.empty(0, 0, size, dtype=weight.dtype, device=weight.device)
        return weight.dtype == torch.bfloat16 and mla_decode.fits(cache, c.kv_lora_rank)

    def begin(self) -> None:
        """Nothing is kept between calls: the model's weights are used as they are."""

    def decode(self, ids_N: Tensor, position_N: Tensor, n: int, length: int) -> Tensor:
        """Logits [n, V]; entries go to `position_N`, below `length`."""
        rotation = self.model.rope(position_N)
        x = self.model.embed_tokens(ids_N)
        routes = []
        for block, cache in zip(self.model.blocks(), self.caches, strict=True):
            x = _attention(block.self_attn, block.input_layernorm(x), x, rotation, cache[:n], position_N)
            h = block.post_attention_layernorm(x)
            if isinstance(block.mlp, MoE):
                x, index_NK = _experts(block.mlp, h, x)
                routes.append(index_NK)
            else:
                x = x + block.mlp(h)
        if self.routes is not None:
            self.routes.put_tokens(routes, position_N)
        return head_logits(self.model.norm(x), self.model.head_weight)


def _attention(
    a: MLA, h_ND: Tensor, x_ND: Tensor, rotation: Tensor, cache_NSK: Tensor, position_N: Tensor
) -> Tensor:
    """x + attention(h)."""
    n = len(h_ND)
    q = a.query(h_ND).view(n, a.H, a.N + a.R)
    made = a.kv_a_proj_with_mqa(h_ND)
    absorbed = q.new_empty(n, a.H, a.C + a.R)
    w_uk, w_uv = a.absorbed()
    torch.bmm(q[..., : a.N].transpose(0, 1), w_uk, out=absorbed[..., : a.C].transpose(0, 1))
    norm = a.kv_a_layernorm
    mla_decode.enter(q, made, rotation, norm.weight, norm.eps, cache_NSK, position_N, absorbed)
    mixed = mla_decode.attend(absorbed, cache_NSK, position_N, a.C, a.scale)
    out = q.new_empty(n, a.H, a.V)
    torch.bmm(mixed.transpose(0, 1), w_uv.transpose(1, 2), out=out.transpose(0, 1))
    if a.o_proj.bias is not None:
        return x_ND + a.o_proj(out.flatten(1))
    return torch.addmm(x_ND, out.flatten(1), a.o_proj.weight.t())


def _experts(moe: MoE, h_ND: Tensor, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(x + experts(h), index_NK)."""
    index_NK, gate_NK = moe.gate.choose(moe.gate.scores(h_ND))
    K = index_NK.shape[1]
    token_M, back_M, end_E, gate_M = place(index_NK, gate_NK, moe.gate.weight.shape[0])
    shared = F.silu(moe.shared_experts.gate_proj(h_ND)) * moe.shared_experts.up_proj(h_ND)
    made = grouped_linear(h_ND.index_select(0, token_M), moe.experts.gate_up_proj, end_E)
    out = grouped_linear(swiglu(made, gate_M), moe.experts.down_proj, end_E)
    return combine(out, back_M, K, moe.shared_experts.down_proj(shared), x_ND), index_NK
