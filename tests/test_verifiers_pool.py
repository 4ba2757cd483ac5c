"""The pool: hard limits from any thread, and a killed worker costs its own row only."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onebase.errors import UserError
from onebase.verifiers import pool as pool_module
from onebase.verifiers.base import tally
from onebase.verifiers.pool import VerifierPool, run_verdicts
from onebase.verifiers.registry import limits

PLANTED = """
import ctypes, os, subprocess, sys, threading, time
from onebase.verifiers.base import Verdict

class Spiteful:
    def __str__(self):
        raise RuntimeError("no text")

leak = []

def verify(completion, answer, **row):
    if completion == "hang":
        while True:
            pass
    if completion == "sleep":
        time.sleep(60)
    if completion == "exit":
        os._exit(0)
    if completion == "sys.exit":
        sys.exit("planted")
    if completion == "segfault":
        ctypes.string_at(0)
    if completion == "memory":
        hoard = [bytearray(1 << 27) for _ in range(1 << 20)]
    if completion == "leak":
        leak.append(bytearray(100 << 20))
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
    if completion == "fork and die":
        if os.fork() == 0:
            time.sleep(60)  # holds the pipe to the pool open
        os._exit(3)
    if completion == "fork and return":
        os.fork()
    if completion.startswith("details"):
        details = {"lock": threading.Lock(), "spiteful": Spiteful(), (1, 2): 3, "circle": []}
        details["circle"].append(details)
        chosen = {completion[8:]: details[(1, 2) if completion == "details key" else completion[8:]]}
        return Verdict(1.0, "two\\nlines", details={(1, 2): 3} if completion == "details key" else chosen)
    if completion == "long":
        return Verdict(0.0, "x" * 500_000, details={"y": "z" * 500_000})
    if completion == "slow":
        time.sleep(0.15)
        return Verdict(0.5, str(os.getpid()))
    return float(completion == answer)
