"""Problems from a seed: what a family provides, and how one item is drawn into a split.

An item is a pure function of (family, split, seed, index, difficulty), so any worker makes item i alone.

Splits are disjoint by construction.  Every problem has a canonical key (its prompt, or a form in which
trivial rewritings such as a+b and b+a coincide).  A stable hash of the key puts 1/16 of all problems aside:

    train    keys that are not set aside, at any difficulty
    heldout  keys set aside, within the family's default difficulty (or the one asked for)
    ood      keys set aside, at a difficulty beyond the default range (or the one asked for)

so nothing that `heldout` or `ood` can give is ever given by `train`, whatever difficulties a run trains on.
Drawing repeats until a key falls into the wanted part: about 1.07 draws for train, 16 for the others.  The
draw (up to the key) is therefore kept apart from the finish (prompt, answer and traces), which runs once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Any, NamedTuple

from onebase.errors import UserError

SPLITS = ("train", "heldout", "ood")
HELD_OUT_PARTS = 16  # one part in so many is set aside
DRAWS = 256  # draws at one difficulty before another of the range is taken
LIMIT = 64 * DRAWS  # draws before a range is declared too small


@dataclass(frozen=True, slots=True)
class Problem:
    family: str
    prompt: str
    """The user's turn."""
    answer: str
    """Canonical final answer: what a direct answer says."""
    difficulty: int
    thoughts: dict[str, str]
    """Style -> canonical reasoning, without think tags."""
    check: dict[str, Any]
    """Row fields that the verifier needs; JSON-able."""


class Draft(NamedTuple):
    """As much of a problem as decides its split."""

    key: str
    """Canonical: equal for problems that only differ in trivial rewriting."""
    state: Any


class Solved(NamedTuple):
    prompt: str
    answer: str
    thoughts: dict[str, str]
    check: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    description: str
    default: tuple[int, int]
    """Inclusive difficulty of train and heldout."""
    ood: tuple[int, int]
    """Inclusive difficulty of ood; begins beyond `default`."""
    allowed: tuple[int, int]
    """Lowest and highest difficulty that can be generated."""
    styles: tuple[str, ...]
    generate: Callable[[Random, int], Draft]
    """Draws a problem of a difficulty."""
    finish: Callable[[Random, Draft], Solved | None]
    """Words it and solves it; None if it turns out to be no good problem."""


def held_out(family: str, key: str) -> bool:
    """Whether the problem is among the 1/16 set aside; the same in every process and version."""
    digest = blake2b(key.encode(), digest_size=2, person=family.encode()).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_PARTS == 0


def make(family: Family, split: str, seed: int, index: int, difficulty: tuple[int, int]) -> Problem:
    """Item `index`.  Raises UserError if the split holds no problem of these difficulties."""
    low, high = difficulty
    name = family.name
    start = blake2b(f"{name}/{split}/{seed}/{index}/{low}/{high}".encode(), digest_size=8).digest()
    rng = Random(int.from_bytes(start, "big"))
    wanted = split != "train"
    for attempt in range(LIMIT):
        if attempt % DRAWS == 0:
            level = low + int(rng.random() * (high - low + 1))
        draft = family.generate(rng, level)
        if held_out(name, draft.key) == wanted and (solved := family.finish(rng, draft)) is not None:
            return Problem(name, solved.prompt, solved.answer, level, solved.thoughts, solved.check)
    raise UserError(
        f"world {name}: the split {split!r} holds no problem of difficulty {low}..{high}; "
        f"take a harder range (default {family.default[0]}..{family.default[1]})"
    )
