"""The process behind `VerifierPool`: reads chunks of rows, answers one JSON line a row.

Run as `python -P -m onebase.verifiers.pool_worker MEMORY_MB LIFELINE`.  Requests are pickles from the parent;
answers are JSON, so that nothing a verifier made is unpickled on the trainer's side.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import resource
import signal
import struct
import sys
from typing import BinaryIO

from onebase.verifiers.base import Verdict, Verifier, failed, judge
from onebase.verifiers.registry import load, load_gold
from onebase.verifiers.worker import Job

LINE_LIMIT = 100_000
TEXT_LIMIT = 1_000
NO_MEMORY = 70


def main(memory_mb: int, lifeline: int) -> None:
    _die_with_the_parent(lifeline)
    _limit_memory(memory_mb)
    # The pipes move away from 0 and 1: a verifier that prints or reads must not disturb them.
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    own = os.getpid()
    while (header := _read(requests, 8)) is not None:
        payload = _read(requests, struct.unpack("<Q", header)[0])
        if payload is None:
            return
        job, packed = pickle.loads(payload)
        function, problem = _load(job)
        _write(replies, b"ready\n")
        for blob in packed:
            verdict = failed(problem) if function is None else _judge(function, blob)
            if os.getpid() != own:
                os._exit(0)  # the verifier forked, and its child came back here: one answer is enough
            _write(replies, _encode(verdict))
            if (verdict.error or "").startswith("memory"):
                os._exit(NO_MEMORY)  # this heap is not to be trusted with another row


def _die_with_the_parent(lifeline: int) -> None:
    """The kernel kills this process group when the other end of the pipe `lifeline` is closed, which is when
    the parent ends, in whatever way.  A hung verifier could not look for itself, and PR_SET_PDEATHSIG would
    strike when the parent's *thread* ends.  Elsewhere than on Linux, a worker ends when it next wants rows.
    """
    os.set_inheritable(lifeline, False)
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _limit_memory(memory_mb: int) -> None:
    """Children inherit it.  macOS takes the call and does not enforce it: only the wall clock holds there."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = memory_mb << 20 if hard == resource.RLIM_INFINITY else min(memory_mb << 20, hard)
        try:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        except (ValueError, OSError) as error:
            print(f"onebase: no memory limit for verifiers here: {error}", file=sys.stderr)


def _load(job: Job) -> tuple[Verifier | None, str]:
    try:
        function = load_gold(job.name, job.source) if job.gold else load(job.name, job.source)
        return function, f"infrastructure: {job.name} has no gold to ask for"
    except MemoryError:
        return None, "infrastructure: its import is over the memory limit (MEMORY_MB of its module)"
    except Exception as error:
        return None, f"infrastructure: {type(error).__name__}: {error}"


def _judge(function: Verifier, blob: bytes) -> Verdict:
    try:
        row = pickle.loads(blob)
    except MemoryError:
        return failed("memory: over the memory limit, while the row was read")
    except Exception as error:  # e.g. of a class that only the parent's main module has
        return failed(f"infrastructure: the row cannot be read in a worker: {type(error).__name__}: {error}")
    return judge(function, row)


def _encode(verdict: Verdict) -> bytes:
    """One line.  Details that are no JSON go as their `str`, or not at all."""
    record = {
        "reward": verdict.reward,
        "reason": _one_line(verdict.reason),
        "error": None if verdict.error is None else _one_line(verdict.error),
        "seconds": float(verdict.seconds),
    }
    try:
        line = json.dumps(record | {"details": verdict.details}, default=str)
        dropped = "too long" if len(line) > LINE_LIMIT else ""
    except Exception as error:  # keys that are no text, circles, objects whose str raises
        dropped = f"{type(error).__name__}"
    if dropped:
        line = json.dumps(record | {"details": {"dropped": dropped}})
    return line.encode() + b"\n"


def _one_line(text: object) -> str:
    return " ".join(str(text).splitlines())[:TEXT_LIMIT]


def _read(stream: BinaryIO, size: int) -> bytes | None:
    parts = []
    while size:
        part = stream.read(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
