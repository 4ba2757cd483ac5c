"""Sets of real numbers: intervals, unions, and the solutions of simple inequalities, in one normal form."""

from __future__ import annotations

from typing import Any, NamedTuple

from onebase.verifiers import math_tree as T
from onebase.verifiers.math_exact import TooBig
from onebase.verifiers.math_numeric import Evaluator, NoValue, close, constant_value, context
from onebase.verifiers.math_symbolic import NotSymbolic, real_roots
from onebase.verifiers.math_tree import Node, substitute, symbols
from onebase.verifiers.math_values import strip

ORDER = {"<", "<=", ">", ">=", "!="}
_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "=", "~": "~", "==": "=="}


class NotASet(ValueError):
    """No set of real numbers that this module can write as intervals."""


class Interval(NamedTuple):
    low: Any  # a real mpmath number or an infinity
    low_closed: bool
    high: Any
    high_closed: bool


def _number(node: Node) -> Any:
    try:
        value = constant_value(node, 60)
    except (NoValue, TooBig, ZeroDivisionError) as error:
        raise NotASet("an end that is no number") from error
    if abs(context().im(value)) > 1e-30:
        raise NotASet("a complex end")
    return context().re(value)


def to_set(node: Node) -> list[Interval]:
    """The intervals of `node`, sorted and merged; NotASet when it is something else."""
    return _merge(_intervals(strip(node)))


def operand(node: Node) -> list[Interval]:
    """A set to be joined or cut; there {1,2} may be typed without backslashes, and one number is a point."""
    node = strip(node)
    if node.op in ("num", "dec"):
        return [Interval(_number(node), True, _number(node), True)]
    if node.op == "list" and not any(p.op in ("tuple", "set", "rel") for p in map(strip, node.args)):
        return _merge([Interval(point, True, point, True) for point in map(_number, node.args)])
    return to_set(node)


def _intervals(node: Node) -> list[Interval]:
    node = strip(node)
    inf = context().inf
    if node.op == "const" and node.args[0] == "R":
        return [Interval(-inf, False, inf, False)]
    if node.op == "const" and node.args[0] == "empty":
        return []
    if node.op == "tuple" and len(node.args) == 4:
        return [_interval(node)]
    if node.op == "set":
        points = [_number(part) for part in node.args]
        return [Interval(point, True, point, True) for point in points]
    if node.op == "rel" and node.args[0] == ("=",) and node.args[1].op == "sym":
        point = _number(node.args[2])
        return [Interval(point, True, point, True)]
    if node.op == "list" and any(part.op == "rel" and part.args[0] == ("!=",) for part in node.args):
        met = to_set(node.args[0])
        for part in node.args[1:]:
            met = _intersect(met, to_set(part))
        return met
    if node.op == "both" or (node.op == "list" and all(_order(p) for p in node.args)):
        # "x > 1 and x < 5" is both; "x < 1, x > 5", which never meet, is loose speech for either
        met = to_set(node.args[0])
        for part in node.args[1:]:
            met = _intersect(met, to_set(part))
        return met or [interval for part in node.args for interval in _intervals(part)]
    if node.op == "union":
        return [interval for part in node.args for interval in operand(part)]
    if node.op == "list" and all(strip(p).op in ("tuple", "set", "rel") for p in node.args):
        return [interval for part in node.args for interval in _intervals(part)]
    if node.op == "add" and len(node.args) == 2 and (taken := _taken_away(node.args[1])) is not None:
        return _intersect(to_set(node.args[0]), _complement(to_set(taken)))  # R - {3}
    if node.op == "inter":
        return _intersect(operand(node.args[0]), operand(node.args[1]))
    if node.op == "minus":
        return _intersect(operand(node.args[0]), _complement(operand(node.args[1])))
    if node.op == "rel" and node.args[0] == ("in",):
        return _intervals(node.args[2])
    if node.op == "rel" and node.args[0] == ("notin",):
        return _complement(operand(node.args[2]))
    if node.op == "rel" and set(node.args[0]) <= ORDER:
        return _solve_chain(node)
    raise NotASet(node.op)


def _order(node: Node) -> bool:
    return node.op == "rel" and set(node.args[0]) <= ORDER - {"!="}


def _taken_away(node: Node) -> Node | None:
    """The set in `- {3}`."""
    set_of = (
        node.args[1] if node.op == "mul" and node.args[0] == T.MINUS_ONE and len(node.args) == 2 else None
    )
    return set_of if set_of is not None and set_of.op in ("set", "tuple", "list") else None


def _interval(node: Node) -> Interval:
    opening, closing, low, high = node.args
    a, b = _number(low), _number(high)
    if a > b:
        raise NotASet("ends in the wrong order")
    return Interval(a, opening == "[", b, closing == "]")


