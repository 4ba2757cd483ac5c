"""Arithmetic expressions: a small tree, its text with the fewest brackets, and a strict parser (never eval).

Grammar: sum = product (('+' | '-') product)*; product = atom (('*' | '/') atom)*;
atom = digits | '(' sum ')'.  No unary minus, no powers, no leading zeros; blanks are allowed.  Division is
exact (fractions).
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 1000  # characters; also bounds the depth of the recursion
TOKEN = re.compile(r"\s*(?:(0|[1-9][0-9]{0,8})(?![0-9])|([-+*/()]))")
Tree = int | tuple[str, "Tree", "Tree"]
RANK = {"+": 1, "-": 1, "*": 2, "/": 2}


def show(tree: Tree) -> str:
    if isinstance(tree, int):
        return str(tree)
    op, left, right = tree
    return f"{_inside(left, RANK[op], False)}{op}{_inside(right, RANK[op], op in '-/')}"


def _inside(tree: Tree, rank: int, strict: bool) -> str:
    """Brackets where the tree binds less than its place; right of - and / also where it binds alike."""
    text = show(tree)
    if isinstance(tree, int) or RANK[tree[0]] > rank or (RANK[tree[0]] == rank and not strict):
        return text
    return f"({text})"


def parse(text: str) -> tuple[Fraction, list[int]]:
    """Value and the numbers used, in order.  Raises ValueError saying what is wrong."""
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters; at most {LONGEST}")
    tokens, at = [], 0
    end = len(text.rstrip())
    while at < end:
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"unexpected {text[at:].lstrip()[:12]!r}")
        tokens.append(match[1] or match[2])
        at = match.end()
    parser = _Parser(tokens)
    value = parser.sum(0)
    if parser.at < len(tokens):
        raise ValueError(f"unexpected {tokens[parser.at]!r} after a whole expression")
    return value, parser.numbers


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0
        self.numbers: list[int] = []

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.peek() in ("+", "-"):
            op = self.tokens[self.at]
            self.at += 1
            other = self.product(depth)
            value = value + other if op == "+" else value - other
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.peek() in ("*", "/"):
            op = self.tokens[self.at]
            self.at += 1
            other = self.atom(depth)
            if op == "/" and other == 0:
                raise ValueError("division by zero")
            value = value * other if op == "*" else value / other
        return value

    def atom(self, depth: int) -> Fraction:
        token = self.peek()
        self.at += 1
        if token.isdigit():
            self.numbers.append(int(token))
            return Fraction(int(token))
        if token == "(" and depth < 50:
            value = self.sum(depth + 1)
            if self.peek() != ")":
                raise ValueError("a bracket is not closed")
            self.at += 1
            return value
        raise ValueError(
            f"a number was expected, not {token!r}" if token else "the expression ends too early"
        )
