"""Dynamic sampling: groups without signal are replaced, counted and kept in the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onebase.grpo.train import FAR, PromptsThatFit, refill, select
from onebase.recipe import Grpo
from onebase.rollout.groups import sample_groups
from onebase.rollout.torch_engine import TorchEngine


class Counted:
    """Problems by their place, which is asked for and remembered."""

    def __init__(self) -> None:
        self.places: list[int] = []

    def item(self, place: int) -> dict[str, Any]:
        self.places.append(place)
        return {"problem": f"{place % 97}", "answer": str(place)}


def stage_of(folder: Path, code: str, **more: Any) -> Grpo:
    path = folder / "reward.py"
    path.write_text(code)
    rewards = [{"verifier": f"{path}:verify"}]
    fields = {"kind": "grpo", "data": [{"world": "chain"}], "steps": 3, "prompts": 4, "group_size": 4}
    return Grpo.model_validate(fields | {"rewards": rewards, "sampling": {"max_tokens": 6}} | more)


def draw(stage: Grpo, model: Any, tokenizer: Any, step: int = 1) -> tuple[Any, Any, Counted]:
    engine = TorchEngine(model, tokenizer.pad_id, slots=16, max_length=64)
    counted = Counted()
    problems = PromptsThatFit(counted, tokenizer, stage.sampling, 40, stage.prompts)  # type: ignore[arg-type]
    rows = problems.of_step(step)
    groups = (stage.group_size, stage.sampling, stage.rewards, 0, step)
    first, _ = sample_groups(engine, tokenizer, rows, *groups)
    return first, refill(first, stage, step, problems, engine, tokenizer, 0), counted


EVEN = "def verify(completion, answer, **row): return float(int(answer) % 2 and len(completion) % 2)\n"


def test_dead_groups_are_replaced_by_other_prompts(
    tmp_path: Path, make_config: Any, make_model: Any, tiny_tokenizer: Any
) -> None:
    """Prompts with an even answer never carry signal: half the groups are dead at first."""
    model = make_model(make_config(), 41)
    stage = stage_of(tmp_path, EVEN, refill=6)
    first, more, counted = draw(stage, model, tiny_tokenizer)
    whole = [*first, *more]
    samples, fate, signal = select(whole, stage, 1)
    live = {r.prompt for r, why in zip(whole, fate, strict=True) if why == "trained"}
    assert len(live) >= stage.prompts > len({r.prompt for r in first} & live)
    assert [r.prompt for r in whole] == sorted(r.prompt for r in whole)
    assert len(whole) == 4 * (max(r.prompt for r in whole) + 1) == len({r.rollout.seed for r in whole})
    assert {why for why in fate} == {"trained", "group without signal"}
    assert signal["live_groups"] == len(live) / (max(r.prompt for r in whole) + 1)
    assert {s.prompt for s in samples} == live
    assert counted.places[:4] == [4, 5, 6, 7] and all(p >= FAR for p in counted.places[4:])
    assert len(set(counted.places)) == len(counted.places)
    again, more_again, _ = draw(stage, model, tiny_tokenizer)
    assert [r.rollout.completion_ids for r in more_again] == [r.rollout.completion_ids for r in more]


@pytest.mark.parametrize(("turns", "groups"), [(0, 0), (1, 4), (3, 12)])
def test_it_ends_where_no_prompt_carries_signal(
    turns: int, groups: int, tmp_path: Path, make_config: Any, make_model: Any, tiny_tokenizer: Any
) -> None:
    stage = stage_of(tmp_path, "def verify(completion, answer, **row): return 0.0\n", refill=turns)
    _, more, _ = draw(stage, make_model(make_config(), 41), tiny_tokenizer)
    assert len(more) == groups * stage.group_size
