"""The verifier contract: what a verifier is given and what it hands back.

`verify(completion: str, answer: str, **row) -> float | Verdict`.  A Verdict carries either a reward in [0, 1]
or an error.  The error is a third outcome: the completion was not judged (time-out, killed worker, a gold
answer that cannot be read), so it is counted apart and never becomes a silent 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


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


def as_verdict(result: float | Verdict) -> Verdict:
    """A verifier may answer with a plain number (or a bool); every caller sees a Verdict."""
    if isinstance(result, Verdict):
        return result
    if not isinstance(result, int | float):
        kind = type(result).__name__
        raise TypeError(f"a verifier returns a float in [0, 1] or a Verdict, not {kind}: {result!r}")
    return Verdict(reward=float(result), reason=f"reward {float(result):g}")


def failed(error: str, seconds: float = 0.0, **details: Any) -> Verdict:
    """A Verdict without a reward."""
    return Verdict(reward=None, reason=error, error=error, seconds=seconds, details=details)


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
