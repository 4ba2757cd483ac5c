"""Runs verifiers on a batch in worker processes, with a hard wall-clock and memory limit for every row.

A limit here is a SIGKILL from the outside, so it holds from any thread and against any input; no alarm
signal is involved.  Workers are fresh interpreters (`pool_worker.py`), not forks: the caller may hold CUDA,
threads and locks.  Rows travel in chunks, answers come back one by one, so the clock of each row is its
own: a row that overruns costs itself an error, its worker is replaced, and the rest of its chunk goes to
another worker.
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from typing import Any

from onebase.verifiers.base import Verdict, as_verdict, failed
from onebase.verifiers.registry import is_inline, load

Row = dict[str, Any]
CHUNK = 16
START_SECONDS = (
    120.0  # interpreter start and the verifier's imports, which may include sympy on a busy machine
)
RECYCLE_ROWS = 5_000  # a worker is replaced after so many rows, so that a leaking verifier stays bounded
MAX_FALSE_STARTS = 4
REPLY_LIMIT = 1 << 20


class _Worker:
    """One process with its pipes, the rows it has been given and the moment it will be killed."""

    def __init__(self, memory_mb: int) -> None:
        env = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        env["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "onebase.verifiers.pool_worker", str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=env,
            start_new_session=True,  # one group, so that whatever a verifier starts dies with it
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.outgoing = b""
        self.incoming = b""
        self.rows: deque[int] = deque()
        self.ready = False
        self.deadline = float("inf")
        self.done = 0
        self.spent = False  # it ran out of memory: its heap is not to be trusted with another row

    def give(self, name: str, numbered: list[tuple[int, Row]]) -> None:
        payload = pickle.dumps((name, [row for _, row in numbered]))
        self.outgoing = struct.pack("<Q", len(payload)) + payload
        self.rows = deque(number for number, _ in numbered)
        self.ready = False
        self.deadline = time.monotonic() + START_SECONDS

    def flush(self) -> None:
        try:
            sent = os.write(self.stdin, self.outgoing[: 1 << 16])
        except BlockingIOError:
            return
        except BrokenPipeError:
            sent = len(self.outgoing)  # it is dead; reading its output will say so
        self.outgoing = self.outgoing[sent:]

    def kill(self) -> int:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        code = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        return code


class VerifierPool:
    """`run(name, rows)` judges rows of `dict(completion=…, answer=…, **row)`, in order, one Verdict each.
    Safe to call from any thread (batches of several threads take turns).  Close it, or use it in a `with`."""

    def __init__(self, workers: int = 2, wall_seconds: float = 10.0, memory_mb: int = 2048) -> None:
        assert workers >= 1 and wall_seconds > 0 and memory_mb >= 64, (
            f"{workers=} {wall_seconds=} {memory_mb=}"
        )
        self.size, self.wall_seconds, self.memory_mb = workers, wall_seconds, memory_mb
        self.replaced = 0
        self._false_starts = 0  # workers in a row that died before they judged anything
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            _kill_all(self._workers)

    def run(self, name: str, rows: list[Row]) -> list[Verdict]:
        load(name)  # a wrong name is the caller's error, before any process starts
        with self._lock:
            try:
                return self._run(name, rows)
            except BaseException:
                _kill_all(self._workers)  # half-answered chunks must not leak into the next batch
                raise

    def _run(self, name: str, rows: list[Row]) -> list[Verdict]:
        self._false_starts = 0
        verdicts: list[Verdict | None] = [None] * len(rows)
        waiting = deque(range(len(rows)))
        chunk = max(1, min(CHUNK, len(rows) // (2 * self.size)))
        while waiting or any(worker.rows for worker in self._workers):
            while waiting and len(self._workers) < self.size:
                self._workers.append(_Worker(self.memory_mb))
            for worker in self._workers:
                if not worker.rows and waiting:
                    numbers = [waiting.popleft() for _ in range(min(chunk, len(waiting)))]
                    worker.give(name, [(number, rows[number]) for number in numbers])
            for worker in self._step():
                died = self._collect(worker, verdicts)
                late = not died and worker.rows and time.monotonic() > worker.deadline
                if died or late or worker.spent or (worker.done >= RECYCLE_ROWS and not worker.rows):
                    self._replace(worker, bool(late), verdicts, waiting)
        return [
            verdict if verdict is not None else failed("lost: no answer came back") for verdict in verdicts
        ]

    def _step(self) -> list[_Worker]:
        """Waits until a worker speaks, wants input or overruns; hands back those to look at."""
        with selectors.DefaultSelector() as selector:
            busy = [worker for worker in self._workers if worker.rows]
            for worker in busy:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
                if worker.outgoing:
                    selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
            timeout = min(worker.deadline for worker in busy) - time.monotonic()
            for key, events in selector.select(max(0.0, timeout)):
                if events & selectors.EVENT_WRITE:
                    key.data.flush()
            return busy

    def _collect(self, worker: _Worker, verdicts: list[Verdict | None]) -> bool:
        """Reads what the worker said; True when it is dead or talks nonsense."""
        dead = False
        while not dead:
            try:
                data = os.read(worker.stdout, 1 << 16)
            except BlockingIOError:
                break
            worker.incoming += data
            dead = not data or len(worker.incoming) > REPLY_LIMIT
        *lines, worker.incoming = worker.incoming.split(b"\n")
        for line in lines:
            if not worker.rows:
                return True
            if not worker.ready:
                self._false_starts = 0
                worker.ready = True  # the verifier is imported: from here each row has its own clock
            else:
                verdict = verdicts[worker.rows.popleft()] = _read_reply(line)
                worker.done += 1
                worker.spent |= (verdict.error or "").startswith("memory")
            worker.deadline = time.monotonic() + self.wall_seconds
        return dead

    def _replace(
        self, worker: _Worker, late: bool, verdicts: list[Verdict | None], waiting: deque[int]
    ) -> None:
        code = worker.kill()
        self._workers.remove(worker)
        self.replaced += 1
        if worker.spent or not worker.rows:
            waiting.extendleft(reversed(worker.rows))
            return
        guilty = worker.rows.popleft()
        if late and not worker.ready:
            text = f"infrastructure: the verifier did not start within {START_SECONDS:g} s"
        elif late:
            text = f"timeout: over {self.wall_seconds:g} s of wall clock, worker killed"
        elif not worker.ready:
            self._false_starts += 1
            text = f"infrastructure: the worker ended at its start (exit {code})"
        else:
            text = f"killed: the worker ended by itself (exit {code}) while judging"
        verdicts[guilty] = failed(text, seconds=self.wall_seconds if late else 0.0)
        waiting.extendleft(reversed(worker.rows))
        if self._false_starts >= MAX_FALSE_STARTS:  # no worker will ever start: do not try once per row
            while waiting:
                verdicts[waiting.popleft()] = failed(text)


def run_verdicts(name: str, rows: list[Row], pool: VerifierPool | None = None) -> list[Verdict]:
    """Judges rows on `pool`; without one, built-ins that bound their own work run here, all others on a
    pool of their own for this batch."""
    if pool is not None:
        return pool.run(name, rows)
    if is_inline(name):
        function = load(name)
        return [judge(function, row) for row in rows]
    with VerifierPool() as own:
        return own.run(name, rows)


def judge(function: Any, row: Row) -> Verdict:
    """One call of a verifier, timed; whatever it raises becomes an error Verdict."""
    start = time.perf_counter()
    try:
        verdict = as_verdict(function(**row))
    except MemoryError:
        verdict = failed("memory: over the memory limit")
    except Exception as error:  # the verifier is the user's code
        verdict = failed(f"raised: {type(error).__name__}: {str(error)[:300]}")
    verdict.seconds = verdict.seconds or time.perf_counter() - start
    return verdict


def _read_reply(line: bytes) -> Verdict:
    try:
        return Verdict(**json.loads(line))
    except (ValueError, TypeError) as error:
        return failed(f"infrastructure: unreadable reply from a worker: {error}")


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()
