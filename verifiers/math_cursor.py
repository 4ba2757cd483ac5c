"""The cursor of the parser over its tokens, and the names it knows.  The grammar itself is mutually recursive
functions of a cursor: math_grammar (loose), math_primary (tight), math_commands (LaTeX commands)."""

from __future__ import annotations

from onebase.verifiers.math_budget import spend
from onebase.verifiers.math_lex import FUNCTIONS, Token, Unreadable
from onebase.verifiers.math_policy import LIMITS
from onebase.verifiers.math_tree import Node, children

FUNCTION_NAMES = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec",
    "arccsc": "acsc", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "arsinh": "asinh",
    "arcosh": "acosh", "artanh": "atanh", "ceiling": "ceil", "binomial": "binom", "sgn": "sign",
    "lg": "log10", "lb": "log2", "tg": "tan", "ctg": "cot",
}  # fmt: skip  # fmt: skip
INVERSES = {"sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"}
COMMAND_FUNCTIONS = FUNCTIONS | {"tg", "ctg", "Pr"}
CONSTANTS = {
    "pi": "pi", "infty": "inf", "oo": "inf", "inf": "inf", "infinity": "inf", "Infinity": "inf",
    "emptyset": "empty", "varnothing": "empty", "O": "empty", "ldots": "dots", "dots": "dots",
    "cdots": "dots", "vdots": "dots", "mathbbR": "R", "mathbbN": "N", "mathbbZ": "Z", "mathbbQ": "Q",
    "mathbbC": "C", "Re": "R", "imath": "i", "iota": "i",
}  # fmt: skip
GREEK_ALIASES = {
    "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "varrho": "rho", "varpi": "pi",
}  # fmt: skip
DECORATIONS = {
    "vec", "overline", "bar", "hat", "tilde", "overrightarrow", "widehat", "dot", "ddot", "underline",
}  # fmt: skip
NAMES = {
    "angle", "triangle", "measuredangle", "ell", "hbar", "nabla", "partial", "Delta", "odot", "forall",
    "exists",
}  # fmt: skip
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu", "nu",
    "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Theta", "Lambda", "Xi",
    "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "pi",
}  # fmt: skip


# Commands that can stand next to a factor and multiply it.
FACTOR_COMMANDS = (
    {
        "frac",
        "dfrac",
        "tfrac",
        "cfrac",
        "sqrt",
        "binom",
        "dbinom",
        "tbinom",
        "lfloor",
        "lceil",
        "lvert",
        "sum",
    }
    | {
        "int",
        "prod",
        "lim",
        "boxed",
        "fbox",
        "root",
        "lbrace",
        "{",
        "langle",
        "prime",
        "|",
        "dollar",
        "sfrac",
        "nicefrac",
    }
    | {*COMMAND_FUNCTIONS, *CONSTANTS, *NAMES, *DECORATIONS, *GREEK, *GREEK_ALIASES}
)


class _Level:
    """Counts how deep the parser is; an error leaves the count as it is, since it ends the reading."""

    __slots__ = ("depth",)

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1
        spend()
        if self.depth > LIMITS.depth * 3:  # three levels of grammar for one of brackets
            raise Unreadable("nested too deeply")

    def __exit__(self, *error: object) -> None:
        self.depth -= 1


def _key(token: Token) -> str:
    if token.kind in ("cmd", "word"):
        return f"{token.kind} {token.value}"
    if token.kind == "op":
        return f"op {token.value}" if token.value in ("+", "-", "*", "/", ":", "÷") else str(token.value)
    return str(token.value) if token.kind == "sep" else token.kind


class Cursor:
    """A position in the tokens, and where it is: how deep, inside a set, inside bars."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.position, self.level = tokens, 0, _Level()
        self.keys = [_key(token) for token in tokens]
        self.in_set = False  # inside {… | …}, where | and : divide name from condition
        self.bars = 0
        self.integral = False  # after an integral sign, where dx ends an argument
        self.enclosed = 0  # inside round or square brackets, where [ may close as in [0,1[

    def peek(self, ahead: int = 0) -> Token:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else self.tokens[-1]

    def previous(self) -> Token:
        return self.tokens[self.position - 1] if self.position else self.tokens[-1]

    def key(self, ahead: int = 0) -> str:
        """A token's kind and value as one word, the value alone where it speaks for itself."""
        index = self.position + ahead
        return self.keys[index] if index < len(self.keys) else self.keys[-1]

    def drop(self, value: str, end: int) -> None:
        """Takes the tokens of that value out, from here to `end`."""
        kept = [token for token in self.tokens[self.position : end] if token.value != value]
        self.tokens[self.position : end] = kept
        self.keys[self.position : end] = [_key(token) for token in kept]

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

    def deeper(self) -> _Level:
        """`with c.deeper():` round each rule that can hold itself."""
        return self.level

    def starts_factor(self) -> bool:
        token = self.peek()
        if token.kind in ("num", "word", "text", "unit", "begin"):
            return token.kind != "word" or token.value not in ("mod", "union", "in")
        if token.kind == "op":
            if token.value == "[":
                return not self.enclosed
            return token.value in ("(", "{") or (token.value == "|" and not self.bars and not self.in_set)
        if token.kind != "cmd":
            return False
        name = token.value
        return name in FACTOR_COMMANDS

    def takes(self, value: str) -> bool:
        if self.key() == value:
            self.next()
            return True
        return False


def unparen(node: Node) -> Node:
    return node.args[0] if node.op == "paren" else node


def name_of(node: Node) -> str:
    if node.op in ("sym", "const", "text"):
        return str(node.args[0])
    if node.op == "paren":
        return name_of(node.args[0])
    raise Unreadable("a mark on something that is not a name")


def spell(node: Node) -> str:
    if node.op in ("sym", "const", "text", "num"):
        return str(node.args[0])
    if node.op in ("mul", "paren", "list"):
        return "".join(spell(part) for part in children(node))
    raise Unreadable("a name that is not one")
