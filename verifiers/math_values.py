"""From trees to answers: names set apart from values, plus-minus written out, units set apart from
numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product

from onebase.verifiers import math_tree as T
from onebase.verifiers.math_budget import spend
from onebase.verifiers.math_exact import NotRational, TooBig, rational
from onebase.verifiers.math_numeric import (
    NoValue,
    as_fraction,
    close,
    constant_value,
    context,
    is_constant,
    same_constant,
)
from onebase.verifiers.math_tree import Node, ops
from onebase.verifiers.math_units import COUNT_WORDS, unit_of


class FalseChain(ValueError):
    """`7 = 5`: a chain of equations that is not true cannot be an answer."""


@dataclass(slots=True)
class Item:
    """One answer: its value, the name it was given (`x` in x = 5), and a stated approximation."""

    value: Node
    name: Node | None = None
    approx: Node | None = None


def strip(node: Node) -> Node:
    """Without round brackets and without brackets round a single matrix."""
    while True:
        if node.op == "paren" or (node.op == "list" and len(node.args) == 1):
            node = node.args[0]
        elif node.op in ("add", "mul", "pow") and "matrix" in ops(node):
            combined = matrix_value(node)
            if combined is None:
                return node
            node = combined
        elif node.op == "pow" and node.args[0].op == "tuple" and node.args[1] in _TRANSPOSES:
            node = node.args[0]
        elif (
            node.op == "mul" and len(node.args) == 2 and node.args[0].op == "text" and _labelled(node.args[1])
        ):
            node = node.args[1]  # the origin (0,0)
        elif node.op == "tuple" and len(node.args) == 3 and strip(node.args[2]).op == "matrix":
            node = node.args[2]
        else:
            return node


_STRUCTURES = {"tuple", "matrix", "set", "union"}
_TRANSPOSES = (Node("sym", ("T",)), Node("sym", ("t",)), Node("sym", ("top",)))


def _labelled(node: Node) -> bool:
    return (node.args[0] if node.op == "paren" else node).op in _STRUCTURES


def matrix_value(node: Node) -> Node | None:
    """A sum, product, power or transpose of matrices, carried out; None when the shapes do not fit."""
    if node.op == "pow":
        return _matrix_power(strip(node.args[0]), node.args[1])
    parts = [strip(part) for part in node.args]
    total = parts[0]
    for part in parts[1:]:
        shapes = total.op == "matrix", part.op == "matrix"
        if shapes == (True, True):
            combined = _add_matrices(total, part) if node.op == "add" else _multiply_matrices(total, part)
        elif node.op == "mul" and any(shapes):
            factor, matrix = (total, part) if shapes[1] else (part, total)
            cells = [T.mul(factor, cell) for cell in matrix.args[1:]]
            combined = Node("matrix", (matrix.args[0], *cells))
        else:
            combined = getattr(T, node.op)(total, part) if not any(shapes) else None
        if combined is None:
            return None
        total = combined
    return total if total.op == "matrix" else None


def _matrix_power(matrix: Node, exponent: Node) -> Node | None:
    if matrix.op != "matrix":
        return None
    columns, cells = matrix.args[0], matrix.args[1:]
    if exponent in _TRANSPOSES:
        return Node(
            "matrix",
            (
                len(cells) // columns,
                *(cells[i] for j in range(columns) for i in range(j, len(cells), columns)),
            ),
        )
    if exponent.op != "num" or exponent.args[0] not in (1, 2, 3, 4):
        return None
    total: Node | None = matrix
    for _ in range(int(exponent.args[0]) - 1):
        total = _multiply_matrices(total, matrix) if total is not None else None
    return total


def _add_matrices(left: Node, right: Node) -> Node | None:
    if left.args[0] != right.args[0] or len(left.args) != len(right.args):
        return None
    cells = [T.add(a, b) for a, b in zip(left.args[1:], right.args[1:], strict=True)]
    return Node("matrix", (left.args[0], *cells))


def _multiply_matrices(left: Node, right: Node) -> Node | None:
    inner, columns = left.args[0], right.args[0]
    rows = (len(left.args) - 1) // inner
    if (len(right.args) - 1) // columns != inner or rows * columns * inner > 512:
        return None
    a, b = left.args[1:], right.args[1:]
    spend(2 * rows * columns * inner)
    cells = [
        T.add(*(T.mul(a[i * inner + k], b[k * columns + j]) for k in range(inner)))
        for i in range(rows)
        for j in range(columns)
    ]
    return Node("matrix", (columns, *cells))


def is_name(node: Node, lenient: bool) -> bool:
    """Whether `node = value` only names the value: a symbol, f(x), |AB|, a ratio of segments.  `lenient` also
    takes sums and powers of symbols without coefficients, which a completion may state as what it
    computed."""
    node = node if node.op == "paren" else strip(node)
    if node.op in ("sym", "text") or (node.op == "const" and node.args[0] in ("e", "i")):
        return True
    if node.op == "mul":
        first = node.args[0]
        applied = (
            is_name(first, lenient) and len(node.args) == 2 and node.args[1].op in ("paren", "tuple", "num")
        )
        if applied and node.args[1].op != "num":
            return True
        return all(is_name(part, lenient) for part in node.args)
    if node.op == "pow":
        if node.args[1] == T.MINUS_ONE:
            return is_name(node.args[0], lenient)
        return lenient and is_name(node.args[0], lenient) and node.args[1].op == "num"
    if node.op in ("ratio", "tuple", "list", "paren"):
        return all(is_name(part, lenient) for part in T.children(node))
    if node.op == "big" and node.args[0] == "diff":
        return is_name(node.args[3], lenient)
    if node.op == "fn":
        return node.args[0] != "root" and all(is_name(part, lenient) for part in T.children(node))
    return lenient and node.op == "add" and all(is_name(_unsigned(part), lenient) for part in node.args)


def _unsigned(node: Node) -> Node:
    if node.op == "mul" and node.args[0] == T.MINUS_ONE:
        return T.mul(*node.args[1:])
    return node


def item(node: Node, lenient: bool) -> Item:
    """Sets name and value apart; raises FalseChain on an untrue chain of constants."""
    node = strip(node)
    if node.op != "rel":
        return Item(node)
    names, terms = node.args[0], list(node.args[1:])
    if names == ("==",) and terms[1].op == "fn" and terms[1].args[0] == "pmod":
        return Item(terms[1], terms[0])
    if terms[0].op == "mul" and terms[0].args[0].op == "text" and len(terms[0].args) > 1:
        terms[0] = T.mul(*terms[0].args[1:])  # "the line y = 2x + 1"
        node = Node("rel", (names, *terms))
    if names == ("in",) and is_name(terms[0], True):
        return Item(strip(terms[1]), terms[0])
    if not set(names) <= {"=", "~"}:
        return Item(node)
    if len(terms) > 2 or all(is_constant(term) for term in terms):
        _check_chain(names, terms)
    if all(term.op == "tuple" and not T.symbols(term) for term in terms):
        for left, right in zip(terms[:-1], terms[1:], strict=True):
            if len(left.args) != len(right.args):
                raise FalseChain("the chain states an untrue equation")
            for a, b in zip(T.children(left), T.children(right), strict=True):
                _check_chain(("=",), [a, b])
    approx = None
    if "~" in names and (cut := names.index("~")) > 0:
        approx, terms, names = strip(terms[-1]), terms[: cut + 1], names[:cut]
    elif "~" in names and not is_name(terms[0], lenient) and _determined(terms[0]):
        return Item(strip(terms[0]), approx=strip(terms[-1]))
    if len(terms) == 1:
        return Item(strip(terms[0]), approx=approx)
    first, last = strip(terms[0]), strip(terms[-1])
    if is_name(first, lenient):
        return Item(last, terms[0], approx)
    if len(terms) == 2 and is_name(last, False) and not T.symbols(first):
        return Item(first, terms[-1], approx)
    if _determined(first) and not T.symbols(last):
        return Item(last, approx=approx)
    return Item(node, approx=approx)


def _determined(node: Node) -> bool:
    """A value and no unknown: a constant, or a sum, integral or limit whose only letters are bound."""
    return not T.symbols(node) or "big" in ops(node)


def _check_chain(names: tuple[str, ...], terms: list[Node]) -> None:
    for name, left, right in zip(names, terms[:-1], terms[1:], strict=True):
        if not (is_constant(left) and is_constant(right)) or "pct" in ops(left) | ops(right):
            continue
        try:
            if name == "=":
                true = same_exact(left, right) or _rounds(left, right)
            else:
                true = _approximates(left, right)
        except (NoValue, TooBig, ZeroDivisionError):
            continue
        if not true:
            raise FalseChain(f"the chain states an untrue {'equation' if name == '=' else 'approximation'}")


def is_solved(relation: Node) -> bool:
    """`x = 2`, `x > 3`, `-1 < x <= 5`: one unknown, alone on its side of every sign (or with a minus or a
    modulus), and nothing unknown on the others."""
    if relation.op != "rel" or len(T.symbols(relation)) != 1:
        return False
    return all(
        any(_alone(one) and not T.symbols(other) for one, other in ((left, right), (right, left)))
        for left, right in zip(relation.args[1:-1], relation.args[2:], strict=True)
    )


def _alone(side: Node) -> bool:
    side = _unsigned(strip(side))
    side = side.args[1] if side.op == "fn" and side.args[0] == "abs" else side
    return side.op != "add" and is_name(side, False)


def all_solved(node: Node) -> bool:
    """Whether no equation or inequality in a set or list of solutions is left to be solved."""
    relations = [
        part for part in T.walk(node) if part.op == "rel" and not set(part.args[0]) & {"in", "notin"}
    ]
    return all(len(T.symbols(part)) != 1 or is_solved(part) for part in relations)


def components(node: Node) -> list[Node] | None:
    """Coefficients of the unit vectors i, j, k in a sum that is linear in them, else None."""
    names = [Node("sym", (f"unit {letter}",)) for letter in "ijk"]
    parts: list[list[Node]] = [[], [], []]
    for term in node.args if node.op == "add" else (node,):
        factors = _flat(strip(term))
        at = next((i for i, name in enumerate(names) if name in factors), None)
        if at is None:
            return None
        rest = [factor for factor in factors if factor != names[at]]
        if len(rest) != len(factors) - 1 or any(name in T.walk(T.mul(*rest)) for name in names if rest):
            return None
        parts[at].append(T.mul(*rest) if rest else T.ONE)
    return [T.add(*terms) if terms else T.ZERO for terms in parts]


def compound(node: Node) -> Node:
    """`1 hour and 30 minutes`: quantities of one kind in falling units are a sum, not a list."""
    if node.op != "list" or not 2 <= len(node.args) <= 4:
        return node
    found = [quantity(part) for part in node.args]
    kinds = [part.dimensions for part in found]
    factors = [part.factor for part in found]
    if (
        not kinds[0]
        or any(kind != kinds[0] for kind in kinds)
        or sorted(set(factors), reverse=True) != factors
    ):
        return node
    if any(part.number.op not in ("num", "dec") for part in found):
        return node
    return T.mul(
        T.num(sum(part.number.args[0] * part.factor / factors[-1] for part in found)),
        node.args[-1].args[-1] if node.args[-1].op == "mul" else node.args[-1],
    )


def _approximates(left: Node, right: Node) -> bool:
    """Whether `left \\approx right` holds to within the last place that is typed, or to one percent."""
    if right.op not in ("num", "dec") or (right.op == "num" and right.args[0].denominator != 1):
        return close(constant_value(left), constant_value(right), 2)
    if right.op == "dec":
        places = right.args[2]
    else:
        digits = str(abs(right.args[0]))
        places = len(digits.rstrip("0")) - len(digits) if right.args[0] else 0
    true = as_fraction(constant_value(left))
    difference = abs(true - right.args[0])
    return difference < Fraction(10) ** -places or 100 * difference < abs(true)


def same_exact(left: Node, right: Node) -> bool:
    try:
        return rational(left) == rational(right)
    except (NotRational, TooBig):
        return same_constant(left, right) or same_constant(left, right, natural_log=False)


def _rounds(left: Node, right: Node) -> bool:
    """`2/3 = 0.667`: an equals sign before a rounding is sloppy, not false."""
    return right.op == "dec" and right.args[1] >= 3 and rounds_to(left, right)


def rounds_to(exact: Node, typed: Node) -> bool:
    """Whether the decimal `typed` is `exact` rounded at its last digit; cut off there is enough for one of
    eight digits, and the last bits of a double for one as long as a double is printed."""
    value, digits, decimals = typed.args
    try:
        true = rational(exact)
    except (NotRational, TooBig):
        number = constant_value(exact)
        if abs(context().im(number)) > 1e-30:
            return False
        true = as_fraction(number)
    unit = Fraction(1, 10**decimals) if decimals >= 0 else Fraction(10**-decimals)
    difference = abs(true - value)
    cut_off = digits >= 8 and difference < unit and abs(value) <= abs(true)
    return difference <= unit / 2 or cut_off or double_noise(true, value, digits)


def within(exact: Node, value: Fraction, share: float) -> bool:
    """Whether a value lies within a share of another."""
    number = constant_value(exact)
    if abs(context().im(number)) > 1e-30:
        return False
    return abs(as_fraction(number) - value) <= abs(value) * Fraction(share)


def double_noise(true: Fraction, value: Fraction, digits: int) -> bool:
    """Whether `value` is `true` as double precision prints it after a few operations."""
    return 15 <= digits <= 17 and abs(true - value) * (1 << 50) <= abs(true)


def expand_signs(node: Node) -> list[Node]:
    """Writes plus-minus out.  With a minus-plus all signs move together, else each is free (three at
    most)."""
    found = ops(node) & {"pm", "mp"}
    if not found:
        return [node]
    count = sum(part.op in ("pm", "mp") for part in T.walk(node))
    if "mp" in found or count > 3:
        return [_signed(node, [sign] * count, [0]) for sign in (1, -1)]
    return [_signed(node, list(signs), [0]) for signs in product((1, -1), repeat=count)]


def _signed(node: Node, signs: list[int], used: list[int]) -> Node:
    if node.op in ("pm", "mp"):
        sign = signs[used[0]]
        used[0] += 1
        return T.num(sign if node.op == "pm" else -sign)
    if not any(isinstance(arg, Node) for arg in node.args):
        return node
    return T.rebuild(node, [_signed(a, signs, used) if isinstance(a, Node) else a for a in node.args])


@dataclass(slots=True)
class Quantity:
    """A number and what was written beside it."""

    number: Node
    dimensions: dict[str, int] = field(default_factory=dict)
    factor: Fraction = Fraction(1)
    percent: bool = False
    degrees: bool = False
    words: str = ""


def quantity(node: Node) -> Quantity:
    """Splits units, percent and degree marks off a product."""
    node = strip(node)
    if node.op not in ("mul", "unit"):
        return Quantity(node)
    parts = _flat(node)
    if not any(_is_mark(part) for part in parts):
        return Quantity(node)
    if (total := _compound(parts)) is not None:
        return total
    found, numbers = Quantity(T.ONE), []
    for part in parts:
        base, exponent = _base_and_exponent(part)
        if part.op == "pct" and not found.percent:
            found.percent = True
        elif part.op == "deg" and not found.degrees:
            found.degrees = True
        elif part.op == "text":
            found.words += str(part.args[0])
        elif base.op == "unit":
            _add_unit(found, base.args[0], exponent)
        else:
            numbers.append(part)
    _square(found, parts)
    found.number = strip(T.mul(*numbers)) if numbers else T.ONE
    return found


def _is_mark(part: Node) -> bool:
    return part.op in ("unit", "pct", "deg", "text") or _base_and_exponent(part)[0].op == "unit"


def _base_and_exponent(node: Node) -> tuple[Node, Node]:
    """Powers of powers of a unit: (s^2)^-1 is s to the -2."""
    exponent = T.ONE
    while node.op == "pow" and node.args[1].op == "num":
        exponent = T.num(exponent.args[0] * node.args[1].args[0])
        node = node.args[0]
    return node, exponent


def _flat(node: Node) -> list[Node]:
    if node.op != "mul":
        return [node]
    return [leaf for part in node.args for leaf in _flat(strip(part) if _has_mark(part) else part)]


def _has_mark(node: Node) -> bool:
    return bool(ops(node) & {"unit", "pct", "deg", "text"})


def _add_unit(found: Quantity, name: str, exponent: Node) -> None:
    if name in COUNT_WORDS:
        return
    known = unit_of(name)
    if known is None or exponent.op != "num" or exponent.args[0].denominator != 1:
        found.words += name
        return
    times = int(exponent.args[0])
    for dimension, count in known[0].items():
        found.dimensions[dimension] = found.dimensions.get(dimension, 0) + count * times
    found.factor *= known[1] ** times


def _square(found: Quantity, parts: list[Node]) -> None:
    """`square feet`, `cubic cm`: the word before the unit raises it."""
    names = [part.args[0] for part in parts if part.op == "unit"]
    times = 2 if {"square", "sq"} & set(names) else 3 if {"cubic", "cu"} & set(names) else 1
    if times > 1 and found.dimensions == {"length": 1}:
        found.dimensions, found.factor = {"length": times}, found.factor**times


def _compound(parts: list[Node]) -> Quantity | None:
    """`5 feet 3 inches`: numbers and units of one dimension in turn, summed in the base unit."""
    if len(parts) < 4 or len(parts) % 2 or any(part.op not in ("num", "dec") for part in parts[::2]):
        return None
    total, dimension = Fraction(0), None
    for number, unit in zip(parts[::2], parts[1::2], strict=True):
        known = unit_of(unit.args[0]) if unit.op == "unit" else None
        if known is None or (dimension is not None and known[0] != dimension):
            return None
        dimension = known[0]
        total += number.args[0] * known[1]
    assert dimension is not None
    return Quantity(T.num(total), dimension)
