"""Multiple choice: the letter the completion settles on, or the content of that option.

The row may carry `choices`, the options' contents in order; then the content alone counts as well, and a
content that belongs to another option than the letter beside it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.math_extract import extract
from onebase.verifiers.math_policy import DEFAULT
from onebase.verifiers.math_text import choice_letter, labelled_choice, normal_text

INLINE = True


def verify(
    completion: str, answer: str, *, choices: Sequence[str] = (), prefilled: bool = False, **row: Any
) -> Verdict:
    gold = choice_letter(str(answer)) or (labelled_choice(str(answer)) or (None,))[0]
    if gold is None:
        return failed(f"gold: {str(answer)[:80]!r} is not a choice letter")
    contents = {normal_text(text): chr(ord("A") + i) for i, text in enumerate(choices)}
    found = extract(completion, DEFAULT, kind="choice", prefilled=prefilled)
    if found.text is None:
        return Verdict(0.0, found.how)
    letter, content = choice_letter(found.text), None
    if letter is None and (labelled := labelled_choice(found.text)) is not None:
        letter, content = labelled
    if letter is None:
        letter = contents.get(normal_text(found.text))
    if letter is None:
        return Verdict(0.0, f"{found.how}: {found.text[:80]!r} is no option")
    if content is not None and contents and contents.get(normal_text(content)) != letter:
        return Verdict(0.0, f"{found.how}: {found.text[:80]!r} gives letter and content of different options")
    return Verdict(float(letter == gold), f"{found.how}: {letter} against {gold}")
