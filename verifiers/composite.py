"""Composite rewards as data: weights, caps, gates and schedules over the verdicts of several verifiers.

A recipe lists terms; nothing here is code of the user's.  `combine` is a pure function of terms and verdicts.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onebase.errors import UserError
from onebase.verifiers.base import Verdict


@dataclass(frozen=True, slots=True)
class Term:
    """One summand: weight times the (capped) reward of `verifier`, if its gate is open."""

    verifier: str
    weight: float = 1.0
    cap: float | None = None
    """Upper bound of the reward before it is weighted."""
    gate: str | None = None
    """`NAME`: counts only if verifier NAME gave a positive reward.  `NAME.DETAIL`: only if that detail of its
    verdict is true, e.g. `math_answer.parsed` for "format counts only if the answer parses"."""
    until_step: int | None = None
    """The term is left out from this training step on."""
    warmup_steps: int = 0
    """The weight grows linearly from 0 over so many steps."""

    def weight_at(self, step: int) -> float:
        if self.until_step is not None and step >= self.until_step:
            return 0.0
        return self.weight if step >= self.warmup_steps else self.weight * step / self.warmup_steps


class Unjudged(ValueError):
    """A verdict that the sum needs is an error, so there is no reward: leave the completion out."""


def combine(terms: Sequence[Term], verdicts: Mapping[str, Verdict], step: int = 0) -> float:
    """Sum of weight x reward over terms with an open gate.  Raises Unjudged when a needed verdict is an
    error."""
    total = 0.0
    for term in terms:
        weight = term.weight_at(step)
        if weight == 0.0 or not _open(term, verdicts):
            continue
        reward = _reward(term.verifier, verdicts)
        total += weight * (reward if term.cap is None else min(reward, term.cap))
    return total


def _open(term: Term, verdicts: Mapping[str, Verdict]) -> bool:
    if term.gate is None:
        return True
    name, _, detail = term.gate.partition(".")
    reward = _reward(name, verdicts)
    return bool(verdicts[name].details.get(detail)) if detail else reward > 0


def _reward(name: str, verdicts: Mapping[str, Verdict]) -> float:
    if name not in verdicts:
        near = difflib.get_close_matches(name, list(verdicts), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"reward: no verdict of {name!r} among {', '.join(sorted(verdicts))}{hint}")
    reward = verdicts[name].reward
    if reward is None:
        raise Unjudged(f"{name}: {verdicts[name].error}")
    return reward
