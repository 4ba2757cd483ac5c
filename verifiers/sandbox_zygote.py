"""The warm process behind `Sandbox`: forks an isolated process for every run, watches it, ends it, reaps it.

Run as `python -s -S -P -B -X utf8 sandbox_zygote.py SOCKET FOLDER`, FOLDER being that of the onebase package.
Two processes: the janitor, which only waits and clears away what is left (whoever died, and however), and the
zygote proper, which is single-threaded and takes one run at a time.  Every process of a run is a descendant
of the zygote, which is their reaper: `wait` saying that there are no children is the exact proof that a run
is gone.
"""

from __future__ import annotations

import gc
import importlib
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
    ours = socket.socket(fileno=descriptor)
    config = json.loads(ours.recv(MESSAGE))
    try:
        from onebase.verifiers.sandbox_janitor import janitor

        janitor(config, lambda plan: zygote(ours, config, plan), ours)
    except Exception:
        reply(ours, {"error": f"the sandbox did not start\n{traceback.format_exc()}"})


def zygote(ours: socket.socket, config: dict[str, Any], plan: Plan) -> None:
    """Import what runs shall find warm, put on what can be put on once, serve until the caller is gone."""
    from onebase.verifiers import sandbox_child

    for name in ["onebase.verifiers.sandbox_script", *config["preload"]]:
        importlib.import_module(name)
    caller = os.pidfd_open(config["caller"])
    gc.collect()
    gc.disable()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of the heap
    reply(ours, {"layers": plan.layers, "missing": plan.missing, "pid": os.getpid()})
    while True:
        ready = wait_readable([ours.fileno(), caller], None)
        if caller in ready:
            return
        data, fds, _, _ = socket.recv_fds(ours, MESSAGE, MAX_FDS)
        if not data:
            return
        message = json.loads(data)
        if "run" not in message:
            continue  # an order to end a run that had ended already
        job = sandbox_child.Job(limits=message["run"], fds=dict(zip(message["fds"], fds, strict=True)))
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            sandbox_child.main(job, plan)
        for fd in fds:
            os.close(fd)
        result = watch(pid, started, job.limits, ours, caller)
        if result is None:
            return
        complaint = plan.complaint()
        reply(ours, {"error": complaint} if complaint else result)


def watch(pid: int, started: float, limits: dict[str, Any], ours: socket.socket, caller: int) -> Any:
    child = os.pidfd_open(pid)
    how = None
    try:
        while True:
            left = started + limits["wall_seconds"] - time.monotonic()
            if left < 0 and how is None:
                how = "wall"
                os.kill(pid, signal.SIGKILL)
            ready = wait_readable([ours.fileno(), child, caller], max(0.0, left) if how is None else None)
            if child in ready:
                break
            if caller in ready:
                os.kill(pid, signal.SIGKILL)
                return None
            if ours.fileno() in ready:
                data = ours.recv(MESSAGE)
                os.kill(pid, signal.SIGKILL)
                if not data:
                    return None
                how = json.loads(data)["kill"]
    finally:
        os.close(child)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    if how is None and cpu > limits["cpu_seconds"]:
        how = "cpu"
    return {
        "how": how or ("exit" if code >= 0 else "signal"), "code": abs(code), "cpu_seconds": cpu,
        "wall_seconds": time.monotonic() - started, "memory_mb": usage.ru_maxrss / 1024, "outlived": 0,
    }  # fmt: skip


def wait_readable(fds: list[int], seconds: float | None) -> set[int]:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)}


def reply(ours: socket.socket, message: dict[str, Any]) -> None:
    try:
        ours.send(json.dumps(message).encode())
    except OSError:
        pass  # the caller is gone; the next read says so


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
