"""Atomic files: what a killed process and a full disk leave behind."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase import files
from onebase.errors import UserError

# Each generation writes the same number into several files: a mixture of two generations is seen at once.
WRITER = """
import sys
from pathlib import Path
from onebase.files import atomic_folder
target = Path(sys.argv[1])
for n in range(1, 1_000_000):
    with atomic_folder(target) as folder:
        for k in range(4):
            (folder / f"{k}.txt").write_text(f"{n}\\n" * 500)
    print(n, flush=True)
"""


def content(folder: Path) -> int:
    assert sorted(p.name for p in folder.iterdir()) == [f"{k}.txt" for k in range(4)]
    numbers = {line for p in folder.iterdir() for line in p.read_text().split("\n") if line}
    assert len(numbers) == 1, numbers
    assert all(p.read_text().count("\n") == 500 for p in folder.iterdir())
    return int(numbers.pop())


def test_kill_9_at_random_moments_leaves_a_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    rng = random.Random(0)
    for _ in range(15):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        first = process.stdout.readline()  # one generation of this process is in place
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        last = int(rest[-1] if rest else first)
        found = files.whole_folder(target)
        assert found is not None
        assert content(found) in (last, last + 1)
        before = content(found)
        assert files.settle(target) == target and content(target) == before
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("moment", range(12))
def test_every_moment_of_the_exchange(tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th call that changes the disk dies: what is found is the old or the new folder."""
    target = tmp_path / "c"

    class Killed(BaseException):
        pass

    def write(text: str) -> None:
        with files.atomic_folder(target) as folder:
            (folder / "a").write_text(text)
            (folder / "b").write_text(text)

    write("old")
    count = 0

    def dying(real):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal count
            count += 1
            if count > moment:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((os, "rename"), (files, "fsync_path"), (files.shutil, "rmtree")):
            patch.setattr(module, name, dying(getattr(module, name)))
        try:
            write("new")
            survived = True
        except Killed:
            survived = False
    found = files.whole_folder(target)
    assert found is not None
    texts = {(found / name).read_text() for name in ("a", "b")}
    assert texts in ({"old"}, {"new"})
    assert not survived or texts == {"new"}
    write("later")
    assert (target / "a").read_text() == "later" and [p.name for p in tmp_path.iterdir()] == ["c"]


def test_what_a_kill_left_aside_is_cleared(tmp_path: Path) -> None:
    for name in (".a.part", ".b.next", ".c.old", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    (tmp_path / ".file.part").write_text("half")
    files.settle_all(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c"]
    assert (tmp_path / "c" / "name").read_text() == "c"
    files.settle_all(tmp_path / "not there")


def test_an_error_inside_keeps_the_old_folder(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "c") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(ZeroDivisionError), files.atomic_folder(tmp_path / "c") as folder:
        (folder / "a").write_text("2")
        raise ZeroDivisionError
    assert (tmp_path / "c" / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


FULL_DISK_ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
]


@pytest.mark.parametrize("error", FULL_DISK_ERRORS, ids=lambda e: type(e).__name__)
def test_full_disk_is_told_and_the_old_folder_kept(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "checkpoint"
    with files.atomic_folder(target) as folder:
        (folder / "w").write_bytes(b"x" * 5000)
    with pytest.raises(UserError) as told, files.atomic_folder(target):
        raise error
    text = str(told.value)
    assert str(target) in text and "5 kB" in text and "whole" in text and "again" in text
    assert (target / "w").stat().st_size == 5000
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError) as told, files.atomic_folder(tmp_path / "c"):
        raise PermissionError(errno.EACCES, "no")
    assert not isinstance(told.value, UserError)
    with pytest.raises(RuntimeError, match="PytorchStreamWriter"), files.atomic_folder(tmp_path / "c"):
        raise RuntimeError("PytorchStreamWriter failed writing file: something else")


def in_child_with_small_files(limit: int, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that may write `limit` bytes per file: a real short write, not a mock."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def test_real_limit_on_folder_and_file_and_line(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from onebase import files
from onebase.errors import UserError
root = Path({str(tmp_path)!r})
files.atomic_write(root / "small", "fine")
for k in range(10):
    files.append_jsonl(root / "log.jsonl", {{"k": k}})
def attempt(call):
    try:
        call()
    except UserError as e:
        print("told:", str(e).splitlines()[0])
    else:
        print("silent")
def folder():
    with files.atomic_folder(root / "c") as f:
        (f / "w").write_bytes(b"x" * 100_000)
attempt(folder)
attempt(lambda: files.atomic_write(root / "small", "y" * 100_000))
attempt(lambda: files.append_jsonl(root / "log.jsonl", {{"k": "z" * 100_000}}))
"""
    done = in_child_with_small_files(20_000, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("told:") == 3, done.stdout
    assert (tmp_path / "small").read_text() == "fine"
    assert [json.loads(x)["k"] for x in (tmp_path / "log.jsonl").read_text().splitlines()] == list(range(10))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "small"]


def test_torn_line_is_cut_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    files.append_jsonl(path, {"step": 1, "loss": float("nan")})
    with open(path, "ab") as f:
        f.write(b'{"step": 2, "lo')
    assert files.read_jsonl(path) == [{"step": 1, "loss": None}]
    files.append_jsonl(path, {"step": 2, "text": "ü\n"})
    assert [json.loads(x) for x in path.read_text("utf-8").splitlines()] == [
        {"step": 1, "loss": None},
        {"step": 2, "text": "ü\n"},
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5), st.integers(0, 200))
def test_any_cut_of_a_log_heals(texts: list[str], cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.jsonl"
        rows = [{"text": text} for text in texts]
        for row in rows:
            files.append_jsonl(path, row)
        raw = path.read_bytes() if path.exists() else b""
        path.write_bytes(raw[:cut])
        whole = raw[:cut].count(b"\n")
        files.append_jsonl(path, {"text": "end"})
        assert files.read_jsonl(path) == [*rows[:whole], {"text": "end"}]


def test_bad_line_in_the_middle_is_told_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not JSON"):
        files.read_jsonl(path)
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: a JSON object"):
        files.read_jsonl(path)
