"""The process behind `VerifierPool`: reads chunks of rows, answers one JSON line a row.

Run as `python -m onebase.verifiers.pool_worker MEMORY_MB`.  Requests are pickles from the parent; answers
are JSON, so that nothing a verifier made is unpickled on the trainer's side.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import sys
from dataclasses import asdict
from typing import BinaryIO

from onebase.verifiers.base import Verdict, Verifier, failed
from onebase.verifiers.pool import judge
from onebase.verifiers.registry import load

DETAILS_LIMIT = 100_000


def main(memory_mb: int) -> None:
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The pipes move away from 0 and 1: a verifier that prints or reads must not disturb them.
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    while (header := _read(requests, 8)) is not None:
        payload = _read(requests, struct.unpack("<Q", header)[0])
        if payload is None:
            return
        name, rows = pickle.loads(payload)
        function, problem = _load(name)
        _write(replies, b"ready\n")
        for row in rows:
            verdict = failed(problem) if function is None else judge(function, row)
            _write(replies, _encode(verdict))
            if (verdict.error or "").startswith("memory"):
                os._exit(70)  # the pool gives the rest to a fresh worker


def _load(name: str) -> tuple[Verifier | None, str]:
    try:
        return load(name), ""
    except Exception as error:
        return None, f"infrastructure: {type(error).__name__}: {error}"


def _encode(verdict: Verdict) -> bytes:
    line = json.dumps(asdict(verdict), default=str)
    if len(line) > DETAILS_LIMIT:
        verdict.details = {"dropped": "details were too long"}
        verdict.reason = verdict.reason[:1000]
        verdict.error = None if verdict.error is None else verdict.error[:1000]
        line = json.dumps(asdict(verdict), default=str)
    return line.encode() + b"\n"


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
    main(int(sys.argv[1]))
