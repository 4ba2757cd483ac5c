"""The verifier contract: what a verifier is given and what it hands back.

`verify(completion: str, answer: str, **row) -> float | Verdict`.  It is called with keywords: the fields of
the data row, the term's `options` over them, `n_tokens` (the completion's length) and `completion`.

A Verdict carries either a reward in [0, 1] or an error.  The error is a third outcome: the completion was not
judged, so it is counted apart and never becomes a silent 0 or 1.  The word before an error's first colon is
its class (ERRORS); `gold: ...` says that the row's own answer cannot be understood.  `details["class"]`, a
word from a small set of the verifier's own, makes a class of judged completions that is counted as well.

A module may say more about its verifier, by plain names at its top level (`Limits` reads the first five):

    INLINE = True          built-ins only: all work is bounded in the code, so it runs without a process
    WALL_SECONDS = 10.0    wall clock of one call; over it the process is killed
    MEMORY_MB = 2048       address space of a worker process and of what it starts; 0: no limit (CUDA)
    WORKERS = None         worker processes; None: one for each core
    START_SECONDS = 120.0  a worker's interpreter start and the module's import
    def gold_problem(answer, **row) -> str | None
                           why a row's own answer cannot be understood; asked before a run starts.  Without it
                           `verify` is asked, with the answer as the completion.  None in its place: there is
                           nothing to ask (a judge that costs money).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from numbers import Real
from types import ModuleType
from typing import Any

ERRORS = ("gold", "row", "timeout", "memory", "killed", "raised", "infrastructure")
"""Classes of errors: the gold or another field of the row cannot be understood; the call ran over a limit,
took its process down or raised; the machinery around it failed."""


@dataclass(slots=True)
class Verdict:
    """One judgement.  `reward` in [0, 1], or None with `error` saying why there is none; `reason` is one
    line for a person: which form was extracted and how it was compared."""

    reward: float | None
    reason: str
    error: str | None = None
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.reward is None) == (self.error is None):
            raise ValueError(f"a Verdict has a reward or an error, not both, not neither: {self!r}")
        if self.reward is not None:
            reward = float(self.reward)
            if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
                raise ValueError(f"reward must be in [0, 1]: {reward!r} ({self.reason})")
            self.reward = reward

    @property
    def ok(self) -> bool:
        return self.error is None


Verifier = Callable[..., "float | Verdict"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a verifier's module asks for (see the module docstring)."""

    inline: bool = False
    wall_seconds: float = 10.0
    memory_mb: int = 2048
    workers: int | None = None
    start_seconds: float = 120.0

    @classmethod
    def of(cls, module: ModuleType | None) -> Limits:
        names = [f.name for f in fields(cls)]
        return cls(**{n: getattr(module, n.upper()) for n in names if hasattr(module, n.upper())})


def as_verdict(result: float | Verdict) -> Verdict:
    """A verifier may answer with a plain number (or a bool); every caller sees a Verdict."""
    if isinstance(result, Verdict):
        return result
    if not isinstance(result, Real):  # numpy's scalars are real numbers too
        kind = type(result).__name__
        raise TypeError(f"a verifier returns a float in [0, 1] or a Verdict, not {kind}: {result!r}")
    return Verdict(reward=float(result), reason=f"reward {float(result):g}")


def failed(error: str, seconds: float = 0.0, **details: Any) -> Verdict:
    """A Verdict without a reward."""
    return Verdict(reward=None, reason=error, error=error, seconds=seconds, details=details)


def error_class(error: str) -> str:
    """One of ERRORS, or `other` where a verifier's error begins with none of them."""
    word = error.partition(":")[0].strip()
    return word if word in ERRORS else "other"


def judge(function: Verifier, row: dict[str, Any]) -> Verdict:
    """One call of a verifier, timed; whatever it raises becomes an error Verdict."""
    start = time.perf_counter()
    try:
        verdict = as_verdict(function(**row))
    except MemoryError:
        verdict = failed("memory: over the memory limit")
    except (Exception, SystemExit) as error:  # the verifier is the user's code
        verdict = failed(f"raised: {type(error).__name__}: {str(error)[:300]}")
    verdict.seconds = verdict.seconds or time.perf_counter() - start
    return verdict


def tally(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Counts a batch: judged, the mean reward of the judged, and the errors apart from both."""
    rewards, errors = [], 0
    for verdict in verdicts:
        if verdict.reward is None:
            errors += 1
        else:
            rewards.append(verdict.reward)
    mean = sum(rewards) / len(rewards) if rewards else math.nan
    return {"judged": len(rewards), "mean_reward": mean, "errors": errors}
