"""Every golden file through the registry: accepted pay 1, rejected and adversarial 0, errors neither."""

import json
from pathlib import Path

import pytest

from onebase.verifiers.base import as_verdict
from onebase.verifiers.pool import VerifierPool, judge, run_verdicts
from onebase.verifiers.registry import builtin_names, load

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(path for path in GOLDEN.glob("*.jsonl") if path.stem in builtin_names())
# Scored by something other than a gold answer, so a gold of its own cannot be replayed.
NO_GOLD = {
    "worlds", "format_think", "random_reward", "length", "language", "repetition", "regex", "instruction",
    "json_schema", "code_tests",
}  # fmt: skip
EXPECTED = {"accepted": 1.0, "rejected": 0.0, "adversarial": 0.0}


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def row_of(case):
    return {"completion": case["completion"], "answer": case["answer"], **case.get("row", {})}


def skip_without_sandbox(name):
    """Code runs only where the kernel gives the layers; elsewhere every verdict is an error."""
    if name != "code_tests":
        return
    from onebase.verifiers.sandbox import Sandbox, SandboxError

    try:
        Sandbox().close()
    except SandboxError as error:
        pytest.skip(f"this machine does not give the sandbox's layers: {error}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_file(path):
    skip_without_sandbox(path.stem)
    function = load(path.stem)
    for case in read(path):
        verdict = judge(function, row_of(case))
        if case["kind"] == "error":
            assert verdict.reward is None and verdict.error, (case, verdict)
            continue
        expected = case["reward"] if case["kind"] == "value" else EXPECTED[case["kind"]]
        assert verdict.reward == pytest.approx(expected, abs=1e-12), (case, verdict)
        assert verdict.reason and "\n" not in verdict.reason, (case, verdict)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_has_all_kinds(path):
    kinds = {case["kind"] for case in read(path)}
    assert "accepted" in kinds and kinds & {"rejected", "value"}, kinds


@pytest.mark.parametrize("path", [p for p in FILES if p.stem not in NO_GOLD], ids=lambda path: path.stem)
def test_gold_scores_one(path):
    """The gold answer itself, in a box and after a mark, must be paid."""
    function = load(path.stem)
    golds = {(c["answer"], json.dumps(c.get("row", {}))) for c in read(path) if c["kind"] != "error"}
    for gold, row in golds:
        extra = json.loads(row)
        extra.pop("prefilled", None)
        shown = gold.rpartition("#### ")[2]  # GSM8K golds carry their mark
        verdict = as_verdict(function(f"So it is \\boxed{{{shown}}}.", gold, **extra))
        assert verdict.reward == 1.0, (gold, extra, verdict)


def test_pool_and_inline_agree():
    cases = [case for case in read(GOLDEN / "math_answer.jsonl") if case["kind"] != "error"][::5]
    rows = [row_of(case) for case in cases]
    with VerifierPool(workers=2, wall_seconds=20) as pool:
        pooled = [verdict.reward for verdict in run_verdicts("math_answer", rows, pool)]
    assert pooled == [verdict.reward for verdict in run_verdicts("math_answer", rows)]
