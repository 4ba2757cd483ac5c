"""The answer is one number, compared exactly: 0.50, 1/2 and 50e-2 are the same, 0.5000001 is not.

For plain word problems; `math_answer` knows far more notation.  The number is found the same way (box, "####
", "the answer is", last number), so several numbers in the box are no answer.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.math_extract import extract
from onebase.verifiers.math_policy import DEFAULT

INLINE = True
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)[$€£]?(?P<body>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
    r"(?:[eE](?P<power>[-+]?\d{1,3}))?(?:/(?P<under>\d+))?%?\.?"
)
_MAX_CHARS = 400


def verify(completion: str, answer: str, *, prefilled: bool = False, **row: Any) -> Verdict:
    gold = to_number(str(answer).rpartition("####")[2])
    if gold is None:
        return failed(f"gold: {str(answer)[:80]!r} is not a number")
    found = extract(completion, DEFAULT, prefilled=prefilled)
    if found.text is None:
        return Verdict(0.0, found.how)
    value = to_number(found.text)
    if value is None:
        return Verdict(0.0, f"{found.how}: {found.text[:80]!r} is not one number")
    same = value == gold
    return Verdict(
        float(same), f"{found.how}: {found.text[:80]!r} {'equals' if same else 'differs from'} {gold}"
    )


def to_number(text: str) -> Fraction | None:
    """The exact value of a plain number, or None."""
    text = text.strip().replace("\\$", "$").replace("−", "-").strip("$* ")
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_CHARS else None
    if match is None or match["under"] is not None and int(match["under"]) == 0:
        return None
    value = Fraction(match["body"].replace(",", "").rstrip(".")) * Fraction(10) ** int(match["power"] or 0)
    value /= int(match["under"] or 1)
    return -value if match["sign"] == "-" else value
