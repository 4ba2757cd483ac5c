"""reasoning-gym: its problems as rows, its scoring in the sandbox, and answers that are code."""

from __future__ import annotations

import base64
import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from onebase.errors import UserError
from onebase.verifiers.base import Verdict
from onebase.verifiers.sandbox import DEMAND, Sandbox, SandboxError

GOLDEN = Path(__file__).parent / "golden" / "served" / "reasoning_gym.jsonl"
EXPECTED = {"accepted": 1.0, "rejected": 0.0, "adversarial": 0.0}

gym = pytest.importorskip("onebase.verifiers.reasoning_gym")
pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")


@pytest.fixture(scope="module", autouse=True)
def _isolation() -> None:
    try:
        Sandbox(demand=DEMAND).close()
    except SandboxError as error:
        pytest.skip(f"this machine gives less isolation than is demanded: {error}")


@cache
def row_of(dataset: str, config: str) -> dict[str, Any]:
    return next(iter(gym.rows(dataset, seed=3, size=2, **json.loads(config))))


def judged(case: dict[str, Any], canary: Path) -> Verdict:
    row = row_of(case["dataset"], json.dumps(case.get("config", {})))
    text = case["completion"].replace("{gold}", row["answer"]).replace("CANARY", str(canary))
    return gym.verify(**(row | {"completion": text} | case.get("row", {})))


@pytest.mark.slow
def test_golden_file(tmp_path: Path) -> None:
    """Also the canary: no answer of the file may have written its file, in the sandbox's folder or here."""
    canary = tmp_path / "canary"
    tmp_path.chmod(0o777)
    for line in GOLDEN.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        verdict = judged(case, canary)
        if case["kind"] == "error":
            assert verdict.reward is None and verdict.error, (case, verdict)
            continue
        wanted = case.get("reward", EXPECTED.get(case["kind"]))
        assert verdict.reward == pytest.approx(wanted, abs=1e-9), (case, verdict)
        assert verdict.reason and "\n" not in verdict.reason, (case, verdict)
    assert not canary.exists()


def test_the_canary_would_be_written_without_the_sandbox(tmp_path: Path) -> None:
    """The attack is a real one: scored in this process, the same text writes its file."""
    import reasoning_gym

    canary = tmp_path / "canary"
    dataset = reasoning_gym.create_dataset("n_queens", seed=3, size=2)
    dataset.score_answer(f"open({str(canary)!r}, 'w').write('x')", dataset[0])
    assert canary.exists()
    canary.unlink()
    tmp_path.chmod(0o777)
    row = row_of("n_queens", "{}")
    verdict = gym.verify(**row, completion=f"<answer>open({str(canary)!r}, 'w').write('x')</answer>")
    assert verdict.reward == 0.0 and "not evaluated" in verdict.reason
    assert not canary.exists()
    assert {"seccomp", "landlock", "rlimits"} <= set(verdict.details["layers"])


def test_code_that_gets_past_the_guard_still_writes_nothing(tmp_path: Path) -> None:
    """The guard is for the score; what keeps the machine safe is the sandbox alone.  The guard lets texts of
    the problem itself pass, so here the problem holds the attack."""
    tmp_path.chmod(0o777)
    canary = tmp_path / "canary"

    def scored(argument: str) -> Any:
        text = f"(lambda _: [['_', 'Q']])({argument})"
        entry = {"question": text, "answer": "", "metadata": {"valid_answers": ["_ Q"]}}
        job = {"dataset": "n_queens", "seed": 3, "size": 2, "config": {}, "answer": text}
        job["entry"] = base64.b64encode(pickle.dumps(entry)).decode()
        run = gym._sandbox(DEMAND).start(entry=f"{gym.INSIDE}:score", payload=json.dumps(job).encode())
        return json.loads(gym._lines(run.wait())[1])

    assert scored("1") == {"score": 0.5}  # it is evaluated
    assert scored(f"open({str(canary)!r}, 'w').write('x')") == {"score": 0.0}  # and fails there
    assert not canary.exists()


def test_rows_are_problems_that_can_be_made_again() -> None:
    rows = list(gym.rows("gcd", seed=5, size=3, min_numbers=3, max_numbers=3))
    again = list(gym.rows("gcd", seed=5, size=3, min_numbers=3, max_numbers=3))
    assert rows == again and len({r["problem"] for r in rows}) == 3
    for row in rows:
        assert set(row) == {"problem", "answer", "family", "entry"} and row["family"] == "gcd"
        assert all(isinstance(value, str) for value in row.values())  # as tables want them
        assert gym.gold_problem(**row) is None
        assert gym.verify(**row, completion=f"\\boxed{{{row['answer']}}}").reward == 1.0
    other = next(iter(gym.rows("gcd", seed=6, size=3)))
    assert other["problem"] != rows[0]["problem"]


def test_rows_of_a_recipes_source() -> None:
    train = list(gym.source_rows("gcd?min_numbers=3&max_numbers=3", stop=2))
    assert json.loads(train[0]["entry"])["config"] == {"min_numbers": 3, "max_numbers": 3}
    assert train == list(gym.source_rows("gcd?min_numbers=3&max_numbers=3", "train", 2))
    held = list(gym.source_rows("gcd?min_numbers=3&max_numbers=3", "heldout", 2))
    assert not {r["problem"] for r in train} & {r["problem"] for r in held}
    with pytest.raises(UserError, match="NAME=VALUE"):
        list(gym.source_rows("gcd?min_numbers", stop=2))


def test_problems_that_depend_on_the_hash_seed_are_made_alike() -> None:
    """These differ between two ordinary processes; what `rows` writes is what `verify` makes."""
    for dataset in ("polynomial_multiplication", "word_ladder"):
        for row in gym.rows(dataset, seed=11, size=2):
            assert gym.gold_problem(**row) is None, dataset


def test_a_wrong_gold_is_told() -> None:
    row = row_of("chain_sum", "{}")
    assert "another problem" in gym.gold_problem(**(row | {"answer": "1"}))
    assert "not what `rows` writes" in gym.gold_problem("1", entry=None)
    boxnet = row_of("boxnet", "{}")  # no gold is known there
    assert boxnet["answer"] == gym.NO_GOLD and gym.gold_problem(**boxnet) is None


def test_mistakes_in_a_recipe() -> None:
    with pytest.raises(UserError, match="chain_sun"):
        list(gym.rows("chain_sun", size=1))
    with pytest.raises(UserError, match="no_such"):
        list(gym.rows("chain_sum", size=1, no_such=1))


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(gym, "distribution", missing)
    with pytest.raises(UserError, match=r"pip install 'onebase\[reasoning-gym\]'"):
        gym._installed()


def test_what_is_shown_as_the_answer() -> None:
    assert gym.shown_answer("a <answer>1</answer> b <answer> 2\n3 </answer> c") == "2\n3"
    assert gym.shown_answer("so \\boxed{a{b}c} and \\boxed{{x}}.") == "{x}"
    assert gym.shown_answer("\\boxed{never closed") == "\\boxed{never closed"
    assert gym.shown_answer("  plain \n") == "plain"
    for hostile in ("<answer>" * 100_000, "\\boxed{" * 100_000, "<" * 300_000):
        assert gym.shown_answer(hostile)
