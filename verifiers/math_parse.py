"""Parses the tokens of an answer into the tree of math_tree.py: recursive descent with a depth limit.

Precedence, loosest first: list (`,` `;` and, or) · relation chain · ratio · union and intersection · sum ·
product (juxtaposition included) · sign · power · postfix · primary.  A text that does not parse is no error
of the caller: `parse` hands back a `text` node, which equals only the same text.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from onebase.verifiers import math_tree as T
from onebase.verifiers.math_lex import Token, Unreadable, clean, tokenize
from onebase.verifiers.math_policy import LIMITS
from onebase.verifiers.math_primary import Primary
from onebase.verifiers.math_text import normal_text, special_text
from onebase.verifiers.math_tree import Node

RELATIONS = {
    "=": "=", "==": "=", ":=": "=", "<": "<", ">": ">", "<=": "<=", "=<": "<=", ">=": ">=", "!=": "!=", "<>": "!=",
    "cmd le": "<=", "cmd leq": "<=", "cmd leqslant": "<=", "cmd ge": ">=", "cmd geq": ">=", "cmd geqslant": ">=",
    "cmd lt": "<", "cmd gt": ">", "cmd ne": "!=", "cmd neq": "!=", "cmd approx": "~", "cmd simeq": "~",
    "cmd cong": "~", "cmd sim": "~", "cmd in": "in", "word in": "in", "cmd equiv": "==", "cmd doteq": "=",
    "cmd to": "->", "cmd rightarrow": "->", "cmd mapsto": "->", "cmd subset": "sub", "cmd subseteq": "sub",
    "cmd notin": "notin", "cmd propto": "propto", "cmd perp": "perp", "cmd parallel": "par", "cmd mid": "mid",
    "cmd coloneqq": "=", "cmd Rightarrow": "->", "cmd implies": "->", "cmd iff": "->",
}  # fmt: skip
SEPARATORS = {",", ";", "and", "or", "cmd land", "cmd lor", "cmd wedge", "cmd vee"}


class Parser(Primary):
    """One pass over one token list."""

    def answer(self) -> Node:
        node = self.items(("end",))
        self.expect_end()
        return node

    def items(self, closers: tuple[str, ...]) -> Node:
        """A list down to one of `closers`; a single item is itself."""
        found: list[Node] = []
        separated = False
        while self.key() not in closers:
            if self.key() in SEPARATORS:
                separated = True
                self.next()
                continue
            found.append(self.relation())
            if len(found) > LIMITS.items:
                raise Unreadable(f"over {LIMITS.items} items")
            if self.key() not in closers and self.key() not in SEPARATORS:
                raise Unreadable(f"unexpected {self.peek().value!r}")
        if not found:
            raise Unreadable("nothing there")
        if len(found) == 1 and not (separated and closers != ("end",) and self.trailing_comma()):
            return found[0]
        return Node("list", tuple(found))

    def relation(self) -> Node:
        with self.deeper():
            terms, names = [self.ratio()], []
            while (name := RELATIONS.get(self.key())) and not (name == "mid" and self.in_set):
                self.next()
                if name in ("=", "~") and self.key() in ("op -", "op +") and self.key(1) in SEPARATORS:
                    raise Unreadable("a sign alone")
                names.append(name)
                terms.append(self.ratio())
            return Node("rel", (tuple(names), *terms)) if names else terms[0]

    def ratio(self) -> Node:
        parts = [self.union()]
        while self.key() in ("op :", "cmd colon") and not self.in_set:
            self.next()
            parts.append(self.union())
        return Node("ratio", tuple(parts)) if len(parts) > 1 else parts[0]

    def union(self) -> Node:
        node = self.sum()
        while (key := self.key()) in (
            "cmd cup",
            "cmd bigcup",
            "cmd cap",
            "cmd setminus",
            "cmd backslash",
            "word union",
        ):
            self.next()
            op = {"cmd cap": "inter", "cmd setminus": "minus", "cmd backslash": "minus"}.get(key, "union")
            node = Node(op, (node, self.sum()))
        return node

    def sum(self) -> Node:
        with self.deeper():
            terms = [self.product()]
            while (key := self.key()) in ("op +", "op -", "cmd pm", "cmd mp"):
                self.next()
                term = self.product()
                if key == "op -":
                    term = T.neg(term)
                elif key != "op +":
                    term = T.mul(Node(key[4:]), term)
                terms.append(term)
            return T.add(*terms)

    def product(self) -> Node:
        factors = [self.signed()]
        after_text = False
        while True:
            key = self.key()
            if key in ("op *", "cmd cdot", "cmd times", "cmd ast", "cmd cdotp", "cmd bullet"):
                self.next()
                factors.append(self.signed())
            elif key in ("op /", "cmd div", "op ÷", "cmd slash"):
                self.next()
                factors.append(T.power(self.signed(), T.MINUS_ONE))
            elif key in ("word mod", "cmd bmod", "cmd mod"):
                self.next()
                factors = [Node("fn", ("mod", T.mul(*factors), self.signed()))]
            elif key in ("cmd pmod",):
                self.next()
                self.power()
            elif self.starts_factor() and not (after_text and self.peek().kind == "num"):
                before, token = self.previous(), self.peek()
                if token.kind == "num" and before.kind == "num":
                    mixed = self.mixed(factors[-1])
                    if mixed is None:
                        raise Unreadable("two numbers side by side")
                    factors[-1] = mixed
                    continue
                if (mixed := self.mixed_frac(factors)) is not None:
                    factors[-1] = mixed
                    continue
                factors.append(self.power())
            else:
                return T.mul(*factors)
            after_text = after_text or self.previous().kind == "text"

    def mixed(self, whole: Node) -> Node | None:
        """`3 1/2`: an integer, a space, a proper fraction."""
        top, slash, bottom = (self.peek(k) for k in range(3))
        if whole.op != "num" or slash.value != "/" or bottom.kind != "num" or not top.spaced:
            return None
        if not isinstance(top.value, Fraction) or not isinstance(bottom.value, Fraction) or not bottom.value:
            return None
        for _ in range(3):
            self.next()
        return T.num(_mixed(whole.args[0], top.value / bottom.value, self.negative))

    def mixed_frac(self, factors: list[Node]) -> Node | None:
        """`3\\frac{1}{2}`: an integer directly before a proper fraction of integers is a mixed number."""
        if (
            self.key() not in ("cmd frac", "cmd dfrac", "cmd tfrac", "cmd cfrac")
            or self.previous().kind != "num"
        ):
            return None
        whole = factors[-1]
        if whole.op != "num" or whole.args[0].denominator != 1:
            return None
        mark, tokens = self.position, list(self.tokens)  # \\frac12 splits a token in place
        part = self.power()
        value = _plain_fraction(part)
        if value is None or not 0 < value < 1:
            self.position, self.tokens = mark, tokens
            return None
        return T.num(_mixed(whole.args[0], value, self.negative))

    def signed(self) -> Node:
        with self.deeper():
            key = self.key()
            if key in ("op -", "op +", "cmd pm", "cmd mp"):
                self.next()
                was, self.negative = self.negative, False
                node = self.signed()
                self.negative = was
                if key == "op -":
                    return T.neg(node)
                return node if key == "op +" else T.mul(Node(key[4:]), node)
            return self.power()


def _mixed(whole: Fraction, part: Fraction, negative: bool) -> Fraction:
    return whole - part if whole < 0 or negative else whole + part


def _plain_fraction(node: Node) -> Fraction | None:
    if node.op == "mul" and len(node.args) == 2 and node.args[1].op == "pow":
        top, bottom = node.args[0], node.args[1].args[0]
        if top.op == bottom.op == "num" and bottom.args[0]:
            return Fraction(top.args[0] / bottom.args[0])
    return None


def parse_strict(text: str, merge_commas: bool) -> Node:
    """The tree of cleaned text, or Unreadable."""
    return Parser(tokenize(text, merge_commas)).answer()


@lru_cache(maxsize=4096)
def readings(text: str) -> tuple[Node, ...]:
    """Every reading of an answer's text, the likeliest first: 1,234 is one number, or else two; what does not
    parse is text.  Cached: a group of rollouts shares its gold and many of its answers."""
    if len(text) > LIMITS.answer_chars:
        return (Node("text", (normal_text(text[: LIMITS.answer_chars + 1]),)),)
    special = special_text(text)
    if special is not None:
        return (special,)
    cleaned = clean(text).strip().rstrip(".")
    found: list[Node] = []
    for merge in (True, False):
        try:
            node = parse_strict(cleaned, merge)
        except (Unreadable, RecursionError, ZeroDivisionError):
            continue
        if node not in found:
            found.append(node)
    return tuple(found) or (Node("text", (normal_text(text),)),)


def tokens_of(text: str) -> list[Token]:
    return tokenize(clean(text), True)
