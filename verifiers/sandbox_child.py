"""What happens in the forked process of a run: put on the layers, unpack the job, become the code."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

from onebase.verifiers.sandbox_layers import Plan, set_rlimits

CHANNEL = 3
JOB = 4
COMPLAIN = 5


@dataclass
class Job:
    limits: dict[str, Any]
    fds: dict[str, int]


def main(job: Job, plan: Plan) -> NoReturn:
    status = 1
    try:
        head, files, payload = isolate(job, plan)
    except BaseException as error:
        complain(plan, f"the sandbox could not isolate a run: {type(error).__name__}: {error}")
    channel = CHANNEL if "channel" in job.fds else None
    if head["argv"] is not None:
        execute(head["argv"])
    module, _, name = head["entry"].partition(":")
    try:
        function = getattr(sys.modules[module], name)
    except (KeyError, AttributeError):
        complain(plan, f"entry {head['entry']!r}: no such function among the preloaded modules")
    os.closerange(JOB, JOB + 2)
    try:
        function(payload, channel)
        status = 0
    except SystemExit as leaving:
        status = exit_status(leaving.code)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            status = status or 1
    os._exit(status)


def isolate(job: Job, plan: Plan) -> tuple[dict[str, Any], list[tuple[str, bytes]], bytes]:
    os.setsid()
    place_descriptors(job, plan)
    os.chdir(os.path.join(plan.base, "box"))
    head, files, payload = unpack(JOB)
    set_rlimits(job.limits, head["argv"] is not None)
    write_files(files)
    return head, files, payload


def place_descriptors(job: Job, plan: Plan) -> None:
    """0 to 3 are the run's own; the job and the complaints follow; all others go."""
    wanted = {1: job.fds["stdout"], 2: job.fds["stderr"], JOB: job.fds["job"], COMPLAIN: plan.complaints[1]}
    wanted[0] = job.fds["stdin"] if "stdin" in job.fds else os.open("/dev/null", os.O_RDONLY)
    if "channel" in job.fds:
        wanted[CHANNEL] = job.fds["channel"]
    top = 64
    moved = {}
    for place, fd in wanted.items():
        moved[place] = top
        os.dup2(fd, top, inheritable=False)
        top += 1
    for place, fd in moved.items():
        os.dup2(fd, place, inheritable=place <= CHANNEL)
    if CHANNEL not in wanted:
        try:
            os.close(CHANNEL)
        except OSError:
            pass
    os.closerange(COMPLAIN + 1, 1 << 20)


def unpack(fd: int) -> tuple[dict[str, Any], list[tuple[str, bytes]], bytes]:
    (size,) = struct.unpack("<I", read(fd, 4))
    head = json.loads(read(fd, size))
    files = [(name, read(fd, length)) for name, length in head["files"]]
    return head, files, read(fd, head["payload"])


def read(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 24))
        if not part:
            raise EOFError("the job is shorter than its header says")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write_files(files: list[tuple[str, bytes]]) -> None:
    for name, data in files:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ValueError(f"file {name!r}: must lie in the run's own folder")
        if "/" in name:
            os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "wb") as stream:
            stream.write(data)


def execute(argv: list[str]) -> NoReturn:
    argv = [word.replace("{dir}", os.getcwd()) for word in argv]
    program = argv[0] if "/" in argv[0] else shutil.which(argv[0])
    try:
        os.execv(program or argv[0], argv)
    except OSError as error:
        print(f"cannot run {argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def complain(plan: Plan, text: str) -> NoReturn:
    os.write(COMPLAIN, text[:4000].encode())
    os._exit(1)
