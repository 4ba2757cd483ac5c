"""datatrove's Gopher filters, reached only where they might drop: the same decisions, several times as fast.

Its loops over words and n-grams in Python take most of the time of a whole preparation.  Most documents are
kept, and that can be seen from bounds:

    top n-gram         count of the most frequent n-gram times its longest form
    repeated n-grams   their characters at every place but the first; datatrove skips overlapping ones, so it
                       counts no more than that
    quality            each of its ratios, from what is known of each word once

A document whose bounds keep all thresholds is kept; any other goes through datatrove's own filter, which
decides and gives the reason.  N-grams are compared by 64-bit hashes of their characters: prefix sums of a
polynomial in an odd base, whose inverse modulo 2^64 shifts every n-gram to the origin.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.text import PUNCTUATION_SET, split_into_words
from numpy.typing import NDArray

BASE = 0x9E3779B97F4A7C15
KNOWN = 1 << 18  # words of which the properties are kept at hand


class _Powers:
    """BASE^i and BASE^-i modulo 2^64, as far as they were needed."""

    def __init__(self) -> None:
        self.up = self.down = np.ones(1, dtype=np.uint64)

    def get(self, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        if len(self.up) < count:
            size = 1 << (count - 1).bit_length()
            factors = np.full(size - 1, BASE, dtype=np.uint64)
            self.up = np.concatenate([self.up[:1], np.cumprod(factors)])
            factors[:] = pow(BASE, -1, 1 << 64)
            self.down = np.concatenate([self.down[:1], np.cumprod(factors)])
        return self.up, self.down


class FastRepetition(GopherRepetitionFilter):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lines = GopherRepetitionFilter(**options, top_n_grams=(), dup_n_grams=())
        self.powers = _Powers()

    def filter(self, doc: Document) -> Any:
        kept = self.lines.filter(doc)  # paragraphs and lines, which come first in any case
        return kept if kept is not True or self.few_repeats(doc.text) else super().filter(doc)

    def few_repeats(self, text: str) -> bool:
        """Whether no n-gram can repeat too much."""
        words = split_into_words(text, self.language)
        joined = "".join(words)
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        up, down = self.powers.get(len(codes) + 1)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((codes + np.uint64(1)) * up[: len(codes)])])
        at = np.concatenate([[0], np.cumsum([len(w) for w in words], dtype=np.int64)])
        for n, most in self.top_n_grams:
            if len(words) < n:
                continue
            hashes, sizes = self._ngrams(sums, down, at, n)
            if _count(np.sort(hashes)) * (sizes.max() + n - 1) / len(text) <= most:  # n - 1 spaces
                continue
            order = np.argsort(hashes, kind="stable")
            edges = _edges(hashes[order])
            counts = np.diff(edges)
            frequent = order[edges[:-1][counts == counts.max()]]
            if counts.max() * (sizes[frequent].max() + n - 1) / len(text) > most:
                return False
        for n, most in sorted(self.dup_n_grams):
            if len(words) < n:
                break
            hashes, sizes = self._ngrams(sums, down, at, n)
            if _count(np.sort(hashes)) == 1:
                break  # nor does a longer one stand twice
            order = np.argsort(hashes, kind="stable")
            later = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
            if sizes[later].sum() / len(text) > most:
                return False
        return True

    @staticmethod
    def _ngrams(sums: Any, down: Any, at: Any, n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(hash, characters) of every n-gram."""
        start, end = at[:-n], at[n:]
        return (sums[end] - sums[start]) * down[start], end - start


def _edges(ordered: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each run of equal values begins, and the end."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))


def _count(ordered: NDArray[np.uint64]) -> int:
    """How often the most frequent value stands there."""
    return int(np.diff(_edges(ordered)).max())


class FastQuality(GopherQualityFilter):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.known: dict[str, tuple[int, int, int]] = {}

    def filter(self, doc: Document) -> Any:
        return True if self.fits(doc.text) else super().filter(doc)

    def fits(self, text: str) -> bool:
        """Whether every rule is kept, as `GopherQualityFilter.filter` states them."""
        words = split_into_words(text, self.language)
        known = self.known
        if len(known) > KNOWN:
            known.clear()
        total, count, length, letters = len(words), 0, 0, 0
        for word, n in Counter(words).items():
            if word not in known:
                plain = any(c not in PUNCTUATION_SET for c in word)
                known[word] = (plain, plain * len(word), any(c.isalpha() for c in word))
            has = known[word]
            count, length, letters = count + n * has[0], length + n * has[1], letters + n * has[2]
        if not self.min_doc_words <= count <= self.max_doc_words:
            return False
        lines = text.splitlines()
        bullets = sum(s.lstrip().startswith(("•", "-")) for s in lines)
        dots = sum(s.rstrip().endswith(("...", "…")) for s in lines)
        return (
            self.min_avg_word_length <= length / count <= self.max_avg_word_length
            and text.count("#") / total <= self.max_symbol_word_ratio
            and (text.count("...") + text.count("…")) / total <= self.max_symbol_word_ratio
            and bullets / len(lines) <= self.max_bullet_lines_ratio
            and dots / len(lines) <= self.max_ellipsis_lines_ratio
            and letters / total >= self.max_non_alpha_words_ratio
            and len(self.stop_words.intersection(words)) >= self.min_stop_words
        )
