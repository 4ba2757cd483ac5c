"""From an answer's text to its readings as trees (math_tree.py).  A text that does not parse is no error of
the caller: it becomes a `text` node, which equals only the same text."""

from __future__ import annotations

import re
from functools import lru_cache

from onebase.verifiers.math_budget import Exhausted, budget
from onebase.verifiers.math_cursor import Cursor
from onebase.verifiers.math_grammar import answer
from onebase.verifiers.math_lex import THOUSANDS, Unreadable, clean, tokenize, written_out
from onebase.verifiers.math_policy import LIMITS
from onebase.verifiers.math_text import normal_text, number_in_words, special_text, unwrap
from onebase.verifiers.math_tree import Node

_SPACES = re.compile(r"\s{2,}")
_LEAD = re.compile(r"^(?:=|\\approx|\\checkmark)\s*")
_EXCEPT = re.compile(
    r"(?:all\s+)?real\s+numbers\s+except\s+(?:for\s+)?(?:[a-z]\s*=\s*)?([-\d,./\s]+(?:and\s+[-\d./]+)?)\.?",
    re.I,
)
_PROSE = re.compile(r"[^\W\d_]*(?:[\s{}.,;:'-]+[^\W\d_]+)*[\s{}.,;:']*")


def parse_strict(text: str, merge_commas: bool) -> Node:
    """The tree of cleaned text, or Unreadable."""
    return answer(Cursor(tokenize(text, merge_commas)))


def readings(text: str) -> tuple[Node, ...]:
    """Every reading of an answer's text, the likeliest first: 1,234 is one number, or else two; what does not
    parse is text.  Short texts are cached, since a group of rollouts shares its gold and many of its answers;
    of long ones only the last few, since one judgement looks at its own several times."""
    return _cached(text) if len(text) <= LIMITS.cached_chars else _cached_long(text)


def _readings(text: str) -> tuple[Node, ...]:
    try:
        with budget(LIMITS.reading_operations):
            return _read(text)
    except Exhausted:
        return (Node("text", (normal_text(text[: LIMITS.answer_chars]),)),)


def _read(text: str) -> tuple[Node, ...]:
    if len(text) > LIMITS.answer_chars:
        return (Node("text", (normal_text(text[: LIMITS.answer_chars + 1]),)),)
    text = written_out(_SPACES.sub(" ", text))
    found: list[Node] = []
    if (special := special_text(text)) is not None:
        if special.op != "clock" or special.args[3] or re.search(r":0\d", text):
            return (special,)
        found.append(special)  # 7:32 may be a ratio too
    if (match := _EXCEPT.fullmatch(unwrap(text))) is not None:
        text = f"\\mathbb{{R}} \\setminus \\{{{match.group(1)}\\}}"
    elif (written := number_in_words(text)) is not None:
        text = written
    cleaned = clean(text).strip()
    cleaned = _LEAD.sub("", cleaned).removesuffix("\\checkmark").rstrip()
    cleaned = cleaned if cleaned.endswith("..") else cleaned.removesuffix(".")
    for merge in (True, False) if "," in cleaned and THOUSANDS.search(cleaned) else (True,):
        try:
            node = parse_strict(cleaned, merge)
        except (Unreadable, RecursionError, ZeroDivisionError):
            continue
        if node not in found:
            found.append(node)
    if not found or _PROSE.fullmatch(unwrap(text)):
        found.append(Node("text", (normal_text(text),)))  # words alone may also be meant as they stand
    return tuple(found)


_cached = lru_cache(maxsize=2048)(_readings)
_cached_long = lru_cache(maxsize=8)(_readings)
