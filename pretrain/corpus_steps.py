"""The pieces of work of `onebase corpus`, each a function of files that writes one folder whole or not at
all.

They run in worker processes, so arguments are plain values.  A finished piece is its folder (or mark); a run
that was killed does only what is missing.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from onebase.errors import UserError
from onebase.files import atomic_folder, atomic_write, disk_full, is_full
from onebase.pretrain import corpus_read
from onebase.pretrain.corpus_config import CorpusConfig
from onebase.pretrain.corpus_decontaminate import Index
from onebase.pretrain.corpus_dedup import group, match, minhash, sign
from onebase.pretrain.corpus_filter import Filter, tally
from onebase.pretrain.corpus_plan import root_of
from onebase.pretrain.corpus_tokens import write_shard
from onebase.tokenizer import ChatTokenizer

LEVEL = 3  # of zstd; the kept text is written once and read two or three times


def start_worker(main: int) -> None:
    """In each worker: one thread, and an end when the main process ends, however it ends."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    if os.uname().sysname == "Linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != main:  # it ended before that
            os._exit(1)


@cache
def _index(folder: str) -> Index | None:
    return Index(Path(folder)) if folder else None


@cache
def _tokenizer(folder: str) -> ChatTokenizer:
    return ChatTokenizer.load(folder)


def read(task: dict[str, Any], config: CorpusConfig, suites: str, folder: Path) -> None:
    """Read a task's files, filter each document, write what is kept as parts of at most `part_bytes`:

    <folder>/000.jsonl.zst ...   {"id", "text"} of each document
    <folder>/counts.json         {"parts": documents of each, "counts": by reason, "scores": sums}
    """
    source = config.sources[task["source"]]
    reader = corpus_read.make(
        task["format"], str(root_of(source).absolute()), config.max_document_bytes, source.template
    )
    rule = Filter(source, config, _index(suites))
    counts, sums = Counter[str](), dict.fromkeys(("math", "code", "whole"), 0.0)
    with atomic_folder(folder) as aside:
        parts = _Parts(aside, config.part_bytes)
        for name, span in task["files"]:
            counts["files"] += 1
            reader.span = tuple(span) if span else None
            for document in _guarded(reader, name):
                counts["read"] += 1
                counts["read_bytes"] += len(document.text.encode("utf-8", "surrogatepass"))
                outcome = rule(document.text)
                tally(counts, outcome)
                if outcome.why is None and outcome.scores is not None:
                    for score in sums:
                        sums[score] += getattr(outcome.scores, score)
                    parts.add({"id": document.id, "text": outcome.text})
        parts.close()
        counts.update({f"skipped/{why}": n for why, n in reader.left_out.items()})
        counts["cut"] += reader.cut
        said = {"parts": parts.documents, "counts": counts, "scores": sums}
        (aside / "counts.json").write_text(json.dumps(said), encoding="utf-8")


def _guarded(reader: Any, name: str) -> Iterator[Any]:
    try:
        yield from reader.read_file(name)
    except OSError as error:  # of the file that is read; the disk that is written to speaks elsewhere
        raise UserError(f"{reader.data_folder.path}/{name}: cannot be read: {error}") from error


class _Parts:
    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.documents: list[int] = []
        self.held = 0
        self.out: Any = None

    def add(self, row: dict[str, Any]) -> None:
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        if self.out is None or self.held + len(line) > self.size:
            self.close()
            path = self.folder / f"{len(self.documents):03d}.jsonl.zst"
            self.out = zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(level=LEVEL))
            self.documents.append(0)
            self.held = 0
        self.out.write(line)
        self.held += len(line)
        self.documents[-1] += 1

    def close(self) -> None:
        if self.out is not None:
            self.out.close()
            self.out = None


def part_texts(part: Path) -> Iterator[str]:
    """The texts of one part."""
    with zstandard.open(part, "rb") as raw, io.BufferedReader(raw, 1 << 20) as f:
        for line in f:
            yield orjson.loads(line)["text"]


def sign_part(part: Path, rank: int, config: CorpusConfig, folder: Path) -> None:
    """MinHash signatures of one part; `done/<rank>` says that they are whole."""
    with _told(folder):
        sign(part_texts(part), folder / "signatures", rank, minhash(config.dedup, config.seed))
    atomic_write(folder / "done" / f"sign-{rank:05d}", "")


def match_bucket(bucket: int, config: CorpusConfig, folder: Path) -> None:
    with _told(folder):
        match(folder / "signatures", folder / "pairs", bucket, minhash(config.dedup, config.seed))
    atomic_write(folder / "done" / f"match-{bucket:03d}", "")


def group_all(documents: list[int], folder: Path) -> None:
    with _told(folder):
        group(folder / "pairs", documents, folder)
    atomic_write(folder / "done" / "group", "")


class _told:
    """A full disk as a UserError, for writers that are not ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and is_full(error, self.folder):
            raise disk_full(self.folder, 1 << 20, "all that was written before it", error) from error


def shard(
    part: Path,
    first: int,
    documents: int,
    dedup: Path | None,
    tokenizer: str,
    config: CorpusConfig,
    folder: Path,
    path: str,
) -> None:
    """One part's token files; `first` is the number of its first document in the whole corpus."""
    removed = np.load(dedup / "removed.npy", mmap_mode="r")[first : first + documents] if dedup else None
    with atomic_folder(folder) as aside:
        write_shard(part_texts(part), removed, _tokenizer(tokenizer), config, aside, path)
