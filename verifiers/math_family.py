"""Families of solutions over the integers, `x = pi/4 + n pi, n in Z`: the same family with another letter,
another first member, or split into several.

A family is a list of expressions in one integer letter.  Affine ones, c + d n, are compared as sets of
residues modulo a common period; others term by term with the letter renamed.
"""

from __future__ import annotations

from fractions import Fraction
from math import lcm
from typing import Any, NamedTuple

from onebase.verifiers import math_tree as T
from onebase.verifiers.math_exact import TooBig
from onebase.verifiers.math_numeric import NoValue, close, constant_value, context
from onebase.verifiers.math_tree import Node, substitute, symbols
from onebase.verifiers.math_values import expand_signs, item, strip

_INTEGERS = (Node("const", ("Z",)), Node("const", ("N",)))
_RESIDUES = 64


class Family(NamedTuple):
    members: tuple[Node, ...]
    letter: str
    whole: bool  # over all integers, not only the natural ones


def family(node: Node, like: Family | None = None) -> Family | None:
    """The family a tree states; without `like` only one that says its letter is an integer."""
    node = strip(node)
    if node.op == "builder":
        node = Node("list", node.args)
    parts = list(node.args) if node.op in ("list", "set") else [node]
    declared = [part for part in parts if _declared(part) is not None]
    letters = [_declared(part) for part in declared]
    whole = like.whole if like is not None and not letters else Node("const", ("N",)) not in T.walk(node)
    stated = [part for part in parts if part not in declared and part.op != "text"]
    members = tuple(strip(item(one, True).value) for part in stated for one in expand_signs(strip(part)))
    free = set().union(*(symbols(member) for member in members)) if members else set()
    if like is not None and not letters and len(free) == 1:
        letters = [*free]
    if (
        len(set(letters)) != 1
        or free != set(letters)
        or any(m.op in ("rel", "tuple", "list") for m in members)
    ):
        return None
    return Family(members, str(letters[0]), whole)


def _declared(part: Node) -> str | None:
    """The letter of `n in Z` or `n is an integer`."""
    if (
        part.op == "rel"
        and part.args[0] == ("in",)
        and part.args[1].op == "sym"
        and part.args[2] in _INTEGERS
    ):
        return str(part.args[1].args[0])
    if part.op == "mul" and any(p.op == "text" and "integer" in str(p.args[0]) for p in part.args):
        names = [p for p in part.args if p.op == "sym"]
        return str(names[0].args[0]) if len(names) == 1 and len(part.args) == 2 else None
    return None


def same_family(gold: Family, answer: Family) -> str | None:
    if gold.whole != answer.whole:
        return None
    try:
        left, right = (_progressions(given) if given.whole else None for given in (gold, answer))
        if left is not None and right is not None:
            return "the same family of solutions" if _same_residues(left, right) else None
        return "the same family term by term" if _same_terms(gold, answer) else None
    except (NoValue, TooBig, ZeroDivisionError):
        return None


def _value(member: Node, letter: str, at: int) -> Any:
    return constant_value(substitute(member, Node("sym", (letter,)), T.num(at)), 40)


def _progressions(given: Family) -> list[tuple[Any, Any]] | None:
    """(first, step) of every member, or None when one is not affine."""
    found = []
    for member in given.members[:12]:
        values = [_value(member, given.letter, at) for at in (0, 1, 2, 5)]
        step = values[1] - values[0]
        if abs(step) < 1e-20 or not all(
            close(value, values[0] + at * step, 30) for at, value in zip((2, 5), values[2:], strict=True)
        ):
            return None
        found.append((values[0], step))
    return found


def _same_residues(left: list[tuple[Any, Any]], right: list[tuple[Any, Any]]) -> bool:
    mp = context()
    unit = left[0][1]
    ratios = []
    for _, step in left + right:
        ratio = step / unit
        exact = Fraction(str(mp.nstr(mp.re(ratio), 30))).limit_denominator(60)
        if not close(ratio, mp.mpf(exact.numerator) / exact.denominator, 25):
            return False
        ratios.append(abs(exact))
    whole = lcm(*(ratio.denominator for ratio in ratios))
    period = lcm(*(int(ratio * whole) for ratio in ratios))
    counts = [period // int(ratio * whole) for ratio in ratios]
    if sum(counts) > _RESIDUES:
        return False
    size = abs(unit) * period / whole
    sides = []
    for progressions, repeats in ((left, counts[: len(left)]), (right, counts[len(left) :])):
        sides.append(
            [
                first + k * step
                for (first, step), n in zip(progressions, repeats, strict=True)
                for k in range(n)
            ]
        )
    return all(
        any(_congruent(a, b, size) for b in others) for some, others in (sides, sides[::-1]) for a in some
    )


def _congruent(a: Any, b: Any, period: Any) -> bool:
    turns = (a - b) / period
    return bool(abs(turns - context().nint(context().re(turns))) < 1e-25)


def _same_terms(gold: Family, answer: Family) -> bool:
    if len(gold.members) != len(answer.members):
        return False
    rest = list(answer.members)
    for member in gold.members:
        values = [_value(member, gold.letter, at) for at in range(-2, 6)]
        same = next(
            (
                other
                for other in rest
                if all(
                    close(value, _value(other, answer.letter, at), 30)
                    for at, value in zip(range(-2, 6), values, strict=True)
                )
            ),
            None,
        )
        if same is None:
            return False
        rest.remove(same)
    return True
