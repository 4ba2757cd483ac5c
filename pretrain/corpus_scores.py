"""How much of a text is mathematics, how much is code, and whether both came through extraction whole.

Three cheap scores in [0, 1] by pattern, for choosing documents (`min_math`, `min_code`, `min_whole`) and for
the card.  They follow the idea of OpenWebMath's prefilter (arXiv 2310.06786, section 3.2: LaTeX commands and
mathematical words find candidates), not its trained classifier; thresholds are ours.

    math   m / (m + 0.05), m = marks of mathematics per word (LaTeX commands, formula delimiters, operators)
    code   share of the lines that are not empty and look like source code
    whole  share of the delimiters, environments and blocks that have their counterpart: extraction from HTML
           that drops formulas leaves `\\(` without `\\)`, one that drops indentation `def f():` alone
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HALF = 0.05  # marks per word at which the math score is one half
COMMANDS = (
    "frac|sqrt|sum|prod|int|lim|log|sin|cos|tan|alpha|beta|gamma|theta|lambda|pi|infty|cdot|times|leq?|geq?|neq|"
    "in|subset|cup|cap|mathbb|mathcal|mathrm|text|begin|end|left|right|binom|pmod|equiv|to|partial|nabla|boxed"
)
MATH = re.compile(
    rf"\\(?:{COMMANDS})(?![A-Za-z])|\$|\\[()\[\]]|[=^_<>≤≥≠≈∑∏∫√∞∈∉⊂⊆∪∩∀∃∂∇±×÷·→]|\d\s*[+*/-]\s*\d"
)
WORD = re.compile(r"\w+")
CODE = re.compile(
    r"""^\s*(?:
        (?:def|class|import|from|return|elif|except|raise|with|async|await|yield|lambda|assert|print)\b.*
      | (?:if|for|while|else|try|switch|do)\b.*[:{(]\s*
      | (?:public|private|protected|static|const|let|var|func|fn)\b.*[{;(=].*
      | (?:struct|enum|impl|void|int|char|double|bool)\b.*[{;(=].*
      | \#\s*(?:include|define|ifdef|endif|pragma)\b.*
      | [)}\]]+[;,)]*\s*
      | [\w.\[\]"']+\s*(?:=|\+=|-=|:=|->|=>)\s*\S.*
      | [\w.]+\(.*\)[;:]?\s*
      | .*[;{]\s*
      | (?://|/\*|\*/|@\w+).*
    )$""",
    re.VERBOSE,
)
OPENER = re.compile(r"^\s*(?:def|class|if|elif|else|for|while|try|except|finally|with)\b.*:\s*(?:#.*)?$")
DOLLAR = re.compile(r"(?<!\\)\$")
PAIRS = ((r"\(", r"\)"), (r"\[", r"\]"), (r"\begin{", r"\end{"), ("<code>", "</code>"))


@dataclass(frozen=True, slots=True)
class Scores:
    math: float
    code: float
    whole: float
    """1 where there is nothing that could be broken."""


def scores(text: str) -> Scores:
    lines = [line for line in text.split("\n") if line.strip()]
    code = sum(1 for line in lines if CODE.match(line[:400])) / len(lines) if lines else 0.0
    words = sum(1 for _ in WORD.finditer(text))
    marks = sum(1 for _ in MATH.finditer(text)) / words if words else 0.0
    return Scores(marks / (marks + HALF), code, _whole(text, lines))


def _whole(text: str, lines: list[str]) -> float:
    paired = broken = 0
    for opening, closing in PAIRS:
        a, b = text.count(opening), text.count(closing)
        paired, broken = paired + max(a, b), broken + abs(a - b)
    fences = text.count("```")
    dollars = 0 if fences else len(DOLLAR.findall(text))  # in shell code a dollar stands alone
    paired, broken = paired + (fences + 1) // 2 + (dollars + 1) // 2, broken + fences % 2 + dollars % 2
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if line.rstrip().endswith(":") and OPENER.match(line[:400]):
            paired += 1
            broken += _indent(following) <= _indent(line)
    return 1 - broken / paired if paired else 1.0


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
