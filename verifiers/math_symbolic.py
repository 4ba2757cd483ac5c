"""The last tier: sympy, for what neither arithmetic nor sampling decides, and only where its work is bounded
by the size of what it is given.

Three things are asked of it, all on small trees that this package built (no text is ever parsed by sympy):
derivatives, integrals of polynomials, and the real roots of a polynomial in one unknown, for the solution set
of an inequality.  `simplify`, `integrate`, `summation`, `limit` and `solve` are not called: on inputs of a
dozen symbols they take from 30 ms to for ever, which no limit on the input prevents, and a verdict must not
depend on a clock.  Integrals, limits and infinite sums are estimated numerically instead (`math_estimate`).

Importing this module imports nothing; the first use imports sympy (half a second, once for a process).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from onebase.verifiers import math_tree as T
from onebase.verifiers.math_budget import spend_extra
from onebase.verifiers.math_tree import Node, symbols

_NODES = 80
_DEGREE = 8
_BITS = 64
_RESULT_NODES = 600
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh",
    "acosh", "atanh",
}  # fmt: skip


class NotSymbolic(ValueError):
    """Not one of the forms this tier takes, or too large for it."""


def carry_out(node: Node) -> Node:
    """The tree with derivatives and integrals of polynomials carried out, where there are any."""
    if not any(isinstance(arg, Node) for arg in node.args):
        return node
    node = T.rebuild(node, [carry_out(arg) if isinstance(arg, Node) else arg for arg in node.args])
    if node.op != "big" or node.args[0] not in ("diff", "int") or node.args[4].op != "sym":
        return node
    try:
        return _derivative(node) if node.args[0] == "diff" else _polynomial_integral(node)
    except NotSymbolic:
        return node


def _derivative(node: Node) -> Node:
    _, _, _, body, letter = node.args
    if not symbols(body) >= symbols(letter):
        raise NotSymbolic("nothing depends on the letter")
    sympy = _sympy()
    return from_sympy(sympy.diff(to_sympy(body), sympy.Symbol(letter.args[0])))


def _polynomial_integral(node: Node) -> Node:
    _, low, high, body, letter = node.args
    if "" in (low.args[0] if low.op == "text" else None, high.args[0] if high.op == "text" else None):
        raise NotSymbolic("no limits")
    antiderivative = from_sympy(polynomial(body, letter.args[0]).integrate().as_expr())
    return T.sub(T.substitute(antiderivative, letter, high), T.substitute(antiderivative, letter, low))


def polynomial(node: Node, letter: str) -> Any:
    """The sympy polynomial in `letter` with rational coefficients, of bounded degree and size."""
    sympy = _sympy()
    try:
        found = sympy.Poly(to_sympy(node), sympy.Symbol(letter), domain="QQ")
    except sympy.PolynomialError as error:
        raise NotSymbolic("no polynomial") from error
    except sympy.polys.polyerrors.CoercionFailed as error:
        raise NotSymbolic("coefficients that are not rational") from error
    if found.degree() > _DEGREE or any(
        max(int(c.p).bit_length(), int(c.q).bit_length()) > _BITS for c in found.all_coeffs()
    ):
        raise NotSymbolic("a polynomial that is too large")
    return found


def real_roots(node: Node, letter: str) -> list[tuple[str, int]]:
    """Real roots in order, each as 60 digits with its multiplicity."""
    found = polynomial(node, letter)
    if found.degree() < 1:
        raise NotSymbolic("a constant")
    roots: dict[Any, int] = {}
    for root in found.real_roots():
        roots[root] = roots.get(root, 0) + 1
    return [(str(root.evalf(60)), times) for root, times in roots.items()]


def to_sympy(node: Node) -> Any:
    """The tree as a sympy expression; NotSymbolic for what is too large or none."""
    count = sum(1 for _ in T.walk(node))
    if count > _NODES:
        raise NotSymbolic("too large")
    if not spend_extra():
        raise NotSymbolic("no room for another")
    return _to_sympy(node)


def _to_sympy(node: Node) -> Any:
    sympy = _sympy()
    op, args = node
    if op in ("num", "dec"):
        value: Fraction = args[0]
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _BITS:
            raise NotSymbolic("a number that is too large")
        return sympy.Rational(value.numerator, value.denominator)
    if op == "sym":
        return sympy.Symbol(args[0])
    if op == "const" and args[0] in ("pi", "e"):
        return sympy.pi if args[0] == "pi" else sympy.E
    if op == "paren":
        return _to_sympy(args[0])
    if op in ("add", "mul"):
        return (sympy.Add if op == "add" else sympy.Mul)(*map(_to_sympy, args))
    if op == "pow":
        base, exponent = _to_sympy(args[0]), _to_sympy(args[1])
        if exponent.is_Rational and max(abs(exponent.p), exponent.q) > 12:
            raise NotSymbolic("an exponent that is too large")
        if exponent.is_Rational or base == sympy.E or base.is_Rational:
            return sympy.Pow(base, exponent)
    if op == "fn" and args[0] == "root" and args[2].op == "num" and 2 <= args[2].args[0] <= 12:
        return sympy.Pow(_to_sympy(args[1]), sympy.Rational(1, int(args[2].args[0])))
    if op == "fn" and args[0] in _FUNCTIONS and len(args) == 2:
        return getattr(sympy, args[0])(_to_sympy(args[1]))
    if op == "fn" and args[0] in ("ln", "log") and len(args) == 2:
        return sympy.log(_to_sympy(args[1]))
    raise NotSymbolic(op)


def from_sympy(expression: Any) -> Node:
    """The tree of a sympy expression that `to_sympy` could have made."""
    sympy = _sympy()
    if expression.is_Rational:
        return T.num(Fraction(int(expression.p), int(expression.q)))
    if expression.is_Symbol:
        return Node("sym", (str(expression.name),))
    if expression in (sympy.pi, sympy.E):
        return Node("const", ("pi" if expression == sympy.pi else "e",))
    if sum(1 for _ in sympy.preorder_traversal(expression)) > _RESULT_NODES:
        raise NotSymbolic("a result that is too large")
    args = [from_sympy(arg) for arg in expression.args]
    if expression.is_Add or expression.is_Mul:
        return Node("add" if expression.is_Add else "mul", tuple(args))
    if expression.is_Pow:
        return T.power(*args)
    name = type(expression).__name__
    if name == "exp":
        return T.power(Node("const", ("e",)), args[0])
    if name == "log" or name in _FUNCTIONS:
        return Node("fn", ("ln" if name == "log" else name, *args))
    raise NotSymbolic(name)


def _sympy() -> Any:
    import sympy

    return sympy
