"""`VerifierPool` on a Ray cluster: the same `run`, its rows spread over the nodes in chunks.

Each node has one actor, which holds a VerifierPool of that node's cores; limits are kept there, by SIGKILL,
and Ray only carries chunks.  An actor asks for no CPU of Ray's, since its work falls between the steps of
those that do.  When an actor or its node dies, its chunks are given again, once, row by row; a row whose
actor dies a second time is an error.  Nodes that join or come back are seen at the next batch.

The file of a `path.py:function` verifier travels as text.  Anything else that a verifier imports, onebase
included, has to be installed on the nodes.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onebase.errors import UserError
from onebase.verifiers.base import Limits, Verdict, failed
from onebase.verifiers.pool import Row, VerifierPool
from onebase.verifiers.registry import limits, load, source_of
from onebase.verifiers.worker import Job, pack

CHUNK = 256  # most rows of a message
IN_FLIGHT = 2  # chunks given to an actor at once: one is worked on while the other travels
TURNS = 3  # chunks that an actor should get of a batch, so that a slow one does not hold up all


@dataclass(slots=True)
class _Chunk:
    numbers: list[int]
    given: int = 0
    node: str = ""
    actor: Any = None


@dataclass(slots=True)
class _Batch:
    """One call of `run`."""

    job: Job
    rows: Sequence[Row]
    bounds: Limits
    verdicts: list[Verdict | None]
    waiting: deque[_Chunk] = field(default_factory=deque)
    flying: dict[Any, _Chunk] = field(default_factory=dict)
    """By the reference of its answer."""

    def fail(self, chunk: _Chunk, told: str) -> None:
        for number in chunk.numbers:
            self.verdicts[number] = failed(f"infrastructure: {told}")


class RayPool:
    """`run(name, rows)` like VerifierPool's, from any thread.  `workers`: processes of each node, None: its
    cores.  Connects to the cluster that the process is in or RAY_ADDRESS names."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers
        self.lost = 0
        """Actors that died."""
        self._actors: dict[str, Any] = {}  # by node
        self._lock = threading.Lock()

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        ray = _ray()
        with self._lock:
            while self._actors:
                ray.kill(self._actors.popitem()[1])

    def run(
        self, name: str, rows: Sequence[Row], wall_seconds: float | None = None, gold: bool = False
    ) -> list[Verdict]:
        load(name)  # a wrong name is the caller's error, before anything is sent
        asked = limits(name)
        bounds = Limits(False, wall_seconds or asked.wall_seconds, asked.memory_mb, None, asked.start_seconds)
        batch = _Batch(Job(name, source_of(name), gold), rows, bounds, [None] * len(rows))
        ray = _ray()
        actors = self._hired(ray) if rows else {}
        size = max(1, min(CHUNK, len(rows) // (TURNS * max(1, len(actors)))))
        numbers = range(len(rows))
        batch.waiting.extend(_Chunk(list(numbers[at : at + size])) for at in range(0, len(rows), size))
        while batch.waiting or batch.flying:
            actors = actors or self._hired(ray)
            _send(batch, actors)
            if batch.flying:
                ready, _ = ray.wait(list(batch.flying), num_returns=1)
                self._receive(ray, batch, ready[0], actors)
            elif batch.waiting and not actors:
                batch.fail(batch.waiting.popleft(), "the Ray cluster has no node")
        lost = failed("infrastructure: no answer came back")
        return [verdict if verdict is not None else lost for verdict in batch.verdicts]

    def _receive(self, ray: Any, batch: _Batch, ref: Any, actors: dict[str, Any]) -> None:
        chunk = batch.flying.pop(ref)
        try:
            answers = ray.get(ref)
        except ray.exceptions.RayActorError:
            self._bury(chunk, actors)
            if chunk.given < 2:
                batch.waiting.extend(_Chunk([number], chunk.given) for number in chunk.numbers)
            else:
                batch.fail(chunk, "the Ray actor that judged it died, as did the one before")
        except ray.exceptions.RayError as error:  # an answer lost, or a fault of ours: told, not tried again
            batch.fail(chunk, f"Ray: {str(error).strip().splitlines()[-1][:300]}")
        else:
            for number, verdict in zip(chunk.numbers, answers, strict=True):
                batch.verdicts[number] = verdict

    def _hired(self, ray: Any) -> dict[str, Any]:
        """An actor for each living node that has CPUs (for each living node, where none has)."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        cpus = {n["NodeID"]: n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"]}
        nodes = [node for node, count in cpus.items() if count > 0] or list(cpus)
        with self._lock:
            for node in [n for n in self._actors if n not in nodes]:
                del self._actors[node]
            for node in nodes:
                if node not in self._actors:
                    where = NodeAffinitySchedulingStrategy(node, soft=False)
                    made = ray.remote(Judges).options(
                        num_cpus=0, max_restarts=0, max_concurrency=IN_FLIGHT + 2, scheduling_strategy=where
                    )
                    self._actors[node] = made.remote(self.workers)
            return dict(self._actors)

    def _bury(self, chunk: _Chunk, actors: dict[str, Any]) -> None:
        """Forget a dead actor; the first of its chunks to fail does it for all.  The batch goes on with the
        others, if there are any: Ray may take a while to know that the node is dead as well."""
        if actors.get(chunk.node) is not chunk.actor:
            return
        del actors[chunk.node]
        with self._lock:
            if self._actors.get(chunk.node) is chunk.actor:
                self.lost += 1
                del self._actors[chunk.node]


class Judges:
    """The actor of a node."""

    def __init__(self, workers: int | None) -> None:
        self.pool = VerifierPool(workers)

    def judge(self, job: Job, packed: list[bytes], bounds: Limits) -> list[Verdict]:
        return self.pool.run_job(job, packed, bounds)


def _send(batch: _Batch, actors: dict[str, Any]) -> None:
    """Give chunks to those actors that have the fewest, up to IN_FLIGHT each."""
    busy = Counter(chunk.node for chunk in batch.flying.values())
    while batch.waiting and actors:
        node = min(actors, key=lambda n: busy[n])
        if busy[node] >= IN_FLIGHT:
            return
        chunk = batch.waiting.popleft()
        numbers, packed = [], []
        for number in chunk.numbers:
            blob = pack(batch.rows[number])
            if isinstance(blob, Verdict):
                batch.verdicts[number] = blob
            else:
                numbers.append(number)
                packed.append(blob)
        if numbers:
            ref = actors[node].judge.remote(batch.job, packed, batch.bounds)
            batch.flying[ref] = _Chunk(numbers, chunk.given + 1, node, actors[node])
            busy[node] += 1


def _ray() -> Any:
    """The ray module, connected."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError(
            "verifiers on a Ray cluster: RAY_ADDRESS is set, but ray is not installed\n"
            "  pip install 'onebase[ray]', or unset RAY_ADDRESS to judge on this machine"
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # the address is RAY_ADDRESS
    return ray
