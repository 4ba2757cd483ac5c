"""LaTeX commands and named functions: fractions, roots, sums and integrals, matrices."""

from __future__ import annotations

from onebase.verifiers import math_grammar, math_primary
from onebase.verifiers import math_tree as T
from onebase.verifiers.math_cursor import (
    COMMAND_FUNCTIONS,
    CONSTANTS,
    DECORATIONS,
    FUNCTION_NAMES,
    GREEK,
    GREEK_ALIASES,
    INVERSES,
    NAMES,
    Cursor,
    spell,
    unparen,
)
from onebase.verifiers.math_lex import Unreadable
from onebase.verifiers.math_tree import Node

FRACTIONS = {"frac", "dfrac", "tfrac", "cfrac", "sfrac", "nicefrac"}
UNIT_VECTORS = (Node("const", ("i",)), Node("sym", ("j",)), Node("sym", ("k",)), Node("sym", ("i",)))
_DIFFERENTIALS = (Node("sym", ("d",)), Node("sym", ("partial",)))


def command(c: Cursor, name: str) -> Node:
    if name in FRACTIONS:
        top, bottom = math_primary.argument(c), math_primary.argument(c)
        return _derivative(c, top, bottom) or T.div(top, bottom)
    if name in ("binom", "dbinom", "tbinom"):
        return Node("fn", ("binom", math_primary.argument(c), math_primary.argument(c)))
    if name in ("lbrace", "{"):
        return math_primary.brace_set(c, "}" if name == "{" else "rbrace")
    if name in ("lfloor", "lceil"):
        inner = math_grammar.sum_of(c)
        c.take(name.replace("l", "r", 1))
        return Node("fn", ("floor" if name == "lfloor" else "ceil", inner))
    if name in ("lvert", "vert", "|"):
        return math_primary.bars(c, name)
    if name == "langle":
        inner = math_grammar.items(c, ("cmd rangle",))
        c.next()
        return Node("tuple", ("(", ")", *(inner.args if inner.op == "list" else (inner,))))
    if name in ("sum", "prod", "int", "lim", "iint", "oint"):
        return _big(c, name)
    if name in ("boxed", "fbox"):
        return math_primary.argument(c)
    if name == "root":  # \\root 3 \\of 2
        index = math_primary.argument(c)
        c.take("of")
        return Node("fn", ("root", math_primary.argument(c), index))
    if name in DECORATIONS:
        return _decorated(name, math_primary.argument(c))
    return _name(c, name)


def _decorated(name: str, inner: Node) -> Node:
    """\\overline{AB} is a name; \\hat{i} is a unit vector; a mark over a number says nothing."""
    if inner.op == "num":
        return inner
    if name != "overline" and inner in UNIT_VECTORS:
        return Node("sym", (f"unit {spell(inner)}",))
    try:
        return Node("sym", (f"{name} {spell(inner)}",))
    except Unreadable:
        return Node("fn", (name, inner))


def _derivative(c: Cursor, top: Node, bottom: Node) -> Node | None:
    """\\frac{d}{dx} as an operator on what follows, \\frac{df}{dx} as the same with what is above."""
    factors = list(top.args) if top.op == "mul" else [top]
    if factors[0] not in _DIFFERENTIALS or bottom.op != "mul" or len(bottom.args) != 2:
        return None
    if bottom.args[0] != factors[0] or bottom.args[1].op != "sym":
        return None
    if len(factors) == 1 and not (c.starts_factor() or c.key() == "["):
        return None
    none = Node("text", ("",))
    body = T.mul(*factors[1:]) if len(factors) > 1 else product_body(c)
    return Node("big", ("diff", none, none, body, bottom.args[1]))


def _name(c: Cursor, name: str) -> Node:
    name = GREEK_ALIASES.get(name, name)
    if name == "dollar":
        return Node("unit", ("dollar",))
    if name in CONSTANTS and name != "Re":
        if name == "pi" and c.key() == "_":
            return Node("sym", ("pi",))
        return Node("const", (CONSTANTS[name],))
    if name in COMMAND_FUNCTIONS and name not in ("mod", "Gamma"):
        return function(c, name)
    if name in ("angle", "triangle", "measuredangle", "Delta"):
        parts: list[str] = []
        while c.peek().kind == "word" and len(parts) < 4:  # \\angle ABC: the order of the letters counts
            parts.append(spell(math_primary.power(c)))
        return Node("sym", (f"{name} {''.join(parts)}".strip(),))
    if name in GREEK or name in NAMES:
        return Node("sym", (name,))
    raise Unreadable(f"unknown command \\{name}")


def function(c: Cursor, name: str) -> Node:
    name = FUNCTION_NAMES.get(name, name)
    if name == "sqrt":
        return _root(c)
    base = exponent = None
    while c.key() in ("_", "^"):
        if c.next().value == "_":
            base = math_primary.argument(c)
        else:
            exponent = math_primary.exponent(c)
    if exponent == T.MINUS_ONE and name in INVERSES:
        name, exponent = "a" + name, None
    arguments = _arguments(c, name)
    if name == "log" and base is not None:
        arguments.append(base)
    if name == "cis":
        i = Node("const", ("i",))
        node = T.add(Node("fn", ("cos", arguments[0])), T.mul(i, Node("fn", ("sin", arguments[0]))))
    elif name == "exp":
        node = T.power(Node("const", ("e",)), arguments[0])
    elif name in ("cbrt", "root"):
        node = Node("fn", ("root", arguments[0], arguments[1] if len(arguments) > 1 else T.num(3)))
    elif name == "pow" and len(arguments) == 2:
        node = T.power(*arguments)
    else:
        node = Node("fn", (name, *arguments))
    return node if exponent is None else T.power(node, exponent)


