"""Generation ahead of the trainer: the same rollouts as in step, a bound on staleness, nothing lost."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from onebase import worlds
from onebase.recipe import Sampling, Term
from onebase.rollout.ahead import Ahead
from onebase.rollout.groups import ScoredRollout, sample_groups
from onebase.rollout.torch_engine import TorchEngine
from onebase.rollout.weight_sync import WeightSync

P, G, STEPS = 3, 4, 6
SAMPLING = Sampling(max_tokens=24)
TERMS = [Term(verifier="worlds")]


def rows_of(step: int) -> list[dict[str, Any]]:
    stream = worlds.stream("addition", split="train", seed=step)
    return [
        {"problem": p.prompt, "answer": p.answer, "family": "addition"}
        for p, _ in zip(stream, range(P), strict=False)
    ]


@pytest.fixture
def model(make_config: Any, make_model: Any) -> Any:
    return make_model(make_config(), 31).eval()


def ahead(model: Any, tokenizer: Any, staleness: int, engine: Any = None) -> Ahead:
    engine = engine or TorchEngine(copy.deepcopy(model), tokenizer.pad_id, slots=5, max_length=96)
    sync = WeightSync(model, engine)
    return Ahead(engine, sync, tokenizer, rows_of, G, SAMPLING, TERMS, 7, STEPS, staleness)


def drawn(rollouts: list[ScoredRollout]) -> list[tuple[int, list[int], int]]:
    return [(r.prompt, r.rollout.completion_ids, r.rollout.seed) for r in rollouts]


def in_step(model: Any, tokenizer: Any, step: int) -> list[ScoredRollout]:
    engine = TorchEngine(model, tokenizer.pad_id, slots=5, max_length=96)
    return sample_groups(engine, tokenizer, rows_of(step), G, SAMPLING, TERMS, 7, step)[0]


def train(model: Any, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.02 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("staleness", [0, 2])
def test_with_weights_that_rest_it_is_the_synchronous_run(
    staleness: int, model: Any, tiny_tokenizer: Any
) -> None:
    """Request by request, whole and in order; so the lengths are distributed alike, too."""
    source = ahead(model, tiny_tokenizer, staleness)
    try:
        for step in range(STEPS):
            got, metrics = source.of_step(step)
            assert drawn(got) == drawn(in_step(model, tiny_tokenizer, step))
            assert all(r.scored.judged for r in got) and metrics["sync_gap"] < 1e-5
            assert metrics["steps_ahead"] == min(staleness, STEPS - 1 - step)
    finally:
        source.close()
    assert not source.engine.busy and not any(t.is_alive() for t in source.threads)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_staleness_is_bounded_and_told(staleness: int, model: Any, tiny_tokenizer: Any) -> None:
    source = ahead(model, tiny_tokenizer, staleness)
    seen: set[int] = set()
    try:
        for step in range(STEPS):
            got, _ = source.of_step(step)
            assert len(got) == P * G
            for r in got:
                versions = [v for _, v in r.rollout.versions]
                assert (
                    versions == sorted(versions) and step - staleness <= versions[0] <= versions[-1] <= step
                )
                seen.add(step - versions[0])
            train(model, step)
    finally:
        source.close()
    assert (seen == {0}) if staleness == 0 else (max(seen) >= 1)


class Counting(TorchEngine):
    asked = 0

    def add(self, requests: Any) -> None:
        self.asked += len(requests)
        super().add(requests)


def test_a_resume_takes_up_what_had_landed(model: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    """Through torch.save as in a state; the buffered requests are not drawn again, all others are."""
    source = ahead(model, tiny_tokenizer, 2)
    source.of_step(0)
    source.of_step(1)
    while not all(len(source.landed[s]) == P * G for s in (2, 3)):
        with source.changed:
            source.changed.wait(0.1)
    buffer = source.buffer()
    source.close()
    del buffer[3][5]
    buffer[2][4]["seed"] += 1  # of another recipe: not to be taken
    torch.save({"buffer": buffer}, tmp_path / "state.pt")
    engine = Counting(copy.deepcopy(model), tiny_tokenizer.pad_id, slots=5, max_length=96)
    later = ahead(model, tiny_tokenizer, 2, engine)
    later.restore(torch.load(tmp_path / "state.pt", weights_only=True)["buffer"])
    try:
        for step in range(2, STEPS):
            assert drawn(later.of_step(step)[0]) == drawn(in_step(model, tiny_tokenizer, step))
        assert engine.asked == 1 + 1 + 2 * P * G
    finally:
        later.close()


def test_an_engines_error_reaches_the_trainer(model: Any, tiny_tokenizer: Any) -> None:
    class Broken(TorchEngine):
        def step(self) -> Any:
            raise RuntimeError("the engine caught fire")

    engine = Broken(copy.deepcopy(model), tiny_tokenizer.pad_id, slots=5, max_length=96)
    source = ahead(model, tiny_tokenizer, 1, engine)
    try:
        with pytest.raises(RuntimeError, match="caught fire"):
            source.of_step(0)
    finally:
        source.close()
