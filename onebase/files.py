"""Files that are whole or absent: everything a run keeps is written through here.

A folder is written aside in the same file system, flushed to the disk, and moved into place by renames, so a
kill at any moment leaves the old or the new folder, never a mixture.  Three names beside `checkpoint` serve
this:

    .checkpoint.part   being written; worthless until it is renamed
    .checkpoint.next   whole and new, about to become `checkpoint`
    .checkpoint.old    whole and replaced, about to be removed

`whole_folder` reads through an interrupted exchange, `settle` finishes it.  One writer per path: the run's
lock sees to it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onebase.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Writers in Rust and C++ (safetensors, torch.save) raise their own classes; only the text tells the cause.
FULL_TEXTS = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122", "os error 27)")
TORN_TEXTS = ("PytorchStreamWriter failed", "unexpected pos", "write failed")


def is_full(error: BaseException, where: Path) -> bool:
    """Whether `error` came from a full disk (or quota, or the process's file size limit)."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    text = str(error)
    if any(mark in text for mark in FULL_TEXTS):
        return True
    torn = isinstance(error, RuntimeError) and any(mark in text for mark in TORN_TEXTS)
    return torn and free_bytes(where) < 1 << 20  # torch.save drops the errno: believe it when nothing is free


def free_bytes(where: Path) -> int:
    """Free bytes of the file system that holds `where`, which need not exist yet."""
    while not where.exists():
        if where == where.parent:
            break
        where = where.parent
    return shutil.disk_usage(where).free


def folder_bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else 0


def human_bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def disk_full(path: Path, needed: int, kept: str, error: BaseException) -> UserError:
    limit = getattr(error, "errno", 0) == errno.EFBIG
    cause = "the process's limit on file sizes" if limit else "the disk is full"
    return UserError(
        f"{path}: cannot be written: {cause} ({error})\n"
        f"  needed: {human_bytes(needed)} or more; free: {human_bytes(free_bytes(path))}\n"
        f"  kept: {kept} is whole\n"
        f"  make room (or write to another disk: a recipe's `runs`, a corpus' --out) and run the same again"
    )


def fsync_path(path: Path) -> None:
    """Flush one file or one folder's entries to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fsync_tree(path: Path) -> None:
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                fsync_path(Path(folder) / name)
        fsync_path(Path(folder))


def _aside(path: Path, what: str) -> Path:
    return path.parent / f".{path.name}.{what}"


def whole_folder(path: Path) -> Path | None:
    """The whole folder that stands for `path`, or None.  Changes nothing: a reader may call it at any
    time."""
    for candidate in (path, _aside(path, "next"), _aside(path, "old")):
        if candidate.is_dir():
            return candidate
    return None


def settle(path: Path) -> Path | None:
    """Finish an exchange that a kill interrupted; afterwards `path` itself is the whole folder, or None."""
    fresh, old = _aside(path, "next"), _aside(path, "old")
    if not path.is_dir():
        for candidate in (fresh, old):
            if candidate.is_dir():
                os.rename(candidate, path)
                fsync_path(path.parent)
                break
    for rest in (_aside(path, "part"), fresh, old):
        if rest.is_dir():
            shutil.rmtree(rest)
    return path if path.is_dir() else None


def settle_all(folder: Path) -> None:
    """`settle` for everything directly in `folder` that a killed writer left aside."""
    for what in ("part", "next", "old"):
        for rest in folder.glob(f".*.{what}"):
            if rest.is_dir():
                settle(folder / rest.name[1:].removesuffix(f".{what}"))
            else:
                rest.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, about: int = 0) -> Iterator[Path]:
    """Yields an empty folder to write into; when left without an error, it takes the place of `path`.
    `about`: the bytes it will need, where that is known, for the message of a full disk.

    Raises UserError when the disk is full.  After any error `path` is what it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    settle(path)
    part, fresh, old = (_aside(path, what) for what in ("part", "next", "old"))
    try:
        part.mkdir()
        yield part
        _fsync_tree(part)
    except BaseException as error:
        if isinstance(error, Exception) and is_full(error, path):
            needed = max(folder_bytes(part), folder_bytes(path), about)
            shutil.rmtree(part, ignore_errors=True)  # first, so that the free space told is what there is
            kept = f"the {path.name} written before" if path.is_dir() else "all that was written before it"
            raise disk_full(path, needed, kept, error) from error
        shutil.rmtree(part, ignore_errors=True)
        raise
    os.rename(part, fresh)
    fsync_path(path.parent)
    if path.is_dir():
        os.rename(path, old)
    os.rename(fresh, path)
    fsync_path(path.parent)
    if old.is_dir():
        shutil.rmtree(old)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace one file as a whole.  Raises UserError when the disk is full; the old content is kept then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    part = _aside(path, "part")
    try:
        with open(part, "wb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if is_full(error, path):
            kept = "the file's former content" if path.exists() else "all that was written before it"
            raise disk_full(path, len(raw), kept, error) from error
        raise
    fsync_path(path.parent)


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one line of JSON.  A line that a kill tore is cut off first, so the file holds whole lines only.

    Not flushed to the disk (fsync): a power cut may lose the last lines, a killed process does not.
    Numbers that are not finite become null, because JSON has no word for them.
    """
    line = (json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        end = _cut_torn_line(fd)
        try:
            written = os.write(fd, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError as error:
            os.ftruncate(fd, end)
            if is_full(error, path):
                raise disk_full(path, len(line), "all earlier lines of the file", error) from error
            raise
    finally:
        os.close(fd)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a whole file of lines of JSON."""
    lines = (json.dumps(finite(dict(row)), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    atomic_write(path, "".join(lines))


def _cut_torn_line(fd: int) -> int:
    """Truncate the file behind its last newline; returns the length."""
    end = os.fstat(fd).st_size
    if end == 0 or os.pread(fd, 1, end - 1) == b"\n":
        return end
    keep = end
    while keep:
        start = max(0, keep - 65536)
        at = os.pread(fd, keep - start, start).rfind(b"\n")
        if at >= 0:
            keep = start + at + 1
            break
        keep = start
    os.ftruncate(fd, keep)
    return keep


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that `append_jsonl` wrote; a torn last line (a kill in mid-write) is left out.

    Raises UserError with file:line for any other line that is not a JSON object.
    """
    if not path.is_file():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}:{number}: not JSON: {error}; the line begins {raw[:60]!r}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a JSON object is expected, given {raw[:60]!r}")
        rows.append(row)
    return rows


def finite(value: Any) -> Any:
    """`value` with every number that is not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
