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


def command(c: Cursor, name: str) -> Node:
    if name in ("frac", "dfrac", "tfrac", "cfrac", "sfrac", "nicefrac"):
        return T.div(math_primary.argument(c), math_primary.argument(c))
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
    if name == "boxed":
        return math_primary.argument(c)
    if name in DECORATIONS:
        inner = math_primary.argument(c)
        return inner if inner.op == "num" else Node("sym", (f"{name} {spell(inner)}",))
    return _name(c, name)


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
        return (
            Node("sym", (f"{name} {spell(math_primary.power(c))}",))
            if c.starts_factor()
            else Node("sym", (name,))
        )
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
    if name == "exp":
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
    if c.key() == "{":
        group = math_primary.primary(c)
        return list(group.args) if group.op == "list" else [group]
    factors: list[Node] = []
    while c.starts_factor() and not (factors and _starts_new_argument(c)):
        factors.append(math_primary.power(c))
    if not factors:
        return [_signed_argument(c, name)]
    return [T.mul(*factors)]


def _signed_argument(c: Cursor, name: str) -> Node:
    if c.key() == "op -":
        c.next()
        return T.neg(math_primary.power(c))
    raise Unreadable(f"{name} of nothing")


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
    if kind in ("sum", "prod"):
        body = product_body(c)
    else:
        body = math_grammar.sum_of(c) if kind != "lim" else product_body(c)
    none = Node("text", ("",))
    return Node("big", (kind, low or none, high or none, body))


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
            elif c.key() == "cmd \\":
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
    c.tokens[c.position : end] = [token for token in c.tokens[c.position : end] if token.value != "&"]
