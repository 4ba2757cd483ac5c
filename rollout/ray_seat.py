"""What the driver knows about one engine's actor, and whether a reply of its can be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from onebase.errors import UserError
from onebase.rollout.engine import Request
from onebase.rollout.nonsense import nonsense
from onebase.rollout.ray_engine import Order, Reply, Where
from onebase.rollout.weight_sync import FLOOR, GROWTH, TOLERANCE

Answers = list[list[list[float]]]
"""[replica][row][token but the first]"""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, and how often."""

    pump: float = 0.25
    """Seconds that an actor generates before it comes back, at least (router.order_seconds)."""
    grace: float = 120.0
    """Seconds beyond that until it counts as hung: for the longest step, the first with its compilation, or
    a load."""
    room: float = 180.0
    """Seconds for the cluster to have room, and for a process to come up."""
    start: float = 900.0
    """Seconds for the engine's start in it; vLLM may take minutes."""
    stall: float = 3600.0
    """Seconds in which an engine with requests must end at least one."""
    replacements: int = 8
    """Most within `window` seconds."""
    window: float = 600.0
    failed_starts: int = 3
    """Most in a row."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An engine that was replaced, or could not be."""

    at: float
    """Seconds since the engines were asked for."""
    engine: str
    doing: str
    reason: str
    aboard: frozenset[int]
    """Requests that it had."""

    def __str__(self) -> str:
        return f"{self.at:.0f} s: {self.engine}, {self.doing}: {self.reason}"


class EnginesLost(UserError):
    """More engines failed than may be replaced."""


def lost(why: str, faults: Sequence[Fault]) -> EnginesLost:
    """The error that ends a run, with what happened each time."""
    text = f"{why}:\n" + "\n".join(f"  {f}" for f in faults)
    common = frozenset.intersection(*(f.aboard for f in faults)) if len(faults) > 1 else frozenset()
    if common:
        text += f"\n  requests that were aboard each time: {sorted(common)[:20]}"
    return EnginesLost(text)


@dataclass(slots=True)
class Seat:
    """An actor and what it is known to hold."""

    number: int
    bundle: int
    """Which of the engines it is, also after replacements."""
    actor: Any
    where_ref: Any
    """Reference of `where`; None when that has come."""
    flight: Any
    """Reference of the reply to come; None when it is idle."""
    deadline: float
    where: Where | None = None
    order: Order | None = None
    """What it is at; None during its start."""
    started: bool = False
    working: bool = False
    """It has started and, where there was a probe, proven its weights."""
    entry: int = -1
    """Last entry of the ledger that it was sent and answered for."""
    version: int = 0
    versions: set[int] = field(default_factory=set)
    fruitful: float = 0.0
    """When it last ended a request, or had none."""
    asked: int = 0
    answered: int = 0
    answer: Any = None

    def __str__(self) -> str:
        at = f" (host {self.where.host}, pid {self.where.pid})" if self.where else ""
        return f"engine {self.bundle}{at}"

    def doing(self, running: int) -> str:
        if not self.started:
            return "starting"
        if self.order is None:
            return "idle"
        if self.order.weights:
            return f"loading version {self.order.weights[-1].version}"
        if self.order.question is not None:
            return f"answering for its {self.order.question}"
        return f"generating for {running} requests"


def distrust(
    seat: Seat, reply: Reply, requests: dict[int, Request], running: Collection[int], vocab_size: int
) -> str | None:
    """Why the reply to `seat.order` cannot be a sound engine's, or None.  `running`: what the engine has."""
    order = seat.order
    assert order is not None
    loaded = [e for e in order.weights if e.number <= reply.loaded]
    if len(loaded) < len(order.weights) and reply.bad_weights is None:
        return f"it loaded {len(loaded)} of {len(order.weights)} versions"
    version = loaded[-1].version if loaded else seat.version
    if reply.version != version:
        return f"it reports weight version {reply.version}, {version} was sent"
    known = seat.versions | {e.version for e in loaded}
    names = Counter([*(number for number, _ in reply.ended), *reply.refused])
    for number, times in names.items():
        if number not in running or times > 1:
            return f"it answers request {number} {'twice' if times > 1 else 'that it does not have'}"
    for number, rollout in reply.ended:
        why = nonsense(rollout, requests[number], vocab_size, known)
        if why is not None:
            return f"its answer to request {number} is nonsense: {why}"
    left = len(running) - len(names)
    if left and not reply.busy:
        return f"it has forgotten {left} requests"
    if order.question == "logprobs" and not _fits(order.ids, reply.answer):
        return "its log-probabilities of the probe are not of the probe's shape"
    return None


def _fits(ids: Sequence[list[int]], answer: Any) -> bool:
    return (
        isinstance(answer, list)
        and len(answer) == 1
        and [len(row) for row in answer[0]] == [len(row) - 1 for row in ids]
    )


def disagreement(answer: Answers, others: Answers, dtype: torch.dtype) -> str | None:
    """Why a new engine's log-probabilities of a probe are not those that engines with the same weights gave.
    Equal programs on equal machines agree to rounding; in bf16 other requests in the batch may change the
    kernels."""
    gaps = [_gap(answer[0], other) for other in others]
    allowed = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])
    if dtype == torch.float32:
        spread = max(_gap(others[0], other) for other in others)
        allowed = min(allowed, max(FLOOR, GROWTH * spread))
    if max(gaps) <= allowed:
        return None
    return (
        f"its log-probabilities of the probe differ by {max(gaps):.3g} from those of engines with the same "
        f"weights, allowed {allowed:.3g}"
    )


def _gap(a: list[list[float]], b: list[list[float]]) -> float:
    pairs = [abs(x - y) for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True)]
    return sum(pairs) / max(1, len(pairs))
