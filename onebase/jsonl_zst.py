"""Compressed lines of JSON (`*.jsonl.zst`): what rollouts and evaluation samples are kept in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onebase.errors import UserError

BLOCK = 1 << 18  # compressed bytes taken at once


def pack(rows: Iterable[dict[str, Any]]) -> bytes:
    """One zstd frame of one JSON object per line."""
    import zstandard

    packer = zstandard.ZstdCompressor(level=6).compressobj()
    lines = ((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace") for row in rows)
    return b"".join([*(packer.compress(line) for line in lines), packer.flush()])


def read(path: Path, most: int | None = None) -> list[dict[str, Any]]:
    """The first `most` rows of a file (None: all).  Raises UserError where it is damaged.

    Lines end at "\\n" alone: a model's text may hold U+2028 and its like, which `splitlines` would cut at.
    """
    import zstandard

    rows: list[dict[str, Any]] = []
    data = memoryview(path.read_bytes())
    frame, rest = zstandard.ZstdDecompressor().decompressobj(), b""
    try:
        while len(data) and (most is None or len(rows) < most):
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            *lines, rest = (rest + frame.decompress(data[:BLOCK])).split(b"\n")
            data = memoryview(frame.unused_data + bytes(data[BLOCK:])) if frame.eof else data[BLOCK:]
            rows += [json.loads(line) for line in lines if line.strip()]
    except (zstandard.ZstdError, ValueError) as error:
        raise UserError(f"{path}: damaged: {error}") from error
    if most is None and (rest.strip() or not frame.eof):
        raise UserError(f"{path}: cut short after {len(rows)} whole lines")
    return rows if most is None else rows[:most]
