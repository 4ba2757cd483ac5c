"""The loose half of the grammar, loosest first: list (`,` `;` and, or) · relation chain · ratio · union and
intersection · sum · product (juxtaposition included) · sign.  Recursive descent with a depth limit.
"""

from __future__ import annotations

from fractions import Fraction

from onebase.verifiers import math_primary
from onebase.verifiers import math_tree as T
from onebase.verifiers.math_cursor import Cursor
from onebase.verifiers.math_lex import Unreadable
from onebase.verifiers.math_policy import LIMITS
from onebase.verifiers.math_tree import Node

RELATIONS = {
    "=": "=", "==": "=", ":=": "=", "<": "<", ">": ">", "<=": "<=", "=<": "<=", ">=": ">=", "!=": "!=",
    "<>": "!=", "cmd le": "<=", "cmd leq": "<=", "cmd leqslant": "<=", "cmd ge": ">=", "cmd geq": ">=",
    "cmd geqslant": ">=", "cmd lt": "<", "cmd gt": ">", "cmd ne": "!=", "cmd neq": "!=", "cmd approx": "~",
    "cmd simeq": "~", "cmd cong": "~", "cmd sim": "~", "cmd in": "in", "word in": "in", "cmd equiv": "==",
    "cmd doteq": "=", "cmd to": "->", "cmd rightarrow": "->", "cmd mapsto": "->", "cmd subset": "sub",
    "cmd subseteq": "sub", "cmd notin": "notin", "cmd propto": "propto", "cmd perp": "perp",
    "cmd parallel": "par", "cmd mid": "mid", "cmd coloneqq": "=", "cmd Rightarrow": "->",
    "cmd implies": "->", "cmd iff": "->", "cmd longrightarrow": "->", "cmd Longrightarrow": "->",
}  # fmt: skip
SEPARATORS = {",", ";", "and", "or", "where", "with", "for", "cmd land", "cmd lor", "cmd wedge", "cmd vee"}


def answer(c: Cursor) -> Node:
    node = items(c, ("end",))
    c.expect_end()
    return node


def items(c: Cursor, closers: tuple[str, ...]) -> Node:
    """A list down to one of `closers`; a single item is itc."""
    found: list[Node] = []
    separators: set[str] = set()
    while c.key() not in closers:
        if c.key() in SEPARATORS:
            separators.add(c.key())
            c.next()
            continue
        found.append(relation(c))
        if len(found) > LIMITS.items:
            raise Unreadable(f"over {LIMITS.items} items")
        if c.key() not in closers and c.key() not in SEPARATORS:
            raise Unreadable(f"unexpected {c.peek().value!r}")
    if not found:
        raise Unreadable("nothing there")
    if len(found) == 1 and not (separators and closers != ("end",) and c.trailing_comma()):
        return found[0]
    if len(found) == 2 and separators <= {"and", "cmd land", "cmd wedge"} and all(map(_inequality, found)):
        return Node("both", tuple(found))
    return Node("list", tuple(found))


def _inequality(node: Node) -> bool:
    return node.op == "rel" and set(node.args[0]) <= {"<", ">", "<=", ">=", "!="}


def relation(c: Cursor) -> Node:
    with c.deeper():
        terms, names = [ratio(c)], []
        while (name := RELATIONS.get(c.key())) and not (name == "mid" and c.in_set):
            c.next()
            if name in ("=", "~") and c.key() in ("op -", "op +") and c.key(1) in SEPARATORS:
                raise Unreadable("a sign alone")
            names.append(name)
            terms.append(ratio(c))
        return Node("rel", (tuple(names), *terms)) if names else terms[0]


def ratio(c: Cursor) -> Node:
    parts = [union(c)]
    while c.key() in ("op :", "cmd colon") and not c.in_set:
        c.next()
        parts.append(union(c))
    return Node("ratio", tuple(parts)) if len(parts) > 1 else parts[0]


def union(c: Cursor) -> Node:
    node = sum_of(c)
    while (key := c.key()) in (
        "cmd cup",
        "cmd bigcup",
        "cmd cap",
        "cmd setminus",
        "cmd backslash",
        "word union",
    ):
        c.next()
        op = {"cmd cap": "inter", "cmd setminus": "minus", "cmd backslash": "minus"}.get(key, "union")
        node = Node(op, (node, sum_of(c)))
    return node


