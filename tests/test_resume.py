"""A run that is killed without warning goes on to exactly the numbers of a run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
name: tiny
hardware: cpu
model:
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 2
  kv_lora_rank: 16
  qk_nope_head_dim: 8
  qk_rope_head_dim: 8
  v_head_dim: 16
  intermediate_size: 64
  moe_intermediate_size: 16
  n_routed_experts: 4
tokenizer: {vocab_size: 300, sample_bytes: 20000}
stages:
  base:
    kind: pretrain
    data: [{world: chain, difficulty: [2, 3], styles: {direct: 1, steps: 1}}]
    steps: 40
    batch: {rows: 4, length: 64, accumulate: 2}
    optim: {name: muon, lr: 1e-2, warmup: 3, decay: 0.5}
    checkpoint_every: 4
  zero:
    kind: grpo
    init: base
    data: [{world: chain, difficulty: [2, 3]}]
    steps: 8
    prompts: 4
    group_size: 4
    updates: 2
    sampling: {max_tokens: 12}
    rewards: [{verifier: random_reward}]
    optim: {lr: 1e-3}
    checkpoint_every: 2
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "onebase", "run", "tiny.yaml"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_when(process: subprocess.Popen[bytes], file: Path, count: int) -> bool:
    """kill -9 as soon as the file has that many lines; False where the run ended before."""
    while process.poll() is None:
        if lines(file) >= count:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.005)
    return False


def curve(folder: Path, stage: str, keys: tuple[str, ...]) -> list[tuple[float, ...]]:
    text = (folder / f"runs/tiny/{stage}/metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1)), "a step is missing or twice there"
    return [tuple(r.get(k, 0.0) for k in keys) for r in rows]


@pytest.mark.slow
def test_kills_at_any_moment_leave_the_identical_curve(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        (folder / "tiny.yaml").write_text(RECIPE)
    reference = start(whole)
    base, zero = broken / "runs/tiny/base/metrics.jsonl", broken / "runs/tiny/zero/metrics.jsonl"
    kills = [kill_when(start(broken), file, count) for file, count in ((base, 3), (base, 18), (zero, 3))]
    assert sum(kills) >= 2, "the run was too fast to be killed"
    last = start(broken)
    out, _ = last.communicate()
    assert last.returncode == 0, out.decode()[-3000:]
    out, _ = reference.communicate()
    assert reference.returncode == 0, out.decode()[-3000:]
    for stage, keys in (("base", ("loss", "grad_norm")), ("zero", ("loss", "reward", "completion_tokens"))):
        assert curve(whole, stage, keys) == curve(broken, stage, keys)
    a, b = (f / "runs/tiny/zero/checkpoint/model.safetensors" for f in (whole, broken))
    assert a.read_bytes() == b.read_bytes()
