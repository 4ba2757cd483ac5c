"""Verdicts to one reward per completion: the weighted sum of a recipe's reward terms.

A term with a gate counts only where the gate's verifier gave more than 0.  A verifier's error is a third
outcome: the completion then has no reward (None), whatever the other terms say.  `correct` looks at the first
term alone, so the first term of a recipe is the answer's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from onebase.errors import UserError
from onebase.recipe import Term
from onebase.verifiers.base import Verdict
from onebase.verifiers.pool import VerifierPool, run_verdicts
from onebase.verifiers.registry import is_inline
from onebase.wording import hint, listed


@dataclass(slots=True)
class Scored:
    """One completion's reward and where it came from."""

    reward: float | None
    """Sum of weight times verdict; None where a verifier gave an error."""
    verdicts: dict[str, Verdict]
    """By term, in the recipe's order; a verifier that is named twice is `name`, `name#2`."""

    @property
    def first(self) -> Verdict:
        return next(iter(self.verdicts.values()))

    @property
    def correct(self) -> bool:
        """The first term's reward is 1; False, too, where it gave an error."""
        return self.first.reward is not None and self.first.reward >= 1.0

    @property
    def judged(self) -> bool:
        """The first term gave no error."""
        return self.first.reward is not None


def score(rows: Sequence[dict[str, Any]], completions: Sequence[str], terms: Sequence[Term]) -> list[Scored]:
    """Judge completion i as an answer to row i by every term.

    A verifier is called with the row's fields, the term's options over them and `completion`.  Those that do
    not bound their own work run in worker processes, which are kept from call to call.
    """
    assert len(rows) == len(completions), f"{len(rows)=} {len(completions)=}"
    names = term_names(terms)
    verdicts: dict[str, list[Verdict]] = {}
    for name, term in zip(names, terms, strict=True):
        calls = [
            {**row, **term.options, "completion": text} for row, text in zip(rows, completions, strict=True)
        ]
        pool = None if is_inline(term.verifier) else _pool()
        verdicts[name] = run_verdicts(term.verifier, calls, pool)
    return [_combine({name: verdicts[name][i] for name in names}, terms) for i in range(len(completions))]


def term_names(terms: Sequence[Term]) -> list[str]:
    """A name for each term; UserError where there is no term or a gate names none of them."""
    if not terms:
        raise UserError("rewards: at least one term is needed; e.g. [{verifier: math_answer}]")
    names: list[str] = []
    for term in terms:
        before = sum(t.verifier == term.verifier for t in terms[: len(names)])
        names.append(term.verifier if not before else f"{term.verifier}#{before + 1}")
    for term in terms:
        if term.gate is not None and term.gate not in names:
            raise UserError(
                f"rewards: the gate {term.gate!r} of {term.verifier!r} is no verifier of this list\n"
                f"  allowed: {listed(names)}" + hint(term.gate, names)
            )
    return names


def _combine(verdicts: dict[str, Verdict], terms: Sequence[Term]) -> Scored:
    total = 0.0
    for verdict, term in zip(verdicts.values(), terms, strict=True):
        if verdict.reward is None:
            return Scored(None, verdicts)
        gate = 1.0 if term.gate is None else verdicts[term.gate].reward
        if gate is None or gate > 0:  # an error of the gate is met as a term of its own
            total += term.weight * verdict.reward
    return Scored(total, verdicts)


@cache
def _pool() -> VerifierPool:
    """Workers for the whole process: starting an interpreter for every batch would cost more than judging."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return VerifierPool(workers=max(1, min(8, cores)))
