"""The pipeline: order, skipping, resuming, changed recipes, locks, signals.  Stage mains are small fakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from onebase import files, graph, pipeline
from onebase.errors import UserError
from onebase.recipe import Recipe
from onebase.recipe_loader import load

RECIPE = """\
name: r
hardware: cpu
stages:
  table:
    kind: eval
    models: {base: base, v3: v3, r1: r1}
    data: [{path: rows.txt}]
    rewards: [{verifier: random_reward}]
  base: {kind: pretrain, data: [{path: rows.txt}], steps: 3}
  v3: {kind: sft, init: base, data: [{path: rows.txt}], steps: 3}
  zero:
    kind: grpo
    init: base
    data: [{path: rows.txt}]
    steps: 3
    rewards: [{verifier: random_reward}]
  picked:
    kind: reject_sample
    init: zero
    data: [{path: rows.txt}]
    problems: 4
    rewards: [{verifier: random_reward}]
  r1: {kind: sft, init: base, data: [{stage: picked}], steps: 3}
"""

# One module plays every kind of stage: it counts to `steps`, saves after each, and goes on where it stopped.
FAKE = """\
import os, time
from pathlib import Path
from onebase.files import append_jsonl, atomic_folder

def main(run):
    calls = Path(os.environ["CALLS"])
    append_jsonl(calls, {"stage": run.name, "init": run.init, "device": run.device, "seed": run.seed})
    state = run.folder / "state"
    done = int((state / "step").read_text()) if state.is_dir() else 0
    run.log.truncate_after(done)
    steps = getattr(run.stage, "steps", 3)
    for step in range(done + 1, steps + 1):
        run.log.step(step, steps, {"loss": 1 / step}, show=("loss",))
        with atomic_folder(state) as folder:
            (folder / "step").write_text(str(step))
        if os.environ.get("BREAK") == f"{run.name}:{step}":
            raise eval(os.environ["ERROR"])
        time.sleep(float(os.environ.get("SLEEP", 0)))
    with atomic_folder(run.folder / "checkpoint") as folder:
        (folder / "config.json").write_text("{}")
    return {"steps": float(steps)}
"""
REPORT = """\
def write(run_folder):
    path = run_folder / "report.html"
    path.write_text("<html>")
    return path
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.txt").write_text("text\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "fake_stage.py").write_text(FAKE)
    (tmp_path / "fake_report.py").write_text(REPORT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.jsonl"))
    monkeypatch.setattr(pipeline, "MAIN", dict.fromkeys(pipeline.MAIN, "fake_stage"))
    monkeypatch.setattr(pipeline, "REPORT", "fake_report")
    return tmp_path


def go(folder: Path, *overrides: str, stages: list[str] | None = None, fresh: bool = False) -> Path:
    return pipeline.run(load(folder / "r.yaml", list(overrides)), stages, fresh=fresh, quiet=True)


def calls(folder: Path) -> list[str]:
    """Names of the stages whose main was called since last asked."""
    path = folder / "calls.jsonl"
    names = [row["stage"] for row in files.read_jsonl(path)]
    path.unlink(missing_ok=True)
    return names


def steps(folder: Path, stage: str) -> list[int]:
    return [row["step"] for row in files.read_jsonl(folder / "runs" / "r" / stage / "metrics.jsonl")]


def test_order_and_files(folder: Path) -> None:
    run = go(folder)
    assert calls(folder) == ["base", "v3", "zero", "picked", "r1", "table"]
    assert run == Path("runs/r")
    assert load(run / "recipe.resolved.yaml") == load("r.yaml")
    record = json.loads((run / "run.json").read_text())
    assert record["packages"]["torch"] and record["python"] and record["hardware"]["device"] == "cpu"
    assert json.loads((run / "v3" / "done.json").read_text())["summary"] == {"steps": 3.0}
    assert (run / "report.html").is_file()
    assert steps(folder, "base") == [1, 2, 3]
    assert not (run / "base" / "state").exists()


def test_mains_are_handed_their_init(folder: Path) -> None:
    go(folder, "seed=5", "stages.v3.seed=2")
    rows = {row["stage"]: row for row in files.read_jsonl(folder / "calls.jsonl")}
    assert rows["base"]["init"] is None and rows["v3"]["init"] == "runs/r/base/checkpoint"
    assert rows["v3"]["seed"] == 7 and rows["base"]["seed"] == 5


def test_named_stage_runs_with_what_it_needs(folder: Path) -> None:
    go(folder, stages=["picked"])
    assert calls(folder) == ["base", "zero", "picked"]
    go(folder, stages=["r1"])
    assert calls(folder) == ["r1"]
    with pytest.raises(UserError, match="did you mean: picked"):
        go(folder, stages=["pickd"])


def test_finished_stages_are_skipped(folder: Path) -> None:
    go(folder)
    calls(folder)
    go(folder)
    assert calls(folder) == []


def test_broken_stage_goes_on_where_it_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("BREAK", "zero:2")
        patch.setenv("ERROR", "ZeroDivisionError('planted')")
        with pytest.raises(ZeroDivisionError):
            go(folder)
    assert calls(folder) == ["base", "v3", "zero"]
    assert not (folder / "runs/r/zero/done.json").exists()
    go(folder)
    assert calls(folder) == ["zero", "picked", "r1", "table"]
    assert steps(folder, "zero") == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("OSError(28, 'No space left on device')", ["stage zero", "disk is full", "again"]),
        ("RuntimeError('I/O error: No space left on device (os error 28)')", ["stage zero", "disk is full"]),
        ("MemoryError()", ["stage zero", "out of memory", "micro_tokens"]),
        (
            "__import__('torch').OutOfMemoryError('CUDA out of memory. Tried')",
            ["out of memory: CUDA", "zero.micro_tokens=", "estimated"],
        ),
        ("__import__('onebase.errors').errors.UserError('row 3 is bad')", ["stage zero: row 3 is bad"]),
    ],
)
def test_the_machine_s_errors_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: str, words: list[str]
) -> None:
    monkeypatch.setenv("BREAK", "zero:2")
    monkeypatch.setenv("ERROR", error)
    with pytest.raises(UserError) as told:
        go(folder, stages=["zero"])
    for word in words:
        assert word in str(told.value)


