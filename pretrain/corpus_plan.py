"""Which files a corpus is made of, cut into tasks of about equal size, before a word of them is read.

A task is a number of small files or a byte range of a large one (lines and JSONL that are not compressed;
other files are one task each).  Files with equal content are found by their digests and read once.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebase.errors import UserError
from onebase.pretrain.corpus_config import CorpusConfig, CorpusSource

MOST_FILES = 5000  # of one task
BLOCK = 1 << 20
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".warc": "warc", ".wet": "warc"}
PACKED = (".gz", ".zst", ".bz2", ".xz")
# Folders that hold what others wrote or a machine made.
VENDORED = {"node_modules", "__pycache__", "site-packages", "vendor", "third_party", "dist", "build", "venv"}
CODE = set(
    ".py .pyi .c .h .cc .cpp .hpp .cxx .cu .cuh .java .js .jsx .ts .tsx .go .rs .rb .php .cs .swift .kt "
    ".scala .hs .ml .lisp .clj .ex .exs .erl .lua .r .jl .m .pl .sh .bash .sql .lean .v .sv .vhd .f90 .asm "
    ".s .zig .nim .dart .md .rst .tex .toml .yaml .yml .cmake .proto .html .css".split()
)


@dataclass(frozen=True, slots=True)
class Task:
    source: str
    format: str
    files: list[tuple[str, tuple[int, int] | None]]
    """Names below the source's root, and the range of bytes where it is not the whole file."""


@dataclass(frozen=True, slots=True)
class Plan:
    tasks: list[Task]
    left_out: dict[str, dict[str, int]]
    """By source: files that are not read, by reason."""
    digest: str
    """Of the files' names, sizes and times of change."""


def root_of(source: CorpusSource) -> Path:
    path = Path(source.path)
    return path.parent if path.is_file() else path


def plan(config: CorpusConfig) -> Plan:
    """UserError where a source has no file."""
    digest = hashlib.sha256()
    tasks: list[Task] = []
    seen: dict[int, dict[str, str]] = defaultdict(dict)
    sizes = Counter(size for source in config.sources.values() for _, _, size in _files(source, Counter()))
    left_out: dict[str, dict[str, int]] = {}
    for name, source in config.sources.items():
        counts: Counter[str] = Counter()
        found: list[tuple[Path, str, int]] = []
        for file, kind, size in _files(source, counts):
            stat = file.stat()
            digest.update(f"{file}\0{size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
            if size == 0:
                counts["empty file"] += 1
                continue
            if sizes[size] > 1:  # only files of equal size can be equal
                known = seen[size].setdefault(_content(file), str(file))
                if known != str(file):
                    counts["copy of another file"] += 1
                    continue
            found.append((file, kind, size))
        if not found and not counts:
            raise UserError(f"sources.{name}: {source.path}: no file matches glob {source.glob!r}")
        tasks += _tasks(name, found, root_of(source), config.part_bytes)
        left_out[name] = dict(counts)
    return Plan(tasks, left_out, digest.hexdigest())


def _files(source: CorpusSource, counts: Counter[str]) -> Iterator[tuple[Path, str, int]]:
    """(file, format, size) in the order of their names; what a code folder leaves out is counted."""
    path = Path(source.path)
    files = [path] if path.is_file() else sorted(p for p in path.glob(source.glob) if p.is_file())
    for file in files:
        kind = source.format if source.format != "auto" else _kind(file)
        if kind == "code" and file != path:
            above = file.relative_to(path).parts[:-1]
            if any(part.startswith(".") or part in VENDORED for part in above):
                counts["hidden or vendored"] += 1
                continue
            if file.suffix.lower() not in CODE:
                counts["not source code by its name"] += 1
                continue
        if not os.access(file, os.R_OK):
            counts["cannot be opened"] += 1
            continue
        yield file, kind, file.stat().st_size


def _kind(file: Path) -> str:
    suffixes = [s for s in file.suffixes if s not in PACKED]
    return SUFFIXES.get(suffixes[-1].lower(), "text") if suffixes else "text"


def _content(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(file, "rb") as f:
        while data := f.read(BLOCK):
            digest.update(data)
    return digest.hexdigest()


def _tasks(name: str, found: list[tuple[Path, str, int]], root: Path, size: int) -> Iterator[Task]:
    group: list[tuple[str, tuple[int, int] | None]] = []
    held, group_kind = 0, ""
    for file, kind, length in found:
        below = str(file.relative_to(root))
        if kind in ("lines", "jsonl") and file.suffix not in PACKED and length > size:
            for start in range(0, length, size):
                yield Task(name, kind, [(below, (start, min(start + size, length)))])
            continue
        if group and (held + length > size or len(group) >= MOST_FILES or kind != group_kind):
            yield Task(name, group_kind, group)
            group, held = [], 0
        group.append((below, None))
        held, group_kind = held + length, kind
    if group:
        yield Task(name, group_kind, group)


def as_json(tasks: list[Task]) -> list[dict[str, Any]]:
    return [{"source": t.source, "format": t.format, "files": t.files} for t in tasks]
