"""The conventions on which math graders disagree, in one place, and the limits that keep every input cheap.

Each field of `Policy` is a choice that some known grader makes differently; the defaults are the reading a
careful human grader would take of a final answer.  A recipe or a data row sets them by name (`policy:
{percent: strict}`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args, get_type_hints

from onebase.errors import UserError


@dataclass(frozen=True, slots=True)
class Policy:
    """Frozen, so that it can key caches."""

    boxed_only: bool = False
    """Only a box (or an answer tag) counts; nothing is read out of prose."""
    boxes: Literal["listed", "last", "one"] = "listed"
    """Of several boxes: those that are listed together ("and", "or", commas between) are one list, or only
    the last counts, or different ones are no answer."""
    last_number: bool = True
    """Without box, tag, `####`, "answer is" or closing formula: the last number of the text, as a last
    resort."""
    percent: Literal["either", "number", "hundredth", "strict"] = "either"
    """A percent sign on one side only: 10% is 10 or 0.1, is 10, is 0.1, or is a mismatch."""
    units: Literal["optional", "required"] = "optional"
    """A unit on one side only is ignored, or is a mismatch.  Known units on both sides are always
    converted."""
    list_order: Literal["free", "fixed"] = "free"
    """Order of an unbracketed list of solutions.  Tuples are ordered and sets unordered in any case."""
    interval_ends: Literal["strict", "ignored"] = "strict"
    """Whether [0,1) and (0,1] differ."""
    unevaluated: bool = False
    """Whether an integral, sum, product or limit left standing is an answer where the gold has none."""
    arithmetic: bool = True
    """Whether 24 + 48, which is still to be worked out, answers a gold that is a number.  Fractions, roots
    and powers of ten are numbers."""
    unsolved: bool = False
    """Whether an equation or inequality that is still to be solved (2x = 6, 2x > 4) answers a gold that is
    solved (x = 3, x > 2, an interval).  It may be the problem itself."""
    assignment: bool = True
    """Whether `x = 5` and `5` are the same answer."""
    base_suffix: Literal["optional", "required"] = "optional"
    """Whether 101 answers a gold of 101_2."""
    decimal_comma: bool = False
    """Whether `1,22` is 1.22 (else two numbers)."""
    rounded_gold_digits: int = 3
    """A decimal gold of at least so many significant digits is met by an exact value that rounds to it; 0:
    never."""
    decimal_answer_digits: int = 8
    """An exact gold is met by its correct rounding of at least so many significant digits; 0: never."""
    tolerance: float = 0.0
    """A decimal gold is also met within this share of it (0.01: one percent), as data of measurements
    need."""
    singleton: bool = True
    """Whether {5} and 5 are the same answer."""
    vector_forms: bool = True
    """Whether (1,2) answers a column or row vector and the reverse."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Checked before anything heavier than a linear scan."""

    completion_chars: int = 2_000_000
    answer_chars: int = 3_000
    tokens: int = 300
    depth: int = 48
    digits: int = 2_500
    items: int = 150
    cached_chars: int = 200
    """Longer texts are read anew each time, so that hostile ones cannot fill the memory through caches."""
    run_chars: int = 200
    """Of an answer that stands in prose without dollars."""
    prose_operations: int = 1_500
    reading_operations: int = 2_000
    comparison_operations: int = 8_000
    """Paid for node by node (math_budget); realistic answers need at most a few thousand."""
    bits: int = 60_000
    """Of an exact integer; past it a number is compared by its form and by residues only."""


LIMITS = Limits()
DEFAULT = Policy()


def make_policy(given: Policy | dict[str, Any] | None) -> Policy:
    """A Policy from a recipe's mapping; unknown names and values are the user's error."""
    if given is None:
        return DEFAULT
    if isinstance(given, Policy):
        return given
    if not isinstance(given, dict):
        raise UserError(f"math policy: a mapping of field names to values is wanted, not {given!r}")
    return _from_items(tuple(sorted(given.items())))


@lru_cache(maxsize=256)
def _from_items(items: tuple[tuple[str, Any], ...]) -> Policy:
    hints = get_type_hints(Policy)
    names = [field.name for field in fields(Policy)]
    for name, value in items:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"math policy: unknown field {name!r}{hint}\n  known: {', '.join(names)}")
        allowed = get_args(hints[name])
        if allowed and value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"math policy: {name} = {value!r}; allowed: {', '.join(map(repr, allowed))}{hint}"
            )
        if hints[name] is float and type(value) is int:
            value = float(value)
        if not allowed and type(value) is not hints[name]:
            raise UserError(f"math policy: {name} = {value!r}; a {hints[name].__name__} is wanted")
        if not allowed and not isinstance(value, bool) and value < 0:
            raise UserError(f"math policy: {name} = {value!r}; it is at least 0")
    return Policy(**dict(items))
