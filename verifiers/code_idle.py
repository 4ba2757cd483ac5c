"""Ends a run that waits for nothing: a solution that sleeps, or whose threads wait for each other.

CPU limits do not see it, and a wall limit would also hit code that is slowed down by other work on the
machine.  So the processes themselves are looked at: a stretch counts as idle where none of them was ready to
run and together they used next to no CPU time.
"""

from __future__ import annotations

import os
import socket
import time

from onebase.verifiers.sandbox import Run, Sandbox

LOOK_SECONDS = 0.25
WORKING = 0.05  # share of a stretch on the CPU above which it is not idle


class Idle:
    """For one wait; `allowed` is how long it may be idle, in all."""

    def __init__(self, box: Sandbox, run: Run, allowed: float) -> None:
        self.box, self.run, self.allowed = box, run, allowed
        self.idle = 0.0
        self.seen = time.monotonic()
        self.cpu: float | None = None

    def wait(self, channel: socket.socket) -> bool:
        """Until the channel can be read, the run is over, or a look is due.  True when it has idled too
        long."""
        self.run.wait_for(channel, LOOK_SECONDS)
        now = time.monotonic()
        stretch = now - self.seen
        if self.run.outcome is not None or stretch < LOOK_SECONDS:
            return False
        ready, cpu = self._look()
        if self.cpu is not None and not ready and cpu - self.cpu < WORKING * stretch:
            self.idle += stretch
        self.seen, self.cpu = now, cpu
        return self.idle > self.allowed

    def _look(self) -> tuple[bool, float]:
        """Whether a thread of the run's is ready to run, and the CPU seconds of all of them.  Where /proc
        does not tell, the run counts as ready."""
        zygote = self.box._zygote
        if zygote is None:
            return True, 0.0
        ready, cpu = False, 0.0
        waiting = [pid for child in _children(zygote.process.pid) for pid in _children(child)]
        if not waiting:
            return True, 0.0
        while waiting:
            pid = waiting.pop()
            waiting += _children(pid)
            for task in _entries(f"/proc/{pid}/task"):
                fields = _text(f"/proc/{pid}/task/{task}/stat").rpartition(")")[2].split()
                ran = _text(f"/proc/{pid}/task/{task}/schedstat").split()
                ready |= not fields or fields[0] in "RD"
                cpu += int(ran[0]) / 1e9 if ran else 0.0
        return ready, cpu


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for task in _entries(f"/proc/{pid}/task")
        for child in _text(f"/proc/{pid}/task/{task}/children").split()
    ]


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read()
    except OSError:
        return ""


_SILENT: list[socket.socket] = []


def silent() -> socket.socket:
    """A socket on which nothing ever arrives, to wait for the end of a run alone."""
    if not _SILENT:
        _SILENT.extend(socket.socketpair())
    return _SILENT[0]
