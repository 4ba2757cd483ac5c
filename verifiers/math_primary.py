"""The tight half of the parser: powers, postfixes, brackets, functions, fractions, matrices, big
operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

from onebase.verifiers import math_tree as T
from onebase.verifiers.math_lex import FUNCTIONS, Token, Unreadable
from onebase.verifiers.math_policy import LIMITS
from onebase.verifiers.math_text import normal_text
from onebase.verifiers.math_tree import Node

_FUNCTION_NAMES = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc",
    "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "arsinh": "asinh", "arcosh": "acosh",
    "artanh": "atanh", "ceiling": "ceil", "binomial": "binom", "sgn": "sign", "lg": "log10", "lb": "log2",
    "tg": "tan", "ctg": "cot",
}  # fmt: skip
_INVERSES = {"sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"}
_COMMAND_FUNCTIONS = FUNCTIONS | {"tg", "ctg", "Pr"}
_CONSTANTS = {
    "pi": "pi", "infty": "inf", "oo": "inf", "inf": "inf", "infinity": "inf", "Infinity": "inf", "emptyset": "empty",
    "varnothing": "empty", "O": "empty", "ldots": "dots", "dots": "dots", "cdots": "dots", "vdots": "dots",
    "mathbbR": "R", "mathbbN": "N", "mathbbZ": "Z", "mathbbQ": "Q", "mathbbC": "C", "Re": "R", "imath": "i",
    "iota": "i",
}  # fmt: skip
_GREEK_ALIASES = {
    "varphi": "phi",
    "varepsilon": "epsilon",
    "vartheta": "theta",
    "varrho": "rho",
    "varpi": "pi",
}
_DECORATIONS = {
    "vec",
    "overline",
    "bar",
    "hat",
    "tilde",
    "overrightarrow",
    "widehat",
    "dot",
    "ddot",
    "underline",
}
_NAMES = {
    "angle",
    "triangle",
    "measuredangle",
    "ell",
    "hbar",
    "nabla",
    "partial",
    "Delta",
    "odot",
    "forall",
    "exists",
}
_OPEN = {"(": ")", "[": "]", "{": "}"}
_OPS_END = {"end", "sep", "end_env"}


class Primary:
    """Token cursor and the primaries; the looser half (math_parse.Parser) adds lists, relations, sums."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.position, self.depth = tokens, 0, 0
        self.in_set = False  # inside {… | …}, where | and : divide name from condition
        self.bars = 0
        self.negative = False

    # The looser half supplies these.
    def items(self, closers: tuple[str, ...]) -> Node:
        raise NotImplementedError

    def sum(self) -> Node:
        raise NotImplementedError

    def relation(self) -> Node:
        raise NotImplementedError

    def peek(self, ahead: int = 0) -> Token:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else self.tokens[-1]

    def previous(self) -> Token:
        return self.tokens[self.position - 1] if self.position else self.tokens[-1]

    def key(self, ahead: int = 0) -> str:
        """A token's kind and value as one word, the value alone where it speaks for itself."""
        token = self.peek(ahead)
        if token.kind in ("cmd", "word"):
            return f"{token.kind} {token.value}"
        if token.kind == "op" and token.value not in ("+", "-", "*", "/", ":", "÷"):
            return str(token.value)
        if token.kind == "op":
            return f"op {token.value}"
        return str(token.value) if token.kind == "sep" else token.kind

    def next(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def take(self, value: str) -> None:
        if self.peek().kind not in ("op", "cmd") or self.peek().value != value:
            raise Unreadable(f"expected {value!r}, found {self.peek().value!r}")
        self.position += 1

    def expect_end(self) -> None:
        if self.peek().kind != "end":
            raise Unreadable(f"unexpected {self.peek().value!r}")

    def trailing_comma(self) -> bool:
        return self.previous().value == ","

    @contextmanager
    def deeper(self) -> Iterator[None]:
        self.depth += 1
        if self.depth > LIMITS.depth * 3:  # three levels of grammar for one of brackets
            raise Unreadable("nested too deeply")
        yield
        self.depth -= 1

    def starts_factor(self) -> bool:
        token = self.peek()
        if token.kind in ("num", "word", "text", "unit", "begin"):
            return token.kind != "word" or token.value not in ("mod", "union", "in")
        if token.kind == "op":
            if token.value == "[":
                return self.depth < 8
            return token.value in ("(", "{") or (token.value == "|" and not self.bars and not self.in_set)
        if token.kind != "cmd":
            return False
        name = token.value
        return (
            name in _COMMAND_FUNCTIONS or name in _CONSTANTS or name in _NAMES or name in _DECORATIONS
            or name in ("frac", "dfrac", "tfrac", "cfrac", "sqrt", "binom", "dbinom", "tbinom", "lfloor", "lceil")
            or name in ("lvert", "sum", "int", "prod", "lim", "boxed", "lbrace", "{", "langle", "prime", "|")
            or name in ("dollar", "sfrac", "nicefrac") or name in _GREEK or name in _GREEK_ALIASES
        )  # fmt: skip

    def power(self) -> Node:
        with self.deeper():
            base = self.postfix(self.primary())
            while self.key() in ("^", "'"):
                if self.next().value == "'":
                    base = Node("sym", (_name_of(base) + "'",))
                    continue
                base = self._raise(base)
            return self.postfix(base)

    def _raise(self, base: Node) -> Node:
        key = self.key()
        if key in ("cmd circ", "cmd degree"):
            self.next()
            return T.mul(base, Node("deg"))
        if key in ("cmd prime", "op *", "cmd ast", "cmd dagger", "cmd star"):
            self.next()
            return Node("sym", (_name_of(base) + "'",))
        if key == "{" and self.key(1) in ("cmd circ", "cmd prime", "op *", "cmd ast") and self.key(2) == "}":
            self.position += 3
            mark = self.tokens[self.position - 2].value
            return T.mul(base, Node("deg")) if mark == "circ" else Node("sym", (_name_of(base) + "'",))
        return T.power(base, self.exponent())

    def exponent(self) -> Node:
        """One argument: a group, or a signed single factor.  2^10 takes the whole number, as plain text means
        it."""
        if self.key() in ("op -", "op +"):
            return T.neg(self.exponent()) if self.next().value == "-" else self.exponent()
        with self.deeper():
            base = self.postfix(self.primary())
            return T.power(base, self.exponent()) if self._takes("^") else base

    def _takes(self, value: str) -> bool:
        if self.key() == value:
            self.next()
            return True
        return False

    def postfix(self, node: Node) -> Node:
        while True:
            key = self.key()
            if key == "!":
                self.next()
                node = Node("fn", ("factorial", node))
            elif key in ("%", "cmd %", "word percent", "word pct", "word percentage"):
                self.next()
                node = T.mul(node, Node("pct"))
            elif key in ("word degree", "word degrees", "word deg", "cmd degree"):
                self.next()
                node = T.mul(node, Node("deg"))
            elif key == "_":
                self.next()
                node = self._subscript(node)
            else:
                return node

    def _subscript(self, node: Node) -> Node:
        label = self._raw_group()
        if node.op == "num" and label.isdigit() and node.args[0].denominator == 1 and node.args[0] >= 0:
            return Node("based", (str(node.args[0]), int(label[:6])))
        return Node("sym", (f"{_name_of(node)}_{label}",))

    def _raw_group(self) -> str:
        """A subscript, spelled out without spaces."""
        parts, depth = [], 0
        while True:
            token = self.next()
            if token.kind == "end":
                raise Unreadable("a subscript is not closed")
            depth += token.value == "{"
            depth -= token.value == "}"
            if token.value not in ("{", "}"):
                parts.append(str(token.value[0] if isinstance(token.value, tuple) else token.value))
            if depth == 0:
                return "".join(parts)

    def primary(self) -> Node:
        token = self.next()
        if token.kind == "num":
            value = token.value
            return T.num(value) if isinstance(value, Fraction) else Node("dec", value)
        if token.kind == "word":
            return self._word(str(token.value))
        if token.kind == "unit":
            return Node("unit", (token.value,))
        if token.kind == "text":
            return Node("text", (normal_text(str(token.value)),))
        if token.kind == "begin":
            return self._matrix(str(token.value))
        if token.kind == "op":
            return self._bracket(str(token.value))
        if token.kind == "cmd":
            return self._command(str(token.value))
        raise Unreadable(f"unexpected {token.value!r}")

    def _word(self, name: str) -> Node:
        if name in (
            "alpha",
            "beta",
            "gamma",
            "theta",
            "phi",
            "lambda",
            "omega",
            "mu",
            "sigma",
            "delta",
            "rho",
            "tau",
        ):
            return Node("sym", (name,))
        if name == "epsilon":
            return Node("sym", (name,))
        if name in _CONSTANTS and name not in ("O", "Re"):
            return Node("const", (_CONSTANTS[name],))
        if name in ("e", "i", "I") and self.key() not in ("_", "'"):
            return Node("const", (name.lower(),))
        if name in FUNCTIONS:
            return self._function(name)
        if len(name) == 1 or self.previous().kind == "word":
            return Node("sym", (name,))
        raise Unreadable(f"unknown word {name!r}")

    def _bracket(self, opening: str) -> Node:
        if opening == "|":
            return self._bars("|")
        if opening.startswith("..."):
            return Node("const", ("dots",))
        if opening == "]":  # ]0,1[ as written in France
            node = self._enclosed("(", ("[", "]"))
            return node
        if opening not in _OPEN:
            raise Unreadable(f"unexpected {opening!r}")
        if opening == "{":
            return self._braces()
        return self._enclosed(opening, (")", "]", "["))

    def _enclosed(self, opening: str, closers: tuple[str, ...]) -> Node:
        saved, self.in_set = self.in_set, False
        bars, self.bars = self.bars, 0
        with self.deeper():
            if self.key() in closers:
                closing = str(self.next().value)
                inner: Node | None = None
            else:
                inner = self.items(closers)
                comma = self.trailing_comma()
                closing = str(self.next().value)
        self.in_set, self.bars = saved, bars
        closing = {"[": ")", "]": "]"}.get(closing, closing)
        if inner is None:
            return Node("tuple", (opening, closing))
        if inner.op == "list":
            return Node("tuple", (opening, closing, *inner.args))
        if comma:
            return Node("tuple", (opening, closing, inner))
        if (opening, closing) not in (("(", ")"), ("[", "]")):
            raise Unreadable("a half-open bracket round one value")
        return Node("paren", (inner,)) if opening == "(" else inner

    def _braces(self) -> Node:
        """LaTeX grouping; with commas inside it lists without order claims, as the typed {1,2} does."""
        saved, self.in_set = self.in_set, False
        with self.deeper():
            if self.key() == "}":
                self.next()
                self.in_set = saved
                return Node("list", ())
            inner = self.items(("}",))
            self.take("}")
        self.in_set = saved
        return inner

    def _set(self, closing: str) -> Node:
        saved, self.in_set = self.in_set, True
        closers = (closing, f"cmd {closing}")
        with self.deeper():
            if self.key() in closers:
                self.next()
                self.in_set = saved
                return Node("const", ("empty",))
            inner = self.items((*closers, "|", "cmd mid", "op :", "cmd lvert", "cmd rvert", "cmd colon"))
            if self.key() not in closers:
                self.next()
                self.in_set = False
                inner = self.items(closers)
                self.next()
                self.in_set = saved
                return inner
            self.next()
        self.in_set = saved
        return Node("set", inner.args if inner.op == "list" else (inner,))

    def _bars(self, kind: str) -> Node:
        self.bars += 1
        saved, self.in_set = self.in_set, False
        inner = self.sum()
        if self.key() not in ("|", "cmd rvert", "cmd vert", "cmd |"):
            raise Unreadable("a bar is not closed")
        self.next()
        self.bars -= 1
        self.in_set = saved
        return Node("fn", ("abs", inner))

    def _command(self, name: str) -> Node:
        if name in ("frac", "dfrac", "tfrac", "cfrac", "sfrac", "nicefrac"):
            return T.div(self.argument(), self.argument())
        if name in ("binom", "dbinom", "tbinom"):
            return Node("fn", ("binom", self.argument(), self.argument()))
        if name in ("lbrace", "{"):
            return self._set("}" if name == "{" else "rbrace")
        if name in ("lfloor", "lceil"):
            inner = self.sum()
            self.take(name.replace("l", "r", 1))
            return Node("fn", ("floor" if name == "lfloor" else "ceil", inner))
        if name in ("lvert", "vert", "|"):
            return self._bars(name)
        if name == "langle":
            inner = self.items(("cmd rangle",))
            self.next()
            return Node("tuple", ("(", ")", *(inner.args if inner.op == "list" else (inner,))))
        if name in ("sum", "prod", "int", "lim", "iint", "oint"):
            return self._big(name)
        if name == "boxed":
            return self.argument()
        if name in _DECORATIONS:
            return Node("sym", (f"{name} {_spell(self.argument())}",))
        return self._name(name)

    def _name(self, name: str) -> Node:
        name = _GREEK_ALIASES.get(name, name)
        if name == "dollar":
            return Node("unit", ("dollar",))
        if name in _CONSTANTS and name != "Re":
            if name == "pi" and self.key() == "_":
                return Node("sym", ("pi",))
            return Node("const", (_CONSTANTS[name],))
        if name in _COMMAND_FUNCTIONS and name not in ("mod", "Gamma"):
            return self._function(name)
        if name in ("angle", "triangle", "measuredangle", "Delta"):
            return (
                Node("sym", (f"{name} {_spell(self.power())}",))
                if self.starts_factor()
                else Node("sym", (name,))
            )
        if name in _GREEK or name in _NAMES:
            return Node("sym", (name,))
        raise Unreadable(f"unknown command \\{name}")

    def argument(self) -> Node:
        """A LaTeX argument: a group, or one token (one digit of a number: \\frac12 is 1/2)."""
        token = self.peek()
        if token.kind == "num" and isinstance(token.value, Fraction) and token.value >= 10:
            digits = str(token.value)
            rest = Token("num", Fraction(int(digits[1:])), False)
            self.tokens[self.position] = rest
            if digits[1] == "0" and len(digits) > 2:
                raise Unreadable("digits run together")
            return T.num(int(digits[0]))
        with self.deeper():
            return self.primary()

    def _function(self, name: str) -> Node:
        name = _FUNCTION_NAMES.get(name, name)
        if name == "sqrt":
            return self._root()
        base = exponent = None
        while self.key() in ("_", "^"):
            if self.next().value == "_":
                base = self.argument()
            else:
                exponent = self.exponent()
        if exponent == T.MINUS_ONE and name in _INVERSES:
            name, exponent = "a" + name, None
        arguments = self._arguments(name)
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

    def _arguments(self, name: str) -> list[Node]:
        if self.key() == "(":
            group = self.primary()
            return list(group.args[2:]) if group.op == "tuple" else [_unparen(group)]
        if self.key() == "{":
            group = self.primary()
            return list(group.args) if group.op == "list" else [group]
        factors = []
        while self.starts_factor() and not (factors and self._starts_new_argument()):
            factors.append(self.power())
        if not factors:
            return [self._signed_argument(name)]
        return [T.mul(*factors)]

    def _signed_argument(self, name: str) -> Node:
        if self.key() == "op -":
            self.next()
            return T.neg(self.power())
        raise Unreadable(f"{name} of nothing")

    def _starts_new_argument(self) -> bool:
        token = self.peek()
        return token.value in ("(", "[", "|", "lvert") or (
            token.kind in ("cmd", "word") and token.value in _COMMAND_FUNCTIONS
        )

    def _root(self) -> Node:
        index = None
        if self.key() == "[":
            self.next()
            index = self.sum()
            self.take("]")
        if self.key() == "(":
            inner = self.primary()
        elif self.peek(-1).kind == "word":
            inner = self.power()
        elif self.peek().kind == "num":  # \\sqrt17: LaTeX would take the 1 alone, nobody means that
            inner = self.primary()
        else:
            inner = self.argument()
        return Node("fn", ("root", _unparen(inner), index or T.num(2)))

    def _big(self, kind: str) -> Node:
        low = high = None
        while self.key() in ("_", "^"):
            if self.next().value == "_":
                low = self._limit()
            else:
                high = self._limit()
        if kind in ("sum", "prod"):
            body = self.product_body()
        else:
            body = self.sum() if kind != "lim" else self.product_body()
        none = Node("text", ("",))
        return Node("big", (kind, low or none, high or none, body))

    def product_body(self) -> Node:
        factors = [self.power()]
        while self.starts_factor() or self.key() in ("cmd cdot", "cmd times", "op *", "op /"):
            if self.key() == "op /":
                self.next()
                factors.append(T.power(self.power(), T.MINUS_ONE))
                continue
            if not self.starts_factor():
                self.next()
            factors.append(self.power())
        return T.mul(*factors)

    def _limit(self) -> Node:
        if self.key() != "{":
            return self.argument()
        self.next()
        node = self.relation()
        self.take("}")
        return node

    def _matrix(self, name: str) -> Node:
        rows: list[list[Node]] = [[]]
        with self.deeper():
            while self.peek().kind != "end_env":
                if self.key() == "end":
                    raise Unreadable("a matrix is not closed")
                if self.key() == "&":
                    self.next()
                elif self.key() == "cmd \\":
                    self.next()
                    rows.append([])
                elif self.key() in ("cmd hline", ",", ";", "."):
                    self.next()
                else:
                    rows[-1].append(self.relation())
        self.next()
        rows = [row for row in rows if row]
        if not rows:
            raise Unreadable("an empty matrix")
        if name.startswith(("align", "cases", "gather", "aligned", "split", "equation")):
            return Node("list", tuple(cell for row in rows for cell in row))
        if len({len(row) for row in rows}) != 1:
            raise Unreadable("rows of different length")
        matrix = Node("matrix", (len(rows[0]), *(cell for row in rows for cell in row)))
        return Node("fn", ("det", matrix)) if name == "vmatrix" else matrix


_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu", "nu", "xi", "rho",
    "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Theta", "Lambda", "Xi", "Pi", "Sigma",
    "Upsilon", "Phi", "Psi", "Omega", "pi",
}  # fmt: skip


def _unparen(node: Node) -> Node:
    return node.args[0] if node.op == "paren" else node


def _name_of(node: Node) -> str:
    if node.op in ("sym", "const", "text"):
        return str(node.args[0])
    if node.op == "paren":
        return _name_of(node.args[0])
    raise Unreadable("a mark on something that is not a name")


def _spell(node: Node) -> str:
    if node.op in ("sym", "const", "text", "num"):
        return str(node.args[0])
    if node.op in ("mul", "paren", "list"):
        return "".join(_spell(part) for part in T.children(node))
    raise Unreadable("a name that is not one")
