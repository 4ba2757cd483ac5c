"""Recomputation in the backward pass: the same loss and gradient bit for bit on a CPU, from fewer kept
numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.data import Batch
from onebase.model import checkpoint
from onebase.model.hf import HFCausalLM
from onebase.train.step import forward_backward


def gradient(model: Any, recompute: bool) -> tuple[float, dict[str, Tensor], int]:
    """(loss, gradients, numbers kept for the backward pass)."""
    model.recompute = recompute
    model.train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 280, (2, 32), generator=generator)
    place = torch.arange(32).expand(2, -1).clone()
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), place, torch.zeros_like(ids))
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        sums = forward_backward(model, batch, 1, document_mask=True, balance_alpha=1e-2, mtp_weight=0.3)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for p in model.parameters():
        p.grad = None
    return float(sums.loss), grads, sum(kept.values())


def test_our_model(make_config: Any, make_model: Any) -> None:
    model = make_model(make_config(num_nextn_predict_layers=1))
    plain, again = gradient(model, False), gradient(model, True)
    assert plain[0] == again[0] and plain[1].keys() == again[1].keys()
    assert all(plain[1][name].equal(again[1][name]) for name in plain[1])


def test_a_hugging_face_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=288, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = HFCausalLM.from_pretrained(str(tmp_path), "cpu", checkpoint.DTYPES["float32"])
    plain, again = gradient(model, False), gradient(model, True)
    assert not gradient(model, False)[2] > plain[2] and model.recompute is False
    assert plain[0] == again[0]
    assert all(plain[1][name].equal(again[1][name]) for name in plain[1])


def test_less_is_kept_for_the_backward_pass(make_config: Any, make_model: Any) -> None:
    """Of the forward pass alone: what the graph holds when it is over."""
    model = make_model(make_config(num_hidden_layers=6))
    model.train()
    ids = torch.randint(0, 280, (2, 64))
    held = []
    for recompute in (False, True):
        model.recompute = recompute
        kept: dict[int, int] = {}

        def keep(t: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = model(ids)
        held.append((sum(kept.values()), out))
    assert held[1][0] < 0.5 * held[0][0]
