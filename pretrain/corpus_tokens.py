"""A part of kept text becomes token files: duplicates left out, tokenised, checked for repeats of ids,
written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebase.pretrain.corpus_config import CorpusConfig
from onebase.pretrain.corpus_repeats import repeating_period
from onebase.pretrain.corpus_shards import SPLITS, Shard
from onebase.pretrain.shards import largest_id, pieces
from onebase.tokenizer import ChatTokenizer

BATCH = 1 << 20  # characters that are tokenised together


class _Split:
    """One token file and its document ends, being written."""

    def __init__(self, folder: Path, split: str) -> None:
        self.tokens_file = open(folder / f"{split}.tokens", "wb")  # noqa: SIM115 closed by `close`
        self.ends_file = open(folder / f"{split}.documents", "wb")  # noqa: SIM115
        self.digest = hashlib.blake2b(digest_size=16)
        self.tokens = self.bytes = self.documents = 0

    def add(self, row: NDArray[Any], size: int) -> None:
        data = row.tobytes()
        self.tokens_file.write(data)
        self.digest.update(data)
        self.tokens += len(row)
        self.bytes += size
        self.documents += 1
        self.ends_file.write(np.uint64(self.tokens).tobytes())

    def close(self) -> None:
        self.tokens_file.close()
        self.ends_file.close()


def dtype_of(tokenizer: ChatTokenizer) -> np.dtype[Any]:
    return np.dtype(np.uint16 if largest_id(tokenizer) < 1 << 16 else np.uint32)


def write_shard(
    texts: Iterator[str],
    removed: NDArray[np.bool_] | None,
    tokenizer: ChatTokenizer,
    config: CorpusConfig,
    folder: Path,
    path: str,
) -> None:
    """The part's `<split>.tokens` and `<split>.documents` into `folder`, with `shard.json`: what they hold
    and what was left out.  `path` is the folder's name in the corpus."""
    dtype, counts = dtype_of(tokenizer), Counter[str]()
    writers = {split: _Split(folder, split) for split in SPLITS}
    end = tokenizer.document_end_id
    try:
        for batch in _batches(_kept(texts, removed, counts)):
            for text, ids in zip(batch, _encode(tokenizer, batch), strict=True):
                row = np.array([*ids, end], dtype=dtype)
                size = len(text.encode("utf-8", "surrogatepass"))
                period = repeating_period(row, config.repeats.period, config.repeats.most)
                if period is not None:
                    counts[f"dropped/repeats: period {period}"] += 1
                    counts["dropped_bytes"] += size
                    continue
                writers[_split(text, config)].add(row, size)
    finally:
        for writer in writers.values():
            writer.close()
    shards = {
        split: asdict(Shard(f"{path}/{split}", w.tokens, w.bytes, w.documents, w.digest.hexdigest()))
        for split, w in writers.items()
    }
    (folder / "shard.json").write_text(json.dumps({"shards": shards, "counts": counts}), encoding="utf-8")


def _kept(texts: Iterator[str], removed: NDArray[np.bool_] | None, counts: Counter[str]) -> Iterator[str]:
    for n, text in enumerate(texts):
        if removed is not None and removed[n]:
            counts["dropped/near-duplicate"] += 1
            counts["dropped_bytes"] += len(text.encode("utf-8", "surrogatepass"))
        else:
            yield text


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: ChatTokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """Ids of each text; long ones in pieces that change nothing (`shards.pieces`)."""
    cut = [list(pieces(iter([text]))) for text in texts]
    encoded = iter(tokenizer.encode_batch([piece for parts in cut for piece in parts]))
    for parts in cut:
        yield [i for _ in parts for i in next(encoded)]


def _split(text: str, config: CorpusConfig) -> str:
    """A function of the text and the seed, so that a copy of a document never lands in the other split."""
    if not config.heldout:
        return "train"
    data = f"{config.seed}\0{text}".encode("utf-8", "surrogatepass")
    draw = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") / 2**64
    return "heldout" if draw < config.heldout else "train"
