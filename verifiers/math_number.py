"""Whether two numbers or expressions are equal, with what stands beside them: units, percent, degrees.

Cheapest sure test first: normal form, exact rational value, residues of rational functions, then numeric
evaluation at 60 and 130 digits (constants) or at seeded points (functions).  No symbolic simplification is
called: every step is bounded by the size of the answer, which `sympy.simplify` is not.
"""

from __future__ import annotations

from fractions import Fraction

from onebase.verifiers import math_tree as T
from onebase.verifiers.math_exact import NotPolynomial, NotRational, TooBig, rational, residues
from onebase.verifiers.math_numeric import NoValue, same_constant, same_function
from onebase.verifiers.math_policy import Policy
from onebase.verifiers.math_sets import NotASet
from onebase.verifiers.math_tree import Node, normal, num, ops, symbols
from onebase.verifiers.math_values import Quantity, quantity, rounds_to, strip

NO_VALUE = (NoValue, TooBig, NotRational, NotASet, NotPolynomial, ZeroDivisionError, OverflowError)


def same_quantity(gold: Node, answer: Node, policy: Policy) -> str | None:
    """Numbers or expressions with what stands beside them: unit, percent, degree."""
    gold, answer = _without_modulus(gold, answer), _without_modulus(answer, gold)
    g, a = quantity(gold), quantity(answer)
    if g.dimensions and a.dimensions:
        if g.dimensions != a.dimensions:
            return None
        scaled = [T.mul(T.num(q.factor), q.number) if g.factor != a.factor else q.number for q in (g, a)]
        how = same_number(scaled[0], scaled[1], policy)
        return how and f"{how}, unit converted" if g.factor != a.factor else how
    if policy.units == "required" and (g.dimensions or a.dimensions):
        return None
    how = _same_marked(g, a, policy)
    return how and f"{how}, unit left out" if g.dimensions or a.dimensions else how


def _without_modulus(node: Node, other: Node) -> Node:
    """`3 (mod 7)` as 3, where the other side leaves the modulus out."""
    if node.op == "fn" and node.args[0] == "pmod" and other.op != "fn":
        return strip(node.args[1])
    return node


def _same_marked(g: Quantity, a: Quantity, policy: Policy) -> str | None:
    if g.percent != a.percent:
        return _same_percent(g, a, policy)
    how = same_number(g.number, a.number, policy)
    if how is None and g.degrees != a.degrees:
        turn = T.div(T.PI, num(180))
        left = T.mul(g.number, turn) if g.degrees else g.number
        right = T.mul(a.number, turn) if a.degrees else a.number
        if {"const", "fn"} & ops(right if g.degrees else left):
            how = same_number(left, right, policy)
            how = how and f"{how}, degrees as radians"
    return how


def _same_percent(g: Quantity, a: Quantity, policy: Policy) -> str | None:
    if policy.percent == "strict":
        return None
    if policy.percent != "hundredth" and (how := same_number(g.number, a.number, policy)):
        return f"{how}, percent sign left out"
    if policy.percent == "number":
        return None
    hundredth = T.num(Fraction(1, 100))
    left = T.mul(g.number, hundredth) if g.percent else g.number
    right = T.mul(a.number, hundredth) if a.percent else a.number
    how = same_number(left, right, policy)
    return how and f"{how}, percent as hundredths"


def same_number(gold: Node, answer: Node, policy: Policy) -> str | None:
    """Equality of two expressions; a decimal is exact unless the policy lets it stand for what it rounds."""
    a, b = normal(gold), normal(answer)
    if a == b:
        return "the same form"
    try:
        return _same_rational(gold, answer, policy)
    except (NotRational, TooBig, ZeroDivisionError):
        pass
    try:
        return (
            "equal as rational functions"
            if residues(a) == residues(b)
            else _by_rounding(gold, answer, policy)
        )
    except NotPolynomial:
        pass
    try:
        return _same_numeric(gold, answer, policy)
    except NO_VALUE:
        return None


def _same_rational(gold: Node, answer: Node, policy: Policy) -> str | None:
    a, b = rational(gold), rational(answer)
    if a == b:
        return "equal as exact numbers"
    if "dec" in (gold.op, answer.op):
        fine = min(node.args[1] if node.op == "dec" else 99 for node in (gold, answer)) >= 12
        if fine and abs(a - b) <= abs(a) / 10**12:
            return "equal to twelve digits"
    return _by_rounding(gold, answer, policy)


def _by_rounding(gold: Node, answer: Node, policy: Policy) -> str | None:
    if symbols(gold) or symbols(answer):
        return None
    try:
        if gold.op == "dec" and answer.op != "dec" and _enough(gold, policy.rounded_gold_digits):
            if not _terminates(answer) and rounds_to(answer, gold):
                return "rounds to the decimal gold"
        if answer.op == "dec" and gold.op != "dec" and _enough(answer, policy.decimal_answer_digits):
            if rounds_to(gold, answer):
                return "a rounding of the exact gold"
    except NO_VALUE:
        return None
    return None


def _enough(node: Node, digits: int) -> bool:
    return bool(digits and node.args[1] >= digits)


def _terminates(node: Node) -> bool:
    """Whether the value is a number of finitely many decimals: such a one meets a decimal exactly or not at
    all."""
    try:
        rest = rational(node).denominator
    except NO_VALUE:
        return False
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _same_numeric(gold: Node, answer: Node, policy: Policy) -> str | None:
    logs = [True, False] if _has_log(gold) or _has_log(answer) else [True]
    free = symbols(gold) | symbols(answer)
    for natural in logs:
        try:
            if free:
                if same_function(gold, answer, natural, _digits(gold)):
                    return "equal at seeded points"
            elif same_constant(gold, answer, natural):
                return "equal to 110 digits"
        except (NoValue, TooBig, ZeroDivisionError):
            if natural == logs[-1]:
                raise
    return _by_rounding(gold, answer, policy)


def _digits(gold: Node) -> int:
    """Digits to which functions must agree: all, but where the gold's own coefficients are decimals of five
    digits or more, only those."""
    typed = [part.args[1] for part in T.walk(gold) if part.op == "dec" and part.args[1] >= 5]
    return min(typed) - 1 if typed else 20


def _has_log(node: Node) -> bool:
    return any(p.op == "fn" and p.args[0] == "log" and len(p.args) == 2 for p in T.walk(node))
