"""The warm process behind `Sandbox`: forks an isolated process for every run, watches it, ends it, reaps it.

Run as `python -s -S -P -B -X utf8 sandbox_zygote.py SOCKET FOLDER`, FOLDER being that of the onebase package.
Two processes: the janitor (`sandbox_janitor.py`), which only waits and clears away what is left, and the
zygote proper, below, which is single-threaded and takes one run at a time.  Every process of a run is a
descendant of the zygote, which is their reaper: `wait` saying that there are no children is the exact proof
that a run is gone.
"""

from __future__ import annotations

import fcntl
import gc
import itertools
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onebase.verifiers.sandbox_layers import Plan

MESSAGE = 1 << 16
MAX_FDS = 8


def main(descriptor: int, folder: str) -> None:
    """Make onebase's own files importable without site-packages, read the configuration, split in two."""
    stub = ModuleType("onebase")
    stub.__path__ = [folder]
    sys.modules["onebase"] = stub
    ours = socket.socket(fileno=fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16))
    os.close(descriptor)
    for place in range(3, 16):  # these numbers are a run's: whatever is opened from here on lies above
        os.dup2(0, place, inheritable=False)
    config = json.loads(ours.recv(MESSAGE))
    try:
        from onebase.verifiers import sandbox_janitor

        sandbox_janitor.main(ours, config, lambda plan: serve(plan, ours, config))
    except Exception as error:
        reply(ours, {"error": f"the sandbox did not start: {error}\n{traceback.format_exc()}"})


def serve(plan: Plan, ours: socket.socket, config: dict[str, Any]) -> None:
    """Take runs until the caller is gone."""
    from onebase.verifiers import sandbox_box, sandbox_child

    os.umask(0o022)
    os.environ.update(HOME=plan.box, TMPDIR=plan.box)
    os.dup2(plan.complaints[1], sandbox_child.COMPLAIN, inheritable=False)
    if plan.has("landlock"):
        os.dup2(plan.rules, sandbox_child.RULES, inheritable=False)
        plan.rules = sandbox_child.RULES
    caller = os.pidfd_open(config["caller"]) if not plan.has("pid") else -1
    lacking = [wish for wish in config["demand"] if not any(map(plan.has, wish.split("|")))]
    if lacking:
        reply(ours, {"error": refusal(lacking, plan)})
        return
    uids = itertools.cycle(plan.uids or [None])
    gc.collect()
    gc.disable()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of the heap
    reply(ours, {"layers": plan.layers, "missing": plan.missing, "pid": os.getpid(), "notes": plan.notes})
    while True:
        if caller in wait_readable([ours.fileno(), caller], None):
            return
        data, fds, _, _ = socket.recv_fds(ours, MESSAGE, MAX_FDS)
        if not data:
            return
        message = json.loads(data)
        if "run" not in message:
            continue  # an order to end a run that had ended already
        uid = next(uids)
        sandbox_box.prepare(plan, uid)
        job = sandbox_child.Job(limits=message["run"], fds=dict(zip(message["fds"], fds, strict=True)))
        result, go_on = run(plan, job, uid, ours, caller)
        sandbox_box.empty(plan)
        if not go_on:
            return
        complaint = plan.complaint()
        reply(ours, {"error": complaint} if complaint else result)


def run(
    plan: Plan, job: Any, uid: int | None, ours: socket.socket, caller: int
) -> tuple[dict[str, Any], bool]:
    """One run from fork to the last of its processes; False with it when the caller is gone."""
    from onebase.verifiers import sandbox_child
    from onebase.verifiers.sandbox_watch import Watch, reap_all

    pid = os.fork()
    if pid == 0:
        sandbox_child.main(job, plan, uid)
    watch = Watch(plan, job.limits, pid)
    for fd in job.fds.values():
        os.close(fd)
    child = os.pidfd_open(pid)
    how, go_on = None, True
    while how is None:
        ready = wait_readable([child, ours.fileno(), caller], watch.seconds())
        if child in ready:
            break
        if caller in ready:
            how, go_on = "killed", False
        elif ours.fileno() in ready:
            order = ours.recv(MESSAGE)
            how, go_on = (json.loads(order)["kill"] if order else "killed"), bool(order)
        else:
            how = watch.look()
    os.close(child)
    ended = watch.ended
    if how is None and ended.status is None:
        while ended.status is None and ended.reap(pid, 0) > 0:
            pass
    reap_all(plan, [] if uid is None else [uid], pid, ended)
    status = 0 if ended.status is None else ended.status
    code = os.waitstatus_to_exitcode(status)
    cpu = ended.cpu + watch.hidden
    if how is None:
        how = BY_SIGNAL.get(-code, "signal") if code < 0 else "exit"
        how = "cpu" if cpu > job.limits["cpu_seconds"] else how
    return {
        "how": how, "code": abs(code), "cpu_seconds": cpu, "wall_seconds": time.monotonic() - watch.started,
        "memory_mb": max(ended.peak_mb, watch.peak_mb), "outlived": ended.killed,
    }, go_on  # fmt: skip


BY_SIGNAL: dict[int, str] = {signal.SIGXCPU: "cpu", signal.SIGXFSZ: "disk"}


def refusal(lacking: list[str], plan: Plan) -> str:
    """Why nothing may run here, and what to do about it."""
    lines = [f"this machine does not give the sandbox what is demanded: {', '.join(lacking)}"]
    for wish in lacking:
        lines += [f"  {name}: {plan.missing.get(name, 'no such layer')}" for name in wish.split("|")]
    lines.append(
        f"  here hold: {', '.join(plan.layers) or 'none'}; to go on with less, demand no more than these"
    )
    return "\n".join(lines)


def wait_readable(fds: list[int], seconds: float | None) -> set[int]:
    poll = select.poll()
    for fd in fds:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)}


def reply(ours: socket.socket, message: dict[str, Any]) -> None:
    try:
        ours.send(json.dumps(message).encode())
    except OSError:
        pass  # the caller is gone; the next read says so


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
