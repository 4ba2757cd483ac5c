"""The benchmarks that prove something run through, small: a soak with real faults, the phases of a step, the
mismatch of an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def run(name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_engines_survive_random_faults(tmp_path: Path) -> None:
    """It checks by itself that nothing is lost, doubled or different; here: that faults were met at all."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    out = tmp_path / "soak.json"
    run("ray_soak.py", "--minutes", "0.5", "--every", "4", "--idle", "3", "--grace", "20", "--out", str(out))
    got = json.loads(out.read_text())
    assert got["engines_replaced"] >= 1 and sum(got["faults_planted"].values()) >= 1
    requests = got["requests"]
    assert requests["asked"] == requests["came_back"] + requests["forgotten"]
    assert got["rollouts_compared"] >= 16 and got["steps"] >= 1


@pytest.mark.slow
def test_the_phases_of_a_step(tmp_path: Path) -> None:
    words = ["--only", "onebase", "--prompts", "2", "--group-size", "4", "--tokens", "6", "--steps", "1"]
    out = run("grpo_step.py", *words, "--json", str(tmp_path / "step.json"))
    assert "2 prompts x 4 x 6 tokens" in out
    (got,) = json.loads((tmp_path / "step.json").read_text())["systems"]
    seconds: dict[str, Any] = got["seconds"]
    assert seconds["generate"] > 0 and seconds["update"] > 0 and seconds["sync"] == 0
    whole = seconds.pop("step")
    assert sum(seconds.values()) == pytest.approx(whole) and got["tokens"] == 48
    assert len(got["steps"]) == 1 and got["gpu_gb"] is None


@pytest.mark.slow
def test_the_mismatch_of_an_engine(
    tmp_path: Path, make_config: Any, make_model: Any, tiny_tokenizer: Any
) -> None:
    from onebase.model import checkpoint

    checkpoint.save(tmp_path / "base", make_model(make_config(), 3), tiny_tokenizer)
    out = tmp_path / "out.json"
    run(
        "mismatch.py",
        "replay",
        str(tmp_path / "base"),
        "--round",
        "int8",
        "--prompts",
        "2",
        "--out",
        str(out),
    )
    (got,) = json.loads(out.read_text())["runs"]
    assert got["own"]["dlogp_mean"] > 0 and got["own"]["router_agreement"] < 1
    assert got["replayed"]["kl_k3"] < got["own"]["kl_k3"]
