"""The warm process behind `Sandbox`: forks an isolated process for every run and ends it.

Run as `python -s -S -P -B -X utf8 sandbox_zygote.py SOCKET FOLDER`, FOLDER being that of the onebase package.
There are two processes.  The janitor (`sandbox_janitor.py`) stays outside: it watches runs that take long and
clears away what is left.  The zygote, below, is single-threaded, takes one run at a time, and has put on all
layers that need not be new for every run.  Every process of a run is a descendant of the zygote, which is
their reaper: `wait` saying that there are no children is the exact proof that a run is gone.

What costs a run time is memory pages that are written after the fork and so must be copied, in the child
and here (two thirds of it all when this was a plain program).  Hence the look of `run` and of
`sandbox_child.main`: few objects, everything prepared and warm before the fork.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import itertools
import marshal
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onebase.verifiers.sandbox_layers import Plan

MESSAGE = 1 << 16
ROOM_FOR_FDS = socket.CMSG_SPACE(8 * 4)
FIRST_LOOK = 0.02  # most runs are over by then
BY_SIGNAL: dict[int, str] = {signal.SIGXCPU: "cpu", signal.SIGXFSZ: "disk"}


def main(descriptor: int, folder: str) -> None:
    """Make onebase's own files importable without site-packages, read the configuration, split in two."""
    stub = ModuleType("onebase")
    stub.__path__ = [folder]
    sys.modules["onebase"] = stub
    ours = socket.socket(fileno=fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16))
    os.close(descriptor)
    for place in range(3, 16):  # these numbers are a run's: whatever is opened from here on lies above
        os.dup2(0, place, inheritable=False)
    config = marshal.loads(ours.recv(MESSAGE))
    try:
        janitor = importlib.import_module("onebase.verifiers.sandbox_janitor")
        janitor.main(ours, config, lambda plan: serve(plan, ours, config))
    except Exception as error:
        reply(ours, f"error the sandbox did not start: {error}\n{traceback.format_exc()}")


def serve(plan: Plan, ours: socket.socket, config: dict[str, Any]) -> None:
    """Take runs until the caller is gone."""
    from onebase.verifiers import sandbox_box, sandbox_child

    lacking = [wish for wish in config["demand"] if not any(map(plan.has, wish.split("|")))]
    if lacking:
        reply(ours, f"error {refusal(lacking, plan)}")
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its caller and not otherwise
    os.umask(0o022)
    os.environ.update(HOME=plan.box, TMPDIR=plan.box)
    os.dup2(plan.complaints[1], sandbox_child.COMPLAIN, inheritable=False)
    poll = select.poll()
    poll.register(ours, select.POLLIN)
    poll.register(plan.janitor, select.POLLIN)
    owners: list[int | None] = []
    owners += plan.uids or [None]
    turns = itertools.cycle(owners)
    entries: dict[str, Any] = {}
    known: dict[tuple[Any, ...], list[sandbox_child.Step]] = {}
    sandbox_child.warm_up()
    gc.collect()
    gc.disable()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of the heap
    reply(ours, repr({"layers": plan.layers, "missing": plan.missing, "notes": plan.notes}))
    while True:
        if all(fd != ours.fileno() for fd, _ in poll.poll()):
            return  # the janitor is gone, or told that the caller is
        order, fds = receive(ours)
        if order is None:
            return
        if "limits" not in order:
            continue  # an order to end a run that had ended already
        uid = next(turns)
        limits, names, entry = order["limits"], order["fds"], order["entry"]
        if entry is not None and entry not in entries:
            entries[entry] = sandbox_child.find(entry)
        if uid is not None:
            os.chown(plan.box, uid, -1)
        key = (uid, tuple(limits.values()), tuple(names), tuple(fds), entry is None)
        if key not in known:
            known.clear()  # one shape of job is the rule; never many
            shape = dict(zip(names, fds, strict=True))
            for each in owners:
                each_key = (each, *key[1:])
                known[each_key] = sandbox_child.steps(plan, each, limits, shape, entry is None)
        code = 0 if entry is None else entries[entry]
        gone = False
        if isinstance(code, str):
            answer = f"error {code}"
            for fd in fds:
                os.close(fd)
        else:
            job = (known[key], code, order["size"], names)
            answer, gone = run(plan, limits, [] if uid is None else [uid], fds, poll, ours, job)
            sandbox_box.empty(plan)
        if gone:
            return
        reply(ours, plan.complaint() or answer)


def run(
    plan: Plan,
    limits: dict[str, Any],
    uids: list[int],
    fds: list[int],
    poll: Any,
    ours: socket.socket,
    job: Any,
) -> tuple[str, bool]:
    """One run from fork to the last of its processes; True with it when the caller is gone."""
    from onebase.verifiers import sandbox_child
    from onebase.verifiers.sandbox_reap import Ended, reap_all

    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        sandbox_child.main(*job)
    for fd in fds:
        os.close(fd)
    child = os.pidfd_open(pid)
    poll.register(child, select.POLLIN)
    how, pause, ended = None, min(FIRST_LOOK, limits["wall_seconds"]), Ended()
    while how is None:
        ready = poll.poll(pause * 1000)
        if not ready:
            while ended.reap(pid, os.WNOHANG) > 0:
                pass  # zombies count as processes of the run
            how, pause = ask(plan, started, limits, ended.cpu)
        elif any(fd == child for fd, _ in ready):
            break
        else:
            order = receive(ours)[0] if any(fd == ours.fileno() for fd, _ in ready) else None
            how = "gone" if order is None else order["kill"]
    poll.unregister(child)
    os.close(child)
    reap_all(plan, uids, pid, ended, kill=how is not None)
    code = os.waitstatus_to_exitcode(ended.status or 0)
    if how is None:
        how = BY_SIGNAL.get(-code, "signal") if code < 0 else "exit"
        if ended.cpu > limits["cpu_seconds"]:
            how = "cpu"
    seconds = time.monotonic() - started
    return f"{how} {abs(code)} {ended.cpu} {seconds} {ended.peak_mb} {ended.killed}", how == "gone"


def ask(plan: Plan, started: float, limits: dict[str, Any], cpu: float) -> tuple[str | None, float]:
    """The janitor's opinion of a run: the limit that is overrun or None, and when to ask again."""
    plan.janitor.send(marshal.dumps((started, limits, cpu)))
    answer = plan.janitor.recv(MESSAGE)
    return marshal.loads(answer) if answer else ("gone", 0.0)


def receive(ours: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The caller's next order with its descriptors; None when the caller is gone."""
    data, ancillary, _, _ = ours.recvmsg(MESSAGE, ROOM_FOR_FDS)
    fds: list[int] = []
    for _, _, packed in ancillary:
        fds += struct.unpack(f"{len(packed) // 4}i", packed)
    return (marshal.loads(data) if data else None), fds


def reply(ours: socket.socket, message: str) -> None:
    try:
        ours.send(message.encode(errors="replace")[:MESSAGE])
    except OSError:
        pass  # the caller is gone; the next read says so


def refusal(lacking: list[str], plan: Plan) -> str:
    """Why nothing may run here, and what to do about it."""
    lines = [f"this machine does not give the sandbox what is demanded: {', '.join(lacking)}"]
    for wish in lacking:
        lines += [f"  {name}: {plan.missing.get(name, 'no such layer')}" for name in wish.split("|")]
    lines.append(f"  here hold: {', '.join(plan.layers) or 'none'}; to go on with less, demand only those")
    return "\n".join(lines)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
