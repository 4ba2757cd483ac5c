"""Numeric evaluation with mpmath: constants to 60 digits, functions at seeded points to 30.

mpmath is imported on first use, and each thread has a context of its own (precision is global to a context).
Magnitudes are bounded before mpmath sees them: a power of 10^6 bits raises TooBig.
"""

from __future__ import annotations

import random
import threading
from fractions import Fraction
from functools import lru_cache
from typing import Any

from onebase.verifiers.math_budget import spend
from onebase.verifiers.math_exact import TooBig, based_value
from onebase.verifiers.math_tree import Node, num, ops, substitute, symbols, walk

_local = threading.local()
_MAX_BITS = 1_000_000
_MAX_TERMS = 400


class NoValue(ValueError):
    """No number: an undefined operation, or a form that is not evaluated."""


def context() -> Any:
    """This thread's mpmath context."""
    found = getattr(_local, "context", None)
    if found is None:
        from mpmath.ctx_mp import MPContext  # type: ignore[import-untyped]

        found = _local.context = MPContext()
    return found


class Evaluator:
    """Evaluates trees at one point; `natural_log` says what a bare `log` means."""

    def __init__(self, digits: int, point: dict[str, Any], natural_log: bool = True) -> None:
        self.mp = context()
        self.mp.dps = digits
        self.point, self.natural_log = point, natural_log
        self.cost = 1 if digits <= 30 else 2 if digits <= 60 else 4

    def value(self, node: Node) -> Any:
        spend(self.cost)
        op, args = node
        if op in ("num", "dec"):
            return self.mp.mpf(args[0].numerator) / args[0].denominator
        if op == "paren":
            return self.value(args[0])
        if op == "sym":
            if args[0] not in self.point:
                raise NoValue(args[0])
            return self.point[args[0]]
        if op == "const":
            return self.constant(args[0])
        if op == "add":
            return sum((self.value(arg) for arg in args), self.mp.mpf(0))
        if op == "mul":
            product = self.mp.mpf(1)
            for arg in args:
                product *= self.value(arg)
            return product
        if op == "pow":
            return self.power(args[0], args[1])
        if op == "fn":
            return self.function(args[0], args[1:])
        if op == "deg":
            return self.mp.pi / 180
        if op == "pct":
            return self.mp.mpf(1) / 100
        if op == "based":
            return self.mp.mpf(based_value(*args))
        if op == "big":
            return self.big(*args)
        raise NoValue(op)

    def constant(self, name: str) -> Any:
        if name == "pi":
            return +self.mp.pi
        if name == "e":
            return +self.mp.e
        if name == "i":
            return self.mp.mpc(0, 1)
        if name == "inf":
            return self.mp.inf
        raise NoValue(name)

    def power(self, base_node: Node, exponent_node: Node) -> Any:
        base, exponent = self.value(base_node), self.value(exponent_node)
        if base == 0:
            if self.mp.re(exponent) <= 0:
                raise NoValue("power of zero")
            return self.mp.mpf(0)
        spend(10 * self.cost)
        self.check(abs(exponent * self.mp.log(abs(base), 2)))
        if self.mp.im(base) == 0 and self.mp.re(base) < 0:
            odd = _odd_fraction(exponent_node)
            if odd is not None:  # the real root, as school and most models write it
                root = self.mp.power(-base, exponent)
                return -root if odd % 2 else root
        return self.mp.power(base, exponent)

    def check(self, bits: Any) -> None:
        if not bits < _MAX_BITS:
            raise TooBig("magnitude")

    def function(self, name: str, nodes: tuple[Any, ...]) -> Any:
        if name == "det":
            return self.determinant(nodes[0])
        if name == "root":
            return self.root(*nodes)
        values = [self.value(node) for node in nodes]
        spend(self.cost * (25 if name not in _GROWING else int(self.mp.dps) * (3 if name == "binom" else 1)))
        for value in values:
            self.check(abs(value) if name in _GROWING else self.mp.log(abs(value) + 1, 2) * 1000)
        function = _TABLE.get(name)
        if function is None or (len(values) not in (1, 2) and name not in ("max", "min")):
            raise NoValue(name)
        try:
            if name == "log" and len(values) == 1:
                return self.mp.log(values[0]) if self.natural_log else self.mp.log10(values[0])
            return function(self.mp, *values)
        except (ValueError, ZeroDivisionError, TypeError) as error:
            raise NoValue(name) from error

    def root(self, inner: Node, index: Node) -> Any:
        value, order = self.value(inner), self.value(index)
        if order == 0:
            raise NoValue("root of order zero")
        real_negative = self.mp.im(value) == 0 and self.mp.re(value) < 0
        if real_negative and self.mp.isint(order) and int(self.mp.re(order)) % 2:
            return -self.mp.power(-value, 1 / order)
        return self.mp.power(value, 1 / order) if value != 0 else self.mp.mpf(0)

    def determinant(self, node: Node) -> Any:
        if node.op != "matrix" or node.args[0] ** 2 != len(node.args) - 1 or node.args[0] > 8:
            raise NoValue("determinant")
        columns = node.args[0]
        cells = [self.value(cell) for cell in node.args[1:]]
        return self.mp.det(self.mp.matrix([cells[i : i + columns] for i in range(0, len(cells), columns)]))

    def big(self, kind: str, low: Node, high: Node, body: Node, index: Node) -> Any:
        """A sum or product with integer ends, term by term."""
        if kind not in ("sum", "prod") or low.op != "rel" or low.args[0] != ("=",):
            raise NoValue(kind)
        start, end = self.value(low.args[2]), self.value(high)
        if index.op not in ("sym", "const") or not self.mp.isint(start) or not self.mp.isint(end):
            raise NoValue(kind)
        if end - start > _MAX_TERMS:
            raise TooBig(kind)
        total = self.mp.mpf(0 if kind == "sum" else 1)
        for k in range(int(start), int(end) + 1):
            term = self.value(substitute(body, index, num(k)))
            total = total + term if kind == "sum" else total * term
        return total


