"""Whether two numbers or expressions are equal, with what stands beside them: units, percent, degrees.

Cheapest sure test first: normal form, exact rational value, residues of rational functions, then numeric
evaluation at 60 and 130 digits (constants) or at seeded points (functions).  No symbolic simplification is
called: every step is bounded by the size of the answer, which `sympy.simplify` is not.
"""

from __future__ import annotations

from fractions import Fraction

from onebase.verifiers import math_tree as T
from onebase.verifiers.math_estimate import same_estimate
from onebase.verifiers.math_exact import NotPolynomial, NotRational, TooBig, rational, residues
from onebase.verifiers.math_numeric import NoValue, same_constant, same_function
from onebase.verifiers.math_policy import Policy
from onebase.verifiers.math_sets import NotASet
from onebase.verifiers.math_symbolic import carry_out
from onebase.verifiers.math_tree import Node, normal, num, ops, symbols
from onebase.verifiers.math_units import LETTER_UNITS
from onebase.verifiers.math_values import Quantity, double_noise, quantity, rounds_to, strip, within

IMAGINARY, EULER = Node("const", ("i",)), Node("const", ("e",))
NO_VALUE = (NoValue, TooBig, NotRational, NotASet, NotPolynomial, ZeroDivisionError, OverflowError)


def same_quantity(gold: Node, answer: Node, policy: Policy) -> str | None:
    """Numbers or expressions with what stands beside them: unit, percent, degree."""
    gold, answer = _without_modulus(gold, answer), _without_modulus(answer, gold)
    gold, answer = _combination(gold), _combination(_same_letters(gold, answer))
    how = _same_quantity(quantity(gold), quantity(answer), policy)
    if how is None and not symbols(gold) and (lettered := _letters_as_units(answer)) is not None:
        how = _same_quantity(quantity(gold), quantity(lettered), policy)
    return how


def _same_quantity(g: Quantity, a: Quantity, policy: Policy) -> str | None:
    if g.words and a.words and g.words != a.words and (symbols(g.number) or symbols(a.number)):
        return None  # words beside letters are what is meant, not a forgotten unit
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


def is_number(node: Node) -> bool:
    """A number with nothing left to work out: digits, a fraction, a root, a power of ten, with marks and
    unit."""
    node = strip(node)
    if node.op == "pow":
        return all(part.op == "num" for part in node.args) and (
            node.args[0].args[0] == 10 or node.args[1] == T.MINUS_ONE
        )
    if node.op == "fn":
        return node.args[0] == "root" and all(part.op == "num" for part in node.args[1:])
    if node.op == "mul":
        parts = [strip(part) for part in node.args if strip(part) != T.MINUS_ONE]
        plain = [part for part in parts if part.op in ("num", "dec")]
        return len(plain) <= 1 and all(is_number(part) for part in parts)
    return node.op in ("num", "dec", "const", "unit", "pct", "deg", "text", "based")


def _letters_as_units(node: Node) -> Node | None:
    """`9.8 m/s^2`, `2 h` typed without \\text, where the gold has no letters: then these are units."""
    if node.op in ("mul", "pow", "paren"):
        parts = [_letters_as_units(arg) if isinstance(arg, Node) else arg for arg in node.args]
        return None if any(part is None for part in parts) else T.rebuild(node, parts)
    if node.op == "sym":
        return Node("unit", (node.args[0],)) if node.args[0] in LETTER_UNITS else None
    return node if not symbols(node) else None


def _combination(node: Node) -> Node:
    """C(10,3), C_{10}^{3}: a number of combinations."""
    if node.op == "mul" and len(node.args) == 2 and node.args[0] == Node("sym", ("C",)):
        pair = node.args[1]
        if pair.op == "tuple" and len(pair.args) == 4 and all(part.op == "num" for part in pair.args[2:]):
            return Node("fn", ("binom", *pair.args[2:]))
    if node.op == "pow" and node.args[0].op == "sym" and node.args[1].op == "num":
        name = str(node.args[0].args[0])
        if name.startswith("C_") and name[2:].isdigit() and len(name) < 8:
            return Node("fn", ("binom", T.num(int(name[2:])), node.args[1]))
    return node


