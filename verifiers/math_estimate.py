"""Numeric estimates of what has no finite expression here: integrals, limits and infinite sums.

Twelve digits, by quadrature, by two values close to the point, or by extrapolation, each under an operation
budget of its own.  They serve a gold that is itself left unevaluated, and answers where the policy allows
those.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from onebase.verifiers.math_budget import Exhausted, budget, spend_extra
from onebase.verifiers.math_exact import TooBig
from onebase.verifiers.math_numeric import Evaluator, NoValue, close, context
from onebase.verifiers.math_tree import INF, Node, ops, symbols

_DIGITS = 12
_OPERATIONS = 8_000
_TERMS = 40
_STEP = 1 / 16


def same_estimate(left: Node, right: Node) -> bool:
    """Whether two constants, of which one holds an integral, limit or infinite sum, agree to twelve
    digits."""
    if symbols(left) or symbols(right) or "big" not in ops(left) | ops(right):
        return False
    if not spend_extra():
        return False
    try:
        with budget(_OPERATIONS):
            b, a = _Estimator(25, {}).value(right), _Estimator(25, {}).value(left)  # the answer's first
    except (NoValue, TooBig, ZeroDivisionError, Exhausted, ValueError):
        return False
    mp = context()
    return bool(mp.isfinite(a) and mp.isfinite(b)) and close(a, b, _DIGITS)


@lru_cache(maxsize=4)
def _nodes(left_infinite: bool, right_infinite: bool) -> list[tuple[int, Any, Any]]:
    """Number, point and weight of each step of the double exponential rule for [0, 1], [0, inf) or the
    line."""
    mp = context()
    nodes = []
    with mp.workdps(30):
        half = mp.pi / 2
        for k in range(-68, 69):
            t = mp.mpf(k) * _STEP
            inner, slope = half * mp.sinh(t), half * mp.cosh(t) * _STEP
            if left_infinite and right_infinite:
                x, weight = mp.sinh(inner), mp.cosh(inner) * slope
            elif left_infinite or right_infinite:
                x = mp.exp(inner)
                weight = x * slope
            else:
                x, weight = 1 / (1 + mp.exp(-2 * inner)), slope / mp.cosh(inner) ** 2 / 2
            nodes.append((k, x, weight))
    return nodes


class _Estimator(Evaluator):
    def big(self, kind: str, low: Node, high: Node, body: Node, index: Node) -> Any:
        if kind == "int":
            return self.integral(low, high, body, index)
        if kind == "lim" and low.op == "rel" and low.args[0] == ("->",):
            return self.limit(low.args[2], body, low.args[1])
        if kind == "sum" and high == INF and low.op == "rel" and low.args[0] == ("=",):
            return self.series(low.args[2], body, index)
        return super().big(kind, low, high, body, index)

    def at(self, body: Node, letter: Node, value: Any) -> Any:
        if letter.op != "sym":
            raise NoValue("no letter")
        return _Estimator(self.mp.dps, {**self.point, letter.args[0]: value}).value(body)

    def check(self, bits: Any) -> None:
        """Far out, a factor of an integrand may be as small as it likes: mpmath has room for its exponent."""
        if not bits < 10**60:
            raise TooBig("magnitude")

    def integral(self, low: Node, high: Node, body: Node, letter: Node) -> Any:
        """Double exponential quadrature (Takahasi and Mori 1974) at a fixed number of points, twice as fine
        the second time; both must agree to seven digits, which leaves the finer with twice as many."""
        if low.op == "text" or high.op == "text":
            raise NoValue("an indefinite integral")
        a, b = self.value(low), self.value(high)
        sign = 1
        if a > b:
            a, b, sign = b, a, -1
        sums = [self.mp.mpf(0), self.mp.mpf(0)]
        for k, x, weight in _nodes(bool(self.mp.isinf(a)), bool(self.mp.isinf(b))):
            if self.mp.isinf(a) or self.mp.isinf(b):
                x = x if self.mp.isinf(a) and self.mp.isinf(b) else a + x if self.mp.isinf(b) else b - x
            else:
                x, weight = a + (b - a) * x, weight * (b - a)
                if not a < x < b:
                    continue
            term = self.at(body, letter, x) * weight
            sums[1] += term
            sums[0] += 0 if k % 2 else 2 * term
        if abs(sums[1] - sums[0]) > self.mp.mpf(10) ** -7 * (
            1 + abs(sums[1])
        ):  # the finer errs by its square
            raise NoValue("a quadrature that does not settle")
        return sign * sums[1]

    def limit(self, target: Node, body: Node, letter: Node) -> Any:
        side = target.args[0] if target.op == "fn" and target.args[0] in ("above", "below") else None
        point = self.value(target.args[1] if side else target)
        values = []
        with self.mp.workdps(80):
            for power in (25, 30):
                step = self.mp.mpf(10) ** -power * (-1 if side == "below" else 1)
                x = (1 / step) * self.mp.sign(point) if self.mp.isinf(point) else point + step
                values.append(_Estimator(80, {**self.point, letter.args[0]: x}).value(body))
        self.mp.dps = 25
        if not close(values[0], values[1], 18):
            raise NoValue("a limit that does not settle")
        return +values[1]

    def series(self, low: Node, body: Node, index: Node) -> Any:
        start = self.value(low)
        if not self.mp.isint(start) or index.op not in ("sym", "const"):
            raise NoValue("where the sum begins")
        with self.mp.workdps(50):
            total, sums = self.mp.mpf(0), []
            for k in range(int(start), int(start) + _TERMS):
                total += _Estimator(50, {**self.point, index.args[0]: self.mp.mpf(k)}).value(body)
                sums.append(total)
            for accelerate in (self.plain, self.shanks, self.richardson):
                value, earlier = accelerate(sums), accelerate(sums[:-4])
                if close(value, earlier, _DIGITS + 1):
                    return value
        raise NoValue("a sum that does not settle")

    def plain(self, sums: list[Any]) -> Any:
        return sums[-1]

    def shanks(self, sums: list[Any]) -> Any:
        """For alternating and geometric sums."""
        return self.mp.shanks(sums[-25:])[-1][-1]

    def richardson(self, sums: list[Any]) -> Any:
        """For sums whose rest falls as a power of the number of terms."""
        return self.mp.richardson(sums)[0]