def test_changed_section_is_refused_until_fresh(folder: Path) -> None:
    go(folder)
    calls(folder)
    with pytest.raises(UserError) as told:
        go(folder, "stages.base.optim.lr=0.5")
    text = str(told.value)
    assert "base (finished): stages.base.optim.lr: was 0.0003, is 0.5" in text
    assert "v3 (finished): it needs base, which changed" in text
    assert "--fresh table base v3 zero picked r1" in text
    assert calls(folder) == []
    with pytest.raises(UserError, match="it needs base"):  # its children are still from the old one
        go(folder, "stages.base.optim.lr=0.5", stages=None, fresh=False)
    go(folder, "stages.base.optim.lr=0.5", stages=["base"], fresh=True)
    assert calls(folder) == ["base"]
    with pytest.raises(UserError) as told:
        go(folder, "stages.base.optim.lr=0.5", stages=["v3"])
    assert "--fresh v3\n" in str(told.value)
    go(folder, "stages.base.optim.lr=0.5", stages=["table", "v3", "zero", "picked", "r1"], fresh=True)
    assert calls(folder) == ["v3", "zero", "picked", "r1", "table"]


def test_nothing_is_removed_when_fresh_is_refused(folder: Path) -> None:
    go(folder)
    with pytest.raises(UserError):
        go(folder, "stages.base.optim.lr=0.5", "stages.v3.steps=4", stages=["base", "table"], fresh=True)
    assert (folder / "runs/r/base/done.json").is_file()


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("model.hidden_size=64", "base (finished): model.hidden_size: was 128, is 64"),
        ("tokenizer.vocab_size=600", "base (finished): tokenizer.vocab_size"),
        ("seed=1", "seed: was 0, is 1"),
        ("dtype=bfloat16", 'dtype: was "float32", is "bfloat16"'),
        ("stages.v3.data.0.glob=x", "v3 (finished): stages.v3.data.0.glob"),
        ("stages.zero.rewards.0.weight=2", "zero (finished): stages.zero.rewards.0.weight"),
        ("stages.table.models={b: base}", "table (finished): stages.table.models.b: was not there"),
    ],
)
def test_every_part_that_matters_is_watched(folder: Path, override: str, field: str) -> None:
    go(folder)
    with pytest.raises(UserError) as told:
        go(folder, override)
    assert field in str(told.value)


@pytest.mark.parametrize(
    "override",
    [
        "stages.base.checkpoint_every=7",
        "stages.base.batch.accumulate=2",
        "stages.zero.micro_tokens=9",
        "hardware=auto",
    ],
)
def test_fields_that_do_not_change_the_result_may_change(folder: Path, override: str) -> None:
    go(folder)
    calls(folder)
    go(folder, override)
    assert calls(folder) == []


