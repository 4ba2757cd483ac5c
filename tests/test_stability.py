"""Poisoned rows, kills, SIGTERM and a full disk in real runs: what is skipped, where training returns to, and
that the numbers are the same whatever happened in between.

One process imports everything once and forks a child for every run; the child kills itself at an exact file
operation, so that "at any moment" is a list of moments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onebase import report

RECIPE = """
name: p
hardware: cpu
model:
  hidden_size: 16
  num_hidden_layers: 1
  num_attention_heads: 2
  kv_lora_rank: 8
  qk_nope_head_dim: 4
  qk_rope_head_dim: 4
  v_head_dim: 8
  intermediate_size: 32
  moe_intermediate_size: 8
  n_routed_experts: 2
  num_experts_per_tok: 1
  first_k_dense_replace: 0
  num_nextn_predict_layers: 0
tokenizer: {vocab_size: 300, sample_bytes: 2000}
stages:
  base:
    kind: pretrain
    data: [{world: addition, difficulty: [2, 2]}]
    steps: 46
    batch: {rows: 2, length: 32}
    optim: {lr: 3e-2, warmup: 3}
    checkpoint_every: 8
    stability: {window: 16, patience: 8, skip: 0, logits_every: 20}
"""

DRIVER = r'''
import json, os, resource, shutil, signal, sys
import torch, torch._dynamo, transformers, transformers.models.auto
from onebase import card, cli, data, errors, files, log, pipeline, recipe_loader, report, stage, tokenizer
from onebase.model import checkpoint
from onebase.pretrain import train

torch.set_num_threads(1)
transformers.PreTrainedTokenizerFast  # imported now, once, as dynamo is for the optimizer

def plant(kind, first, last):
    """At places of the data's order: random tokens, or one token, or gradients that are no numbers."""
    clean = data.Mixture.batch
    def batch(self, step, rows):
        b = clean(self, step, rows)
        train.planted = first <= step <= last
        if not train.planted or kind == "nan":
            return b
        noise = torch.Generator().manual_seed(step)
        shape = b.ids_BT.shape
        ids = torch.randint(20, 250, shape, generator=noise) if kind == "random" else torch.full(shape, 77)
        place = torch.arange(shape[1]).expand(shape).clone()
        return data.Batch(ids, torch.ones(shape, dtype=torch.bool), place, torch.zeros_like(place))
    data.Mixture.batch = batch
    step = train.Optimizer.step
    def broken(self, *args):
        if kind == "nan" and train.planted:
            self.params[0][1].grad.fill_(float("nan"))
        return step(self, *args)
    train.Optimizer.step = broken

def count(kill_at):
    """Number the operations on files; before number `kill_at` (in the middle of it, where it writes a line)
    the process dies."""
    names = []
    def wrapped(module, name):
        real = getattr(module, name)
        def call(*args, **kwargs):
            names.append(name)
            if len(names) == kill_at:
                if name == "write":
                    real(args[0], args[1][:-9])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(module, name, call)
    for module, name in ((os, "rename"), (os, "replace"), (os, "write"), (shutil, "rmtree"), (torch, "save")):
        wrapped(module, name)
    return names

def at_step(step, do):
    real = log.RunLog.step
    def logged(self, now, *args):
        real(self, now, *args)
        if now == step:
            do()
    log.RunLog.step = logged

