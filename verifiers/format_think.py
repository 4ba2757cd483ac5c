"""Reward `cap` when the completion is exactly one closed thought followed by an answer, else 0: the format
reward of R1 (arXiv 2501.12948, section 2.2.2).

With the row option `prefilled=True` the prompt has already opened the thought (as R1's template does), so the
completion starts inside it and must hold the closing tag only.

Tags as ids.  Where the tokenizer has single ids for the tags, a tag spelled out in characters decodes to the
same text as the id, and only the id is what the model was trained on and what ends a thought.  A row that
carries `tag_counts`, how often the opening and the closing id stand in the completion (None where the
tokenizer has no such id), is held to ids: a spelled-out tag is no tag.  Without it the text alone is judged.

`cap` bounds what format can earn, so that it cannot outweigh the answer.  Thought and answer must each show
something: white space and invisible characters are nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from onebase.verifiers.base import Verdict, failed

INLINE = True
OPEN, CLOSE = "<think>", "</think>"
_LOOK = 100_000  # characters of a thought or an answer in which something visible must come


def verify(
    completion: str,
    answer: str = "",
    *,
    prefilled: bool = False,
    cap: float = 1.0,
    tag_counts: Sequence[int | None] | None = None,
    **row: Any,
) -> Verdict:
    if not 0 < cap <= 1:
        return failed(f"row: cap must be above 0 and at most 1: {cap!r}")
    if tag_counts is not None and len(tag_counts) != 2:
        return failed(f"row: tag_counts is [times {OPEN}, times {CLOSE}] as ids: {tag_counts!r}")
    fault = _fault_of_text(completion, prefilled)
    if not fault and tag_counts is not None:
        fault = _fault_of_ids(completion, tag_counts)
    if fault:
        return Verdict(0.0, fault)
    return Verdict(float(cap), "one thought, then an answer")


def _fault_of_text(completion: str, prefilled: bool) -> str:
    opened, closed = completion.count(OPEN), completion.count(CLOSE)
    if opened != (0 if prefilled else 1) or closed != 1:
        return f"{opened} times {OPEN}, {closed} times {CLOSE}" + (", prefilled" if prefilled else "")
    thought, _, rest = completion.partition(CLOSE)
    if not prefilled:
        if not thought.lstrip().startswith(OPEN):
            return f"text before {OPEN}, or {CLOSE} comes first"
        thought = thought.lstrip().removeprefix(OPEN)
    if not _visible(thought):
        return "the thought is empty"
    return "" if _visible(rest) else "no answer after the thought"


def _fault_of_ids(completion: str, tag_counts: Sequence[int | None]) -> str:
    for tag, as_ids in zip((OPEN, CLOSE), tag_counts, strict=True):
        if as_ids is not None and as_ids != (in_text := completion.count(tag)):
            return f"{tag} stands {in_text} times in the text, {as_ids} times as its id: it is spelled out"
    return ""


def _visible(text: str) -> bool:
    """Whether a letter, digit, mark or sign is in it: not only blanks, zero-width and control characters."""
    return any(unicodedata.category(c)[0] in "LNPS" for c in text[:_LOOK])
