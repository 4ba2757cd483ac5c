"""Every kind of stage on its real path, as a newcomer runs it: the shipped smoke recipe, then once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def onebase(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onebase", *words], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_smoke_recipe_runs_every_kind_and_then_nothing_twice(tmp_path: Path) -> None:
    done = onebase(tmp_path, "run", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/smoke"
    recipe = (run / "recipe.resolved.yaml").read_text()
    for kind in ("pretrain", "sft", "grpo", "reject_sample", "eval"):
        assert f"kind: {kind}" in recipe
    stages = [p.parent for p in run.glob("*/done.json")]
    assert len(stages) == recipe.count("kind: ")
    for stage in stages:
        assert json.loads((stage / "done.json").read_text())["summary"]
    assert "<html" in (run / "report.html").read_text()
    scores = [json.loads(p.read_text()) for p in run.glob("*/eval.json")]
    assert scores and all("greedy" in m for s in scores for m in s["models"].values())
    before = {p: p.stat().st_mtime_ns for p in run.glob("*/checkpoint/*")}
    again = onebase(tmp_path, "run", "smoke")
    assert again.returncode == 0, again.stdout + again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in run.glob("*/checkpoint/*")}
    model = next(p for p in run.glob("*/checkpoint/config.json")).parent
    said = onebase(tmp_path, "chat", str(model.parent), "--ask", "1+2 mod 10", "--max-tokens", "8")
    assert said.returncode == 0, said.stdout + said.stderr
    listed = onebase(tmp_path, "ls")
    assert "smoke" in listed.stdout
