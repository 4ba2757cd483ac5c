"""Weight sync to an engine with a copy of the model: what arrives, what is caught, what is named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.model import checkpoint
from onebase.rollout.engine import Request
from onebase.rollout.named_weights import named_weights
from onebase.rollout.torch_engine import TorchEngine
from onebase.rollout.weight_sync import SyncError, WeightSync, probe_batch


class CopyEngine(TorchEngine):
    """The in-process engine over its own copy of the model; `fault` changes what arrives."""

    def __init__(self, model: Any) -> None:
        super().__init__(copy.deepcopy(model), 2, slots=8, max_length=64)
        self.fault: Callable[[dict[str, Tensor]], None] | None = None
        self.stale: list[list[list[float]]] | None = None
        self.cached = False

    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        given = {n: t.detach().clone() for n, t in tensors}
        if self.fault is not None:
            self.fault(given)
            self.fault = None
        super().load_weights(version, given.items())

    def logprobs(self, ids: Any) -> list[list[list[float]]]:
        if not self.cached or self.stale is None:
            self.stale = super().logprobs(ids)
        return self.stale

    def reset_cache(self) -> None:
        self.stale = None


@pytest.fixture
def pair(make_config: Any, make_model: Any) -> tuple[Any, CopyEngine, WeightSync]:
    model = make_model(make_config(), 11)
    engine = CopyEngine(model)
    return model, engine, WeightSync(model, engine)


def train(model: Any, seed: int) -> None:
    """Something like an optimizer step on every weight and bias."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.05 * torch.randn(p.shape, generator=generator))
        for moe in model.moe_layers():
            moe.gate.e_score_correction_bias.add_(torch.randn(8, generator=generator))


def test_a_sound_sync_is_proven(pair: Any) -> None:
    model, engine, sync = pair
    assert sync.first_gap < 1e-6
    for version in (1, 2, 3):
        train(model, version)
        assert sync.gap() > 1e-2  # the probe sees that the weights are old
        metrics = sync.push(version)
        assert metrics["sync_gap"] < 1e-6 and engine.version == version
    request = [Request([5, 6, 7], seed=1, max_tokens=9)]
    own = TorchEngine(model, 2, 8, 64).generate(request)[0]
    assert engine.generate(request)[0].completion_ids == own.completion_ids


def drop(part: str) -> Callable[[dict[str, Tensor]], None]:
    def fault(tensors: dict[str, Tensor]) -> None:
        del tensors[next(n for n in tensors if part in n)]

    return fault


def swap_experts(tensors: dict[str, Tensor]) -> None:
    a, b = (f"model.layers.1.mlp.experts.{e}.down_proj.weight" for e in (2, 5))
    tensors[a], tensors[b] = tensors[b], tensors[a]


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (drop("layers.2.self_attn.kv_b_proj"), "model.layers.2 "),
        (drop("layers.1.mlp.gate.e_score_correction_bias"), "model.layers.1 "),
        (drop("layers.0.input_layernorm"), "model.layers.0 "),
        (drop("lm_head"), "lm_head.weight "),
        (drop("embed_tokens"), "model.embed_tokens.weight "),
        (swap_experts, "model.layers.1 "),
    ],
    ids=["kv_b_proj", "router bias", "norm", "head", "embedding", "swapped experts"],
)
def test_a_planted_fault_stops_the_run_with_its_layer(fault: Any, named: str, pair: Any) -> None:
    model, engine, sync = pair
    train(model, 1)
    engine.fault = fault
    with pytest.raises(SyncError, match=r"does not hold the trainer's weights.*" + named):
        sync.push(1)


def test_a_cache_that_was_not_reset_is_named(pair: Any) -> None:
    model, engine, sync = pair
    train(model, 1)
    engine.cached = True
    with pytest.raises(SyncError, match="prompt cache"):
        sync.push(1)


def test_an_old_version_is_named(pair: Any) -> None:
    model, engine, sync = pair
    real = engine.load_weights
    engine.load_weights = lambda version, tensors: real(version - 1, tensors)
    with pytest.raises(SyncError, match="reports version 4, 5 was sent"):
        sync.push(5)


def test_two_layers_at_once_and_a_nan(pair: Any) -> None:
    model, engine, sync = pair
    train(model, 1)

    def two(tensors: dict[str, Tensor]) -> None:
        drop("layers.0.mlp.down_proj")(tensors)
        drop("layers.2.self_attn.o_proj")(tensors)

    engine.fault = two
    with pytest.raises(SyncError, match=r"model\.layers\.[02] differed"):
        sync.push(1)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(SyncError, match="nan"):
        sync.push(2)


def test_a_warning_goes_on(pair: Any, capsys: Any) -> None:
    model, engine, _ = pair
    sync = WeightSync(model, engine, warn=True)
    train(model, 1)
    engine.fault = swap_experts
    sync.push(1)
    assert "warning: the engine does not hold" in capsys.readouterr().out


def test_engines_that_never_agreed_are_told_at_the_start(make_config: Any, make_model: Any) -> None:
    engine = CopyEngine(make_model(make_config(), 12))
    with pytest.raises(SyncError, match="before any update"):
        WeightSync(make_model(make_config(), 13), engine)


def test_every_weight_of_the_checkpoint_is_sent(make_config: Any, make_model: Any) -> None:
    """But for the prediction block's; and the probe reaches every expert."""
    model = make_model(make_config(), 1).eval()
    sent = {n for n, _ in named_weights(model)}
    whole = {n for n, _ in checkpoint.to_format(model)}
    assert sent == {n for n in whole if not n.startswith("model.layers.3.")}
    with torch.no_grad():
        routing = model(torch.tensor(probe_batch(model))).routing
    neutral = [r.load_E for r in routing]
    assert all(int((load > 0).sum()) >= 4 for load in neutral)  # strong random biases close some experts
