"""A prepared corpus on the disk, and its tokens as packed rows.

    <corpus>/index.json                      sources with weights, shards with sizes and digests, vocabulary
    <corpus>/tokenizer/                      the tokenizer whose ids these are
    <corpus>/shards/<n>/<split>.tokens       ids one behind the other, uint16 or uint32, each document closed
                                             by the end mark; memory-mapped
    <corpus>/shards/<n>/<split>.documents    uint64: where each document ends, in tokens

Row k of a source is a function of (seed, k) alone: its shards are read as one stream that is cut into windows
of `length` tokens, and the windows of an epoch come in the order of a pseudo-random permutation
(`data.epoch_order`). No window overlaps another and the last one is padded, so that an epoch shows every
token once; rows are computed, not counted, so a resume neither repeats nor skips one.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onebase.errors import UserError
from onebase.pretrain.shards import vocabulary_digest
from onebase.recipe import Source
from onebase.tokenizer import ChatTokenizer
from onebase.wording import listed

FORMAT = 1
SPLITS = ("train", "heldout")
OPEN = 64  # shards that are mapped at the same time
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    path: str
    """Below the corpus' folder, without `.tokens`."""
    tokens: int
    bytes: int
    """UTF-8 bytes of the documents."""
    documents: int
    digest: str
    """BLAKE2b of the tokens."""


@dataclass(frozen=True, slots=True)
class Part:
    """One source in one split."""

    name: str
    weight: float
    shards: tuple[Shard, ...]

    @property
    def tokens(self) -> int:
        return sum(s.tokens for s in self.shards)

    @property
    def bytes(self) -> int:
        return sum(s.bytes for s in self.shards)


@dataclass(frozen=True)
class Corpus:
    folder: Path
    name: str
    dtype: str
    vocabulary: str
    """Digest of the tokenizer."""
    parts: dict[str, tuple[Part, ...]]
    """By split."""

    @cached_property
    def tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer.load(str(self.folder / "tokenizer"))


def write_index(folder: Path, corpus: dict[str, Any]) -> str:
    """The text of `index.json`; UserError where two shards hold the same tokens."""
    return json.dumps({"format": FORMAT, **corpus}, indent=1) + "\n"


def part_dict(part: Part) -> dict[str, Any]:
    return {"name": part.name, "weight": part.weight, "shards": [asdict(s) for s in part.shards]}