_CONSTANTS_OF_INTEGRATION = {"C", "c", "K", "k"}


def _same_letters(gold: Node, answer: Node) -> Node:
    """The answer with i for j, e for E, or with another letter for the constant of integration, as the gold
    has it."""
    for constant, letter in ((IMAGINARY, Node("sym", ("j",))), (EULER, Node("sym", ("E",)))):
        here, there = list(T.walk(gold)), list(T.walk(answer))
        if (
            constant in here
            and letter in there
            and letter not in here
            and (constant not in there or letter.args[0] == "E")
        ):
            answer = T.substitute(answer, letter, constant)
        elif letter in here and constant in there and letter not in there:
            answer = T.substitute(answer, constant, letter)
    mine, theirs = (_constant_of(node) for node in (gold, answer))
    if mine is not None and theirs is not None and mine != theirs and mine.args[0] not in symbols(answer):
        answer = T.substitute(answer, theirs, mine)
    return answer


def _constant_of(node: Node) -> Node | None:
    """The letter C of `… + C`, when it stands nowhere else."""
    found = [part for part in node.args if part.op == "sym"] if node.op == "add" else []
    found = [part for part in found if part.args[0] in _CONSTANTS_OF_INTEGRATION]
    return found[0] if len(found) == 1 and sum(part == found[0] for part in T.walk(node)) == 1 else None


def _without_modulus(node: Node, other: Node) -> Node:
    """`3 (mod 7)` as 3, where the other side leaves the modulus out; `3 mod 7` as `3 (mod 7)`, where it does
    not."""
    if node.op == "fn" and node.args[0] == "pmod" and other.op != "fn":
        return strip(node.args[1])
    if node.op == "fn" and node.args[0] == "mod" and other.op == "fn" and other.args[0] == "pmod":
        return Node("fn", ("pmod", *node.args[1:]))
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
    if "big" in ops(gold) | ops(answer):
        gold, answer = carry_out(gold), carry_out(answer)
    gold, answer = _as_decimal(gold), _as_decimal(answer)
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
        return "equal to twelve digits" if same_estimate(gold, answer) else None


def _as_decimal(node: Node) -> Node:
    """2.5 times a power of ten is a decimal with as many digits as were typed."""
    if node.op != "mul" or len(node.args) != 2 or node.args[0].op != "dec" or node.args[1].op != "pow":
        return node
    base, exponent = node.args[1].args
    if base != T.num(10) or exponent.op != "num" or exponent.args[0].denominator != 1:
        return node
    shift = int(exponent.args[0])
    if abs(shift) > 400:
        return node
    value, digits, decimals = node.args[0].args
    return Node("dec", (value * Fraction(10) ** shift, digits, decimals - shift))


def _same_rational(gold: Node, answer: Node, policy: Policy) -> str | None:
    a, b = rational(gold), rational(answer)
    if a == b:
        return "equal as exact numbers"
    for node, true, value in ((answer, a, b), (gold, b, a)):
        if node.op == "dec" and double_noise(true, value, node.args[1]):
            return "equal in double precision"
    return _by_rounding(gold, answer, policy)


def _by_rounding(gold: Node, answer: Node, policy: Policy) -> str | None:
    if symbols(gold) or symbols(answer):
        return None
    try:
        if policy.tolerance and gold.op == "dec" and within(answer, gold.args[0], policy.tolerance):
            return "within the policy's tolerance"
        if gold.op == "dec" and answer.op != "dec" and _enough(gold, policy.rounded_gold_digits):
            if not _terminates(answer) and rounds_to(answer, gold):
                return "rounds to the decimal gold"
        if answer.op == "dec" and gold.op != "dec" and _enough(answer, policy.decimal_answer_digits):
            if not _terminates(gold) and rounds_to(gold, answer):
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
