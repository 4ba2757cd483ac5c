"""`onebase run` on several processes: started by itself or by torchrun, killed, resumed on other numbers of
processes; what a recipe may not ask for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase import recipe_loader
from onebase.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
name: tiny
hardware: cpu
model:
  hidden_size: 24
  num_hidden_layers: 2
  num_attention_heads: 2
  kv_lora_rank: 12
  qk_nope_head_dim: 8
  qk_rope_head_dim: 4
  v_head_dim: 8
  intermediate_size: 32
  moe_intermediate_size: 8
  n_routed_experts: 4
tokenizer: {vocab_size: 300, sample_bytes: 20000}
stages:
  base:
    kind: pretrain
    data: [{world: chain, difficulty: [2, 3], styles: {direct: 1, steps: 1}}]
    heldout: [{world: chain, split: heldout}]
    steps: 10
    batch: {rows: 4, length: 64}
    optim: {name: muon, lr: 1e-2, warmup: 3}
    checkpoint_every: 3
    eval_every: 5
  v3:
    kind: sft
    init: base
    data: [{world: chain, difficulty: [2, 3]}]
    steps: 2
    batch: {rows: 4, length: 64}
"""


def start(folder: Path, *settings: str, torchrun: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *(["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
               if torchrun else []), "onebase", "run", "tiny.yaml"]  # fmt: skip
    command += [word for s in settings for word in ("--set", s)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def at_step(run: subprocess.Popen[str], folder: Path, step: int) -> subprocess.Popen[str]:
    """Wait until the first stage has told of so many steps."""
    metrics = folder / "runs/tiny/base/metrics.jsonl"
    while run.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < step):
        time.sleep(0.02)
    assert run.poll() is None, run.communicate()[0][-5000:]
    return run


def finished(run: subprocess.Popen[str]) -> str:
    out, _ = run.communicate(timeout=600)
    assert run.returncode == 0, out[-5000:]
    return out


def curve(folder: Path, stage: str) -> list[list[float]]:
    rows = [
        json.loads(line) for line in (folder / f"runs/tiny/{stage}/metrics.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1)), "a step is missing or twice there"
    return [[r["loss"], r["grad_norm"], r.get("heldout_loss", 0.0), r["tokens"]] for r in rows]


def near(a: list[list[float]], b: list[list[float]]) -> bool:
    assert len(a) == len(b)
    return all(
        abs(x - y) < 1e-3 for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


def weights(folder: Path, stage: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / f"runs/tiny/{stage}/checkpoint/model.safetensors")


def descendants(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pids: list[int]) -> list[int]:
    import psutil

    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [p for p in pids if runs(p)]


@pytest.mark.slow
def test_stopped_killed_and_gone_on_under_torchrun_two_processes_give_the_curve_of_one(
    tmp_path: Path,
) -> None:
    """SIGTERM, then kill -9, with experts and weights divided; the rest with copies; SFT behind it too."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "tiny.yaml").write_text(RECIPE)
    divided = ("parallel.processes=2", "parallel.mode=fsdp", "parallel.expert=2")
    told = at_step(start(two, *divided), two, 1)
    told.send_signal(signal.SIGTERM)
    out, _ = told.communicate(timeout=300)
    assert told.returncode == 75, f"{told.returncode}: {out[-5000:]}"
    saved = len((two / "runs/tiny/base/metrics.jsonl").read_text().splitlines())
    assert (two / f"runs/tiny/base/state/step_{saved:08d}").is_dir(), "saved before it left"

    broken = at_step(start(two, *divided), two, max(6, saved + 1))
    children = descendants(broken.pid)
    assert len(children) >= 2
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    deadline = time.monotonic() + 30
    while alive(children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(children), "they end with their parent"
    assert list((two / "runs/tiny/base/state").glob("step_*")), "a state was whole"

    finished(start(two, "parallel.processes=2", torchrun=True))
    finished(start(one))
    for stage in ("base", "v3"):
        assert near(curve(one, stage), curve(two, stage)), stage
        ours, theirs = weights(one, stage), weights(two, stage)
        assert list(ours) == list(theirs)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=1e-3)


# -- what is refused


def refused(tmp_path: Path, *settings: str) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE)
    with pytest.raises(UserError) as told:
        recipe_loader.load(file, list(settings))
    return str(told.value)


REFUSED = [
    ("parallel.processes=3", "stages.base.batch.rows given 4 a multiple of 3"),
    ("parallel.processes=4 stages.base.batch.accumulate=2", "accumulate given 2 allowed: 1 to 1"),
    ("parallel.processes=2 parallel.context=2 stages.base.batch.length=62", "length multiple of 4"),
    ("parallel.processes=8 parallel.expert=8 stages.base.batch.rows=8", "expert n_routed_experts=4"),
    ("parallel.processes=2 parallel.expert=3", "expert=3 does not divide processes=2"),
    ("parallel.processes=0", "parallel.processes greater than 0"),
    ("parallel.mode=ddp", "parallel.mode data fsdp"),
    ("parallel.proceses=2", "proceses processes"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_a_recipe_that_does_not_divide_is_refused(settings: str, words: str, tmp_path: Path) -> None:
    text = refused(tmp_path, *settings.split())
    for word in words.split():
        assert word in text, text


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from onebase import launch

    with pytest.raises(UserError, match="one process per GPU"):
        launch.on_processes(512, "cuda", print)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="torchrun started 4"):
        launch.on_processes(2, "cpu", print)


def test_the_recipe_of_the_page_loads(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found
    (tmp_path / "wide.yaml").write_text(found[1])
    parallel = recipe_loader.load(tmp_path / "wide.yaml", []).parallel
    assert (parallel.processes, parallel.mode, parallel.expert) == (4, "fsdp", 2)
