"""N processes train as one does: every division, gloo on a CPU, 50 steps; planted mistakes are seen; states
go from any number of processes to any other; a process that dies ends the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.recipe import Parallel
from onebase.train.context import pieces
from onebase.train.parallel import Layout
from onebase.train.whole_matrices import owners, run_of

# name: (optimizer, division, anything else)
MODES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "data": ("adamw", {}, {"accumulate": 2}),
    "fsdp": ("muon", {"mode": "fsdp"}, {}),
    "expert": ("muon", {"expert": 2}, {}),
    "expert_fsdp": ("adamw", {"expert": 2, "mode": "fsdp"}, {"recompute": True}),
    "context": ("adamw", {"context": 2}, {}),
}
FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "own targets": ("adamw", {}),
    "own loads": ("adamw", {"expert": 2}),
    "experts as copies": ("adamw", {"expert": 2}),
    "rows as matrices": ("muon", {"mode": "fsdp"}),
}
STEPS, FEW = 50, 6


def on(processes: int, optim: str, division: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"optim": optim, "parallel": {"processes": processes, **division}, **more}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that needs processes, run once."""
    folder = tmp_path_factory.mktemp("parallel")
    one = [{"optim": o, "steps": STEPS} for o in ("adamw", "muon")]
    one += [{"optim": "muon", "steps": FEW, "heldout": True, "export": str(folder / "one.pt")}]
    two = [on(2, o, d, steps=STEPS, **more) for o, d, more in MODES.values()]
    two += [on(2, o, d, steps=FEW, fault=f) for f, (o, d) in FAULTS.items()]
    state = {"folder": str(folder / "state"), "optim": "muon"}
    back = {"there and back": True, "folder": str(folder / "back")}
    returned = on(2, "adamw", {"mode": "fsdp"}, steps=3, **back)
    begun = on(2, "muon", {"expert": 2, "mode": "fsdp"}, steps=4, save=[1, 2], folder=state["folder"])
    both = {"expert": 2, "mode": "fsdp"}
    export = {"heldout": True, "export": str(folder / "four.pt")}
    jobs = [
        [1, "trained", one],
        [2, "trained", [*two, returned, begun]],
        [2, "matrices_equal", 1],
        [1, "trained", [state | {"steps": 4, "save": [3]}]],
        [4, "trained", [on(4, "muon", both, steps=FEW, **export, folder=state["folder"]),
                        on(4, "adamw", {"context": 2, "expert": 4}, steps=FEW)]],
        *([1, "faults", which] for which in ("killed", "user", "bug")),
    ]  # fmt: skip
    (folder / "jobs.json").write_text(json.dumps(jobs))
    root = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, root / "parallel_ranks.py", folder / "jobs.json", folder / "out.json"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root.parent)}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    print(done.stderr)
    one_, two_, matrices, alone, four, *told = json.loads((folder / "out.json").read_text())
    return {
        "adamw": one_[0], "muon": one_[1], "muon_few": one_[2], "modes": dict(zip(MODES, two_, strict=False)),
        "faults": dict(zip(FAULTS, two_[len(MODES) :], strict=False)), "begun": two_[-1],
        "matrices": matrices, "returned": two_[-2],
        "alone": alone[0], "four": four[0], "four_context": four[1], "told": told, "folder": folder,
    }  # fmt: skip


