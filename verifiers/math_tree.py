"""The expression tree of the math checker: one immutable node type and what is needed to walk it.

ops            args
num            (Fraction,)
dec            (Fraction, significant digits, decimals)  a decimal as it was typed
based          (digits, base)
sym const      (name,)        const: pi e i inf dots R N Z Q C empty
add mul pow    nodes          a - b is add(a, mul(-1, b)), a / b is mul(a, pow(b, -1))
fn             (name, *nodes)
big            (kind, low, high, body, index)   sum prod int lim diff; what is absent is an empty text
pm mp          ()             a sign, as a factor
paren          (node,)        round brackets, kept because f(x) is a name and 2(x) is not
pct deg unit   (), (), (name,)  factors
tuple          (open, close, *nodes)
set list       nodes          list: separated by commas, "and", "or", without brackets
builder        (node, node)   {2n | n in Z}; about a bare name it is the condition alone
union inter minus  nodes
both           (rel, rel)     two inequalities joined by "and"
rel            ((operators), *nodes)   a chain: a < b <= c
ratio          nodes
matrix         (columns, *nodes)
text           (normalised text,)
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from onebase.verifiers.math_budget import spend


class Node(NamedTuple):
    op: str
    args: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        spend()
        return f"{self.op}({', '.join(map(str, self.args))})"


def num(value: int | Fraction) -> Node:
    return Node("num", (Fraction(value),))


ZERO, ONE, MINUS_ONE = num(0), num(1), num(-1)
INF = Node("const", ("inf",))
PI = Node("const", ("pi",))


def add(*terms: Node) -> Node:
    return terms[0] if len(terms) == 1 else Node("add", terms)


def mul(*factors: Node) -> Node:
    return factors[0] if len(factors) == 1 else Node("mul", factors)


def neg(node: Node) -> Node:
    if node.op == "num":
        return num(-node.args[0])
    if node.op == "dec":
        return Node("dec", (-node.args[0], *node.args[1:]))
    return mul(MINUS_ONE, node)


def power(base: Node, exponent: Node) -> Node:
    return Node("pow", (base, exponent))


def div(top: Node, bottom: Node) -> Node:
    return mul(top, power(bottom, MINUS_ONE))


def sub(left: Node, right: Node) -> Node:
    return add(left, neg(right))


def children(node: Node) -> Iterator[Node]:
    for arg in node.args:
        if isinstance(arg, Node):
            yield arg


def walk(node: Node) -> Iterator[Node]:
    """Every node below and including this one; no recursion."""
    stack = [node]
    while stack:
        top = stack.pop()
        spend()
        yield top
        stack.extend(arg for arg in top.args if isinstance(arg, Node))


def ops(node: Node) -> set[str]:
    return {part.op for part in walk(node)}


def symbols(node: Node) -> set[str]:
    """The free symbols: the index of a sum or integral is none."""
    spend()
    if node.op == "sym":
        return {node.args[0]}
    found: set[str] = set()
    for child in children(node):
        found |= symbols(child)
    return found - symbols(node.args[4]) if node.op == "big" else found


def rebuild(node: Node, args: list[Any]) -> Node:
    return Node(node.op, tuple(args))


def substitute(node: Node, old: Node, new: Node) -> Node:
    spend()
    if node == old:
        return new
    if not any(isinstance(arg, Node) for arg in node.args):
        return node
    return rebuild(node, [substitute(arg, old, new) if isinstance(arg, Node) else arg for arg in node.args])


def normal(node: Node) -> Node:
    """A form in which order and nesting of sums and products no longer matter; cheap, proves equality
    only."""
    spend(2)
    if node.op == "paren":
        return normal(node.args[0])
    if node.op == "big":
        node = _bound(node)
    args = [normal(arg) if isinstance(arg, Node) else arg for arg in node.args]
    if node.op == "dec":
        return num(node.args[0])
    if node.op in ("add", "mul"):
        return _fold(node.op, args)
    if node.op == "pow" and args[1] == ONE:
        return args[0]
    if node.op == "pow" and args[0].op == "num" and args[1] == MINUS_ONE and args[0].args[0] != 0:
        return num(1 / args[0].args[0])
    if node.op == "set":
        args = sorted(set(args), key=repr)
    return rebuild(node, args)


def _bound(node: Node) -> Node:
    """A sum, integral or limit with its index renamed by depth, so that only its role counts."""
    index = node.args[4]
    if index.op != "sym":
        return node
    depth = sum(part.op == "big" for part in walk(node.args[3]))
    return substitute(node, index, Node("sym", (f"bound {depth}",)))


def _fold(op: str, args: list[Node]) -> Node:
    start = Fraction(0 if op == "add" else 1)
    total, rest = start, []
    stack = list(reversed(args))
    while stack:
        part = stack.pop()
        if part.op == op:
            stack.extend(reversed(part.args))
        elif part.op == "num":
            total = total + part.args[0] if op == "add" else total * part.args[0]
        else:
            rest.append(part)
    if op == "mul" and total == 0 and all(part.op in ("sym", "const") and part != INF for part in rest):
        return ZERO
    if total != start or not rest:
        rest.append(num(total))
    return rest[0] if len(rest) == 1 else Node(op, tuple(sorted(rest, key=repr)))
