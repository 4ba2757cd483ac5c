"""What is simulated (onebase/simulate.py): the engines, the trainer's job, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onebase.errors import UserError
from onebase.rollout.router import order_seconds

Lengths = Callable[[int], list[list[int]]]
"""Completion lengths of a step, by prompt and sample; the same whatever the engines do."""

AT_LEAST_ONE = ("engines", "slots", "prompts", "group_size", "max_tokens", "steps", "factor")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The engines."""

    engines: int
    slots: int = 64
    """Completions that one engine draws at the same time."""
    fixed: float = 0.008
    """Seconds of a decoding step, however few completions run."""
    per_row: float = 5e-5
    """Seconds that each running completion adds to it."""
    prefill: float = 2e-5
    """Seconds per token of a prompt that is not cached."""
    pump: float = 0.25
    """Least seconds of an order; with many engines orders are longer (`order_seconds`)."""
    reply: float = 1e-3
    """Seconds that the driver spends on one reply and the next order."""
    mtbf: float = 0.0
    """Mean seconds between two failures of one engine; 0: none."""
    notice: float = 5.0
    """Seconds until a failure is noticed."""
    restart: float = 60.0
    """Seconds from then until another engine works."""
    factor: float = 1.5
    """The router's: how much busier a group's home must be before another engine takes from it."""

    @property
    def order(self) -> float:
        """Seconds of an order."""
        return order_seconds(self.pump, self.engines)

    @property
    def cycle(self) -> float:
        """Seconds from one order to the next."""
        return max(self.order + self.reply, self.engines * self.reply)


@dataclass(frozen=True, slots=True)
class Job:
    """The trainer and what it asks for."""

    prompts: int = 1024
    group_size: int = 16
    prompt_tokens: int = 256
    max_tokens: int = 8192
    staleness: int = 1
    steps: int = 10
    train: float = 60.0
    """Seconds of the trainer's own work in a step."""
    sync: float = 1.0
    """Seconds in which an engine loads new weights and proves them."""

    @property
    def warm(self) -> int:
        """The first step that counts."""
        return min(self.staleness + 1, self.steps - 1)

    @property
    def last(self) -> int:
        """The last one."""
        return max(self.warm, self.steps - 1 - self.staleness)


@dataclass(slots=True)
class Outcome:
    engines: int
    seconds: float
    """Simulated, of the steps that count."""
    steps_per_hour: float
    tokens_per_second: float
    """Trained tokens over the same time."""
    busy: float
    """Share of the engines' time in which they generate; time in which one is dead counts as idle."""
    filled: float
    """Mean share of all slots that have a completion."""
    wait: float
    """Share of its time that the trainer waits for rollouts."""
    staleness_mean: float
    staleness_max: int
    prefix_hits: float
    """Share of requests whose prompt their engine had prefilled since its last weights."""
    failures: int
    begun_anew: int
    """Requests lost with an engine, of the whole run."""
    longest: float
    """Seconds of the longest completion on an otherwise empty engine: no number of engines beats it."""
    driver: float
    """Share of its time that the driver works on replies; at 1 it limits the engines."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def check(fleet: Fleet, job: Job) -> None:
    for section in (fleet, job):
        for name, value in asdict(section).items():
            low = 1 if name in AT_LEAST_ONE else 0
            if not low <= value < float("inf"):
                raise UserError(f"{name}={value}: at least {low} and finite is allowed")
    if fleet.pump <= 0 or fleet.fixed + fleet.per_row <= 0:
        raise UserError("pump and fixed + per_row must be above 0")
    if fleet.mtbf and fleet.mtbf < 2 * (fleet.notice + fleet.restart):
        raise UserError(
            f"mtbf={fleet.mtbf:g} s: engines that need {fleet.notice + fleet.restart:g} s to be replaced "
            "must live at least twice as long"
        )


def enough(outcomes: Sequence[Outcome], most: float = 0.05) -> int | None:
    """The number of engines from which on the trainer waits for at most this share of its time."""
    found = None
    for outcome in sorted(outcomes, key=lambda o: -o.engines):
        if outcome.wait > most:
            break
        found = outcome.engines
    return found