def open_corpus(folder: Path | str) -> Corpus:
    """A prepared corpus, every shard's length looked at; UserError where it is not whole."""
    root = Path(folder)
    try:
        said = json.loads((root / "index.json").read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise UserError(f"{root}: format {said['format']}, this version reads {FORMAT}; prepare it again")
        parts = {
            split: tuple(
                Part(p["name"], p["weight"], tuple(Shard(**s) for s in p["shards"]))
                for p in said["splits"][split]
            )
            for split in SPLITS
        }
        corpus = Corpus(root, said["name"], said["dtype"], said["vocabulary"], parts)
    except FileNotFoundError:
        unfinished = " (its preparation is not finished)" if (root / "work").is_dir() else ""
        raise UserError(
            f"{root}: no prepared corpus there{unfinished}; make it with "
            f"`onebase corpus CONFIG.yaml --out {root}`"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{root / 'index.json'}: damaged: {error!r}; prepare the corpus again") from error
    _check(corpus)
    return corpus


def _check(corpus: Corpus) -> None:
    size_of = np.dtype(corpus.dtype).itemsize
    seen: dict[str, str] = {}
    for parts in corpus.parts.values():
        for part in parts:
            for shard in part.shards:
                file = corpus.folder / f"{shard.path}.tokens"
                size = file.stat().st_size if file.is_file() else None
                if size != shard.tokens * size_of:
                    told = "is missing" if size is None else f"has {size} bytes"
                    raise UserError(
                        f"{file}: {told}, {shard.tokens * size_of} are expected ({shard.tokens} tokens): cut "
                        "short or replaced; copy the corpus again or prepare it again"
                    )
                if shard.digest in seen:
                    raise UserError(
                        f"{corpus.folder}: shards {seen[shard.digest]} and {shard.path} hold the same "
                        "tokens: one is a copy; prepare the corpus again"
                    )
                seen[shard.digest] = shard.path


def verify(corpus: Corpus) -> None:
    """Read every token and compare the digests; UserError names the shard that differs."""
    for parts in corpus.parts.values():
        for shard in (s for part in parts for s in part.shards):
            digest = hashlib.blake2b(digest_size=16)
            with open(corpus.folder / f"{shard.path}.tokens", "rb") as f:
                while data := f.read(BLOCK):
                    digest.update(data)
            if digest.hexdigest() != shard.digest:
                raise UserError(
                    f"{corpus.folder / shard.path}.tokens: its content is not what was written (digest "
                    f"{digest.hexdigest()}, expected {shard.digest})"
                )


def check_vocabulary(corpus: Corpus, tokenizer: ChatTokenizer) -> None:
    """UserError where the corpus' ids are not this tokenizer's."""
    if vocabulary_digest(tokenizer) != corpus.vocabulary:
        raise UserError(
            f"{corpus.folder}: its tokens were made with another vocabulary ({corpus.tokenizer.size} "
            f"entries) than the model's ({tokenizer.size} entries)\n"
            "  either start the stage without init, so that it takes the corpus' tokenizer, or prepare the "
            "corpus with `tokenizer: {path: CHECKPOINT}`"
        )


def parts_of(corpus: Corpus, split: str) -> tuple[Part, ...]:
    """The parts of a split that hold tokens; UserError where none does."""
    if split not in SPLITS:
        raise UserError(f"{corpus.folder}: split {split!r}; allowed: {listed(SPLITS)}")
    parts = tuple(p for p in corpus.parts[split] if p.tokens)
    if not parts:
        how = "; set `heldout` when it is prepared" if split == "heldout" else ""
        raise UserError(f"{corpus.folder}: its split {split} holds no token{how}")
    return parts


class Stream:
    """The tokens of a part's shards as one sequence; few shards are mapped at a time."""

    def __init__(self, corpus: Corpus, part: Part) -> None:
        self.files = [corpus.folder / f"{s.path}.tokens" for s in part.shards]
        self.ends = np.cumsum([s.tokens for s in part.shards])
        self.dtype = np.dtype(corpus.dtype)
        self.mapped: OrderedDict[int, np.memmap[Any, Any]] = OrderedDict()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as int64."""
        assert 0 <= start <= stop <= len(self), f"{start=} {stop=} {len(self)=}"
        out = np.empty(stop - start, dtype=np.int64)
        shard = int(np.searchsorted(self.ends, start, side="right"))
        at = start
        while at < stop:
            begins = int(self.ends[shard - 1]) if shard else 0
            end = min(stop, int(self.ends[shard]))
            out[at - start : end - start] = self._shard(shard)[at - begins : end - begins]
            at, shard = end, shard + 1
        return out

    def _shard(self, n: int) -> np.memmap[Any, Any]:
        if n in self.mapped:
            self.mapped.move_to_end(n)
        else:
            try:
                self.mapped[n] = np.memmap(self.files[n], dtype=self.dtype, mode="r")
            except (OSError, ValueError) as error:
                raise UserError(f"{self.files[n]}: cannot be read: {error}") from error
            if len(self.mapped) > OPEN:
                self.mapped.popitem(last=False)
        return self.mapped[n]


class CorpusRows:
    """Windows of one source, in a new order each epoch."""

    def __init__(self, stream: Stream, length: int, document_end: int, pad: int, seed: int) -> None:
        self.stream, self.length, self.end, self.pad, self.seed = stream, length, document_end, pad, seed
        self.count = -(-len(stream) // length)
        """Rows of an epoch."""

    def row(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(ids, trained, position, document) of the k-th row, each of `length`."""
        from onebase.data import epoch_order

        epoch, i = divmod(k, self.count)
        start = epoch_order(self.count, self.seed, epoch, i) * self.length
        found = self.stream.read(start, min(start + self.length, len(self.stream)))
        n, T = len(found), self.length
        ids = np.full(T, self.pad, dtype=np.int64)
        ids[:n] = found
        ends = found == self.end
        document = np.full(T, -1, dtype=np.int64)
        document[:n] = np.concatenate([[0], ends[:-1].cumsum()])
        first = np.concatenate([[True], ends[:-1]])
        position = np.zeros(T, dtype=np.int64)
        position[:n] = np.arange(n) - np.maximum.accumulate(np.where(first, np.arange(n), 0))
        return ids, np.arange(T) < n, position, document


def rows_of(
    folder: Path | str, split: str, tokenizer: ChatTokenizer, length: int, seed: int
) -> tuple[Sequence[CorpusRows], Sequence[float]]:
    """Packed rows of each source of a prepared corpus, and the sources' weights."""
    corpus = open_corpus(folder)
    check_vocabulary(corpus, tokenizer)
    parts = parts_of(corpus, split)
    rows = [
        CorpusRows(Stream(corpus, p), length, tokenizer.document_end_id, tokenizer.pad_id, seed)
        for p in parts
    ]
    return rows, [p.weight for p in parts]


def corpus_tokenizer(sources: Sequence[Source]) -> ChatTokenizer | None:
    """The tokenizer that the stage's prepared corpora were made with; None where it has none.  UserError
    where they differ."""
    found = [open_corpus(s.corpus) for s in sources if s.corpus is not None]
    for other in found[1:]:
        if other.vocabulary != found[0].vocabulary:
            raise UserError(
                f"{found[0].folder} and {other.folder}: made with different tokenizers; prepare one of them "
                f"again with `tokenizer: {{path: {found[0].folder / 'tokenizer'}}}`"
            )
    return found[0].tokenizer if found else None


def corpus_bytes_per_token(folder: Path | str, split: str) -> float:
    """Bytes of text that one id stands for in the mix of a split."""
    parts = parts_of(open_corpus(folder), split)
    weights = sum(p.weight for p in parts)
    return sum(p.weight / weights * p.bytes / p.tokens for p in parts)
