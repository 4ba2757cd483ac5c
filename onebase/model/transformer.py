"""The DeepSeek-V3-shaped transformer: pre-norm blocks of MLA and (dense or expert) SwiGLU, with multi-token
prediction.

Multi-token prediction (V3, arXiv 2412.19437, section 2.2, depth 1): one more block sees, at token t, the
trunk's hidden state of t and the embedding of t+1, and predicts t+2 through the shared head.  It stands at
index num_hidden_layers, as the format stores it.  As in vLLM and transformers its input is the trunk's
*final-normed* hidden state.  Embedding and head are shared with the trunk in memory; the files carry copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onebase.model.config import ModelConfig
from onebase.model.mla import MLA, RMSNorm, Rope
from onebase.model.moe import MoE, Routing, SwiGLU

if TYPE_CHECKING:
    from onebase.train.context import Context


@dataclass(slots=True)
class Output:
    hidden_BTD: Tensor
    """After the final norm, before the head."""
    mtp_hidden_BTD: Tensor | None
    """The prediction block's, after its own norm: position t predicts token t + 2."""
    routing: list[Routing]
    """One entry per MoE layer, the prediction block's last."""


class Block(nn.Module):
    def __init__(self, config: ModelConfig, dense: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: SwiGLU | MoE = (
            SwiGLU(config.hidden_size, config.intermediate_size) if dense else MoE(config)
        )

    def forward(
        self,
        x: Tensor,
        rotation: Tensor,
        mask: Tensor | None,
        real_BT: Tensor | None,
        route_BTK: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None]:
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask)
        return self._feed_forward(x, real_BT, route_BTK)

    def prefill(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Routing | None, Tensor]:
        """Causal; also the cache's entries [B, T, C + R]."""
        attended, entry = self.self_attn.prefill(self.input_layernorm(x), rotation, None)
        return *self._feed_forward(x + attended, None, None), entry

    def _feed_forward(
        self, x: Tensor, real_BT: Tensor | None, route_BTK: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        h = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            out, routing = self.mlp(h, real_BT, route_BTK)
            return x + out, routing
        return x + self.mlp(h), None

    def decode(
        self, x: Tensor, rotation: Tensor, cache: Tensor, position_B: Tensor, bias_BS: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(output, index_BK of a MoE layer's experts)."""
        x = x + self.self_attn.decode(self.input_layernorm(x), rotation, cache, position_B, bias_BS)
        h = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            out, index_BK = self.mlp.decode(h)
            return x + out, index_BK
        return x + self.mlp(h), None


class MTPBlock(Block):
    """The prediction block's own parameters beside an ordinary MoE block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, dense=False)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def predict(
        self,
        hidden: Tensor,
        next_embedding: Tensor,
        rotation: Tensor,
        mask: Tensor | None,
        real_BT: Tensor | None,
    ) -> tuple[Tensor, Routing | None]:
        x = self.eh_proj(torch.cat([self.enorm(next_embedding), self.hnorm(hidden)], -1))
        x, routing = self(x, rotation, mask, real_BT)
        return self.norm(x), routing


def attention_mask(document_BT: Tensor) -> Tensor:
    """[B, 1, T, T], True where a token may look: causal, within its own document (equal numbers); every token
    sees itself, so that no row of the softmax is empty."""
    T = document_BT.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=document_BT.device).tril()
    return (document_BT[:, :, None].eq(document_BT[:, None, :]) & causal).unsqueeze(1)


def _whole(x: Tensor, dim: int = 1) -> Tensor:
    return x


def _has_next(ids_BT: Tensor, document_BT: Tensor | None, real_BT: Tensor | None) -> Tensor:
    """[B, T], True where the prediction block's input is a pair of real tokens of one document; only these
    count in its router's load and balance."""
    real_BT = torch.ones_like(ids_BT, dtype=torch.bool) if real_BT is None else real_BT
    pair_BT = real_BT & real_BT.roll(-1, 1)
    if document_BT is not None:
        pair_BT &= document_BT == document_BT.roll(-1, 1)
    pair_BT[:, -1] = False
    return pair_BT


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, dense=i < config.first_k_dense_replace) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.mtp = MTPBlock(config) if config.num_nextn_predict_layers else None
        self.rope = Rope(config)
        self.context: Context | None = None
        self.recompute = False
        """Keep each block's input only, and compute the rest again in the backward pass."""

    def divide_context(self, context: Context) -> None:
        """From now on this process works on its own positions of rows; `forward` is still given whole
        rows."""
        self.context = context
        for block in [*self.blocks(), *([self.mtp] if self.mtp is not None else [])]:
            block.self_attn.context = context
            if isinstance(block.mlp, MoE):
                block.mlp.context = context

    @property
    def head_weight(self) -> Tensor:
        return self.lm_head.weight

    def forward(
        self,
        ids_BT: Tensor,
        position_BT: Tensor | None = None,
        document_BT: Tensor | None = None,
        real_BT: Tensor | None = None,
        with_mtp: bool = False,
        route_BTLK: Tensor | None = None,
    ) -> Output:
        """`position_BT` counts from 0 in each document (default: along the row); `document_BT` numbers the
        documents of a row, which are then hidden from each other; `real_BT` is False on padding (load and
        balance only).  `route_BTLK` gives the experts of the trunk's L MoE layers (routing replay).  Under
        context parallelism the hidden states are those of this process's positions."""
        if position_BT is None:
            position_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        mask = None if document_BT is None else attention_mask(document_BT)
        own = _whole if self.context is None else self.context.own
        if self.context is not None:
            mask = own(attention_mask(torch.zeros_like(ids_BT[:1])) if mask is None else mask, 2)
        rotation = self.rope(own(position_BT))
        x = self.embed_tokens(own(ids_BT))
        own_real_BT = None if real_BT is None else own(real_BT)
        route_BTLK = None if route_BTLK is None else own(route_BTLK)
        routing: list[Routing] = []
        for layer in self.blocks():
            route_BTK = None
            if route_BTLK is not None and isinstance(layer.mlp, MoE):
                route_BTK = route_BTLK[:, :, len(routing)]
            x, routed = self._again(layer, x, rotation, mask, own_real_BT, route_BTK)
            if routed is not None:
                routing.append(routed)
        hidden = self.norm(x)
        mtp_hidden = None
        if with_mtp and self.mtp is not None:
            # The last token has no next one; its wrapped-around input is never a target.
            next_embedding = self.embed_tokens(own(ids_BT.roll(-1, 1)))
            mtp_real_BT = own(_has_next(ids_BT, document_BT, real_BT))
            mtp_hidden, routed = self._again(
                self.mtp.predict, hidden, next_embedding, rotation, mask, mtp_real_BT
            )
            assert routed is not None
            routing.append(routed)
        return Output(hidden, mtp_hidden, routing)

    def _again(self, block: Any, *args: Any) -> Any:
        """`block(*args)`, recomputed in the backward pass where that is wanted (there is no dropout, so the
        random state need not be kept)."""
        if not (self.recompute and torch.is_grad_enabled()):
            return block(*args)
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)

    def prefill(self, ids_BT: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Hidden states, per layer the cache entries [B, T, C + R] of rows that start at position 0, and per
        MoE layer the experts [B, T, K]."""
        rotation = self.rope(torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT))
        x = self.embed_tokens(ids_BT)
        entries, routes = [], []
        for layer in self.blocks():
            x, routed, entry = layer.prefill(x, rotation)
            entries.append(entry)
            if routed is not None:
                routes.append(routed.own_NK.unflatten(0, ids_BT.shape))
        return self.norm(x), entries, routes

    def decode(
        self, ids_B: Tensor, position_B: Tensor, caches: list[Tensor], bias_BS: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden state [B, D] of one new token per row, and per MoE layer its experts [B, K]; its cache
        entries are written at `position_B`."""
        rotation = self.rope(position_B)
        x = self.embed_tokens(ids_B)
        routes = []
        for layer, cache in zip(self.blocks(), caches, strict=True):
            x, index_BK = layer.decode(x, rotation, cache, position_B, bias_BS)
            if index_BK is not None:
                routes.append(index_BK)
        return self.norm(x), routes

    def blocks(self) -> list[Block]:
        """The trunk's layers, the prediction block not among them."""
        return list(self.layers)  # type: ignore[arg-type]

    def trunk_moe_layers(self) -> list[MoE]:
        """Without the prediction block: the L of `route_BTLK`."""
        return [b.mlp for b in self.blocks() if isinstance(b.mlp, MoE)]

    def moe_layers(self) -> list[MoE]:
        """In the order of `Output.routing` with MTP."""
        blocks = [*self.blocks(), *([self.mtp] if self.mtp is not None else [])]
        return [b.mlp for b in blocks if isinstance(b.mlp, MoE)]


@torch.no_grad()
def init_weights(model: Transformer, seed: int, embedding_std: float | None = None) -> None:
    """Normal weights of std `initializer_range` (embedding: `embedding_std` where given), unit norms, zero
    biases.

    The same seed gives the same weights on every device: they are drawn on the CPU in parameter order."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.fill_(1.0 if "norm" in name else 0.0)
            continue
        std = embedding_std if embedding_std is not None and name == "embed_tokens.weight" else None
        std = model.config.initializer_range if std is None else std
        p.copy_(torch.randn(p.shape, generator=generator) * std)
