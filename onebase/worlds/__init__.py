"""Worlds: families of generated, verifiable problems with unlimited supply and canonical reasoning traces.

Only the standard library is used here; the pretraining loader calls `problem` for every document.
Answers and traces are checked by `onebase.verifiers.worlds`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from itertools import count

from onebase.errors import UserError
from onebase.worlds import (
    addition,
    chain,
    countdown,
    equation,
    functions,
    lists,
    multiplication,
    path,
    wordproblem,
)
from onebase.worlds.base import SPLITS, Family, Problem, make

__all__ = ["FAMILIES", "SPLITS", "Family", "Problem", "problem", "stream"]

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        chain,
        addition,
        multiplication,
        equation,
        countdown,
        path,
        lists,
        functions,
        wordproblem,
    )
}


def problem(
    family: str, *, split: str, seed: int, index: int, difficulty: tuple[int, int] | None = None
) -> Problem:
    """Item `index` of a split: a pure function of its arguments.  `difficulty` is an inclusive range; without
    it the family's default, or beyond the default for ood.  Raises UserError for a bad argument."""
    found = FAMILIES.get(family)
    if found is None:
        raise UserError(_unknown("family", family, list(FAMILIES)))
    if split not in SPLITS:
        raise UserError(_unknown(f"split of world {family}", split, list(SPLITS)))
    if difficulty is None:
        difficulty = found.ood if split == "ood" else found.default
    low, high = difficulty
    if not found.allowed[0] <= low <= high <= found.allowed[1]:
        raise UserError(
            f"world {family}: difficulty {low}..{high} is not a range within "
            f"{found.allowed[0]}..{found.allowed[1]}; default {list(found.default)}, ood {list(found.ood)}"
        )
    return make(found, split, seed, index, (low, high))


def stream(
    family: str, *, split: str, seed: int, start: int = 0, difficulty: tuple[int, int] | None = None
) -> Iterator[Problem]:
    """Items start, start+1, ... without end."""
    for index in count(start):
        yield problem(family, split=split, seed=seed, index=index, difficulty=difficulty)


def _unknown(what: str, given: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(given, allowed, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what} {given!r} is unknown{hint}\n  allowed: {', '.join(allowed)}"
