"""What a stage that ran out of memory is told: settings that fit by the plan's own estimate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from onebase import fit, pipeline
from onebase.errors import UserError
from onebase.recipe import Recipe

BASE = {
    "kind": "pretrain",
    "data": [{"world": "addition"}],
    "steps": 10,
    "batch": {"rows": 64, "length": 2048},
}
SUMS = {
    "kind": "grpo",
    "init": "base",
    "data": [{"world": "addition"}],
    "steps": 10,
    "rewards": [{"verifier": "worlds"}],
}


@pytest.fixture
def recipe() -> Recipe:
    model = {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 4096}
    vocab = {"vocab_size": 4096}
    stages = {"base": BASE, "zero": SUMS}
    return Recipe.model_validate({"name": "r", "model": model, "tokenizer": vocab, "stages": stages})


def settings(text: str) -> dict[str, Any]:
    return {k: int(v) for k, v in re.findall(r"--set stages\.\w+\.([\w.]+)=(\d+)", text)}


@pytest.mark.parametrize("name", ["base", "zero"])
def test_the_first_that_fits_is_proposed(recipe: Recipe, name: str) -> None:
    tried = fit.estimate(recipe, name, {})
    least = min(fit.estimate(recipe, name, changes) for _, changes in fit.alternatives(recipe, name))
    have = int((tried * 0.4 + least * 0.6) / fit.SHARE)
    changes = settings(fit.advice(recipe, name, have))
    assert changes, fit.advice(recipe, name, have)
    assert fit.estimate(recipe, name, changes) <= fit.SHARE * have < tried
    before = []
    for _, other in fit.alternatives(recipe, name):
        if other == changes:
            break
        before.append(fit.estimate(recipe, name, other))
    assert all(needed > fit.SHARE * have for needed in before)


def test_an_estimate_that_is_too_low_is_scaled(recipe: Recipe) -> None:
    """What failed needs more than there is, whatever the estimate says."""
    tried = fit.estimate(recipe, "base", {})
    text = fit.advice(recipe, "base", 3 * tried)
    assert "too low, and is taken times 3" in text
    assert settings(text)["batch.accumulate"] >= 2 and "the same result" in text


def test_rows_come_before_the_length_and_the_length_changes_the_result(recipe: Recipe) -> None:
    one_row = fit.estimate(recipe, "base", {"batch.accumulate": 64})
    text = fit.advice(recipe, "base", int(one_row / fit.SHARE) - 10_000_000)
    assert "batch.recompute=true" in text and "the same result" in text
    one_row = fit.estimate(recipe, "base", {"batch.accumulate": 64, "batch.recompute": True})
    text = fit.advice(recipe, "base", int(one_row / fit.SHARE) - 10_000_000)
    assert "another result" in text and settings(text)["batch.length"] < 2048
    assert "no smaller batch fits" in fit.advice(recipe, "base", 1000)


def test_the_error_of_a_gpu_is_told_so(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(fit, "capacity", lambda device: 1_500_000_000)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    told = pipeline._told(error, recipe, "base", Path("."))
    assert isinstance(told, UserError)
    for word in ("stage base: out of memory: CUDA", "fits with the same result", "batch.accumulate="):
        assert word in str(told), told
