"""Words, and hashes of their n-grams.

datatrove splits English with spaCy; here one regular expression does (runs of letters and digits, and every
other mark alone), which needs no package and is some ten times as fast.  Its filters and MinHash take it as
they would take their own (`language=`), so the rules stay datatrove's; a source may be split otherwise only
by another class. Scripts without spaces (Chinese, Japanese, Thai) are not split into words: do not filter
them with word rules.
"""

from __future__ import annotations

import re

import numpy as np
import xxhash
from datatrove.utils.text import DEF_TEXT_NORM_CONFIG, TextNormConfig, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer
from numpy.typing import NDArray

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
PLAIN = TextNormConfig(norm_unicode_diacritics=False)  # the same for text that has none, without looking
KNOWN = 1 << 18  # words whose hash is kept at hand
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's hash is lost when it is multiplied


class Words(WordTokenizer):
    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("no filter in use splits sentences")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError("no filter in use splits sentences")


class Hashes:
    """64-bit hashes of words, and of n-grams of words as polynomials of them, of text that datatrove has made
    simple (lower case, no punctuation, numbers as 0, no accents)."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def words(self, text: str) -> NDArray[np.uint64]:
        words = WORD.findall(simplify_text(text, PLAIN if text.isascii() else DEF_TEXT_NORM_CONFIG))
        known = self.known
        if len(known) > KNOWN:
            known.clear()
        for word in set(words).difference(known):
            known[word] = xxhash.xxh64_intdigest(word.encode("utf-8", "surrogatepass"))
        return np.fromiter(map(known.__getitem__, words), dtype=np.uint64, count=len(words))


def ngrams(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A hash of every n words in a row; none where there are fewer."""
    count = len(words) - n + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        total = total * BASE + words[i : i + count]
    total ^= total >> np.uint64(29)  # so that low bits depend on all
    return total * BASE
