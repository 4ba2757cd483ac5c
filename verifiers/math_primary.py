"""The tight half of the grammar: powers, postfixes, brackets, sets, single symbols."""

from __future__ import annotations

import re
from fractions import Fraction

from onebase.verifiers import math_commands, math_grammar
from onebase.verifiers import math_tree as T
from onebase.verifiers.math_cursor import CONSTANTS, GREEK, Cursor, name_of
from onebase.verifiers.math_lex import FUNCTIONS, Token, Unreadable
from onebase.verifiers.math_text import normal_text
from onebase.verifiers.math_tree import Node

_HEDGE = re.compile(
    r"\b(?:not|never|maybe|perhaps|possibly|wrong|incorrect|except|other|but|if|unless|between|either|neither|nor|any\s*of|"
    r"otherwise|instead|almost|nearly|(?:more|less|fewer|greater|larger|smaller|higher|lower|other)\s*than|"
    r"(?:at|no)\s*(?:least|most|more|less)|or\s+(?:so|more|less)|one\s*of|up\s*to|guess|could|might|may|then)\b|n't\b",
    re.I,
)
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"}
_BASES |= {"nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}
_OPEN = {"(": ")", "[": "]", "{": "}"}


def power(c: Cursor) -> Node:
    with c.deeper():
        base = postfix(c, primary(c))
        for _ in range(12):
            if c.key() not in ("^", "'"):
                return base
            base = _raise(c, base) if c.next().value == "^" else Node("sym", (name_of(base) + "'",))
            base = postfix(c, base)
        raise Unreadable("too many marks after one another")


def _raise(c: Cursor, base: Node) -> Node:
    key = c.key()
    if key in ("cmd circ", "cmd degree") or (key == "word o" and base.op in ("num", "dec")):
        c.next()
        return T.mul(base, Node("deg"))
    if key in ("cmd prime", "op *", "cmd ast", "cmd dagger", "cmd star"):
        c.next()
        return Node("sym", (name_of(base) + "'",))
    if key == "{" and c.key(1) in ("cmd circ", "cmd prime", "op *", "cmd ast") and c.key(2) == "}":
        c.position += 3
        mark = c.tokens[c.position - 2].value
        return T.mul(base, Node("deg")) if mark == "circ" else Node("sym", (name_of(base) + "'",))
    if (side := _side(c)) is not None:
        return Node("fn", (side, base))
    return T.power(base, exponent(c))


def _side(c: Cursor) -> str | None:
    """`3^+` and `3^{-}`: from above or from below, in a limit."""
    braced = c.key() == "{" and c.key(2) == "}"
    sign, after = (c.key(1), c.key(3)) if braced else (c.key(), c.key(1))
    if sign not in ("op +", "op -") or not (braced or after in ("}", "end")):
        return None
    c.position += 3 if braced else 1
    return "above" if sign == "op +" else "below"


def exponent(c: Cursor) -> Node:
    """One argument: a group, or a signed single factor.  2^10 takes the whole number, as plain text means
    it."""
    if c.key() in ("op -", "op +"):
        return T.neg(exponent(c)) if c.next().value == "-" else exponent(c)
    with c.deeper():
        base = postfix(c, primary(c))
        return T.power(base, exponent(c)) if c.takes("^") else base


def postfix(c: Cursor, node: Node) -> Node:
    for _ in range(8):
        key = c.key()
        if key == "!":
            c.next()
            node = Node("fn", ("factorial", node))
        elif key in ("%", "cmd %", "word percent", "word pct", "word percentage"):
            c.next()
            node = T.mul(node, Node("pct"))
        elif key in ("word degree", "word degrees", "word deg", "cmd degree"):
            c.next()
            node = T.mul(node, Node("deg"))
        elif key == "_":
            c.next()
            node = _subscript(c, node)
        else:
            return node
    raise Unreadable("too many marks after one another")


def _subscript(c: Cursor, node: Node) -> Node:
    label = _raw_group(c).strip("()")
    label = _BASES.get(label, label)
    digits = node.args[0] if node.op == "paren" else node
    if digits.op == "num" and label.isdigit() and digits.args[0].denominator == 1 and digits.args[0] >= 0:
        return Node("based", (str(digits.args[0]), int(label[:6])))
    return Node("sym", (f"{name_of(node)}_{label}",))


def _raw_group(c: Cursor) -> str:
    """A subscript, spelled out without spaces."""
    parts, depth = [], 0
    while True:
        token = c.next()
        if token.kind == "end":
            raise Unreadable("a subscript is not closed")
        depth += token.value == "{"
        depth -= token.value == "}"
        if token.value not in ("{", "}"):
            parts.append(str(token.value[0] if isinstance(token.value, tuple) else token.value))
        if depth == 0:
            return "".join(parts)


def primary(c: Cursor) -> Node:
    token = c.next()
    if token.kind == "num":
        value = token.value
        return T.num(value) if isinstance(value, Fraction) else Node("dec", value)
    if token.kind == "word":
        return _word(c, str(token.value))
    if token.kind == "unit":
        return Node("unit", (token.value,))
    if token.kind == "text":
        if c.key() == "(" and not c.peek().spaced:
            raise Unreadable("a call")
        if _HEDGE.search(str(token.value)):
            raise Unreadable("words that take the answer back")
        return Node("text", (normal_text(str(token.value)),))
    if token.kind == "begin":
        return math_commands.matrix(c, str(token.value))
    if token.kind == "op":
        return _bracket(c, str(token.value))
    if token.kind == "cmd":
        return math_commands.command(c, str(token.value))
    raise Unreadable(f"unexpected {token.value!r}")


def _word(c: Cursor, name: str) -> Node:
    if name in GREEK - {"pi"} or name.startswith("unit "):
        return Node("sym", (name,))
    if name in CONSTANTS and name not in ("O", "Re"):
        return Node("const", (CONSTANTS[name],))
    if name in ("e", "i", "I") and c.key() not in ("_", "'"):
        return Node("const", (name.lower(),))
    if name in FUNCTIONS:
        return math_commands.function(c, name)
    return Node("sym", (name,))


def _bracket(c: Cursor, opening: str) -> Node:
    if opening == "|":
        return bars(c, "|")
    if opening.startswith("..."):
        return Node("const", ("dots",))
    if opening == "]":  # ]0,1[ as written in France
        node = _enclosed(c, "(", ("[", "]"))
        return node
    if opening not in _OPEN:
        raise Unreadable(f"unexpected {opening!r}")
    if opening == "{":
        builder = c.peek().kind == "word" and c.key(1) in ("|", "cmd mid")
        return brace_set(c, "}") if builder else _braces(c)
    nested = opening == "[" and c.key() == "["  # [[1, 2], [3, 4]]
    return _enclosed(c, opening, ("]",) if nested else (")", "]", "["))


def _enclosed(c: Cursor, opening: str, closers: tuple[str, ...]) -> Node:
    saved, c.in_set = c.in_set, False
    bars, c.bars = c.bars, 0
    c.enclosed += 1
    with c.deeper():
        if c.key() in closers:
            closing = str(c.next().value)
            inner: Node | None = None
        else:
            inner = math_grammar.items(c, closers)
            comma = c.trailing_comma()
            closing = str(c.next().value)
    c.in_set, c.bars = saved, bars
    c.enclosed -= 1
    closing = {"[": ")", "]": "]"}.get(closing, closing)
    if inner is None:
        return Node("tuple", (opening, closing))
    if inner.op == "list":
        if opening == "[" and all(row.op == "tuple" and row.args[:2] == ("[", "]") for row in inner.args):
            if len(width := {len(row.args) - 2 for row in inner.args}) == 1:  # [[1, 2], [3, 4]]
                return Node("matrix", (*width, *(cell for row in inner.args for cell in row.args[2:])))
        return Node("tuple", (opening, closing, *inner.args))
    if comma:
        return Node("tuple", (opening, closing, inner))
    if (opening, closing) not in (("(", ")"), ("[", "]")):
        raise Unreadable("a half-open bracket round one value")
    return Node("paren", (inner,)) if opening == "(" else inner


def _braces(c: Cursor) -> Node:
    """LaTeX grouping; with commas inside it lists without order claims, as the typed {1,2} does."""
    saved, c.in_set = c.in_set, False
    with c.deeper():
        if c.key() == "}":
            c.next()
            c.in_set = saved
            return Node("list", ())
        inner = math_grammar.items(c, ("}", "cmd over", "cmd choose"))
        if (key := c.key()) != "}":
            c.next()
            below = math_grammar.items(c, ("}",))
            inner = T.div(inner, below) if key == "cmd over" else Node("fn", ("binom", inner, below))
        c.take("}")
    c.in_set = saved
    return inner


def brace_set(c: Cursor, closing: str) -> Node:
    """{1, 2}, {} or {x | x > 2}; of the last, the condition alone when it is about a bare name."""
    saved, c.in_set = c.in_set, True
    closers = (closing, f"cmd {closing}")
    with c.deeper():
        if c.key() in closers:
            c.next()
            c.in_set = saved
            return Node("const", ("empty",))
        bars = ("|", "cmd mid", "op :", "cmd lvert", "cmd rvert", "cmd colon")
        inner = math_grammar.items(c, (*closers, *bars))
        condition = None
        if c.key() not in closers:
            c.next()
            c.in_set = False
            condition = math_grammar.items(c, closers)
        c.next()
    c.in_set = saved
    if condition is None:
        return Node("set", inner.args if inner.op == "list" else (inner,))
    if condition.op == "list" and len(condition.args) == 2:
        condition = Node("both", condition.args)
    reals = inner.op == "rel" and inner.args[0] == ("in",) and inner.args[2] == Node("const", ("R",))
    name = inner.args[1] if reals else inner
    return condition if name.op == "sym" else Node("builder", (inner, condition))


def bars(c: Cursor, kind: str) -> Node:
    c.bars += 1
    saved, c.in_set = c.in_set, False
    inner = math_grammar.sum_of(c)
    if c.key() not in ("|", "cmd rvert", "cmd vert", "cmd |"):
        raise Unreadable("a bar is not closed")
    c.next()
    c.bars -= 1
    c.in_set = saved
    return Node("fn", ("abs", inner))


def argument(c: Cursor) -> Node:
    """A LaTeX argument: a group, or one token (one digit of a number: \\frac12 is 1/2)."""
    token = c.peek()
    if token.kind == "num" and isinstance(token.value, Fraction) and token.value >= 10:
        digits = str(token.value)
        rest = Token("num", Fraction(int(digits[1:])), False)
        c.tokens[c.position] = rest
        if digits[1] == "0" and len(digits) > 2:
            raise Unreadable("digits run together")
        return T.num(int(digits[0]))
    with c.deeper():
        return primary(c)
