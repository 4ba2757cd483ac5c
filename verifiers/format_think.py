"""Reward 1 when the completion is exactly one closed thought followed by a non-empty answer, else 0.

With the row option `prefilled=True` the prompt has already opened the thought (as R1's template does), so the
completion starts inside it and must hold the closing tag only.
"""

from __future__ import annotations

from typing import Any

from onebase.verifiers.base import Verdict

INLINE = True
OPEN, CLOSE = "<think>", "</think>"


def verify(completion: str, answer: str = "", *, prefilled: bool = False, **row: Any) -> Verdict:
    opened, closed = completion.count(OPEN), completion.count(CLOSE)
    before, _, rest = completion.partition(CLOSE)
    if opened != (0 if prefilled else 1) or closed != 1:
        return Verdict(
            0.0, f"{opened} times {OPEN}, {closed} times {CLOSE}" + (", prefilled" if prefilled else "")
        )
    if not prefilled and not before.lstrip().startswith(OPEN):
        return Verdict(0.0, f"text before {OPEN}, or {CLOSE} comes first")
    thought = before if prefilled else before.lstrip().removeprefix(OPEN)
    if not thought.strip():
        return Verdict(0.0, "the thought is empty")
    if not rest.strip():
        return Verdict(0.0, "no answer after the thought")
    return Verdict(1.0, "one thought, then an answer")
