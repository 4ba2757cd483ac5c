"""What happens in the forked process of a run: put on the layers, unpack the job, become the code.

Descriptors here: 0, 1, 2 are the run's own, 3 is the channel; 4 is the job, 5 takes complaints (whatever
keeps the code from being started, so that it is an error and not a verdict), 6 is the Landlock ruleset.
The zygote keeps these numbers free or, for 0, 5 and 6, already right.  Before the code starts, 4 to 6 are
closed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

from onebase.verifiers.sandbox_layers import PR_SET_PDEATHSIG, Plan, prctl, put_on, seal

CHANNEL, JOB, COMPLAIN, RULES, FIRST_FREE = 3, 4, 5, 6, 7
FIRST_KEPT = 100  # folders held open for imports, see sandbox_imports.Descriptors
LAST = 1 << 20


@dataclass
class Job:
    limits: dict[str, Any]
    fds: dict[str, int]


def main(job: Job, plan: Plan, uid: int | None) -> NoReturn:
    try:
        head, payload = isolate(job, plan, uid)
        function = None if head["argv"] is not None else find(head["entry"])
        if function is None:
            execute(head["argv"])
    except BaseException as error:
        complain(f"a run could not be isolated or started: {type(error).__name__}: {error}")
    os.closerange(JOB, FIRST_FREE)
    status = 0
    try:
        function(payload, CHANNEL if "channel" in job.fds else None)
    except SystemExit as leaving:
        status = exit_status(leaving.code)
    except BaseException as error:
        status = 1
        error.__traceback__ = from_code(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            status = status or 1
    os._exit(status)


def isolate(job: Job, plan: Plan, uid: int | None) -> tuple[dict[str, Any], bytes]:
    """Everything between the fork and the code.  The order matters: descriptors and the folder while they can
    be reached, then the uid, then limits, then files (they are the run's own and count), then the rules."""
    os.setsid()
    if plan.cgroups:
        fd = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=plan.proc)
        os.write(fd, b"1000")  # in the cgroup, this process is the one to kill, not the zygote
    place_descriptors(job, plan)
    os.chdir(plan.box)
    head = json.loads(read(JOB, struct.unpack("<I", read(JOB, 4))[0]))
    put_on(plan, job.limits, head["argv"] is not None, uid)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if plan.descriptors is not None:
        sys.meta_path.insert(0, plan.descriptors)
    for name, size in head["files"]:
        write_file(name, read(JOB, size))
    payload = read(JOB, head["payload"])
    seal(plan)
    return head, payload


def place_descriptors(job: Job, plan: Plan) -> None:
    os.dup2(job.fds["stdout"], 1)
    os.dup2(job.fds["stderr"], 2)
    os.dup2(job.fds["job"], JOB, inheritable=False)
    if "stdin" in job.fds:
        os.dup2(job.fds["stdin"], 0)
    if "channel" in job.fds:
        os.dup2(job.fds["channel"], CHANNEL)
    else:
        os.close(CHANNEL)
    if plan.descriptors is None:
        os.closerange(FIRST_FREE, LAST)
    else:
        os.closerange(FIRST_FREE, FIRST_KEPT)
        os.closerange(FIRST_KEPT + len(plan.descriptors.open), LAST)


def read(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 24))
        if not part:
            raise EOFError("the job is shorter than its header says")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write_file(name: str, data: bytes) -> None:
    if os.path.isabs(name) or ".." in name.split("/"):
        raise ValueError(f"file {name!r}: must lie in the run's own folder")
    if "/" in name:
        os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "wb") as stream:
        stream.write(data)


def find(entry: str) -> Any:
    module, _, name = entry.partition(":")
    function = getattr(sys.modules.get(module), name, None)
    if not callable(function):
        raise LookupError(f"entry={entry!r}: no function of that name in a preloaded module")
    return function


def execute(argv: list[str]) -> NoReturn:
    """Become the command.  One that is not there, or may not be executed, is the caller's mistake (an
    exception here); a file of the run's own that cannot be executed is the code's (status 126)."""
    argv = [word.replace("{dir}", os.getcwd()) for word in argv]
    program = argv[0] if "/" in argv[0] else shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(f"there is no command {argv[0]!r} here; sandboxes take more with use=")
    for fd in (0, 1, 2):
        os.set_inheritable(fd, True)
    try:
        os.execv(program, argv)
    except OSError as error:
        if os.path.isabs(argv[0]) and not program.startswith(os.getcwd() + "/") or "/" not in argv[0]:
            raise OSError(
                error.errno, f"{program}: {error.strerror}; sandboxes execute what is named in use="
            ) from None
        os.write(2, f"cannot run {program}: {error.strerror}\n".encode())
    os._exit(126)


def exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def from_code(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this package's own files, as the interpreter would show it."""
    own = os.path.dirname(__file__) + os.sep
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(own):
        trace = trace.tb_next
    return trace


def complain(text: str) -> NoReturn:
    os.write(COMPLAIN, text[:4000].encode(errors="replace"))
    os._exit(1)
