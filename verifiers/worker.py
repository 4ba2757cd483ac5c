"""The pool's side of one worker process: its pipes, the rows it has been given, the moment it will be killed.

A request is a pickle of (Job, packed rows); answers are JSON lines, `ready` and then one a row, so that
nothing a verifier made is unpickled here.  The process is a fresh interpreter (`pool_worker.py`), not a fork:
the caller may hold CUDA, threads and locks.  It leads a session of its own, so that what a verifier starts
dies with it, and holds the end of a pipe (`lifeline`) by which the kernel kills it when this process is gone.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from typing import Any, NamedTuple

from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.registry import Source

ROW_BYTES = 64 << 20  # larger rows are refused
REPLY_LIMIT = 1 << 20
READS = 64  # of 64 KiB each: what one worker may say before the others are looked at
REAP_SECONDS = 5.0


class Job(NamedTuple):
    """What is to be run on the rows of a batch."""

    name: str
    source: Source | None
    gold: bool = False
    """The rows' own answers are judged, not completions."""


class Worker:
    def __init__(self, memory_mb: int) -> None:
        self.memory_mb = memory_mb
        env = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        env["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        watched, self.lifeline = os.pipe()
        command = [sys.executable, "-P", "-m", "onebase.verifiers.pool_worker", str(memory_mb), str(watched)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=env,
                pass_fds=(watched,),
                start_new_session=True,
            )
        except BaseException:
            os.close(self.lifeline)
            raise
        finally:
            os.close(watched)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        # A child of the verifier can hold the pipe open, so its end alone does not tell that a worker died.
        self.death = _pidfd(self.process.pid)
        self.outgoing = memoryview(b"")
        self.incoming = b""
        self.rows: deque[int] = deque()
        self.ready = False
        self.deadline = float("inf")
        self.wall_seconds = 0.0
        self.done = 0

    def give(
        self, job: Job, numbers: list[int], packed: list[bytes], wall_seconds: float, start_seconds: float
    ) -> None:
        payload = pickle.dumps((job, packed))
        self.outgoing = memoryview(struct.pack("<Q", len(payload)) + payload)
        self.rows = deque(numbers)
        self.ready, self.wall_seconds = False, wall_seconds
        self.deadline = time.monotonic() + start_seconds

    def flush(self) -> None:
        try:
            sent = os.write(self.stdin, self.outgoing[: 1 << 16])
        except BlockingIOError:
            return
        except BrokenPipeError:
            sent = len(self.outgoing)  # it is dead; reading its output will say so
        self.outgoing = self.outgoing[sent:]

    def exited(self) -> bool:
        """Whether it has ended; it stays a zombie, so that its group's number is not given to others."""
        if not hasattr(os, "waitid"):  # macOS
            return self.process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def replies(self) -> tuple[list[Verdict], bool]:
        """(verdicts of its next rows, whether it is dead or talks nonsense).

        Each row has its own clock: it begins where the answer before it came, or when the verifier was
        imported."""
        dead = self.exited()  # asked first: what it said before it died is then in the pipe
        for _ in range(READS):
            try:
                data = os.read(self.stdout, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                dead = True
                break
            self.incoming += data
        verdicts: list[Verdict] = []
        *lines, self.incoming = self.incoming.split(b"\n")
        for line in lines:
            if len(verdicts) >= len(self.rows):
                return verdicts, True  # an answer nobody asked for
            if self.ready:
                verdicts.append(_read_reply(line))
            self.ready = True
            self.deadline = time.monotonic() + self.wall_seconds
        return verdicts, dead or len(self.incoming) > REPLY_LIMIT

    def kill(self) -> int:
        """End it and all of its process group; returns its exit code, as subprocess has it."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS: the group has only a zombie left
            pass
        try:
            code = self.process.wait(timeout=REAP_SECONDS)
        except subprocess.TimeoutExpired:  # in an uninterruptible call, as on a dead network disk
            code = -signal.SIGKILL
        self.forget()
        return code

    def forget(self) -> None:
        """Close this side's ends of the pipes."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        os.close(self.lifeline)
        if self.death is not None:
            os.close(self.death)


def pack(row: dict[str, Any] | bytes, limit: int = ROW_BYTES) -> bytes | Verdict:
    """A row as it travels, or why it cannot.  Packed rows come back as they are."""
    try:
        blob = row if isinstance(row, bytes) else pickle.dumps(row, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever a class in the row says about being pickled
        return failed(f"row: it cannot be sent to a worker: {type(error).__name__}: {error}")
    if len(blob) > limit:
        return failed(f"row: {len(blob)} bytes are more than a verifier is given ({limit})")
    return blob


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or an old kernel: its pipe has to tell
        return None


def _read_reply(line: bytes) -> Verdict:
    try:
        return Verdict(**json.loads(line))
    except (ValueError, TypeError) as error:
        return failed(f"infrastructure: unreadable reply from a worker: {error}")
