"""How long an answer of a run is waited for: CPU time, and time in which it does nothing.

A solution that sleeps, or whose threads wait for each other, is not seen by CPU limits, and a wall limit
would also hit code that is slowed down by other work on the machine.  So the processes themselves are looked
at: a stretch counts as idle where none of them was ready to run and together they used next to no CPU time.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time

from onebase.verifiers.sandbox import Run, Sandbox

LOOK_SECONDS = 0.25
CLOSED = "it closed its channel"
WORKING = 0.05  # share of a stretch on the CPU above which it is not idle


class Patience:
    """For one answer: how long the run may be idle, in all, and how much CPU time it may take.  (The sandbox
    limits the CPU time of the whole run; a process that answers many questions has one limit for each.)"""

    def __init__(self, box: Sandbox, run: Run, idle_seconds: float, cpu_seconds: float = math.inf) -> None:
        self.box, self.run = box, run
        self.idle_seconds, self.cpu_seconds = idle_seconds, cpu_seconds
        self.idle = self.worked = 0.0
        self.seen = time.monotonic()
        self.cpu: float | None = None

    def wait(self, channel: socket.socket) -> str | None:
        """Until the channel can be read, the run is over, or a look is due.  A text when it has lasted too
        long."""
        self.run.wait_for(channel, LOOK_SECONDS)
        return self.check()

    def send(self, channel: socket.socket, data: bytes) -> str | None:
        """All of `data`; a text when the other side takes too long to read it, or is gone."""
        view = memoryview(data)
        poll = select.poll()
        poll.register(channel, select.POLLOUT)
        while view:
            try:
                view = view[channel.send(view) :]
            except BlockingIOError:
                poll.poll(LOOK_SECONDS * 1000)
                self.run.wait_for(silent(), 0.0)
                if (problem := self.check()) is not None:
                    return problem
            except OSError:
                return CLOSED
            if self.run.outcome is not None:
                return "it ended"
        return None

    def check(self) -> str | None:
        """Look, if it is time to."""
        now = time.monotonic()
        stretch = now - self.seen
        if self.run.outcome is not None or stretch < LOOK_SECONDS:
            return None
        ready, cpu = self._look()
        worked = 0.0 if self.cpu is None else max(0.0, cpu - self.cpu)
        if self.cpu is not None and not ready and worked < WORKING * stretch:
            self.idle += stretch
        self.seen, self.cpu, self.worked = now, cpu, self.worked + worked
        if self.idle > self.idle_seconds:
            return f"it waited {self.idle:.0f} s and did not work"
        if self.worked > self.cpu_seconds:
            return f"it took too much CPU time ({self.worked:.1f} s)"
        return None

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