def _polynomial(name: str, difference: Node, unknown: Node) -> list[Interval]:
    """The solutions of polynomial <name> 0, from its real roots (sympy, of bounded degree) and its sign
    between them.  Only reached where a relation may be left to be solved."""
    mp = context()
    try:
        roots = [mp.mpf(text) for text, _ in real_roots(difference, str(unknown.args[0]))]
    except NotSymbolic as error:
        raise NotASet("no polynomial") from error
    mp.dps = 60
    ends = [-mp.inf, *roots, mp.inf]
    found = [Interval(root, True, root, True) for root in roots if name in ("<=", ">=")]
    for low, high in zip(ends[:-1], ends[1:], strict=True):
        inside = high - 1 if mp.isinf(low) else low + 1 if mp.isinf(high) else (low + high) / 2
        inside = mp.mpf(0) if mp.isinf(inside) else inside
        sign = mp.sign(Evaluator(60, {unknown.args[0]: inside}).value(difference))
        if (name == "!=" and sign != 0) or (sign < 0 if name in ("<", "<=") else name != "!=" and sign > 0):
            found.append(Interval(low, False, high, False))
    return _merge(found)


def _solve_chain(node: Node) -> list[Interval]:
    names, terms = node.args[0], node.args[1:]
    inf = context().inf
    result = [Interval(-inf, False, inf, False)]
    for name, left, right in zip(names, terms[:-1], terms[1:], strict=True):
        result = _intersect(result, _merge(_solve(name, T.sub(left, right))))
    return result


def _solve(name: str, difference: Node) -> list[Interval]:
    """The solutions of difference <name> 0 for a difference affine in one symbol or in its modulus."""
    names = sorted(symbols(difference))
    if len(names) != 1:
        raise NotASet("not one unknown")
    unknown = Node("sym", (names[0],))
    modulus = next((p for p in T.walk(difference) if p.op == "fn" and p.args[:2] == ("abs", unknown)), None)
    if modulus is None:
        return _affine(name, difference, unknown)
    stand_in = Node("sym", ("modulus of the unknown",))
    outer = _merge(_affine(name, substitute(difference, modulus, stand_in), stand_in))
    inf, zero = context().inf, context().mpf(0)
    positive = _intersect(outer, [Interval(zero, True, inf, False)])
    return positive + [Interval(-high, hc, -low, lc) for low, lc, high, hc in positive]


def _affine(name: str, difference: Node, unknown: Node) -> list[Interval]:
    if symbols(difference) != {unknown.args[0]}:
        raise NotASet("another unknown")
    values = [_number(substitute(difference, unknown, T.num(point))) for point in (0, 1, 2, 5)]
    slope = values[1] - values[0]
    for point, value in zip((2, 5), values[2:], strict=True):
        if not close(value, values[0] + slope * point, 40) and abs(value - values[0] - slope * point) > 1e-40:
            return _polynomial(name, difference, unknown)
    if abs(slope) < 1e-40:
        raise NotASet("no slope")
    root, inf = -values[0] / slope, context().inf
    if name == "!=":
        return [Interval(-inf, False, root, False), Interval(root, False, inf, False)]
    closed = name in ("<=", ">=")
    if (name in ("<", "<=")) == (slope > 0):
        return [Interval(-inf, False, root, closed)]
    return [Interval(root, closed, inf, False)]


def _merge(intervals: list[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda i: (i.low, not i.low_closed)):
        if interval.low > interval.high or (
            interval.low == interval.high and not (interval.low_closed and interval.high_closed)
        ):
            continue
        if merged and _touches(merged[-1], interval):
            last = merged.pop()
            high, closed = max((last.high, last.high_closed), (interval.high, interval.high_closed))
            interval = Interval(last.low, last.low_closed, high, closed)
        merged.append(interval)
    return merged


def _touches(first: Interval, second: Interval) -> bool:
    return first.high > second.low or (first.high == second.low and (first.high_closed or second.low_closed))


def _intersect(left: list[Interval], right: list[Interval]) -> list[Interval]:
    found = []
    for a in left:
        for b in right:
            low = max((a.low, not a.low_closed), (b.low, not b.low_closed))
            high = min((a.high, a.high_closed), (b.high, b.high_closed))
            found.append(Interval(low[0], not low[1], high[0], high[1]))
    return _merge(found)


def _complement(intervals: list[Interval]) -> list[Interval]:
    inf = context().inf
    result, low, closed = [], -inf, False
    for interval in intervals:
        result.append(Interval(low, closed, interval.low, not interval.low_closed))
        low, closed = interval.high, not interval.high_closed
    result.append(Interval(low, closed, inf, False))
    return _merge([i._replace(low_closed=i.low_closed and i.low != -inf) for i in result])


def same_set(left: list[Interval], right: list[Interval], ends_matter: bool) -> bool:
    if len(left) != len(right):
        return False
    for a, b in zip(left, right, strict=True):
        if not (close(a.low, b.low, 40) and close(a.high, b.high, 40)):
            return False
        if ends_matter and (a.low_closed, a.high_closed) != (b.low_closed, b.high_closed):
            infinite = context().isinf(a.low) or context().isinf(a.high)
            if not infinite or not _ends_agree(a, b):
                return False
    return True


def _ends_agree(a: Interval, b: Interval) -> bool:
    """A bracket at infinity means nothing, whichever way it was typed."""
    low = context().isinf(a.low) or a.low_closed == b.low_closed
    return low and (context().isinf(a.high) or a.high_closed == b.high_closed)


def turned(node: Node) -> Node:
    """The same chain read from right to left."""
    names, terms = node.args[0], node.args[1:]
    return Node("rel", (tuple(_FLIP.get(name, name) for name in reversed(names)), *reversed(terms)))