def _odd_fraction(node: Node) -> int | None:
    """The numerator of an exponent p/q with odd q > 1, else None."""
    from onebase.verifiers.math_exact import NotRational, rational

    try:
        value = rational(node)
    except (NotRational, TooBig, ZeroDivisionError):
        return None
    return value.numerator if value.denominator % 2 and value.denominator > 1 else None


_GROWING = {"sinh", "cosh", "factorial", "binom", "exp", "Gamma"}


def _binomial(mp: Any, n: Any, k: Any) -> Any:
    return mp.binomial(n, k)


_TABLE: dict[str, Any] = {
    **{n: (lambda mp, x, _n=n: getattr(mp, _n)(x)) for n in (
        "sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh coth sech csch "
        "asinh acosh atanh exp floor ceil sign log10 factorial erf arg re im"
    ).split()},
    "abs": lambda mp, x: abs(x),
    "ln": lambda mp, x: mp.log(x),
    "log": lambda mp, x, base: mp.log(x) / mp.log(base),
    "log2": lambda mp, x: mp.log(x, 2),
    "binom": _binomial,
    "mod": lambda mp, x, y: x - y * mp.floor(x / y),
    "max": lambda mp, *xs: max(xs),
    "min": lambda mp, *xs: min(xs),
}  # fmt: skip


def constant_value(node: Node, digits: int = 60, natural_log: bool = True) -> Any:
    """The value of a tree without free symbols; NoValue, TooBig, ZeroDivisionError when there is none."""
    value = Evaluator(digits, {}, natural_log).value(node)
    if context().isnan(value):
        raise NoValue("not a number")
    return value


def close(left: Any, right: Any, digits: int) -> bool:
    """Equal to `digits` digits relative to the larger; exact zero is only equal to what shrinks like zero."""
    if left == right:
        return True
    if context().isinf(left) or context().isinf(right):
        return False
    scale = max(abs(left), abs(right))
    return bool(abs(left - right) <= scale * context().mpf(10) ** -digits)


