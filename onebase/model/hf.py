"""Any Hugging Face causal LM behind the interface that our trainers and the rollout engine use.

Only what they need: final hidden states, the head's weight, and a key-value cache with one position per row
(below). The attention mask is always given whole, [B, 1, T, S]; transformers passes a four-dimensional mask
through unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onebase.errors import UserError
from onebase.model.transformer import Output, attention_mask


class SlotCache:
    """Keys and values of fixed slots, each at its own position: what `past_key_values.update` must offer,
    no more.

    Buffers are [slots, heads, length, dim] per layer, made at the first write.  `position_B` is set before
    each forward: None appends nothing and returns the row itself (prefill, the entries are kept in
    `fresh`)."""

    is_compileable = False

    def __init__(self, slots: int, length: int) -> None:
        self.slots, self.length = slots, length
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.position_B: Tensor | None = None
        self.fresh: dict[int, tuple[Tensor, Tensor]] = {}
        self.seen = length

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.position_B is None:
            self.fresh[layer] = (k, v)
            return k, v
        for store, new in ((self.keys, k), (self.values, v)):
            index = self.position_B.view(-1, 1, 1, 1).expand(-1, new.shape[1], 1, new.shape[3])
            store[layer].scatter_(2, index, new)
        return self.keys[layer][:, :, : self.seen], self.values[layer][:, :, : self.seen]

    def store(self, slots_B: Tensor, layer: int, rows: int) -> None:
        """Move the prefilled entries of the first `rows` rows into `slots_B`."""
        for buffers, new in zip((self.keys, self.values), self.fresh.pop(layer), strict=True):
            if layer not in buffers:
                buffers[layer] = new.new_zeros(self.slots, new.shape[1], self.length, new.shape[3])
            buffers[layer][slots_B, :, : new.shape[2]] = new[:rows]

    def get_seq_length(self, *_: Any) -> int:
        return 0

    def get_mask_sizes(self, query_length: Any, *_: Any) -> tuple[int, int]:
        return self.seen, 0


class HFCausalLM(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.mtp = None
        config = model.config.get_text_config()
        for field in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(config, field, None) not in (None, 1, 1.0):
                raise UserError(f"{config.model_type}: {field} is set; only plain linear heads are supported")
        if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
            raise UserError(f"{config.model_type}: sliding-window attention is not supported as `init` yet")

    @classmethod
    def from_pretrained(cls, origin: str, device: str, dtype: torch.dtype) -> HFCausalLM:
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(origin, dtype=dtype, attn_implementation="sdpa")
        except (OSError, ValueError, RuntimeError) as e:
            first = str(e).strip().splitlines()[0]
            raise UserError(f"{origin}: transformers cannot load it as a causal LM: {first}") from e
        return cls(model).to(device)

    @property
    def head_weight(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    @property
    def trunk(self) -> nn.Module:
        return self.model.get_decoder()

    def forward(
        self,
        ids_BT: Tensor,
        position_BT: Tensor | None = None,
        document_BT: Tensor | None = None,
        real_BT: Tensor | None = None,
        with_mtp: bool = False,
    ) -> Output:
        """As `Transformer.forward`; there is no routing and no multi-token prediction."""
        if position_BT is None:
            position_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        mask = None if document_BT is None else attention_mask(document_BT)
        out = self.trunk(input_ids=ids_BT, position_ids=position_BT, attention_mask=mask, use_cache=False)
        return Output(out.last_hidden_state, None, [])

    def moe_layers(self) -> list[Any]:
        return []