def test_begun_stage_is_watched_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("BREAK", "base:1")
        patch.setenv("ERROR", "KeyError(1)")
        with pytest.raises(KeyError):
            go(folder)
    with pytest.raises(UserError, match=r"base \(begun\): stages.base.steps: was 3, is 4"):
        go(folder, "stages.base.steps=4")
    go(folder, "stages.base.steps=4", stages=["base"], fresh=True)
    assert steps(folder, "base") == [1, 2, 3, 4]


def test_field_that_a_newer_version_added_is_no_change(folder: Path) -> None:
    go(folder)
    calls(folder)
    for made in (folder / "runs/r").glob(
        "*/made.json"
    ):  # as a version without these fields would have left it
        text = made.read_text()
        for field in ('"balance_alpha": 0.0001,', '"answer_after": null,', '"n_group": 1,'):
            text = text.replace(field, "")
        assert text != made.read_text()
        made.write_text(text)
    go(folder)
    assert calls(folder) == []
    with pytest.raises(UserError, match=r"v3 \(finished\): stages.v3.balance_alpha: was not there, is 0.5"):
        go(folder, "stages.v3.balance_alpha=0.5")


def test_parent_that_was_not_needed_before(folder: Path) -> None:
    go(folder, "stages.r1.data=[{path: rows.txt}]")
    with pytest.raises(UserError, match="it needs picked, which it did not before"):
        go(folder)


def test_adding_a_stage_leaves_the_others(folder: Path) -> None:
    go(folder)
    calls(folder)
    go(folder, "stages.more={kind: sft, init: r1, data: [{path: rows.txt}], steps: 1}")
    assert calls(folder) == ["more"]


def test_remade_parent_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(folder)
    go(folder, stages=["base"], fresh=True)
    calls(folder)
    recipe = load("r.yaml")
    assert pipeline.stage_state.older_parents(recipe, folder / "runs/r", "v3") == ["base"]
    assert pipeline.stage_state.older_parents(recipe, folder / "runs/r", "picked") == []


def test_finished_stage_without_its_checkpoint(folder: Path) -> None:
    go(folder, stages=["base"])
    (folder / "runs/r/base/checkpoint/config.json").unlink()
    (folder / "runs/r/base/checkpoint").rmdir()
    with pytest.raises(UserError, match="stage base is marked as finished but has no checkpoint"):
        go(folder, stages=["v3"])


def test_folders_as_init(folder: Path) -> None:
    go(folder, stages=["base"])
    recipe = load("r.yaml", ["stages.v3.init=./runs/r/base"])
    assert pipeline.resolve_checkpoint(recipe, folder, "./runs/r/base") == "runs/r/base/checkpoint"
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"neither config.json nor checkpoint/\n  it holds: notes.txt"):
        pipeline.resolve_checkpoint(recipe, folder, str(folder / "empty"))


def test_interrupted_exchange_is_settled_before_the_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("BREAK", "base:2")
        patch.setenv("ERROR", "KeyError(1)")
        with pytest.raises(KeyError):
            go(folder)
    own = folder / "runs/r/base"
    (own / "state").rename(own / ".state.next")  # as a kill between the two renames leaves it
    go(folder, stages=["base"])
    assert steps(folder, "base") == [1, 2, 3]
    assert calls(folder) == ["base", "base"]


