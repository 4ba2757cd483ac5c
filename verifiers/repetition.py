"""Share of n-grams of words that are not repeats: 1 for text that never says the same thing twice, near 0 for
a loop.

The n-gram repetition measure of Welleck et al. (arXiv 1908.04319, seq-rep-n), as one minus the repeated
share.  Deviations, so that loops cannot hide: in scripts without blanks every character is a word; a run of
letters beyond 24 or of blanks beyond 8 is cut into words; of a text beyond 400,000 characters the end is
read, where loops are.
"""

from __future__ import annotations

import re
from typing import Any

from onebase.verifiers.base import Verdict, failed

INLINE = True
_LIMIT = 400_000
_LONGEST = 64  # n-grams longer than this cost memory and tell nothing more
# Han, kana, Thai, Lao, Khmer, Burmese: written without blanks
_UNSPACED = (
    "\u2e80-\u2fdf\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]{{1,24}}|[^\w\s]|\s{{8}}")


def verify(completion: str, answer: str = "", *, n: int = 8, **row: Any) -> Verdict:
    if not 1 <= n <= _LONGEST:
        return failed(f"row: n must be in 1..{_LONGEST}: {n}")
    words = _WORD.findall(completion[-_LIMIT:].lower())
    # Hashes, not the tuples: 64 words a gram would be 200 MB at the limit.
    grams = [hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1)]
    if not grams:
        return Verdict(1.0, f"fewer than {n} words")
    distinct = len(set(grams))
    return Verdict(distinct / len(grams), f"{distinct} distinct of {len(grams)} {n}-grams")
