"""Numeric estimates of what has no finite expression here: integrals, limits and infinite sums.

Twelve digits, by quadrature, by two values close to the point, or by extrapolation, each under an operation
budget of its own.  They serve a gold that is itself left unevaluated, and answers where the policy allows those.
"""

from __future__ import annotations

from typing import Any

from onebase.verifiers.math_budget import Exhausted, budget, spend_extra
from onebase.verifiers.math_exact import TooBig
from onebase.verifiers.math_numeric import Evaluator, NoValue, close, context
from onebase.verifiers.math_tree import INF, Node, ops, symbols

_DIGITS = 12
_OPERATIONS = 5_000
_TERMS = 72


def same_estimate(left: Node, right: Node) -> bool:
    """Whether two constants, of which one holds an integral, limit or infinite sum, agree to twelve digits."""
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
        if low.op == "text" or high.op == "text":
            raise NoValue("an indefinite integral")
        a, b = self.value(low), self.value(high)
        value, error = self.mp.quad(lambda x: self.at(body, letter, x), [a, b], maxdegree=6, error=True)
        if error > self.mp.mpf(10) ** -(_DIGITS + 2) * (1 + abs(value)):
            raise NoValue("a quadrature that does not settle")
        return value

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
        total, sums = self.mp.mpf(0), []
        for k in range(int(start), int(start) + _TERMS):
            total += self.at(body, index, self.mp.mpf(k))
            sums.append(total)
        for accelerate in (self.plain, self.shanks, self.richardson):
            value, earlier = accelerate(sums), accelerate(sums[:-8])
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
