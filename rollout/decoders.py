"""A model with a slot cache, for the rollout engine: prefill rows into slots, decode one token for the first
n slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onebase.kernels.linear_logprob import head_logits
from onebase.model.hf import HFCausalLM, SlotCache
from onebase.model.transformer import Transformer


class RouteLog:
    """The experts of every cached position, [slots, length, L, K], kept like a cache: for routing replay."""

    def __init__(self, model: Transformer, slots: int, length: int) -> None:
        shape = len(model.trunk_moe_layers()), model.config.num_experts_per_tok
        self.slots = torch.zeros(slots, length, *shape, dtype=torch.int16, device=model.head_weight.device)

    def put_rows(self, routes: list[Tensor], row_N: Tensor, slot_N: Tensor) -> None:
        """Of a prefill: per layer [B, T, K]; row_N's go into slot_N."""
        route_BTLK = torch.stack(routes, 2).short()
        self.slots[slot_N, : route_BTLK.shape[1]] = route_BTLK[row_N]

    def put_tokens(self, routes: list[Tensor], position_N: Tensor) -> None:
        """Of a decoding step: per layer [n, K]; of the first n slots at their positions."""
        row_N = torch.arange(len(position_N), device=position_N.device)
        self.slots[row_N, position_N] = torch.stack(routes, 1).short()


class NativeDecoder:
    """Our model over the compressed latent cache: [slots, length, latent + rope] per layer."""

    def __init__(self, model: Transformer, slots: int, length: int, routes: RouteLog | None = None) -> None:
        self.model, self.routes = model, routes
        weight = model.head_weight
        size = model.config.kv_lora_rank + model.config.qk_rope_head_dim
        self.caches = [
            torch.zeros(slots, length, size, dtype=weight.dtype, device=weight.device) for _ in model.layers
        ]
        self.place = torch.arange(length, device=weight.device)

    def begin(self) -> None:
        """Nothing is kept between calls: the model's weights are used as they are."""

    def prefill(self, ids_BT: Tensor, length_B: Tensor, row_N: Tensor, slot_N: Tensor) -> Tensor:
        """Run the right-padded prompts; row_N's entries go into slot_N.  Logits [B, V] of each last token."""
        hidden, entries, routes = self.model.prefill(ids_BT)
        if self.routes is not None:
            self.routes.put_rows(routes, row_N, slot_N)
        for cache, entry in zip(self.caches, entries, strict=True):
            cache[slot_N, : entry.shape[1]] = entry[row_N]
        last = hidden[torch.arange(len(hidden), device=hidden.device), length_B - 1]
        return head_logits(last, self.model.head_weight)

    def decode(self, ids_N: Tensor, position_N: Tensor, n: int, length: int) -> Tensor:
        """Hidden state [n, D]; entries go to `position_N`.  Rows look at positions up to their own, below
        `length`."""
        closed = self.place[:length] > position_N[:, None]
        bias = torch.zeros(closed.shape, device=closed.device).masked_fill_(closed, float("-inf"))
        hidden, routes = self.model.decode(ids_N, position_N, [c[:n, :length] for c in self.caches], bias)
        if self.routes is not None:
            self.routes.put_tokens(routes, position_N)
        return head_logits(hidden, self.model.head_weight)

    def move(self, source: Tensor, target: Tensor) -> None:
        for cache in self.caches:
            cache[target] = cache[source]
        if self.routes is not None:
            self.routes.slots[target] = self.routes.slots[source]


class HFDecoder:
    """A transformers model over `SlotCache`."""

    def __init__(self, model: HFCausalLM, slots: int, length: int) -> None:
        self.model, self.slots, self.length = model, slots, length
        self.cache = SlotCache(slots, length)
        self.place = torch.arange(length, device=model.head_weight.device)

    def begin(self) -> None:
        """Nothing is kept between calls: the model's weights are used as they are."""

    def _run(self, ids: Tensor, position: Tensor, mask: Tensor) -> Any:
        return self.model.trunk(
            input_ids=ids,
            position_ids=position,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def prefill(self, ids_BT: Tensor, length_B: Tensor, row_N: Tensor, slot_N: Tensor) -> Tensor:
        B, T = ids_BT.shape
        self.cache.position_B, self.cache.rows, self.cache.seen = None, B, T
        position = self.place[:T].expand(B, T)
        mask = (position[:, None, :, None] >= position[:, None, None, :]).expand(B, 1, T, T)
        hidden = self._run(ids_BT, position, mask)
        self.cache.store(row_N, slot_N)
        last = hidden[torch.arange(B, device=hidden.device), length_B - 1]
        return head_logits(last, self.model.head_weight)

    def decode(self, ids_N: Tensor, position_N: Tensor, n: int, length: int) -> Tensor:
        self.cache.position_B, self.cache.rows, self.cache.seen = position_N, n, length
        mask = (self.place[:length] <= position_N[:, None])[:, None, None, :]
        hidden = self._run(ids_N[:, None], position_N[:, None], mask)[:, 0]
        return head_logits(hidden, self.model.head_weight)

    def move(self, source: Tensor, target: Tensor) -> None:
        self.cache.move(source, target)