def same_constant(left: Node, right: Node, natural_log: bool = True) -> bool:
    """Equality of two constants at 60 digits, confirmed at 130.  A difference that keeps its size is real; a
    value that shrinks with the precision, such as sqrt(2)^2 - 2, is zero."""
    a, b = constant_value(left, 60, natural_log), constant_value(right, 60, natural_log)
    tiny = context().mpf(10) ** -40
    if not close(a, b, 45) and max(abs(a), abs(b)) > tiny:
        return False
    if a == b and context().isinf(a):
        return True
    c, d = constant_value(left, 130, natural_log), constant_value(right, 130, natural_log)
    if close(c, d, 110):
        return True
    return all(after == 0 or abs(after) < abs(before) * tiny for before, after in ((a, c), (b, d)))


@lru_cache(maxsize=2048)
def _coordinates(name: str, index: int) -> float:
    return random.Random(f"{name}/{index}").uniform(0.35, 1.9)


def _points(names: list[str], signed: bool) -> list[dict[str, Any]]:
    mp = context()
    points = []
    for index in range(4):
        point = {}
        for name in names:
            value = _coordinates(name, index) + (2 if index == 3 else 0)
            if signed and index in (1, 2):
                value = -value
            point[name] = mp.mpf(value)
        points.append(point)
    return points


def _counts(node: Node) -> bool:
    """Whether a symbol counts terms, so that only whole numbers make sense for it."""
    return any(p.op == "big" and p.args[0] in ("sum", "prod") and symbols(p) for p in walk(node))


def same_function(left: Node, right: Node, natural_log: bool = True, digits: int = 20) -> bool:
    """Equality of two expressions in free symbols at seeded points.  Symbols are positive unless a modulus, a
    sign or an even root of a square shows that the author meant both signs.  NoValue when too few points
    decide."""
    names = sorted(symbols(left) | symbols(right))
    whole = _counts(left) or _counts(right)
    signed = _cares_for_sign(left) or _cares_for_sign(right)
    mp = context()
    mp.dps = 30
    judged = 0
    for number, point in enumerate(_points(names, signed)):
        if whole:
            point = {name: mp.mpf(2 + (3 * number + at) % 7) for at, name in enumerate(names)}
        values = []
        for node in (left, right):
            try:
                value = Evaluator(30, point, natural_log).value(node)
            except (NoValue, ZeroDivisionError):
                value = None
            values.append(value if value is None or mp.isfinite(value) else None)
        a, b = values
        if a is None or b is None:
            continue
        real_a, real_b = abs(mp.im(a)) < 1e-20 * (1 + abs(a)), abs(mp.im(b)) < 1e-20 * (1 + abs(b))
        if signed and not real_a and not real_b:
            continue
        if not close(a, b, digits) and max(abs(a), abs(b)) > mp.mpf(10) ** -22:
            return False
        judged += 1
    if judged < 2:
        raise NoValue("too few points")
    return True


def _cares_for_sign(node: Node) -> bool:
    for part in walk(node):
        if part.op == "fn" and part.args[0] in ("abs", "sign"):
            return True
        if part.op == "fn" and part.args[0] == "root" and part.args[2] == num(2):
            inner = part.args[1]
            if inner.op == "pow" and inner.args[1] == num(2):
                return True
    return False


def is_constant(node: Node) -> bool:
    return not symbols(node) and not ops(node) & {
        "text",
        "rel",
        "tuple",
        "list",
        "set",
        "matrix",
        "unit",
        "ratio",
    }


def as_fraction(value: Any) -> Fraction:
    """The exact binary value of a real mpf."""
    mp = context()
    sign, mantissa, exponent, _ = mp.mpf(mp.re(value))._mpf_
    return Fraction((-1) ** sign * int(mantissa)) * Fraction(2) ** int(exponent)
