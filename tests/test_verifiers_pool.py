"""The pool: hard limits from any thread, and a killed worker costs its own row only."""

import os
import threading
import time

import pytest

from onebase.errors import UserError
from onebase.verifiers import pool as pool_module
from onebase.verifiers.base import tally
from onebase.verifiers.pool import VerifierPool, run_verdicts

PLANTED = """
import os, subprocess, sys, time

def verify(completion, answer, **row):
    if completion == "hang":
        while True:
            pass
    if completion == "sleep":
        time.sleep(60)
    if completion == "exit":
        os._exit(0)
    if completion == "memory":
        hoard = [bytearray(1 << 27) for _ in range(1 << 20)]
    if completion == "raise":
        raise KeyError("planted")
    if completion == "noise":
        print("1.0", flush=True)
        sys.stdin.read()
        os.write(1, b"garbage")
    if completion == "range":
        return 1.5
    if completion == "type":
        return "1"
    if completion == "child":
        subprocess.Popen(["sleep", "60.25"])
        while True:
            pass
    return float(completion == answer)
"""


@pytest.fixture
def planted(tmp_path):
    path = tmp_path / "planted.py"
    path.write_text(PLANTED)
    return f"{path}:verify"


def rows(*completions, answer="right"):
    return [{"completion": text, "answer": answer, "extra": 1} for text in completions]


def test_faults_cost_only_their_own_row(planted):
    faults = ["hang", "exit", "memory", "raise", "noise", "range", "type", "sleep", "child"]
    batch = rows("right", *(text for fault in faults for text in (fault, "right", "wrong")), "right")
    with VerifierPool(workers=2, wall_seconds=1.5, memory_mb=400) as pool:
        verdicts = pool.run(planted, batch)
    for row, verdict in zip(batch, verdicts, strict=True):
        if row["completion"] in ("right", "wrong", "noise"):
            assert verdict.reward == float(row["completion"] == "right"), (row, verdict)
        else:
            assert verdict.reward is None and verdict.error, (row, verdict)
    errors = {row["completion"]: v.error for row, v in zip(batch, verdicts, strict=True) if v.error}
    assert errors["hang"].startswith("timeout") and errors["sleep"].startswith("timeout")
    assert errors["exit"].startswith("killed") and errors["memory"].startswith("memory")
    assert "planted" in errors["raise"] and "[0, 1]" in errors["range"] and "float" in errors["type"]
    assert tally(verdicts)["errors"] == len(errors) == 8
    # hang, exit, memory, sleep and child each cost a worker
    assert pool.replaced >= 5
    deadline = time.monotonic() + 5
    while _alive("60.25") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive("60.25"), "what a verifier started must die with its worker"


def _alive(argument):
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if entry.isdigit() and argument.encode() in file.read().split(b"\0"):
                    return True
        except OSError:
            continue
    return False


def test_from_other_threads_at_once(planted):
    results = {}
    with VerifierPool(workers=2, wall_seconds=0.5) as pool:

        def work(key):
            results[key] = [v.reward for v in pool.run(planted, rows("right", "hang", "wrong", "right"))]

        threads = [threading.Thread(target=work, args=(key,)) for key in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert results == {key: [1.0, None, 0.0, 1.0] for key in range(3)}


def test_order_and_size(planted):
    batch = [{"completion": str(i % 7), "answer": "3"} for i in range(700)]
    batch[5]["completion"] = "x" * 3_000_000  # larger than any pipe buffer
    with VerifierPool(workers=2, wall_seconds=20) as pool:
        assert [v.reward for v in pool.run(planted, batch)] == [float(r["completion"] == "3") for r in batch]
        assert pool.run(planted, []) == []


def test_workers_are_recycled(planted, monkeypatch):
    monkeypatch.setattr(pool_module, "RECYCLE_ROWS", 20)
    with VerifierPool(workers=1, wall_seconds=20) as pool:
        verdicts = pool.run(planted, rows(*["right"] * 70))
        assert all(v.reward == 1.0 for v in verdicts) and pool.replaced >= 2


def test_a_verifier_that_cannot_start(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(
        "import os\nif os.environ.get('BROKEN'): raise RuntimeError('no')\ndef verify(c, a): return 1.0\n"
    )
    name = f"{path}:verify"
    with VerifierPool(workers=1) as pool:
        pool.run(name, [])
        path.write_text("raise RuntimeError('gone bad')\n")
        verdicts = pool.run(name, rows("right", "right"))
    assert all("gone bad" in (v.error or "") for v in verdicts), verdicts


def test_workers_that_die_at_start_end_the_batch(planted, monkeypatch):
    monkeypatch.setattr(pool_module.sys, "executable", "/bin/false")
    with VerifierPool(workers=2) as pool:
        verdicts = pool.run(planted, rows(*["right"] * 500))
        assert len(verdicts) == 500 and all((v.error or "").startswith("infrastructure") for v in verdicts)
        assert pool.replaced < 10


def test_unknown_name_before_any_process():
    with VerifierPool() as pool, pytest.raises(UserError, match="math_answer"):
        pool.run("math_anser", rows("x"))
    with pytest.raises(UserError):
        run_verdicts("nothing_like_it", rows("x"))


def test_run_verdicts_without_pool(planted):
    assert [v.reward for v in run_verdicts("math_answer", [{"completion": "\\boxed{2}", "answer": "2"}])] == [
        1.0
    ]
    assert [v.reward for v in run_verdicts(planted, rows("right", "wrong"))] == [1.0, 0.0]
    assert run_verdicts("math_answer", [{"completion": "x"}])[0].error  # the row lacks an answer


def test_verifier_for_regex_is_killed_when_it_backtracks():
    row = {"completion": "a" * 40 + "b", "answer": "(a+)+c"}
    with VerifierPool(workers=1, wall_seconds=0.5) as pool:
        hung, fine = pool.run("regex", [row, {"completion": "ab", "answer": "a."}])
    assert (hung.error or "").startswith("timeout") and fine.reward == 1.0
