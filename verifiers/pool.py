"""Runs verifiers on a batch in worker processes, with a hard wall-clock and memory limit for every row.

A limit here is a SIGKILL from the outside, so it holds from any thread and against any input; no alarm
signal is involved.  Rows travel in chunks, answers come back one by one, so the clock of each row is its
own: a row that overruns costs itself an error, its worker is replaced, and the rest of its chunk goes to
another worker.  A row that runs out of memory in a worker that had judged others before is judged once more
by a fresh one: what earlier rows left behind is not its fault.

Any thread may call `run`.  Batches share the workers: while others wait, a batch keeps only its share.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onebase.verifiers.base import Limits, Verdict, failed, judge
from onebase.verifiers.registry import is_inline, limits, load, source_of
from onebase.verifiers.worker import ROW_BYTES, Job, Worker, pack

Row = dict[str, Any]
CHUNK = 64  # most rows given to a worker at once
CHUNK_BYTES = 1 << 20  # a chunk is closed when it is as large as this
CHUNK_SECONDS = 0.1  # work that a chunk should be, once the verifier's pace is known
FIRST_CHUNK = 4
RECYCLE_ROWS = 5_000  # a worker is replaced after so many rows, so that a leaking verifier stays bounded
MAX_FALSE_STARTS = 4
MOST_WORKERS = 64


@dataclass(slots=True)
class _Batch:
    """One call of `run`."""

    job: Job
    rows: Sequence[Row | bytes]
    limits: Limits
    verdicts: list[Verdict | None]
    waiting: deque[int]
    workers: list[Worker] = field(default_factory=list)
    false_starts: int = 0
    """Workers in a row that ended before they judged anything."""


class VerifierPool:
    """`run(name, rows)` judges rows of `dict(completion=…, answer=…, **row)`, in order, one Verdict each.

    `wall_seconds` and `memory_mb`, where not given, are what the verifier's module asks for (base.Limits).
    Safe to call from any thread.  Close it, or use it in a `with`."""

    def __init__(
        self, workers: int | None = None, wall_seconds: float | None = None, memory_mb: int | None = None
    ) -> None:
        assert workers is None or workers >= 1, f"{workers=}"
        assert wall_seconds is None or wall_seconds > 0, f"{wall_seconds=}"
        assert memory_mb is None or memory_mb == 0 or memory_mb >= 64, f"{memory_mb=}"
        self.size = workers or cores()
        self.wall_seconds, self.memory_mb = wall_seconds, memory_mb
        self.replaced = 0
        self._pace: dict[str, float] = {}  # seconds of one row, by verifier
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._free = threading.Condition()
        self._idle: list[Worker] = []
        self._used = 0  # workers that batches hold; with the idle ones never more than `size`
        self._queue: deque[object] = deque()  # batches that have no worker, first come first served
        self._batches = 0
        self._all: list[Worker] = []
        self._finalizer = weakref.finalize(self, _end, self._all, self._pid)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, after the batches that are running."""
        with self._free:
            while self._batches:
                self._free.wait()
            while self._idle:
                self._kill(self._idle.pop())

    def run(
        self, name: str, rows: Sequence[Row | bytes], wall_seconds: float | None = None, gold: bool = False
    ) -> list[Verdict]:
        """`gold`: judge the rows' own answers (registry.load_gold).  A row may come packed (worker.pack)."""
        load(name)  # a wrong name is the caller's error, before any process starts
        asked = limits(name)
        wall = wall_seconds or self.wall_seconds or asked.wall_seconds
        memory = asked.memory_mb if self.memory_mb is None else self.memory_mb
        bounds = Limits(False, wall, memory, self.size, asked.start_seconds)
        return self.run_job(Job(name, source_of(name), gold), rows, bounds)

    def run_job(self, job: Job, rows: Sequence[Row | bytes], bounds: Limits) -> list[Verdict]:
        """The same for a verifier whose file is another machine's."""
        if self._pid != os.getpid():
            self._begin()  # a fork: the workers and their pipes are the parent's
        batch = _Batch(job, rows, bounds, [None] * len(rows), deque(range(len(rows))))
        with self._free:
            self._batches += 1
        try:
            while batch.waiting or batch.workers:
                self._staff(batch)
                for worker in _listen([w for w in batch.workers if w.rows]):
                    self._hear(worker, batch)
        except BaseException:
            for worker in list(batch.workers):  # half-answered chunks must not leak into the next batch
                self._drop(worker, batch)
            raise
        finally:
            with self._free:
                self._batches -= 1
                self._free.notify_all()
        return [v if v is not None else failed("infrastructure: no answer came back") for v in batch.verdicts]

    # Workers come and go.

    def _staff(self, batch: _Batch) -> None:
        """Give a chunk to every worker that can be had; let those go that others wait for or nobody needs."""
        for worker in [w for w in batch.workers if not w.rows]:
            if not batch.waiting or self._over_share(batch):
                self._release(worker, batch)
            else:
                self._give(worker, batch)
        while batch.waiting:
            found = self._take(batch, wait=not batch.workers)
            if found is None:
                return
            self._give(found, batch)

    def _over_share(self, batch: _Batch) -> bool:
        with self._free:
            return bool(self._queue) and len(batch.workers) > self.size // self._batches

    def _take(self, batch: _Batch, wait: bool) -> Worker | None:
        """An idle worker or a new one, where there is room; batches without any are served in turn."""
        with self._free:
            if wait:
                turn = object()
                self._queue.append(turn)
                try:
                    while self._queue[0] is not turn or self._used >= self.size:
                        self._free.wait()
                finally:
                    self._queue.remove(turn)
                    self._free.notify_all()
            elif self._queue or self._used >= self.size:
                return None
            self._used += 1
            for dead in [w for w in self._idle if w.exited()]:
                self._idle.remove(dead)
                self._kill(dead)
            worker = next((w for w in self._idle if w.memory_mb == batch.limits.memory_mb), None)
            if worker is not None:
                self._idle.remove(worker)
                batch.workers.append(worker)
                return worker
            if len(self._idle) + self._used > self.size:
                self._kill(self._idle.pop(0))  # of another memory limit
        return self._start(batch)

    def _start(self, batch: _Batch) -> Worker:
        """A new worker in a place that the batch has."""
        try:
            worker = Worker(batch.limits.memory_mb)
        except BaseException:
            with self._free:
                self._used -= 1
                self._free.notify_all()
            raise
        with self._free:
            self._all.append(worker)
        batch.workers.append(worker)
        return worker

    def _release(self, worker: Worker, batch: _Batch) -> None:
        batch.workers.remove(worker)
        with self._free:
            self._used -= 1
            self._idle.append(worker)
            self._free.notify_all()

    def _drop(self, worker: Worker, batch: _Batch) -> int:
        """End a worker that a batch holds; returns its exit code."""
        batch.workers.remove(worker)
        code = self._kill(worker)
        with self._free:
            self._used -= 1
            self._free.notify_all()
        return code

    def _kill(self, worker: Worker) -> int:
        with self._free:
            self._all.remove(worker)
        return worker.kill()

    # Rows go out, verdicts come in.

    def _give(self, worker: Worker, batch: _Batch) -> None:
        """The next rows that can be sent, as many as are worth a message."""
        pace = self._pace.get(batch.job.name)
        most = FIRST_CHUNK if pace is None else int(CHUNK_SECONDS / max(pace, 1e-6))
        most = max(1, min(CHUNK, most, len(batch.waiting) // (2 * self.size)))
        numbers: list[int] = []
        packed: list[bytes] = []
        size = 0
        limit = min(ROW_BYTES, (batch.limits.memory_mb << 20) // 4 or ROW_BYTES)
        while batch.waiting and len(numbers) < most and size < CHUNK_BYTES:
            number = batch.waiting.popleft()
            blob = pack(batch.rows[number], limit)
            if isinstance(blob, Verdict):
                batch.verdicts[number] = blob
                continue
            numbers.append(number)
            packed.append(blob)
            size += len(blob)
        if numbers:
            worker.give(batch.job, numbers, packed, batch.limits.wall_seconds, batch.limits.start_seconds)

    def _hear(self, worker: Worker, batch: _Batch) -> None:
        """Take in what a worker said; replace it where it is dead, late or used up."""
        verdicts, dead = worker.replies()
        for verdict in verdicts:
            batch.false_starts = 0
            if (verdict.error or "").startswith("memory"):
                self._out_of_memory(worker, verdict, batch)
                return
            batch.verdicts[worker.rows.popleft()] = verdict
            worker.done += 1
            pace = self._pace.get(batch.job.name, verdict.seconds)
            self._pace[batch.job.name] = 0.9 * pace + 0.1 * verdict.seconds
        late = not dead and worker.rows and time.monotonic() > worker.deadline
        if dead or late:
            self._lost(worker, bool(late), batch)
        elif worker.done >= RECYCLE_ROWS and not worker.rows:
            self.replaced += 1
            self._drop(worker, batch)

    def _out_of_memory(self, worker: Worker, verdict: Verdict, batch: _Batch) -> None:
        """The worker ends itself behind this verdict.  Where it was fresh the row is to blame; else the row
        is judged again by one that is."""
        self.replaced += 1
        rows = list(worker.rows)
        if worker.done == 0:
            batch.verdicts[rows.pop(0)] = verdict
            self._drop(worker, batch)
            batch.waiting.extendleft(reversed(rows))
        else:
            batch.waiting.extendleft(reversed(rows))
            batch.workers.remove(worker)
            self._kill(worker)
            self._give(self._start(batch), batch)

    def _lost(self, worker: Worker, late: bool, batch: _Batch) -> None:
        wall, ready = batch.limits.wall_seconds, worker.ready
        rows = list(worker.rows)
        self.replaced += 1
        code = self._drop(worker, batch)
        if rows and ready:
            told = f"timeout: over {wall:g} s of wall clock, worker killed"
            if not late:
                told = f"killed: the worker ended by itself (exit {code}) while judging"
            batch.verdicts[rows.pop(0)] = failed(told, seconds=wall if late else 0.0)
        batch.waiting.extendleft(reversed(rows))
        if rows and not ready:  # it judged nothing, so no row is to blame
            batch.false_starts += MAX_FALSE_STARTS if late else 1
            if batch.false_starts >= MAX_FALSE_STARTS:  # none will ever start: do not try once per row
                told = f"the worker ended at its start (exit {code})"
                if late:
                    told = f"the verifier was not imported within {batch.limits.start_seconds:g} s"
                while batch.waiting:
                    batch.verdicts[batch.waiting.popleft()] = failed(f"infrastructure: {told}")


def _listen(workers: list[Worker]) -> list[Worker]:
    """Waits until a worker speaks, ends, wants input or overruns; hands back those to look at."""
    if not workers:
        return []
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.stdout, selectors.EVENT_READ, worker)
            if worker.death is not None:
                selector.register(worker.death, selectors.EVENT_READ, worker)
            if worker.outgoing:
                selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
        timeout = min(worker.deadline for worker in workers) - time.monotonic()
        for key, events in selector.select(max(0.0, timeout)):
            if events & selectors.EVENT_WRITE:
                key.data.flush()
    return workers


def run_verdicts(name: str, rows: Sequence[Row], pool: VerifierPool | None = None) -> list[Verdict]:
    """Judges rows on `pool`; without one, built-ins that bound their own work run here, all others on a
    pool of their own for this batch."""
    if pool is not None:
        return pool.run(name, rows)
    if is_inline(name):
        function = load(name)
        return [judge(function, row) for row in rows]
    with VerifierPool(limits(name).workers) as own:
        return own.run(name, rows)


def cores() -> int:
    """Cores that this process may use: of its CPU set and of its cgroup's quota, the fewer."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = open("/sys/fs/cgroup/cpu.max", encoding="ascii").read().split()  # noqa: SIM115
        if quota != "max":
            count = min(count, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, min(MOST_WORKERS, count))


def _end(workers: list[Worker], pid: int) -> None:
    while workers:
        worker = workers.pop()
        if pid == os.getpid():
            worker.kill()
