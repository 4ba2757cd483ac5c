"""GRPO through a recipe's `engines`: Ray actors in step and ahead, killed and resumed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from onebase import jsonl_zst
from onebase.errors import UserError
from onebase.pipeline import run
from onebase.recipe import Engines, Recipe

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def recipe(folder: Path, base: Path, name: str, **stage: Any) -> Recipe:
    odd = folder / "odd.py"
    odd.write_text("def verify(completion, answer, **row): return float(len(completion) % 2)\n")
    rl: dict[str, Any] = {
        "kind": "grpo", "init": str(base), "data": [{"world": "chain", "difficulty": [2, 3]}], "steps": 4,
        "prompts": 4, "group_size": 4, "slots": 8, "max_prompt": 40, "sampling": {"max_tokens": 12},
        "rewards": [{"verifier": f"{odd}:verify"}],
        "optim": {"lr": 1e-3, "warmup": 0},
    }  # fmt: skip
    stages = {"rl": rl | stage}
    return Recipe.model_validate({"name": name, "runs": str(folder), "hardware": "cpu", "stages": stages})


@pytest.fixture(scope="module")
def base(make_config: Any, make_model: Any, tiny_tokenizer: Any, tmp_path_factory: Any) -> Path:
    from onebase.model import checkpoint

    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    checkpoint.save(folder, make_model(make_config(), 51), tiny_tokenizer)
    return folder


def metrics(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / name / "rl" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def rollouts(folder: Path, name: str, step: int) -> list[dict[str, Any]]:
    return list(jsonl_zst.read(folder / name / "rl" / "rollouts" / f"step_{step:06d}.jsonl.zst"))


@needs_ray
@pytest.mark.slow
def test_ray_engines_in_step_are_the_trainers_own_and_ahead_keeps_its_bound(
    tmp_path: Path, base: Path
) -> None:
    """Two actors: in step, the first batch is drawn from the same weights by the same seeds as in place;
    ahead, every rollout says how old it is and none is older than allowed."""
    for name, engines in (
        ("place", {}),
        ("step", {"name": "torch", "replicas": 2}),
        ("ahead", {"name": "torch", "replicas": 2, "staleness": 1}),
    ):
        run(recipe(tmp_path, base, name, engines=engines), quiet=True)
    first = {n: [r["completion_ids"] for r in rollouts(tmp_path, n, 1)] for n in ("place", "step", "ahead")}
    assert first["place"] == first["step"] == first["ahead"]
    for name in ("step", "ahead"):
        for m in metrics(tmp_path, name):
            assert m["sync_gap"] < 1e-5 and m["seconds_wait"] >= 0
    for step in range(1, 5):
        for r in rollouts(tmp_path, "ahead", step):
            assert step - 2 <= r["weight_versions"][0][1] <= r["weight_versions"][-1][1] <= step - 1
        assert all(r["weight_versions"] == [[0, step - 1]] for r in rollouts(tmp_path, "step", step))
    trained = [m for m in metrics(tmp_path, "place") if "dlogp_max" in m]
    assert trained and all(m["dlogp_max"] < 1e-4 and m["router_agreement"] == 1 for m in trained)


def test_settings_that_cannot_be_are_told() -> None:
    with pytest.raises(ValueError, match="set replicas: 1"):
        Engines(staleness=2)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_told_before_the_first_step(tmp_path: Path, base: Path) -> None:
    with pytest.raises(UserError, match=r"vllm is not installed.*name: torch"):
        run(recipe(tmp_path, base, "none", engines={"name": "vllm"}), quiet=True)