def test_gpu_without_cuda(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"sees no CUDA device(.|\n)*--set hardware=cpu"):
        go(folder, "hardware=gpu")
    assert pipeline.pick_device("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pipeline.pick_device("auto") == "cuda" and pipeline.pick_device("cpu") == "cpu"


# The plan loads torch to time a matmul; only the tests of the plan itself wait for that.
DRIVER = """\
import os, sys
from onebase import pipeline, plan
if not os.environ.get("PLAN"):
    plan.show = lambda *words: None
pipeline.MAIN = dict.fromkeys(pipeline.MAIN, "fake_stage")
pipeline.REPORT = "fake_report"
from onebase.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    (folder / "driver.py").write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, "driver.py", "run", "r.yaml", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_signals_end_it_cleanly(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("SLEEP", "5")
        process = start(folder)
        wait_for(folder / "runs/r/base/state")
        process.send_signal(number)
        out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    assert "Traceback" not in err and "goes on from there" in err and signal.Signals(number).name in err
    go(folder)
    assert steps(folder, "base") == [1, 2, 3]


def test_kill_9_then_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("SLEEP", "0.05")
        for _ in range(4):
            before = len(files.read_jsonl(folder / "calls.jsonl"))
            process = start(folder)
            end = time.monotonic() + 240
            while len(files.read_jsonl(folder / "calls.jsonl")) == before and process.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.01)
            time.sleep(0.12)
            process.kill()
            process.communicate()
    go(folder)
    for stage in ("base", "v3", "zero", "picked", "r1", "table"):
        assert steps(folder, stage) == [1, 2, 3]


def test_two_runs_do_not_share_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("SLEEP", "20")
        process = start(folder)
        try:
            wait_for(folder / "runs/r/base/state")
            with pytest.raises(
                UserError, match=rf"written by process {process.pid} on .*(.|\n)*--set name=OTHER"
            ):
                go(folder)
        finally:
            process.kill()
            process.communicate()
    go(folder)


def test_command_line_says_what_was_skipped_and_where_the_report_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PLAN", "1")
        process = start(folder, "base")
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "the plan" in out and "report: runs/r/report.html" in out
    process = start(folder, "v3", "--set", "stages.base.optim.lr=0.5")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2 and "Traceback" not in err
    assert "--fresh base" in err
    process = start(folder, "--fresh", "base", "--set", "stages.base.optim.lr=0.5")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err


def test_dry_run_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN", "1")
    process = start(folder, "--dry-run")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "zero" in out and "minutes" in out
    assert not (folder / "runs").exists()


def stage(kind: str, **more: object) -> dict[str, object]:
    base: dict[str, object] = {"kind": kind, "data": [{"path": "x"}]}
    if kind in ("grpo", "reject_sample", "eval"):
        base["rewards"] = [{"verifier": "v"}]
    return base | ({"steps": 1} if kind in ("pretrain", "sft", "grpo") else {}) | more


def test_graph() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "g",
            "stages": {
                "e": stage("eval", models={"x": "d", "y": "hub/id"}),
                "d": stage("sft", init="b", data=[{"stage": "c"}]),
                "c": stage("reject_sample", init="b", problems=1),
                "b": stage("pretrain"),
                "lone": stage("pretrain"),
            },
        }
    )
    assert graph.order(recipe.stages) == ["b", "c", "d", "e", "lone"]
    assert graph.order(recipe.stages, ["c"]) == ["b", "c"]
    assert graph.parents(recipe.stages, "d") == ["b", "c"]
    assert graph.descendants(recipe.stages, "b") == ["e", "d", "c"]
    assert graph.cycle(recipe.stages) is None


def test_log_lines_for_files_and_people(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from onebase.log import RunLog

    with RunLog(tmp_path, "base", 3) as log:
        log.step(1, 3, {"loss": 2.5, "lr": 1e-4, "bad": float("nan")}, show=("loss",))
        log.event("skipped_rows", count=3, file="a[b].jsonl")
        log.note("tokenizer: 512 entries")
        log.step(2, 3, {"loss": 1.5})
        log.step(3, 3, {"loss": 0.5}, show=("loss",))
    rows = files.read_jsonl(tmp_path / "metrics.jsonl")
    assert (
        [row["loss"] for row in rows] == [2.5, 1.5, 0.5] and rows[0]["bad"] is None and rows[0]["lr"] == 1e-4
    )
    assert files.read_jsonl(tmp_path / "events.jsonl")[0]["count"] == 3
    told = capfd.readouterr().err
    assert textwrap.dedent(told).splitlines() == [
        "base  1/3  loss 2.5",
        "warning: skipped_rows: count=3, file=a[b].jsonl",
        "tokenizer: 512 entries",
        "base  3/3  loss 0.5",
    ]
    with RunLog(tmp_path, "base", 3, quiet=True) as log:
        log.truncate_after(1)
        log.step(2, 3, {"loss": 9.0})
    assert [(r["step"], r["loss"]) for r in files.read_jsonl(tmp_path / "metrics.jsonl")] == [
        (1, 2.5),
        (2, 9.0),
    ]
    assert capfd.readouterr().err == ""


def test_a_run_that_hangs_can_be_asked_where() -> None:
    code = "import os, signal; from onebase.pipeline import _signals\n"
    code += "def waiting():\n    os.kill(os.getpid(), signal.SIGUSR1)\n"
    code += "with _signals(): waiting(); print('goes on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "goes on\n", done
    assert "in waiting" in done.stderr
