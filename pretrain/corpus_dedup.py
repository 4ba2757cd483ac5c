"""Near-duplicates by MinHash, in three passes over files, with memory that does not grow with the corpus.

    1 signatures   datatrove's MinhashDedupSignature for each part of the corpus, on its own
    2 buckets      datatrove's MinhashDedupBuckets for each bucket: signatures that meet, by merging files
    3 groups       union-find over all documents in a memory-mapped file of 8 bytes a document; datatrove's
                   MinhashDedupCluster, which this replaces, holds every duplicate in a dictionary

Of each group the document that comes first is kept.  Deviations in pass 1: shingles are hashed from hashes of
words (`corpus_words`), and a long document's minima are taken in blocks, which changes no signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature
from numpy.typing import NDArray

from onebase.pretrain.corpus_config import Dedup
from onebase.pretrain.corpus_words import Hashes, Words, ngrams

SHINGLES = 4096  # shingles that are hashed at once
PAIRS = 1 << 16  # pairs that are read at once


def minhash(section: Dedup, seed: int) -> MinhashConfig:
    return MinhashConfig(
        n_grams=section.n_grams,
        num_buckets=section.buckets,
        hashes_per_bucket=section.hashes,
        seed=(seed + 1) % (1 << 32),
    )


class Signature(MinhashDedupSignature):
    """datatrove's first pass with our shingles, in bounded memory."""

    def __init__(self, folder: str, config: MinhashConfig) -> None:
        super().__init__(folder, config, language=Words())
        self.hashes = Hashes()

    def get_shingles(self, text: str) -> NDArray[np.uint64]:
        words = self.hashes.words(text)
        n = min(self.config.n_grams, max(1, len(words)))  # a text shorter than a shingle is one shingle
        return ngrams(words, n).reshape(-1, 1)

    def get_signature(self, shingles: NDArray[np.uint64]) -> list[list[int]]:
        least: Any = None
        for at in range(0, len(shingles), SHINGLES):
            block = np.array(super().get_signature(shingles[at : at + SHINGLES]), dtype=np.uint64)
            least = block if least is None else np.minimum(least, block)
        return least.tolist()


def sign(texts: Iterator[str], folder: Path, rank: int, config: MinhashConfig) -> None:
    """Pass 1 of one part."""
    documents = (Document(text=text, id="") for text in texts)
    Signature(str(folder), config).run(documents, rank)


def match(signatures: Path, folder: Path, bucket: int, config: MinhashConfig) -> None:
    """Pass 2 of one bucket: pairs of documents with equal signatures, into `<bucket>_00.dups`."""
    step = MinhashDedupBuckets(str(signatures), str(folder), config=config, lines_to_buffer=64)
    for _ in step.run(None, bucket, config.num_buckets) or ():
        pass


def group(pairs: Path, counts: Sequence[int], scratch: Path) -> NDArray[np.bool_]:
    """Pass 3: for every document of the corpus, in the order of the parts, whether it is left out.  `counts`
    are the parts' numbers of documents.  The answer is mapped from `scratch`."""
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(first[-1])
    if not total:
        return np.zeros(0, dtype=bool)
    parent = np.lib.format.open_memmap(scratch / "parent.npy", mode="w+", dtype=np.int64, shape=(total,))
    for at in range(0, total, PAIRS):
        parent[at : at + PAIRS] = np.arange(at, min(at + PAIRS, total))
    for file in sorted(pairs.glob("*.dups")):
        with open(file, "rb") as f:
            while data := f.read(16 * PAIRS):
                part_a, doc_a, part_b, doc_b = (
                    np.frombuffer(data, dtype="<u4").reshape(-1, 4).T.astype(np.int64)
                )
                for a, b in zip(first[part_a] + doc_a, first[part_b] + doc_b, strict=True):
                    _join(parent, int(a), int(b))
    removed = np.lib.format.open_memmap(scratch / "removed.npy", mode="w+", dtype=np.bool_, shape=(total,))
    for at in range(0, total, PAIRS):
        here = np.arange(at, min(at + PAIRS, total))
        removed[at : at + PAIRS] = parent[at : at + PAIRS] != here
    removed.flush()
    return removed


def _join(parent: Any, a: int, b: int) -> None:
    """The smaller root becomes the root of both, so that a group's root is its first document."""
    a, b = _root(parent, a), _root(parent, b)
    if a != b:
        parent[max(a, b)] = min(a, b)


def _root(parent: Any, i: int) -> int:
    while (up := int(parent[i])) != i:
        parent[i] = parent[up]  # halves the path
        i = int(parent[i])
    return i