def sum_of(c: Cursor) -> Node:
    with c.deeper():
        terms = [product(c)]
        while (key := c.key()) in ("op +", "op -", "cmd pm", "cmd mp"):
            c.next()
            term = product(c)
            if key == "op -":
                term = T.neg(term)
            elif key != "op +":
                term = T.mul(Node(key[4:]), term)
            terms.append(term)
        return T.add(*terms)


def product(c: Cursor) -> Node:
    factors = [signed(c)]
    after_text = False
    while True:
        key = c.key()
        if key in ("op *", "cmd cdot", "cmd times", "cmd ast", "cmd cdotp", "cmd bullet"):
            c.next()
            factors.append(signed(c))
        elif key in ("op /", "cmd div", "op ÷", "cmd slash"):
            c.next()
            factors.append(T.power(signed(c), T.MINUS_ONE))
        elif key in ("word mod", "cmd bmod", "cmd mod"):
            c.next()
            factors = [Node("fn", ("mod", T.mul(*factors), signed(c)))]
        elif key in ("cmd pmod",):
            c.next()
            factors = [Node("fn", ("pmod", T.mul(*factors), math_primary.power(c)))]
        elif key == "(" and c.key(1) == "word mod":
            c.position += 2
            factors = [Node("fn", ("pmod", T.mul(*factors), sum_of(c)))]
            c.take(")")
        elif c.starts_factor() and not (after_text and c.peek().kind == "num"):
            before, token = c.previous(), c.peek()
            powers = factors[-1].op == "pow" and c.key(1) == "^"  # 2^6 3^5
            if token.kind == "num" and before.kind == "num" and not powers:
                both = mixed(c, factors[-1])
                if both is None:
                    raise Unreadable("two numbers side by side")
                factors[-1] = both
                continue
            if (both := mixed_frac(c, factors)) is not None:
                factors[-1] = both
                continue
            factors.append(math_primary.power(c))
        else:
            return T.mul(*factors)
        after_text = after_text or c.previous().kind == "text"


def mixed(c: Cursor, whole: Node) -> Node | None:
    """`3 1/2`: an integer, a space, a proper fraction."""
    top, slash, bottom = (c.peek(k) for k in range(3))
    if whole.op != "num" or slash.value != "/" or bottom.kind != "num" or not top.spaced:
        return None
    if not isinstance(top.value, Fraction) or not isinstance(bottom.value, Fraction) or not bottom.value:
        return None
    for _ in range(3):
        c.next()
    return math_primary.postfix(c, T.num(_mixed(whole.args[0], top.value / bottom.value)))


def mixed_frac(c: Cursor, factors: list[Node]) -> Node | None:
    """`3\\frac{1}{2}`: an integer directly before a proper fraction of integers is a mixed number."""
    if c.key() not in ("cmd frac", "cmd dfrac", "cmd tfrac", "cmd cfrac") or c.previous().kind != "num":
        return None
    whole = factors[-1]
    if whole.op != "num" or whole.args[0].denominator != 1:
        return None
    mark, tokens = c.position, list(c.tokens)  # \\frac12 splits a token in place
    part = math_primary.primary(c)
    value = _plain_fraction(part)
    if value is None or not 0 < value < 1:
        c.position, c.tokens = mark, tokens
        return None
    return math_primary.postfix(c, T.num(_mixed(whole.args[0], value)))


def signed(c: Cursor) -> Node:
    with c.deeper():
        key = c.key()
        if key in ("op -", "op +", "cmd pm", "cmd mp"):
            c.next()
            node = signed(c)
            if key == "op -":
                return T.neg(node)
            return node if key == "op +" else T.mul(Node(key[4:]), node)
        return math_primary.power(c)


def _mixed(whole: Fraction, part: Fraction) -> Fraction:
    return whole - part if whole < 0 else whole + part


def _plain_fraction(node: Node) -> Fraction | None:
    if node.op == "mul" and len(node.args) == 2 and node.args[1].op == "pow":
        top, bottom = node.args[0], node.args[1].args[0]
        if top.op == bottom.op == "num" and bottom.args[0]:
            return Fraction(top.args[0] / bottom.args[0])
    return None
