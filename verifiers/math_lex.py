"""Turns the text of an answer (LaTeX, plain or Python-like) into tokens.

First `clean` maps Unicode look-alikes to LaTeX and drops spacing and sizing commands; then `tokenize` splits.
Every regular expression here is linear: no nested repetition over the same characters.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Any, NamedTuple

from onebase.verifiers.math_policy import LIMITS
from onebase.verifiers.math_units import COUNT_WORDS, is_unit


class Unreadable(ValueError):
    """This text is not an expression the checker knows."""


class Token(NamedTuple):
    kind: str  # num, word, cmd, op, text, unit, sep, end
    value: Any
    spaced: bool = False  # white space came before it


_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma",
    "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_SYMBOLS = {
    "∞": "\\infty", "×": "\\times", "÷": "\\div", "·": "\\cdot", "⋅": "\\cdot", "∙": "\\cdot", "•": "\\cdot",
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "≤": "\\le", "⩽": "\\le", "≥": "\\ge", "⩾": "\\ge",
    "≠": "\\ne", "≈": "\\approx",
    "∪": "\\cup", "∩": "\\cap", "∈": "\\in", "∅": "\\emptyset", "°": "^\\circ",
    "º": "^\\circ", "±": "\\pm", "∓": "\\mp", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}",
    "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}", "…": "\\ldots", "∠": "\\angle", "∖": "\\setminus",
    "′": "'", "’": "'",
    "⌊": "\\lfloor", "⌋": "\\rfloor", "⌈": "\\lceil", "⌉": "\\rceil", "½": "\\frac{1}{2}",
    "⅓": "\\frac{1}{3}",
    "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "∣": "|", "⟨": "\\langle", "⟩": "\\rangle",
    "→": "\\to", "∫": "\\int", "∑": "\\sum", "∏": "\\prod", "∧": "\\land", "∨": "\\lor", "∀": "\\forall",
    "℃": "\\text{celsius}", "≡": "\\equiv", "，": ",", "。": ".", "；": ";", "：": ":", "（": "(", "）": ")",
    "％": "%", "＝": "=", "＋": "+", "？": "?", "！": "!", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]",
    "⊂": "\\subset",
    "⊆": "\\subseteq", "∉": "\\notin", "⊥": "\\perp", "∥": "\\parallel", "△": "\\triangle", "∼": "\\sim",
    "～": "~", "⁄": "/", "∕": "/", "²": "^2", "³": "^3", "⊤": "\\top", "⩵": "=", "≅": "\\cong",
}  # fmt: skip
_CHARACTERS = str.maketrans(
    {**{key: f" {value} " for key, value in _SYMBOLS.items()}, **{k: f"\\{v} " for k, v in _GREEK.items()}}
    | {key: value for key, value in _SYMBOLS.items() if not value.startswith("\\")}
    | {key: None for key in "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"}
    | {chr(code): None for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
)
_ROOTS = re.compile(r"√\s*(\([^()]*\)|\{[^{}]*\}|\d+(?:\.\d+)?|[A-Za-z])")
_SUPER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUB = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_DROP = re.compile(
    r"\\\\(?:\s*\[[\d. ]+(?:pt|em|ex|mm|cm)\])?"  # a row end, first: its second half starts no command
    r"|\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|biggl|biggr|displaystyle|textstyle|limits|nolimits"
    r"|large|Large|LARGE|huge|Huge|small|tiny|normalsize|footnotesize|thinspace|medspace|thickspace|negthinspace|negmedspace|negthickspace|middle|rm|bf|it|strut|hfill)(?![A-Za-z])"
    r"|\\[,;:! ()\[\]]|~|\\(?:hspace|vspace|phantom|color|textcolor)\s*\{[^{}]*\}|\\phantom\s*[-+]"
)
_GLUE = re.compile(
    r"(?<=\d)(?:\{,\}|\{,?\\[!,;: ]\}|,?\\[!,;: ]\s?|\{\}|[\u00a0\u2009\u202f'])(?=\d{3}(?!\d))"
)
# Text that went through one escape too many: \\\\frac for \\frac.
_DOUBLED = re.compile(
    r"(?<!\\)\\(?=\\(?:left|right|[dt]?frac|boxed|text|sqrt|pi|cdot|times|infty|begin|end|circ|cup|leq?|geq?|mathrm|pm|theta)"
    r"(?![a-z]))"
)
_BARS = re.compile(r"\\left\s*\|(?!\|)|\\right\s*\||\\left\s*\\[lr]?vert|\\right\s*\\[lr]?vert")


def undouble(text: str) -> str:
    """`\\\\frac` to `\\frac`; row ends before anything but a well-known command stay."""
    return _DOUBLED.sub("", text) if "\\\\" in text else text


def clean(text: str) -> str:
    """One spelling for what Unicode and LaTeX write in many ways."""
    if not text.isascii():
        text = _SUPER.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
        text = _SUB.sub(lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", text)
        text = _ROOTS.sub(lambda m: "\\sqrt{" + m.group(1) + "}", text).replace("√", "\\sqrt ")
        text = re.sub(r"(?<=\d)[½⅓⅔¼¾]", lambda m: " " + _SYMBOLS[m.group()], text)
        text = re.sub(r"°\s*([CF])(?![A-Za-z])", _temperature, text)
    text = _GLUE.sub("", text.replace("\\$", " \\dollar "))
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS))
    text = _ORDINAL.sub("", text)
    if "/" in text:
        text = _METRES_PER.sub(r"\\text{ m/s}", text)
    text = re.sub(r"\\q?quad(?=[^A-Za-z]|[a-z])", " ; ", text) if "quad" in text else text
    if "|" in text or "vert" in text:
        text = _BARS.sub(lambda m: " \\lvert " if "left" in m.group() else " \\rvert ", text)
    if "\\" in text or "~" in text:
        text = re.sub(r"\\(?:left|right)\s*\.", " ", text)
        text = _DROP.sub(lambda m: "\\\\" if m.group().startswith("\\\\") else " ", text)
        text = _DEGREES_OF.sub(_temperature, text)
    return text.replace("$", " ").replace("**", "^")


_DEGREES_OF = re.compile(
    r"\^\s*\{?\s*\\circ\s*\}?\s*(?:\\(?:text|mathrm)\s*\{)?\s*([CF])(?![A-Za-z])"
    r"(?:(?<=\{[CF])\}|(?<=\{ [CF])\})?"
)
_NOT = re.compile(r"\\not\s*(=|\\in(?![A-Za-z])|<|>)")
_NEGATED = {"=": "\\ne ", "\\in": "\\notin ", "<": "\\ge ", ">": "\\le "}
_SIGNS = re.compile(r"\+\s*/\s*-|(?:(?<=^)|(?<=[=,;({\[]))(\s*)\+-(?=\s*[\d\\])")
_UNION_LETTER = re.compile(r"(?<=[)\]}])\s*U\s*(?=\\?[\[({])")
_TO = re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(?=\d)")
_BASE = re.compile(
    r"(?<=[\dA-F)])\s*(?:_\s*\{?\s*)?(?:\\(?:text|mathrm)\s*\{)?[\s,]*(?:in\s+)?\(?\s*\bbase[\s-]*\}?\s*"
    r"(\d{1,2}|two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen)(?![\w])\)?\s*\}?\)?"
)
_PREFIXED = re.compile(r"(?<![\w.\\])0(?:([xX])([0-9a-fA-F]+)|([bB])([01]+)|([oO])([0-7]+))(?!\w)")
_MINUTES = re.compile(
    r"(?<!\d)(\d{1,4})\s*\^\s*\{?\s*\\circ\s*\}?\s*(\d+(?:\.\d+)?)\s*(?:'|\^\s*\{?\\prime\}?)(?:\s*(\d+(?:\.\d+)?)\s*'')?"
)


_COMBINATIONS = re.compile(
    r"(?:\{\s*\}\s*)?(?:(?<![\w)}])_|\^)\s*\{?\s*(\d{1,4})\s*\}?\s*(?:\\(?:mathrm|text)\s*\{\s*C\s*\}|C)\s*_\s*\{?\s*(\d{1,4})\s*\}?"
)


def written_out(text: str) -> str:
    """Spellings that stand for one token, rewritten before anything is split."""
    if "C" in text:
        text = _COMBINATIONS.sub(r"\\binom{\1}{\2}", text)
    if "\\not" in text:
        text = _NOT.sub(lambda m: _NEGATED[m.group(1)], text)
    if "+" in text and "-" in text:
        text = _SIGNS.sub(r"\\pm ", text)
    if "U" in text:
        text = _UNION_LETTER.sub(r" \\cup ", text)
    if "to" in text:
        text = _TO.sub(":", text)
    if "base" in text:
        text = _BASE.sub(r"_{\1}", text)
    if "in" in text:
        text = _INCHES.sub(r" inch", text)
        text = _MINUTE.sub(" minute", text)
    if "$" in text:
        text = _DEBT.sub(r"-\1", text)
        text = _PRICE.sub(r"\1\\dollar ", text) if text.count("$") == 1 else text
    if "0" in text:
        text = _PREFIXED.sub(_prefixed, text)
    if "illion" in text or "thousand" in text:
        text = _LARGE.sub(
            lambda m: f" \\cdot 10^{{{_LARGE_WORDS[m.group(2)]}}} {m.group(1) or ''}{m.group(3)}", text
        )
    if "'" in text or "prime" in text:
        text = _MINUTES.sub(_arc_minutes, text)
    return text


_INCHES = re.compile(r"(?<=\d)\s*in\b\.?(?=\s*(?:\^|²|$))")
_MINUTE = re.compile(r"(?<=\d)\s*mins?\b(?!\s*[({\\])")
_PRICE = re.compile(r"^(\s*-?\s*)\$(?=\s*[\d.])")
_DEBT = re.compile(r"^\s*(\\?\$)\s*[-−](?=\s*[\d.])")
_LARGE = re.compile(
    r"(?<=\d)[\s~]*(\\(?:text|mathrm)\s*\{)?[\s~]*(thousand|million|billion|trillion)\b\s*(\}?)"
)
_LARGE_WORDS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def _prefixed(match: re.Match[str]) -> str:
    mark, digits = (group for group in match.groups() if group)
    return f"{digits.upper()}_{{{ {'x': 16, 'b': 2, 'o': 8}[mark.lower()] }}}"


def _arc_minutes(match: re.Match[str]) -> str:
    degrees, minutes, seconds = match.group(1), match.group(2), match.group(3) or "0"
    if len(match.group()) > 60 or float(minutes) >= 60 or float(seconds) >= 60:
        return match.group()
    return f"({degrees}+\\frac{{{minutes}}}{{60}}+\\frac{{{seconds}}}{{3600}})^\\circ "


_ORDINAL = re.compile(r"(?<=\d)(?:\^\s*\{?\s*\\text\s*\{(?:st|nd|rd|th)\}\s*\}?|(?:st|nd|rd|th)(?![A-Za-z]))")
_METRES_PER = re.compile(r"(?<=\d)\s*m/s(?![A-Za-z])")
_TEMPERATURE = {"C": "celsius", "F": "fahrenheit"}


def _temperature(match: re.Match[str]) -> str:
    return f"\\text{{{_TEMPERATURE[match.group(1)]}}}"


_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<num>(?:\d+(?:\.(?!\d*\.\.)\d*)?|\.\d+)(?:[eE][+-]?\d+(?![\w.]))?)"
    r"|(?P<text>\\(?:text(?:bf|rm|it|normal|sf|tt)?|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname\*?|bm|boldsymbol"
    r"|mathbb|mathcal)(?![A-Za-z])\s*(?=\{|[A-Za-z]))"
    r"|(?P<env>\\(?:begin|end)\s*\{\s*(?P<name>[a-zA-Z]+\*?)\s*\}(?:\{[clr| ]*\})?)"
    r"|(?P<cmd>\\(?:[A-Za-z]+|[^A-Za-z]))"
    r"|(?P<rel><=|>=|=<|=>|!=|<>|==|:=|\.\.\.+)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<op>.)",
    re.DOTALL,
)
THOUSANDS = re.compile(r"(?<![\d.(\[])(?<!\d,)(\d{1,3}(?:,\d{3})+)(?![\d,]*\d)(?!,\d)")
_SPACED_THOUSANDS = re.compile(r"^\s*[+-]?\d{1,3}(?: \d{3})+(?=(?:\.\d+)?\s*$| \d+/\d+\s*$)")
_REPEAT = re.compile(
    r"(?<![\d.])(\d*)\.(\d*)(?:\\(?:overline|bar)\s*(?:\{(\d+)\}|(\d))|\((\d+)\)|\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?)"
)
_DOTTED = re.compile(r"(?<![\d.])(\d{0,40})\.(\d{0,40}?)(\d{1,4})\3\3{1,40}\s*(?:\\l?dots|\\cdots|\.\.\.)")
_CONNECTORS = {"and", "or", "und", "et", "where", "with", "for"}
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc",
    "asin", "acos", "atan", "acot", "asec", "acsc", "sinh", "cosh", "tanh", "coth", "sech", "csch",
    "arcsinh", "arccosh", "arctanh", "arsinh", "arcosh", "artanh", "asinh", "acosh", "atanh", "ln", "log",
    "lg", "exp", "sqrt", "cbrt", "abs", "floor", "ceil", "ceiling", "max", "min", "gcd", "lcm", "binom",
    "binomial", "factorial", "sgn", "sign", "det", "mod", "root", "arg", "lb", "Re", "Im", "erf", "Gamma",
    "pow", "cis",
}  # fmt: skip
WORDS = FUNCTIONS | {"pi", "oo", "inf", "infty", "infinity", "Infinity", "percent", "pct", "percentage"}
WORDS |= {
    "degree",
    "degrees",
    "deg",
    "union",
    "in",
    "theta",
    "alpha",
    "beta",
    "gamma",
    "phi",
    "lambda",
    "omega",
}
WORDS |= {"emptyset", "mu", "sigma", "delta", "epsilon", "rho", "tau"}


def tokenize(text: str, merge_commas: bool) -> list[Token]:
    """Tokens of cleaned text.  `merge_commas` reads 1,234 as one number instead of two."""
    text = _repeating(text)
    if merge_commas:
        text = THOUSANDS.sub(lambda m: m.group(1).replace(",", ""), text)
        text = _SPACED_THOUSANDS.sub(lambda m: m.group().replace(" ", ""), text)
    tokens: list[Token] = []
    position, spaced = 0, False
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None and match.lastgroup is not None, f"{position=}"
        position = match.end()
        kind = "env" if match.group("env") else match.lastgroup
        if kind == "space":
            spaced = True
            continue
        if kind == "text":
            body, position = _group(text, position)
            _text_tokens(body, match.group().strip()[1:], spaced, tokens)
            spaced = body[-1:] in (" ", ":")
            continue
        elif kind == "env":
            tokens.append(
                Token("begin" if "begin" in match.group() else "end_env", match.group("name"), spaced)
            )
        else:
            _plain(kind, match.group(), spaced, tokens)
        spaced = False
        if len(tokens) > LIMITS.tokens:
            raise Unreadable(f"over {LIMITS.tokens} tokens")
    tokens.append(Token("end", ""))
    return tokens


def _plain(kind: str, value: str, spaced: bool, tokens: list[Token]) -> None:
    if kind == "num":
        tokens.append(Token("num", decimal(value), spaced))
    elif kind == "cmd":
        tokens.append(Token("cmd", value[1:], spaced))
    elif kind == "word":
        after_number = bool(tokens) and (
            tokens[-1].kind in ("num", "unit", "text", "cmd") or tokens[-1].value in (")", "}", "{")
        )
        _word(value, spaced, after_number, tokens)
    else:
        tokens.append(Token("unit" if value in "¢€£¥₹" else "op", value, spaced))


def _word(value: str, spaced: bool, after_number: bool, tokens: list[Token]) -> None:
    """A run of letters outside commands: a known name, a unit, a product of variables, or prose."""
    previous = tokens[-1] if tokens else None
    subscripted = previous is not None and previous.kind == "op" and previous.value == "_"
    if value.lower() in _CONNECTORS:
        tokens.append(Token("sep", value.lower(), spaced))
    elif glued := re.fullmatch(r"(and|or)([A-Z]+)", value):
        tokens.append(Token("sep", glued.group(1), spaced))
        _word(glued.group(2), False, False, tokens)
    elif value == "per" and previous is not None and previous.kind == "unit":
        tokens.append(Token("op", "/", spaced))
    elif len(value) == 1 and _per_unit(tokens) and is_unit(value, True):
        tokens.append(Token("unit", value, spaced))
    elif subscripted:
        tokens.append(Token("word", value, spaced))
    elif value in WORDS or value.lower() in FUNCTIONS:
        tokens.append(Token("word", value if value in WORDS else value.lower(), spaced))
    elif (is_unit(value, False) or value in COUNT_WORDS) and (after_number or len(value) > 3):
        tokens.append(Token("unit", value, spaced))
    elif is_product(value):
        tokens.extend(Token("word", letter, spaced and not i) for i, letter in enumerate(value))
    elif (parts := _split_function(value)) is not None:
        tokens.extend(Token("word", part, spaced and not i) for i, part in enumerate(parts))
    elif previous is not None and previous.kind == "text":
        tokens[-1] = Token("text", f"{previous.value} {value}", previous.spaced)
    else:
        tokens.append(Token("text", value, spaced))


def _per_unit(tokens: list[Token]) -> bool:
    return len(tokens) > 1 and tokens[-1].value == "/" and tokens[-2].kind == "unit"


def is_product(word: str) -> bool:
    """`xy`, `abc`, `AB`: letters that multiply (or name a segment), not a word of a language."""
    if len(word) <= 2 or (word.isupper() and len(word) <= 5):
        return True
    return len(word) <= 4 and all(a < b for a, b in zip(word, word[1:], strict=False))


def _split_function(word: str) -> list[str] | None:
    for size in (6, 5, 4, 3, 2):
        head, tail = word[:size], word[size:]
        if (
            head in ("sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "pi", "exp")
            and len(tail) == 1
        ):
            return [head, tail]
        if tail in ("pi", "sin", "cos", "tan", "sqrt", "ln", "log") and len(head) == 1:
            return [head, tail]
    if len(word) > 2 and word[1:] in ("pi", "sin", "cos", "tan", "cot", "sqrt", "ln", "log", "exp"):
        return [word[0], word[1:]]
    return None


def _group(text: str, position: int) -> tuple[str, int]:
    """The braced group (or single letter) that starts at `position`."""
    if position >= len(text) or text[position] != "{":
        return text[position : position + 1], position + 1
    depth = 0
    for index in range(position, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return text[position + 1 : index], index + 1
    raise Unreadable("a brace is not closed")


def _text_tokens(body: str, command: str, spaced: bool, tokens: list[Token]) -> None:
    """What stands inside \\text{…}: a connector, a name, a number, a unit, a formula, or prose."""
    stripped = body.strip()
    word = stripped.strip(" .,:;").lower()
    if not stripped:
        return
    if command == "mathbb" and stripped in "RNZQC" and len(stripped) == 1:
        tokens.append(Token("cmd", "mathbb" + stripped, spaced))
    elif command in ("mathbf", "bm", "boldsymbol") and stripped in ("i", "j", "k"):
        tokens.append(Token("word", f"unit {stripped}", spaced))
    elif stripped in ("-", "+", "/", "=", "<", ">", ":", "%", ",", ";"):
        tokens.append(Token("op", stripped, spaced))
    elif command in ("mathrm", "mathit", "mathsf") and _FORMULA.fullmatch(stripped):
        tokens.extend(tokenize(clean(stripped), True)[:-1])
    elif word in _CONNECTORS:
        tokens.append(Token("sep", word, spaced))
    elif word == "in" and tokens and tokens[-1].kind == "num":
        tokens.append(Token("unit", "inch", spaced))
    elif re.match(r"[-+]?\d+\s+[A-Za-z]", stripped) or _LETTERS.fullmatch(stripped):
        tokens.extend(tokenize(clean(stripped), True)[:-1])
    elif not any(character.isalnum() for character in stripped):
        return
    elif len(parts := re.split(r"(?:^|(?<=\s))(and|or)(?=\s|$)", body)) > 1:
        for part in parts:
            _text_tokens(part, command, spaced, tokens)
    elif _is_unit_phrase(stripped, bool(tokens) and tokens[-1].kind in ("num", "op", "unit", "cmd")):
        for part in re.findall(r"[A-Za-zµ¢€£¥₹]+|\^|/|\d+|-", stripped):
            part = "/" if part == "per" else part
            kind = "unit" if part[0].isalpha() or part in "¢€£¥₹" else "num" if part.isdigit() else "op"
            tokens.append(Token(kind, decimal(part) if kind == "num" else part, spaced))
    elif stripped in WORDS or stripped in FUNCTIONS:
        tokens.append(Token("word", stripped, spaced))
    elif len(stripped) == 1 or re.fullmatch(r"[\d.,+\-*/^(){}\\ ]+|\\[a-z]+(?:\{[^{}]*\})*", stripped):
        tokens.extend(tokenize(clean(stripped), True)[:-1])
    elif re.fullmatch(r"\([A-Za-z]\)", stripped):
        tokens.extend(tokenize(stripped, True)[:-1])
    else:
        tokens.append(Token("text", stripped, spaced))


_FORMULA = re.compile(r"[\d.]*\s*[A-Za-z](?:\s*[-+*/^=<>]\s*[\d.]*[A-Za-z\d])+")
_LETTERS = re.compile(r"[A-Z]{1,4}(?:\s*(?:,|,? and)\s*[A-Z]{1,4})+")


def _is_unit_phrase(text: str, after_number: bool) -> bool:
    words = re.findall(r"[A-Za-zµ¢€£¥₹]+", text)
    if not words or not re.fullmatch(r"[A-Za-zµ¢€£¥₹/^\d .\-]+", text):
        return False
    return after_number and all(word in COUNT_WORDS or is_unit(word, True) for word in words)


def decimal(text: str) -> tuple[Fraction, int, int] | Fraction:
    """An integer as a Fraction; a decimal with its significant digits and decimals as typed."""
    if len(text) < 300 and text.isdecimal():
        return Fraction(int(text))
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > LIMITS.digits or len(exponent) > 6 or abs(int(exponent or 0)) > LIMITS.digits:
        raise Unreadable(f"a number of over {LIMITS.digits} digits")
    whole, point, part = mantissa.partition(".")
    value = Fraction(int(whole + part or 0), 10 ** len(part)) * Fraction(10) ** int(exponent or 0)
    if not part and not exponent:
        return value
    significant = len((whole + part).lstrip("0"))
    return value, significant, len(part) - int(exponent or 0)


def _repeating(text: str) -> str:
    """0.1\\overline{6}, 0.(3), 0.333… become fractions, so that they are exact."""
    if "." not in text:
        return text

    def exact(whole: str, fixed: str, repeat: str) -> str:
        if len(whole) + len(fixed) + len(repeat) > LIMITS.digits:
            raise Unreadable("a repeating decimal that is too long")
        value = Fraction(int(whole + fixed or 0), 10 ** len(fixed))
        value += Fraction(int(repeat), (10 ** len(repeat) - 1) * 10 ** len(fixed))
        return f" \\frac{{{value.numerator}}}{{{value.denominator}}} "

    def marked(m: re.Match[str]) -> str:
        whole, fixed, over, digit, paren, first, middle, last = m.groups()
        return exact(whole, fixed, over or digit or paren or first + (middle or "") + (last or ""))

    text = _REPEAT.sub(marked, text)
    return _DOTTED.sub(lambda m: exact(m.group(1), m.group(2), m.group(3)), text)
