"""Share of n-grams of words that are not repeats: 1 for text that never says the same thing twice, near 0 for
a loop.

The n-gram repetition measure of Welleck et al. (arXiv 1908.04319, seq-rep-n), as one minus the repeated
share.
"""

from __future__ import annotations

import re
from typing import Any

from onebase.verifiers.base import Verdict

INLINE = True
_LIMIT = 400_000


def verify(completion: str, answer: str = "", *, n: int = 8, **row: Any) -> Verdict:
    assert n >= 1, f"{n=}"
    words = re.findall(r"\w+|[^\w\s]", completion[:_LIMIT].lower())
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not grams:
        return Verdict(1.0, f"fewer than {n} words")
    distinct = len(set(grams))
    return Verdict(distinct / len(grams), f"{distinct} distinct of {len(grams)} {n}-grams")
