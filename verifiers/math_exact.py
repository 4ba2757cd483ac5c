"""Exact tests: rational value of a constant, and residues of a rational function at random points.

`rational` computes with Fractions under a bound on bits.  `residues` evaluates sums, products and integer
powers modulo two primes near 2^61 at seeded points: two different rational functions agree there with
probability below degree / 2^61 per prime (Schwartz 1980, Zippel 1979), at a cost that does not depend on how
large the numbers or how high the powers are: (x+y+z)^2000 costs one modular power.
"""

from __future__ import annotations

import random
from fractions import Fraction
from functools import lru_cache
from math import comb, factorial, floor, gcd, lcm

from onebase.verifiers.math_budget import spend
from onebase.verifiers.math_policy import LIMITS
from onebase.verifiers.math_tree import Node

PRIMES = ((1 << 61) - 1, (1 << 61) - 31)
_POINTS = 2


class TooBig(ValueError):
    """The value has more bits than the limit."""


class NotRational(ValueError):
    """Something in the tree is not a rational number."""


def rational(node: Node) -> Fraction:
    """The exact value, or NotRational, TooBig, ZeroDivisionError."""
    spend(2)
    op, args = node
    if op in ("num", "dec"):
        return Fraction(args[0])
    if op == "paren":
        return rational(args[0])
    if op == "add":
        return _bounded(sum((rational(arg) for arg in args), Fraction(0)))
    if op == "mul":
        product = Fraction(1)
        for arg in args:
            product = _bounded(product * rational(arg))
        return product
    if op == "pow":
        return _power(rational(args[0]), rational(args[1]))
    if op == "fn":
        return _function(args[0], [_argument(arg) for arg in args[1:]])
    if op == "based":
        return Fraction(based_value(*args))
    raise NotRational(op)


def _argument(node: Node) -> Fraction:
    if node.op == "matrix":
        raise NotRational("matrix")
    return rational(node)


def based_value(digits: str, base: int) -> int:
    if not 2 <= base <= 36:
        raise NotRational("base")
    try:
        return int(digits, base)
    except ValueError as error:
        raise NotRational("digit beyond the base") from error


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > 2 * LIMITS.bits:
        raise TooBig("bits")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        root = exact_root(base, exponent.denominator)
        if root is None:
            raise NotRational("root")
        base, exponent = root, Fraction(exponent.numerator)
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base not in (0, 1, -1) and abs(exponent) * size > LIMITS.bits:
        raise TooBig("power")
    if base in (1, -1):
        return Fraction(1) if base == 1 or exponent % 2 == 0 else Fraction(-1)
    if base == 0 and exponent == 0:
        raise NotRational("0^0")
    return Fraction(base ** int(exponent))


def exact_root(value: Fraction, index: int) -> Fraction | None:
    """The real root when it is rational."""
    if value < 0:
        if index % 2 == 0:
            return None
        root = exact_root(-value, index)
        return None if root is None else -root
    top, bottom = _integer_root(value.numerator, index), _integer_root(value.denominator, index)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _integer_root(value: int, index: int) -> int | None:
    if value < 2:
        return value
    if index > value.bit_length():
        return None
    guess = 1 << -(-value.bit_length() // index)
    while True:  # Newton from above
        step = ((index - 1) * guess + value // guess ** (index - 1)) // index
        if step >= guess:
            return guess if guess**index == value else None
        guess = step


def _function(name: str, values: list[Fraction]) -> Fraction:
    first = values[0] if values else Fraction(0)
    if name == "root" and len(values) == 2 and values[1].denominator == 1 and 0 < values[1] <= 1000:
        root = exact_root(first, int(values[1]))
        if root is not None:
            return root
    elif name == "abs":
        return abs(first)
    elif name == "sign":
        return Fraction((first > 0) - (first < 0))
    elif name in ("floor", "ceil"):
        return Fraction(floor(first) if name == "floor" else -floor(-first))
    elif name in ("max", "min") and values:
        return max(values) if name == "max" else min(values)
    elif all(value.denominator == 1 for value in values):
        return _integer_function(name, [int(value) for value in values])
    raise NotRational(name)


def _integer_function(name: str, values: list[int]) -> Fraction:
    if name == "factorial" and len(values) == 1 and values[0] >= 0:
        if values[0] > 4000:
            raise TooBig("factorial")
        return Fraction(factorial(values[0]))
    if name == "binom" and len(values) == 2 and values[0] >= 0:
        n, k = values
        if not 0 <= k <= n:
            return Fraction(0)
        if min(k, n - k) * n.bit_length() > LIMITS.bits:
            raise TooBig("binomial")
        return Fraction(comb(n, k))
    if name in ("gcd", "lcm") and values:
        return Fraction(gcd(*values) if name == "gcd" else lcm(*values))
    if name == "mod" and len(values) == 2 and values[1]:
        return Fraction(values[0] % values[1])
    raise NotRational(name)


class NotPolynomial(ValueError):
    """Residues do not apply: the tree is no rational function, or a denominator vanished."""


def residues(node: Node) -> tuple[int, ...]:
    """Fingerprint of a rational function with integer powers; equal functions have equal fingerprints."""
    marks = []
    for prime in PRIMES:
        for point in range(_POINTS):
            marks.append(_residue(node, prime, point))
    return tuple(marks)


@lru_cache(maxsize=4096)
def _coordinate(name: str, prime: int, point: int) -> int:
    return random.Random(f"{name} {prime} {point}").randrange(1 << 20, prime)


def _residue(node: Node, prime: int, point: int) -> int:
    spend()
    op, args = node
    if op in ("num", "dec"):
        value: Fraction = args[0]
        return value.numerator % prime * _inverse(value.denominator, prime) % prime
    if op == "paren":
        return _residue(args[0], prime, point)
    if op == "sym" or (op == "const" and args[0] in ("pi", "e")):  # pi and e: transcendental, so free
        return _coordinate(args[0], prime, point)
    if op == "add":
        return sum(_residue(arg, prime, point) for arg in args) % prime
    if op == "mul":
        product = 1
        for arg in args:
            product = product * _residue(arg, prime, point) % prime
        return product
    if op == "pow":
        return _residue_power(args[0], args[1], prime, point)
    raise NotPolynomial(op)


def _residue_power(base: Node, exponent: Node, prime: int, point: int) -> int:
    try:
        times = rational(exponent)
    except (NotRational, TooBig, ZeroDivisionError) as error:
        raise NotPolynomial("exponent") from error
    if times.denominator != 1:
        raise NotPolynomial("fractional power")
    value = _residue(base, prime, point)
    if times < 0:
        value, times = _inverse(value, prime), -times
    return pow(value, int(times), prime)


def _inverse(value: int, prime: int) -> int:
    if value % prime == 0:
        raise NotPolynomial("division by zero")
    return pow(value, -1, prime)