"""


@pytest.fixture
def planted(tmp_path):
    path = tmp_path / "planted.py"
    path.write_text(PLANTED)
    return f"{path}:verify"


def rows(*completions, answer="right"):
    return [{"completion": text, "answer": answer, "extra": 1} for text in completions]


def rewards(verdicts):
    return [v.reward for v in verdicts]


def test_faults_cost_only_their_own_row(planted):
    faults = ["hang", "exit", "memory", "raise", "noise", "range", "type", "sleep", "child", "sys.exit"]
    faults += ["segfault", "fork and die"]
    batch = rows("right", *(text for fault in faults for text in (fault, "right", "wrong")), "right")
    with VerifierPool(workers=2, wall_seconds=3, memory_mb=400) as pool:
        verdicts = pool.run(planted, batch)
    for row, verdict in zip(batch, verdicts, strict=True):
        if row["completion"] in ("right", "wrong", "noise"):
            assert verdict.reward == float(row["completion"] == "right"), (row, verdict)
        else:
            assert verdict.reward is None and verdict.error, (row, verdict)
    errors = {row["completion"]: v.error for row, v in zip(batch, verdicts, strict=True) if v.error}
    assert {name for name, text in errors.items() if text.startswith("timeout")} == {"hang", "sleep", "child"}
    assert errors["exit"].startswith("killed") and errors["memory"].startswith("memory")
    assert errors["segfault"].startswith("killed") and "exit -11" in errors["segfault"]
    assert "planted" in errors["raise"] and "[0, 1]" in errors["range"] and "float" in errors["type"]
    assert errors["sys.exit"] == "raised: SystemExit: planted"
    assert errors["fork and die"] == "killed: the worker ended by itself (exit 3) while judging"
    assert tally(verdicts)["errors"] == len(errors) == 11
    assert pool.replaced >= 7, "hang, exit, memory, sleep, child, segfault and the fork each cost a worker"
    assert gone("60.25"), "what a verifier started must die with its worker"


def gone(argument, seconds=10):
    """Whether no process has that argument any more, within a while."""
    deadline = time.monotonic() + seconds
    while _alive(argument) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not _alive(argument)


def _alive(argument):
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if entry.isdigit() and argument.encode() in file.read().split(b"\0"):
                    return True
        except OSError:
            continue
    return False


def test_answers_that_are_hard_to_send_back(planted):
    texts = [
        "details lock",
        "details key",
        "details spiteful",
        "details circle",
        "long",
        "fork and return",
        "right",
    ]
    with VerifierPool(workers=1, wall_seconds=20) as pool:
        verdicts = dict(zip(texts, pool.run(planted, rows(*texts)), strict=True))
        assert pool.replaced == 0
    assert rewards(verdicts.values()) == [1.0] * 4 + [0.0, 0.0, 1.0]
    assert verdicts["details lock"].details["lock"].startswith("<unlocked _thread.lock")
    assert verdicts["details lock"].reason == "two lines"
    for name in ("details key", "details spiteful", "details circle"):
        assert set(verdicts[name].details) == {"dropped"}
    assert len(verdicts["long"].reason) == 1000 and verdicts["long"].details == {"dropped": "too long"}


def test_rows_that_are_hard_to_send(planted, monkeypatch):
    monkeypatch.setattr(pool_module, "ROW_BYTES", 5_000_000)
    stranger = type("Stranger", (), {"__module__": "__main__", "__reduce__": lambda self: "stranger"})()
    sys.modules["__main__"].stranger = stranger  # found here, and in no worker
    try:
        batch = [
            {"completion": "right", "answer": "right", "lock": threading.Lock()},
            *rows("right"),
            {"completion": "right", "answer": "right", "odd": stranger},
            {"completion": "x" * 6_000_000, "answer": "right"},
            {"completion": "x" * 4_000_000, "answer": "right"},  # larger than any pipe buffer
            {"completion": "right", "answer": "right", "n": 10**400, "text": "\ud800\x00"},
            *rows("right"),
        ]
        with VerifierPool(workers=2, wall_seconds=20) as pool:
            verdicts = pool.run(planted, batch)
            assert pool.replaced == 0
    finally:
        del sys.modules["__main__"].stranger
    assert rewards(verdicts) == [None, 1.0, None, None, 0.0, 1.0, 1.0]
    assert "row: it cannot be sent" in verdicts[0].error
    assert "row cannot be read in a worker" in verdicts[2].error
    assert verdicts[3].error.startswith("row: 6000") and "(5000000)" in verdicts[3].error


def test_a_leak_is_not_the_fault_of_the_next_row(planted):
    """Each row keeps 100 MB for ever, under a limit of 450 MB: every one is judged, by a fresh worker where
    need be.  One that takes more than all is an error even so."""
    with VerifierPool(workers=1, wall_seconds=30, memory_mb=450) as pool:
        verdicts = pool.run(planted, rows(*["leak"] * 8, "memory", "right", *["leak"] * 4))
        assert pool.replaced >= 3
    assert rewards(verdicts) == [0.0] * 8 + [None, 1.0] + [0.0] * 4
    assert verdicts[8].error.startswith("memory")


def test_from_other_threads_at_once(planted):
    results = {}
    with VerifierPool(workers=2, wall_seconds=1) as pool:

        def work(key):
            results[key] = rewards(pool.run(planted, rows("right", "hang", "wrong", "right")))

        threads = [threading.Thread(target=work, args=(key,)) for key in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert results == {key: [1.0, None, 0.0, 1.0] for key in range(5)}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_long_batch_lets_a_short_one_pass(planted, workers):
    ended = {}
    with VerifierPool(workers=workers, wall_seconds=20) as pool:
        pool.run(planted, rows("right", "slow"))

        def work(key, count):
            verdicts = pool.run(planted, rows(*["slow"] * count))
            ended[key] = (time.monotonic(), rewards(verdicts))

        long = threading.Thread(target=work, args=("long", 40))
        long.start()
        time.sleep(0.5)
        short = threading.Thread(target=work, args=("short", 2))
        short.start()
        long.join(60), short.join(60)
        assert len(pool._all) <= workers
    assert ended["short"][0] < ended["long"][0]
    assert ended["long"][1] == [0.5] * 40 and ended["short"][1] == [0.5] * 2


def test_order_and_size(planted):
    batch = [{"completion": str(i % 7), "answer": "3"} for i in range(700)]
    with VerifierPool(workers=2, wall_seconds=20) as pool:
        assert rewards(pool.run(planted, batch)) == [float(r["completion"] == "3") for r in batch]
        assert pool.run(planted, []) == []


def test_no_more_workers_than_rows_and_slow_rows_are_spread(planted):
    with VerifierPool(workers=3, wall_seconds=30) as pool:
        pool.run(planted, rows("right"))
        assert len(pool._all) == 1
        pids = {v.reason for v in pool.run(planted, rows(*["slow"] * 12))}
        assert len(pids) == 3


def test_workers_are_recycled_and_keep_the_text_they_began_with(planted, monkeypatch):
    monkeypatch.setattr(pool_module, "RECYCLE_ROWS", 20)
    with VerifierPool(workers=1, wall_seconds=20) as pool:
        pool.run(planted, rows("right"))
        Path(planted.rpartition(":")[0]).write_text("raise RuntimeError('edited in the middle of a run')")
        assert rewards(pool.run(planted, rows(*["right"] * 70))) == [1.0] * 70
        assert pool.replaced >= 2


def test_a_worker_that_died_idle_costs_nothing(planted):
    with VerifierPool(workers=1, wall_seconds=20) as pool:
        pool.run(planted, rows("right"))
        (worker,) = pool._all
        os.kill(worker.process.pid, signal.SIGKILL)
        assert rewards(pool.run(planted, rows("right", "wrong"))) == [1.0, 0.0]


def test_a_worker_that_dies_at_its_start_costs_nothing(tmp_path):
    """Its first start fails, the next is fine: the rows did not do it."""
    flag = tmp_path / "flag"
    path = tmp_path / "shaky.py"
    path.write_text(
        f"import os, pathlib\nif os.environ.get('ONEBASE_SHAKY'):\n    flag = pathlib.Path({str(flag)!r})\n"
        "    if not flag.exists():\n        flag.touch(); os._exit(9)\n"
        "def verify(completion, **row): return 1.0\n"
    )
    name = f"{path}:verify"
    with VerifierPool(workers=1, wall_seconds=20) as pool:
        pool.run(name, [])
        os.environ["ONEBASE_SHAKY"] = "1"
        try:
            assert rewards(pool.run(name, rows("a", "b"))) == [1.0, 1.0]
        finally:
            del os.environ["ONEBASE_SHAKY"]
        assert flag.exists() and pool.replaced == 1


def test_a_verifier_that_cannot_start(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(
        "import os\nif os.environ.get('ONEBASE_BROKEN'): raise RuntimeError('no')\n"
        "def verify(completion, **row): return 1.0\n"
    )
    name = f"{path}:verify"
    with VerifierPool(workers=1) as pool:
        pool.run(name, [])
        os.environ["ONEBASE_BROKEN"] = "1"
        try:
            verdicts = pool.run(name, rows("right", "right"))
        finally:
            del os.environ["ONEBASE_BROKEN"]
    assert all("cannot be imported: RuntimeError: no" in (v.error or "") for v in verdicts), verdicts


def test_workers_that_die_at_start_end_the_batch(planted, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with VerifierPool(workers=2) as pool:
        verdicts = pool.run(planted, rows(*["right"] * 500))
        assert len(verdicts) == 500 and all((v.error or "").startswith("infrastructure") for v in verdicts)
        assert pool.replaced < 10


def test_a_module_says_what_it_needs(tmp_path):
    path = tmp_path / "asking.py"
    text = (
        "import resource, time\nWALL_SECONDS = 0.5\nMEMORY_MB = {memory}\nWORKERS = 3\nINLINE = True\n"
        "from onebase.verifiers.base import Verdict\n"
        "def verify(completion, **row):\n"
        "    if completion == 'sleep': time.sleep(9)\n"
        "    return Verdict(1.0, str(resource.getrlimit(resource.RLIMIT_AS)[0] >> 20))\n"
    )
    path.write_text(text.format(memory=900))
    (tmp_path / "free.py").write_text(text.format(memory=0))
    name, free = f"{path}:verify", f"{tmp_path / 'free.py'}:verify"
    asked = limits(name)
    assert (asked.wall_seconds, asked.memory_mb, asked.workers) == (0.5, 900, 3)
    assert not asked.inline, "only a built-in is believed that it bounds its own work"
    with VerifierPool(workers=1) as pool:
        slow, fine = pool.run(name, rows("sleep", "right"))
        assert slow.error == "timeout: over 0.5 s of wall clock, worker killed" and fine.reason == "900"
        (unlimited,) = pool.run(free, rows("right"))  # needs a worker of another kind
        assert int(unlimited.reason) < 0 or int(unlimited.reason) > 1 << 30
        assert pool.run(name, rows("sleep"), wall_seconds=0.1)[0].error.startswith("timeout: over 0.1 s")
        assert len(pool._all) <= 1


def test_gold_is_asked_through_the_module_or_verify(tmp_path):
    path = tmp_path / "golden.py"
    path.write_text(
        "def gold_problem(answer, **row): return None if answer.isdigit() else f'{answer!r} is no number'\n"
        "def verify(completion, answer, **row): raise AssertionError('not to be called')\n"
    )
    with VerifierPool(workers=1) as pool:
        verdicts = pool.run(f"{path}:verify", [{"answer": "12"}, {"answer": "x"}], gold=True)
        assert [v.error for v in verdicts] == [None, "gold: 'x' is no number"]
        verdicts = pool.run("regex", [{"answer": "a+"}, {"answer": "a("}], gold=True)
        assert verdicts[0].error is None and verdicts[1].error.startswith("gold: 'a(' is not a regular exp")


def test_workers_die_with_a_killed_parent(tmp_path):
    """SIGKILL of the trainer while a worker is inside of one endless C call, which no thread could stop."""
    code = (
        "from onebase.verifiers.pool import VerifierPool\n"
        "print('here', flush=True)\n"
        "VerifierPool(workers=1, wall_seconds=300).run('regex', [{'completion': 'a' * 60 + 'b', "
        "'answer': '(a+)+c'}])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "here\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    if not children.exists():
        parent.kill()
        pytest.skip("this kernel does not tell a process's children")
    deadline = time.monotonic() + 30
    pids: list[str] = []
    while not pids and time.monotonic() < deadline:
        pids = children.read_text().split()
        time.sleep(0.05)
    stat = Path(f"/proc/{pids[0]}/stat")
    while float(stat.read_text().split()[13]) < 50 and time.monotonic() < deadline:
        time.sleep(0.05)  # until it has spent half a second of CPU: it is at its regular expression
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_a_forked_process_has_workers_of_its_own(planted):
    with VerifierPool(workers=1, wall_seconds=20) as pool:
        pool.run(planted, rows("right"))
        before = pool._all[0].process.pid
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                right = rewards(pool.run(planted, rows("right", "wrong"))) == [1.0, 0.0]
                code = 0 if right and pool._all[0].process.pid != before else 2
                pool.close()
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert rewards(pool.run(planted, rows("right"))) == [1.0] and pool._all[0].process.pid == before


def test_no_process_and_no_descriptor_is_left(planted):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with VerifierPool(workers=2, wall_seconds=0.5) as pool:
            pool.run(planted, rows("right", "hang", "exit", "right"))
            pids = [w.process.pid for w in pool._all]
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert len(os.listdir("/proc/self/fd")) == before


def test_unknown_name_before_any_process():
    with VerifierPool() as pool, pytest.raises(UserError, match="math_answer"):
        pool.run("math_anser", rows("x"))
    with pytest.raises(UserError):
        run_verdicts("nothing_like_it", rows("x"))


def test_run_verdicts_without_pool(planted):
    assert rewards(run_verdicts("math_answer", [{"completion": "\\boxed{2}", "answer": "2"}])) == [1.0]
    assert rewards(run_verdicts(planted, rows("right", "wrong"))) == [1.0, 0.0]
    assert run_verdicts("math_answer", [{"completion": "x"}])[0].error  # the row lacks an answer


def test_verifier_for_regex_is_killed_when_it_backtracks():
    row = {"completion": "a" * 40 + "b", "answer": "(a+)+c"}
    with VerifierPool(workers=1, wall_seconds=0.5) as pool:
        hung, fine = pool.run("regex", [row, {"completion": "ab", "answer": "a."}])
    assert (hung.error or "").startswith("timeout") and fine.reward == 1.0