def apart(a: list[list[float]], b: list[list[float]], column: int = 0) -> float:
    return max(abs(x[column] - y[column]) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_as_one(mode: str, ran: dict[str, Any]) -> None:
    one, two = ran[MODES[mode][0]], ran["modes"][mode]
    assert len(two) == STEPS and one[-1][0] < one[0][0] - 1, "the model learns"
    for column, what in enumerate(("loss", "MTP loss", "balance loss", "gradient norm")):
        assert apart(one, two, column) < 1e-4, what


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_mistake_is_seen(fault: str, ran: dict[str, Any]) -> None:
    """By the very comparison of the test above, and in a few steps."""
    one, two = ran[FAULTS[fault][0]][:FEW], ran["faults"][fault]
    assert max(apart(one, two, column) for column in range(4)) > 1e-3


@pytest.mark.slow
def test_four_processes_divide_rows_tokens_and_experts_at_once(ran: dict[str, Any]) -> None:
    assert max(apart(ran["adamw"][:FEW], ran["four_context"], column) for column in range(4)) < 1e-4


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(ran: dict[str, Any]) -> None:
    """Two save after 1 and 2 steps while they train on; one goes on after 2, saves after 3; four go on."""
    whole, held = ran["muon_few"][:-1], ran["muon_few"][-1]
    assert apart(whole[:4], ran["begun"]) < 1e-4
    assert len(ran["alone"]) == 2 and apart(whole[2:4], ran["alone"]) < 1e-4
    *four, four_held = ran["four"]
    assert len(four) == 3 and max(apart(whole[3:], four, column) for column in range(4)) < 1e-4
    assert four_held == pytest.approx(held, abs=1e-4)
    left = [p.name for p in (ran["folder"] / "state").iterdir()]
    assert left == ["step_00000003"], "older states are removed"


@pytest.mark.slow
def test_a_return_to_the_state_before_the_first_step_trains_the_same_again(ran: dict[str, Any]) -> None:
    assert max(apart(ran["adamw"][:3], ran["returned"], column) for column in range(4)) < 1e-4


@pytest.mark.slow
def test_the_export_of_four_is_that_of_one(ran: dict[str, Any]) -> None:
    one, four = (torch.load(ran["folder"] / f"{n}.pt") for n in ("one", "four"))
    assert list(one) == list(four)
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_muons_updates_of_divided_matrices_are_those_of_whole_ones(ran: dict[str, Any]) -> None:
    assert ran["matrices"] is True


@pytest.mark.slow
def test_a_process_that_goes_wrong_ends_all_with_its_own_error(ran: dict[str, Any]) -> None:
    """Not with the other's, whose collective broke, and at once."""
    seconds, texts = zip(*(t.split(" ", 1) for t in ran["told"]), strict=True)
    assert "process 1 of 2 ended without a word (killed by SIGKILL" in texts[0] and "UserError" in texts[0]
    assert texts[1] == "UserError: rows.jsonl:3: not JSON"
    assert texts[2] == "KeyError: 'bug'"
    assert all(int(s) < 60 for s in seconds), "a collective's own limit is ten minutes"


# -- arithmetic


@pytest.mark.parametrize("division", [(1, 1, 1), (4, 2, 1), (4, 4, 2), (8, 2, 4), (6, 3, 3)])
def test_every_row_and_expert_has_one_home(division: tuple[int, int, int]) -> None:
    processes, expert, context = division
    all_of_them = [Layout(processes, expert, context, rank) for rank in range(processes)]
    rows = sorted(r for place in all_of_them for r in place.rows(24))
    assert rows == sorted(list(range(24)) * context), "once per group that shares rows"
    for place in all_of_them:
        same = [p for p in all_of_them if p.row_group == place.row_group]
        assert len(same) == context and all(p.rows(24) == place.rows(24) for p in same)
    experts = [e for place in all_of_them[:expert] for e in range(24)[place.experts(24)]]
    assert experts == list(range(24))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_pieces_of_a_row_are_the_row_with_equal_work(size: int) -> None:
    own = [pieces(24 * size, size, rank) for rank in range(size)]
    assert sorted(torch.cat(own).tolist()) == list(range(24 * size))
    assert len({int((p + 1).sum()) for p in own}) == 1, "positions looked at under a causal mask"


def test_matrices_find_owners_with_equal_work() -> None:
    assert owners([9, 1, 4, 4], 2) == [0, 1, 1, 1]
    assert [run_of(7, 3, r) for r in range(3)] == [3, 3, 1]
    assert [run_of(1, 3, r) for r in range(3)] == [1, 0, 0]


def test_divisions_that_do_not_divide_are_refused() -> None:
    for wrong in ({"processes": 4, "expert": 3}, {"processes": 2, "context": 4}):
        with pytest.raises(ValueError, match="does not divide processes="):
            Parallel(**wrong)
