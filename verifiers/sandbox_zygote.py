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
    from onebase.verifiers import sandbox_child
    from onebase.verifiers.sandbox_layers import Plan
    from onebase.verifiers.sandbox_reap import Ended

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
    config = marshal.loads(ours.recv(16 * MESSAGE))
    try:
        janitor = importlib.import_module("onebase.verifiers.sandbox_janitor")
        janitor.main(ours, config, lambda plan: serve_or_tell(plan, ours, config))
    except Exception as error:
        reply(ours, f"error the sandbox did not start: {error}\n{traceback.format_exc()}")


def serve_or_tell(plan: Plan, ours: socket.socket, config: dict[str, Any]) -> None:
    """What becomes of the zygote's process once its layers are on."""
    lacking = [wish for wish in config["demand"] if not any(map(plan.has, wish.split("|")))]
    if lacking:
        reply(ours, f"error {refusal(lacking, plan)}")
        return
    try:
        Zygote(plan, ours).serve()
    except Exception:
        reply(ours, f"broken the sandbox's warm process ended\n{traceback.format_exc()}")


class Zygote:
    """One run after the other, until the caller is gone."""

    __slots__ = ("plan", "ours", "poll", "owners", "turns", "entries", "steps", "counted")

    def __init__(self, plan: Plan, ours: socket.socket) -> None:
        from onebase.verifiers import sandbox_child

        self.plan, self.ours = plan, ours
        os.umask(0o022)
        os.environ.update(HOME=plan.box, TMPDIR=plan.box)
        os.dup2(plan.complaints[1], sandbox_child.COMPLAIN, inheritable=False)
        self.poll = select.poll()
        self.poll.register(ours, select.POLLIN)
        self.poll.register(plan.janitor, select.POLLIN)
        self.owners: list[int | None] = []
        self.owners += plan.uids or [None]
        self.turns = itertools.cycle(self.owners)
        self.entries: dict[str, Any] = {}  # name: function, or why there is none
        self.steps: dict[tuple[Any, ...], list[sandbox_child.Step]] = {}  # by the shape of a job
        self.counted = (0, 0)  # memory and processes that the cgroup allows now
        sandbox_child.warm_up()
        gc.collect()
        gc.disable()
        gc.freeze()  # a collection in a child would touch, and so copy, every page of the heap

    def serve(self) -> None:
        plan, ours = self.plan, self.ours
        hello = {"layers": plan.layers, "missing": plan.missing, "notes": plan.notes, "folders": plan.folders}
        reply(ours, repr(hello))
        while True:
            if all(fd != ours.fileno() for fd, _ in self.poll.poll()):
                return  # the janitor is gone, or has told that the caller is
            order, fds = receive(ours)
            if order is None:
                return
            if "limits" not in order:
                continue  # an order to end a run that had ended already
            answer = self.take(order, fds)
            if answer is None:
                return
            reply(ours, plan.complaint() or answer)

    def take(self, order: dict[str, Any], fds: list[int]) -> str | None:
        """A run from order to answer; None when the caller is gone."""
        from onebase.verifiers import sandbox_box, sandbox_child

        entry = order["entry"]
        if entry is not None and entry not in self.entries:
            self.entries[entry] = sandbox_child.find(entry)
        function = None if entry is None else self.entries[entry]
        if isinstance(function, str):
            for fd in fds:
                os.close(fd)
            return f"error {function}"
        limits, names, uid = order["limits"], order["fds"], next(self.turns)
        if self.plan.has("cgroup") and (limits["memory_mb"], limits["processes"]) != self.counted:
            self.counted = limits["memory_mb"], limits["processes"]
            if self.ask((limits["memory_mb"] + limits["disk_mb"], limits["processes"])) is None:
                return None
        if uid is not None:
            os.chown(self.plan.box, uid, -1)
        key = (uid, *limits.values(), *names, *fds, entry is None)
        if key not in self.steps:
            self.prepare(limits, names, fds, entry is None)
        job = (self.steps[key], function, order["size"], names)
        answer = self.run(limits, [] if uid is None else [uid], fds, job)
        sandbox_box.empty(self.plan)
        return answer

    def prepare(self, limits: dict[str, Any], names: list[str], fds: list[int], command: bool) -> None:
        """The steps of such a run, for every uid that may have its turn.  Only of the last shape: a caller's
        runs are alike, and descriptors have the same numbers each time."""
        from onebase.verifiers import sandbox_child

        self.steps.clear()
        shape = dict(zip(names, fds, strict=True))
        for uid in self.owners:
            key = (uid, *limits.values(), *names, *fds, command)
            self.steps[key] = sandbox_child.steps(self.plan, uid, limits, shape, command)

    def run(self, limits: dict[str, Any], uids: list[int], fds: list[int], job: Any) -> str | None:
        """From the fork to the last of the run's processes; None when the caller is gone."""
        from onebase.verifiers import sandbox_child
        from onebase.verifiers.sandbox_reap import Ended, reap_all

        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            sandbox_child.main(*job)
        for fd in fds:
            os.close(fd)
        ended = Ended()
        how = self.wait(pid, started, limits, ended)
        reap_all(self.plan, uids, pid, ended, kill=how is not None)
        if how == "gone":
            return None
        code = os.waitstatus_to_exitcode(ended.status or 0)
        if how is None:
            how = BY_SIGNAL.get(-code, "signal") if code < 0 else "exit"
            if ended.cpu > limits["cpu_seconds"]:
                how = "cpu"
            elif code == -signal.SIGKILL and self.plan.has("cgroup") and self.ask("starved"):
                how = "memory"
        seconds = time.monotonic() - started
        return f"{how} {abs(code)} {ended.cpu} {seconds} {ended.peak_mb} {ended.killed}"

    def wait(self, pid: int, started: float, limits: dict[str, Any], ended: Ended) -> str | None:
        """Until the first process has ended (None), or there is a reason to end the run."""
        child = os.pidfd_open(pid)
        self.poll.register(child, select.POLLIN)
        pause = min(FIRST_LOOK, limits["wall_seconds"])
        try:
            while True:
                ready = self.poll.poll(pause * 1000)
                if not ready:
                    while ended.reap(pid, os.WNOHANG) > 0:
                        pass  # zombies count as processes of the run
                    how, pause = self.ask((started, limits, ended.cpu)) or ("gone", 0.0)
                    if how is not None:
                        return how
                elif any(fd == child for fd, _ in ready):
                    return None
                else:
                    ordered = any(fd == self.ours.fileno() for fd, _ in ready)
                    order = receive(self.ours)[0] if ordered else None
                    return "gone" if order is None else order["kill"]
        finally:
            self.poll.unregister(child)
            os.close(child)

    def ask(self, question: Any) -> Any:
        """The janitor's answer; None when it is gone.  Questions: its opinion of a run (the limit that is
        overrun or None, and when to ask again), other limits for the cgroup, whether that has killed."""
        self.plan.janitor.send(marshal.dumps(question))
        answer = self.plan.janitor.recv(MESSAGE)
        return marshal.loads(answer) if answer else None


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
