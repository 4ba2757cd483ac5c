"""The answer part of the completion matches a regular expression, which is the row's `answer`.

`whole=False` looks for the pattern anywhere instead of matching all of the (stripped) text after the thought.
A pattern can backtrack for ever on a hostile text, so this verifier is not INLINE: run it on a pool.
"""

from __future__ import annotations

import re
from typing import Any

from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.math_extract import answer_part


def verify(
    completion: str, answer: str, *, whole: bool = True, prefilled: bool = False, **row: Any
) -> Verdict:
    try:
        pattern = re.compile(answer, re.S)
    except re.error as error:
        return failed(f"gold: {answer[:80]!r} is not a regular expression: {error}")
    part = answer_part(completion, prefilled)
    if part.text is None:
        return Verdict(0.0, part.how)
    text = part.text.strip()
    match = pattern.fullmatch(text) if whole else pattern.search(text)
    return Verdict(float(match is not None), f"{'matches' if match else 'does not match'} {answer[:80]!r}")
