"""Golden files of verifiers: cases with a known verdict, and what every verifier has to bear.

A golden file is JSONL, one case a line: `kind` (accepted pays 1; rejected and adversarial pay 0; error is not
judged; value pays `reward`), `completion`, `answer`, and `row` for the other fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onebase.errors import UserError
from onebase.verifiers.base import Verifier, judge
from onebase.verifiers.pool import VerifierPool
from onebase.wording import hint, listed

PAYS = {"accepted": 1.0, "rejected": 0.0, "adversarial": 0.0}
KINDS = (*PAYS, "error", "value")

# What a model can write: a verifier answers all of it, with a reward.
HOSTILE = {
    "nothing": "",
    "blanks": " \n\t\u200b\u202e",
    "a thought that is not closed": "<think>" + "so " * 100,
    "tags only": "<think></think>" * 1000,
    "control characters": "\x00\x1b[2J\ud800\r",
    "100,000 braces": "\\boxed" + "{" * 100_000,
    "a tower": "\\boxed{9^{9^{9^{9^9}}}}",
    "a megabyte of digits": "7" * 1_000_000,
    "a megabyte of one letter": "a" * 1_000_000,
    "100,000 lines": "x\n" * 100_000,
}


def cases(path: str | Path) -> list[dict[str, Any]]:
    """The cases of a golden file.  Raises UserError that names the line which is none."""
    found = []
    for n, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            case = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{n}: not JSON: {error}") from error
        kind = case.get("kind") if isinstance(case, dict) else None
        if kind not in KINDS:
            raise UserError(f"{path}:{n}: kind {kind!r}\n  allowed: {listed(KINDS)}" + hint(str(kind), KINDS))
        missing = [key for key in ("completion", "answer") if not isinstance(case.get(key), str)]
        missing += ["reward"] if kind == "value" and not isinstance(case.get("reward"), int | float) else []
        if missing:
            raise UserError(f"{path}:{n}: a case of kind {kind} needs {listed(missing)}")
        found.append(case)
    return found


def row_of(case: dict[str, Any]) -> dict[str, Any]:
    """What the verifier is called with."""
    return {**case.get("row", {}), "completion": case["completion"], "answer": case["answer"]}


def fault(verify: Verifier, case: dict[str, Any]) -> str | None:
    """What is wrong with the verdict on a case; None where it is as it should be."""
    verdict = judge(verify, row_of(case))
    if case["kind"] == "error":
        return None if verdict.error is not None else f"an error was due: {verdict}"
    due = float(case["reward"]) if case["kind"] == "value" else PAYS[case["kind"]]
    if verdict.reward is None or abs(verdict.reward - due) > 1e-9:
        return f"reward {due:g} was due: {verdict}"
    if not verdict.reason.strip() or "\n" in verdict.reason:
        return f"a reason of one line was due: {verdict}"
    return None


def hostile_faults(name: str, wall_seconds: float = 10.0, answer: str = "1", **row: Any) -> list[str]:
    """What HOSTILE completions do to a verifier, by name: nothing, if the list is empty."""
    rows = [{**row, "answer": answer, "completion": text} for text in HOSTILE.values()]
    with VerifierPool(workers=1, wall_seconds=wall_seconds) as pool:
        verdicts = pool.run(name, rows)
    return [f"{what}: {v.error}" for what, v in zip(HOSTILE, verdicts, strict=True) if v.error is not None]
