"""Any Hugging Face causal LM behind the interface that our trainers and the rollout engine use.

Only what they need: final hidden states, the head's weight, and a key-value cache with one position per row
(below). The attention mask is always given whole, [B, 1, T, S]; transformers passes a four-dimensional mask
through unchanged.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from onebase.errors import UserError
from onebase.model.transformer import Output, attention_mask

ATTENTION = "onebase_grouped"


class SlotCache:
    """Keys and values of fixed slots, each at its own position: what `past_key_values.update` must offer, no
    more.

    Buffers are [slots, heads, length, dim] per layer, made at the first write.  Before a forward the caller
    sets `position_B` (where each of the first `rows` slots writes its one new entry; None keeps the row
    itself in `fresh`, which `store` then puts into slots) and `seen`, the number of positions that attention
    reads."""

    is_compileable = False

    def __init__(self, slots: int, length: int) -> None:
        self.slots, self.length = slots, length
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.fresh: dict[int, tuple[Tensor, Tensor]] = {}
        self.position_B: Tensor | None = None
        self.rows, self.seen = slots, length

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.position_B is None:
            self.fresh[layer] = (k, v)
            return k, v
        out = []
        for buffer, new in zip(self.buffers[layer], (k, v), strict=True):
            index = self.position_B.view(-1, 1, 1, 1).expand(-1, new.shape[1], 1, new.shape[3])
            buffer[: self.rows].scatter_(2, index, new)
            out.append(buffer[: self.rows, :, : self.seen])
        return out[0], out[1]

    def store(self, row_N: Tensor, slot_N: Tensor) -> None:
        """Put the prefilled entries of rows `row_N` into slots `slot_N`."""
        for layer, pair in self.fresh.items():
            if layer not in self.buffers:
                k, v = (t.new_zeros(self.slots, t.shape[1], self.length, t.shape[3]) for t in pair)
                self.buffers[layer] = (k, v)
            for buffer, new in zip(self.buffers[layer], pair, strict=True):
                buffer[slot_N, :, : new.shape[2]] = new[row_N]
        self.fresh.clear()

    def move(self, source: Tensor, target: Tensor) -> None:
        for pair in self.buffers.values():
            for buffer in pair:
                buffer[target] = buffer[source]

    def get_seq_length(self, *_: Any) -> int:
        return 0

    def get_mask_sizes(self, query_length: Any, *_: Any) -> tuple[int, int]:
        return self.seen, 0


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, but one new token per row is attended without repeating keys and values
    for every query head of a group: their copies would be most of a decoding step's memory traffic.

    query [B, H, T, K], key and value [B, H / group, S, K]; out [B, T, H, K]."""
    if query.shape[2] != 1 or attention_mask is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    B, H, _, K = query.shape
    grouped = query.view(B, key.shape[1], -1, K)
    score = (grouped @ key.mT).float() * (K**-0.5 if scaling is None else scaling)
    score = (
        score.masked_fill(~attention_mask, -torch.inf)
        if attention_mask.dtype == torch.bool
        else (score + attention_mask)
    )
    return (score.softmax(-1).to(value.dtype) @ value).view(B, 1, H, -1), None


class HFCausalLM(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.mtp = None
        self._recompute = False
        config = model.config.get_text_config()
        for field in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(config, field, None) not in (None, 1, 1.0):
                raise UserError(f"{config.model_type}: {field} is set; only plain linear heads are supported")
        if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
            raise UserError(f"{config.model_type}: sliding-window attention is not supported as `init` yet")

    @classmethod
    def from_pretrained(cls, origin: str, device: str, dtype: torch.dtype) -> HFCausalLM:
        from safetensors import SafetensorError
        from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(ATTENTION, grouped_attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                origin, dtype=dtype, attn_implementation=ATTENTION, output_loading_info=True
            )
            model, info = loaded
        except (OSError, ValueError, RuntimeError, SafetensorError) as e:
            first = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise UserError(f"{origin}: transformers cannot load it as a causal LM: {first}") from e
        missing = sorted(info["missing_keys"])
        if missing:  # transformers would fill them with random numbers and only warn
            raise UserError(f"{origin}: {len(missing)} weights are missing, first {missing[0]}")
        return cls(model).to(device)

    @property
    def recompute(self) -> bool:
        """As `Transformer.recompute`."""
        return self._recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        if value == self._recompute:
            return
        with warnings.catch_warnings():
            # renamed in transformers 5.24 or before; the old names are there until 6
            warnings.simplefilter("ignore", FutureWarning)
            try:
                if value:
                    self.model.gradient_checkpointing_enable({"use_reentrant": False})
                else:
                    self.model.gradient_checkpointing_disable()
            except ValueError as e:
                kind = self.model.config.model_type
                raise UserError(
                    f"{kind}: transformers cannot recompute it; set batch.recompute: false"
                ) from e
        self._recompute = value

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
