"""From an answer's text to its readings as trees (math_tree.py).  A text that does not parse is no error of
the caller: it becomes a `text` node, which equals only the same text."""

from __future__ import annotations

import re
from functools import lru_cache

from onebase.verifiers.math_cursor import Cursor
from onebase.verifiers.math_grammar import answer
from onebase.verifiers.math_lex import Unreadable, clean, tokenize
from onebase.verifiers.math_policy import LIMITS
from onebase.verifiers.math_text import normal_text, special_text, unwrap
from onebase.verifiers.math_tree import Node

_LEAD = re.compile(r"^(?:=|\\approx|\\checkmark)\s*|\s*\\checkmark$")
_PROSE = re.compile(r"[^\W\d_]*(?:[\s{}.,;:'-]+[^\W\d_]+)*[\s{}.,;:']*")


def parse_strict(text: str, merge_commas: bool) -> Node:
    """The tree of cleaned text, or Unreadable."""
    return answer(Cursor(tokenize(text, merge_commas)))


def readings(text: str) -> tuple[Node, ...]:
    """Every reading of an answer's text, the likeliest first: 1,234 is one number, or else two; what does not
    parse is text.  Short texts are cached: a group of rollouts shares its gold and many of its answers."""
    return _cached(text) if len(text) <= LIMITS.cached_chars else _readings(text)


def _readings(text: str) -> tuple[Node, ...]:
    if len(text) > LIMITS.answer_chars:
        return (Node("text", (normal_text(text[: LIMITS.answer_chars + 1]),)),)
    special = special_text(text)
    if special is not None:
        return (special,)
    cleaned = clean(text).strip()
    cleaned = _LEAD.sub("", cleaned)
    cleaned = cleaned if cleaned.endswith("..") else cleaned.removesuffix(".")
    found: list[Node] = []
    for merge in (True, False):
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