def _arguments(c: Cursor, name: str) -> list[Node]:
    if c.key() == "(":
        group = math_primary.primary(c)
        return list(group.args[2:]) if group.op == "tuple" else [unparen(group)]
    if c.key() in ("{", "cmd {"):
        group = math_primary.primary(c)
        return list(group.args) if group.op in ("list", "set") else [group]
    factors: list[Node] = []
    while c.starts_factor() and not (factors and (_starts_new_argument(c) or _differential(c))):
        factors.append(math_primary.power(c))
    if not factors:
        return [_signed_argument(c, name)]
    return [T.mul(*factors)]


def _signed_argument(c: Cursor, name: str) -> Node:
    if c.key() == "op -":
        c.next()
        return T.neg(math_primary.power(c))
    raise Unreadable(f"{name} of nothing")


def _differential(c: Cursor) -> bool:
    """dx in an integral is no part of sin x."""
    return c.integral and c.key() == "word d" and c.peek(1).kind in ("word", "cmd")


def _starts_new_argument(c: Cursor) -> bool:
    token = c.peek()
    return token.value in ("(", "[", "|", "lvert") or (
        token.kind in ("cmd", "word") and token.value in COMMAND_FUNCTIONS
    )


def _root(c: Cursor) -> Node:
    index = None
    if c.key() == "[":
        c.next()
        index = math_grammar.sum_of(c)
        c.take("]")
    if c.key() == "(":
        inner = math_primary.primary(c)
    elif c.peek(-1).kind == "word":
        inner = math_primary.power(c)
    elif c.peek().kind == "num":  # \\sqrt17: LaTeX would take the 1 alone, nobody means that
        inner = math_primary.primary(c)
    else:
        inner = math_primary.argument(c)
    return Node("fn", ("root", unparen(inner), index or T.num(2)))


def _big(c: Cursor, kind: str) -> Node:
    low = high = None
    while c.key() in ("_", "^"):
        if c.next().value == "_":
            low = _limit(c)
        else:
            high = _limit(c)
    none = Node("text", ("",))
    outside, c.integral = c.integral, c.integral or kind.endswith("int")
    body = math_grammar.sum_of(c) if kind.endswith("int") else product_body(c)
    c.integral = outside
    index: Node = none
    if kind.endswith("int"):
        body, index = _integrand(body)
    elif low is not None and low.op == "rel":
        index = low.args[1]
    return Node("big", (kind, low or none, high or none, body, index))


def _integrand(body: Node) -> tuple[Node, Node]:
    """What is integrated, and over which letter: takes the dx out of the last term or its numerator."""
    if body.op == "add":
        last, index = _integrand(body.args[-1])
        return T.add(*body.args[:-1], last), index
    factors = list(body.args) if body.op == "mul" else [body]
    for at, (d, letter) in enumerate(zip(factors[:-1], factors[1:], strict=True)):
        if d == _DIFFERENTIALS[0] and letter.op in ("sym", "const"):
            rest = factors[:at] + factors[at + 2 :]
            return (T.mul(*rest) if rest else T.ONE), letter
    for at, factor in enumerate(factors):
        if factor.op == "mul":
            inner, index = _integrand(factor)
            if index.op != "text":
                return T.mul(*factors[:at], inner, *factors[at + 1 :]), index
    return body, Node("text", ("",))


def product_body(c: Cursor) -> Node:
    factors = [math_primary.power(c)]
    while c.starts_factor() or c.key() in ("cmd cdot", "cmd times", "op *", "op /"):
        if c.key() == "op /":
            c.next()
            factors.append(T.power(math_primary.power(c), T.MINUS_ONE))
            continue
        if not c.starts_factor():
            c.next()
        factors.append(math_primary.power(c))
    return T.mul(*factors)


def _limit(c: Cursor) -> Node:
    if c.key() != "{":
        return math_primary.argument(c)
    c.next()
    node = math_grammar.relation(c)
    c.take("}")
    return node


def matrix(c: Cursor, name: str) -> Node:
    listing = name.startswith(("align", "cases", "gather", "aligned", "split", "equation"))
    if listing:
        _drop_alignment(c)
    rows: list[list[Node]] = [[]]
    with c.deeper():
        while c.peek().kind != "end_env":
            if c.key() == "end":
                raise Unreadable("a matrix is not closed")
            if c.key() == "&":
                c.next()
            elif c.key() in ("cmd \\", "cmd cr"):
                c.next()
                rows.append([])
            elif c.key() in ("cmd hline", ",", ";", "."):
                c.next()
            else:
                rows[-1].append(math_grammar.relation(c))
    c.next()
    rows = [row for row in rows if row]
    if not rows:
        raise Unreadable("an empty matrix")
    if listing:
        return Node("list", tuple(cell for row in rows for cell in row))
    if len({len(row) for row in rows}) != 1:
        raise Unreadable("rows of different length")
    matrix = Node("matrix", (len(rows[0]), *(cell for row in rows for cell in row)))
    return Node("fn", ("det", matrix)) if name == "vmatrix" else matrix


def _drop_alignment(c: Cursor) -> None:
    """Takes the & out of the rest of an environment that lists equations."""
    end = next((i for i in range(c.position, len(c.tokens)) if c.tokens[i].kind == "end_env"), c.position)
    c.drop("&", end)