def child(case):
    os.chdir(case["folder"])
    out = os.open("out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    if "poison" in case:
        plant(*case["poison"])
    if "sigterm" in case:
        at_step(case["sigterm"], lambda: os.kill(os.getpid(), signal.SIGTERM))
    if "limit" in case:
        limit = (case["limit"][1], resource.RLIM_INFINITY)
        at_step(case["limit"][0], lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    names = count(case.get("kill"))
    recipe = recipe_loader.load("p.yaml", case.get("set", []))
    try:
        pipeline.run(recipe, quiet=True)
    except errors.UserError as told:
        print(told)
        return 2
    except KeyboardInterrupt as stop:
        print(stop)
        return stop.code
    open("operations.json", "w").write(json.dumps(names))
    return 0

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            code = child(json.loads(line))
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''

Run = Callable[..., int]


@pytest.fixture(scope="module")
def start() -> Iterator[Run]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-c", DRIVER], env=env, stdin=pipe, stdout=pipe, text=True)
    assert server.stdin is not None and server.stdout is not None
    to, back = server.stdin, server.stdout

    def run(folder: Path, **case: Any) -> int:
        """Exit code of a run in the folder."""
        folder.mkdir(exist_ok=True)
        (folder / "p.yaml").write_text(RECIPE)
        to.write(json.dumps({"folder": str(folder)} | case) + "\n")
        to.flush()
        return int(back.readline())

    yield run
    to.close()
    server.wait()


def rows(folder: Path, name: str, without: tuple[str, ...] = ("time",)) -> list[dict[str, Any]]:
    file = folder / "runs/p/base" / name
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{k: v for k, v in row.items() if k not in without} for row in found]


def curve(folder: Path) -> list[dict[str, Any]]:
    found = rows(folder, "metrics.jsonl", ("time", "tokens_per_second", "mfu"))
    assert [r["step"] for r in found] == list(range(1, len(found) + 1)), "a step is missing or twice there"
    return found


def everything(folder: Path) -> dict[str, Any]:
    """All that must not depend on interruptions."""
    return {
        "curve": curve(folder),
        "events": rows(folder, "events.jsonl"),
        "taken back": rows(folder, "rolled_back.jsonl", ("time", "tokens_per_second", "mfu")),
        "weights": (folder / "runs/p/base/checkpoint/model.safetensors").read_bytes(),
    }


def told(folder: Path) -> str:
    return (folder / "out").read_text()


POISON = ("random", 30, 49)  # longer than the patience: one return is not enough


@pytest.fixture(scope="module")
def poisoned(start: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over poisoned rows that nobody interrupted."""
    folder = tmp_path_factory.mktemp("poisoned")
    assert start(folder, poison=POISON) == 0, told(folder)
    return folder


def test_poisoned_rows_are_left_behind(poisoned: Path) -> None:
    first, second = rows(poisoned, "events.jsonl")
    assert (first["kind"], second["kind"]) == ("rollback", "rollback")
    # told at the sixth of eight high losses; from two before the first to two behind the last one seen
    assert (first["step"], first["to"], first["batches"]) == (36, 24, [28, 37])
    # the rest of the poison is met where the window ends: the next window is twice as long
    assert (second["to"], second["batches"]) == (24, [26, 65])
    assert "loss rose at step 31 and stays up" in first["why"] and first["lr_factor"] == 1.0
    losses = [r["loss"] for r in curve(poisoned)]
    assert len(losses) == 46 and max(losses[20:]) < 2.0, losses[20:]
    taken = rows(poisoned, "rolled_back.jsonl")
    assert [r["step"] for r in taken if r["rollback"] == 1] == list(range(25, 37))
    assert max(r["loss"] for r in taken) > 4.0
    page = report.write(poisoned / "runs/p").read_text()
    for word in ("2 returns to an earlier state", "loss rose at step 31", "loss taken back", "26-65"):
        assert word in page, word


def test_data_outside_of_the_windows_are_trained_as_ever(start: Run, poisoned: Path, tmp_path: Path) -> None:
    """The same run on clean rows is equal up to the first place left out."""
    assert start(tmp_path / "a") == 0
    clean = curve(tmp_path / "a")
    assert rows(tmp_path / "a", "events.jsonl") == [] and max(r["loss"] for r in clean[20:]) < 2.0
    assert curve(poisoned)[:26] == clean[:26] and curve(poisoned)[26] != clean[26]
    rates = sorted(r["tokens_per_second"] for r in rows(tmp_path / "a", "metrics.jsonl"))
    assert rates[-1] < 20 * rates[len(rates) // 2], "a step that is read late took no time"
    assert {"attention_logits", "attention_logit_max"} <= clean[19].keys() - clean[20].keys()


def moments(folder: Path) -> list[int]:
    """Numbers of file operations: while a state is written, all through both returns, and behind them."""
    names: list[str] = json.loads((folder / "operations.json").read_text())
    saves = [n for n, name in enumerate(names, 1) if name == "save"]
    # states of steps 0, 8, 16, 24, 32, then 24 again by each return
    first, second = saves[5], saves[6]
    return [saves[1], saves[2] + 2, first - 4, first - 2, first, first + 2, first + 3, second - 1, second + 4]


@pytest.mark.parametrize("turn", range(3))
def test_a_kill_at_any_moment_changes_nothing(start: Run, poisoned: Path, tmp_path: Path, turn: int) -> None:
    """Three kills one after the other, in the same run."""
    folder = tmp_path / "a"
    for moment in moments(poisoned)[turn::3]:
        code = start(folder, poison=POISON, kill=moment)
        assert code == -9 or (code == 0 and moment > moments(poisoned)[turn])
    assert start(folder, poison=POISON) == 0, told(folder)
    assert everything(folder) == everything(poisoned)


def test_one_bad_batch_is_skipped(start: Run, tmp_path: Path) -> None:
    assert start(tmp_path / "a", poison=("m", 30, 31), set=["stages.base.stability.skip=8"]) == 0
    found = curve(tmp_path / "a")
    skipped = rows(tmp_path / "a", "events.jsonl")
    assert [(e["kind"], e["step"]) for e in skipped] == [("skipped", 31), ("skipped", 32)]
    assert "loss is" in skipped[0]["why"] and skipped[0]["loss"] > 4
    assert [r["step"] for r in found if r["skipped"]] == [31, 32] and found[30]["loss_z"] > 8
    assert found[32]["loss"] < 2.0


def test_gradients_that_are_no_numbers_lead_back_too(start: Run, tmp_path: Path) -> None:
    lower = "stages.base.stability.rollback_lr=0.5"
    assert start(tmp_path / "a", poison=("nan", 30, 34), set=[lower, "stages.base.steps=40"]) == 0
    events = rows(tmp_path / "a", "events.jsonl")
    assert [e["kind"] for e in events] == ["skipped"] * 5 + ["rollback"]
    assert events[0]["why"] == "not finite" and events[5]["why"].endswith("not finite five times in a row")
    assert (events[5]["to"], events[5]["batches"]) == (24, [28, 36])
    assert {r["lr"] for r in curve(tmp_path / "a")} >= {3e-2, 1.5e-2} and curve(tmp_path / "a")[-1][
        "lr"
    ] == 1.5e-2


def test_too_many_returns_end_the_run(start: Run, tmp_path: Path) -> None:
    one = ["stages.base.stability.rollbacks=1"]
    assert start(tmp_path / "a", poison=("random", 30, 99), set=one) == 2
    text = told(tmp_path / "a")
    for word in ("stage base", "loss rose at step", "after 1 return to", "optim.lr", "rollbacks"):
        assert word in text, text
    assert start(tmp_path / "b", poison=("nan", 3, 9), set=["stages.base.stability.rollback=0"]) == 2
    assert "not finite five times in a row" in told(tmp_path / "b")


def test_sigterm_saves_and_tells(start: Run, poisoned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert start(folder, poison=POISON, sigterm=13) == 75
    assert "SIGTERM after step 15 of stage base, whose state is saved" in told(folder)
    assert len(curve(folder)) == 15  # 13 was logged while 14 ran
    assert (folder / "runs/p/base/state/step_00000015/state.pt").is_file()
    assert start(folder, poison=POISON) == 0
    assert everything(folder) | {"events": 0} == everything(poisoned) | {"events": 0}
    assert [e["kind"] for e in rows(folder, "events.jsonl")] == ["preempted", "rollback", "rollback"]


def test_a_full_disk_keeps_the_older_state(start: Run, poisoned: Path, tmp_path: Path) -> None:
    """The limit on file sizes makes torch.save fail in the middle, as a full disk does."""
    folder = tmp_path / "a"
    assert start(folder, poison=POISON, limit=(18, 60_000)) == 2
    text = told(folder)
    for word in ("stage base", "cannot be written", "step_00000024", "kept", "run the same"):
        assert word in text, text
    states = sorted(p.name for p in (folder / "runs/p/base/state").iterdir())
    assert states == ["step_00000000", "step_00000008", "step_00000016"]
    assert start(folder, poison=POISON) == 0
    assert everything(folder) == everything(poisoned)
