"""The verifier's end of the talk with the solution's process, and the warm sandboxes it runs in.

Warm sandboxes are kept per process and kind and lent to one verdict at a time, so any number of threads may
judge side by side.  What a solution's process says is a claim: it must carry the nonce of the question that
it answers, it is bounded, and it is rebuilt as plain values before anybody looks at it.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from onebase.verifiers.code_patience import CLOSED, Patience, silent
from onebase.verifiers.code_task import Task
from onebase.verifiers.code_wire import FRAME_BYTES
from onebase.verifiers.sandbox import Limits, Outcome, Run, Sandbox

HEAD = struct.Struct("<I8s")
CLOSING_SECONDS = 1.0
SOLUTION = "onebase.verifiers.code_solution"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run; see `code_tests.verify`."""

    limits: Limits = field(default_factory=Limits)  # cpu_seconds: of one test
    row_cpu_seconds: float = 30.0
    idle_seconds: float = 5.0
    demand: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    partial: bool = False
    float_tolerance: float | None = None
    objects: str = "refuse"
    module: str = "solution"
    command: tuple[str, ...] = ()
    build: tuple[str, ...] = ()
    built: str = ""
    file: str = "main.py"

    def spent(self, report: Report) -> str | None:
        """Why no further process is started for the row."""
        if report.cpu_seconds <= max(self.row_cpu_seconds, self.limits.cpu_seconds):
            return None
        return f"the row's tests took too much CPU time together ({report.cpu_seconds:.0f} s)"

    def whole(self, tests: int) -> Limits:
        """Limits of a process that answers for all tests of a row."""
        cpu = min(self.limits.cpu_seconds * (tests + 1), max(self.row_cpu_seconds, self.limits.cpu_seconds))
        return replace(self.limits, cpu_seconds=cpu, wall_seconds=self.limits.wall_seconds + 4 * cpu)


@dataclass(slots=True)
class Report:
    """What came of the tests.  `failures` maps a test ("test 3") to how it failed; tests that were not run,
    because an earlier one failed, are neither here nor in `passed`."""

    total: int
    passed: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    broken: str | None = None  # why no test could be run: the code does not load
    cpu_seconds: float = 0.0
    layers: tuple[str, ...] = ()

    def account(self, outcome: Outcome) -> None:
        self.cpu_seconds += outcome.cpu_seconds
        self.layers = outcome.layers


class Gone(Exception):
    """The solution's process ended, or spoke out of turn.  The text says how."""


MAX_IDLE = 8  # warm processes that are kept for the next verdict

_idle: list[tuple[Any, Sandbox]] = []
_lock = threading.Lock()


@contextmanager
def sandbox(
    settings: Settings,
    preload: tuple[str, ...] = (),
    packages: tuple[str, ...] = (),
    use: tuple[str, ...] = (),
    disk_mb: int = 0,
) -> Iterator[Sandbox]:
    """A warm sandbox of that kind, for one verdict at a time."""
    disk_mb = max(disk_mb, settings.limits.disk_mb)
    key = (settings.demand, preload, packages, use, disk_mb)
    found = _take(key)
    if found is None:
        options: dict[str, Any] = {"demand": settings.demand} if settings.demand else {}
        limits = replace(settings.limits, disk_mb=disk_mb)
        found = Sandbox(limits, preload=preload, packages=packages, use=use, **options)
    try:
        yield found
    except BaseException:
        found.close()  # whatever state it is in, nobody else shall have it
        raise
    with _lock:
        _idle.append((key, found))
        surplus = [_idle.pop(0)] if len(_idle) > MAX_IDLE else []
    for _, box in surplus:
        box.close()


def _take(key: Any) -> Sandbox | None:
    """The one that was used last, as it is the warmest."""
    with _lock:
        for place in reversed(range(len(_idle))):
            if _idle[place][0] == key:
                return _idle.pop(place)[1]
    return None


def close_all() -> None:
    """End every idle warm process of this process."""
    with _lock:
        found = _idle[:]
        _idle.clear()
    for _, box in found:
        box.close()


atexit.register(close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


class Solution:
    """Asks one process one question at a time."""

    def __init__(self, box: Sandbox, source: dict[str, Any], settings: Settings, limits: Limits) -> None:
        self.box, self.settings, self.limits = box, settings, limits
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        try:
            self.run: Run = box.start(
                f"{SOLUTION}:main", json.dumps(source).encode(), channel=theirs, limits=limits
            )
        except BaseException:
            self.channel.close()
            raise
        self.incoming = bytearray()

    def ask(self, body: bytes) -> bytes:
        """The body of the answer; Gone where there is none."""
        if self._readable():
            raise Gone("it wrote before it was asked")
        nonce = secrets.token_bytes(8)
        self._send(HEAD.pack(len(body), nonce) + body)
        size, given = HEAD.unpack(self._read(HEAD.size))
        if given != nonce:
            raise Gone("an answer with a nonce that was not asked for")
        if size > FRAME_BYTES:
            raise Gone(f"an answer of {size} bytes; the limit is {FRAME_BYTES}")
        return self._read(size)

    def _readable(self) -> bool:
        if self.incoming:
            return True
        try:
            return bool(self.channel.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        except OSError:
            return False

    def _patience(self) -> Patience:
        settings = self.settings
        return Patience(self.box, self.run, settings.idle_seconds, settings.limits.cpu_seconds)

    def _send(self, data: bytes) -> None:
        problem = self._patience().send(self.channel, data)
        if self.run.outcome is None and problem == CLOSED:
            self.run.wait_for(silent(), CLOSING_SECONDS)
        if self.run.outcome is not None:
            raise Gone(how_it_ended(self.run.outcome, self.limits))
        if problem is not None:
            self.end()
            raise Gone(problem)

    def _read(self, size: int) -> bytes:
        patience = self._patience()
        while len(self.incoming) < size:
            try:
                data = self.channel.recv(min(1 << 20, size - len(self.incoming)))
            except BlockingIOError:
                if (problem := patience.wait(self.channel)) is not None:
                    self.end()
                    raise Gone(problem) from None
                if self.run.outcome is not None and not self._peek():
                    raise Gone(how_it_ended(self.run.outcome, self.limits)) from None
                continue
            except OSError:
                data = b""
            if not data:  # it closed the channel: whatever else it does is of no use
                self._give_time_to_end()
                raise Gone(how_it_ended(self.end(), self.limits, closed=True))
            self.incoming += data
        taken = bytes(self.incoming[:size])
        del self.incoming[:size]
        return taken

    def _peek(self) -> bool:
        try:
            return bool(self.channel.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _give_time_to_end(self) -> None:
        """A process that dies closes its channel a moment before its end is known."""
        self.run.wait_for(silent(), CLOSING_SECONDS)

    def end(self) -> Outcome:
        """Nothing more is asked."""
        try:
            if self.run.outcome is None:
                self.run.kill()
            return self.run.wait()
        finally:
            self.channel.close()


def how_it_ended(outcome: Outcome, limits: Limits, closed: bool = False) -> str:
    how, code = outcome.how, outcome.code
    if how == "cpu" or (how == "signal" and code in (signal.SIGPROF, signal.SIGXCPU)):
        return f"it took too much CPU time ({outcome.cpu_seconds:.1f} s)"
    if how == "wall":
        return (
            f"it waited too long ({outcome.wall_seconds:.0f} s, of which {outcome.cpu_seconds:.1f} s of CPU)"
        )
    if how == "memory":
        return f"it took more than {limits.memory_mb} MB of memory"
    if how in ("output", "disk"):
        return f"it wrote more {how} than it may"
    if how == "killed":
        return CLOSED if closed else "it was ended"
    if how == "signal":
        return f"its process died of {signal.Signals(code).name if code in set(signal.Signals) else code}"
    return f"its process exited with {code}"


def solution_source(task: Task, code: str, settings: Settings, interactive: bool) -> dict[str, Any]:
    return {
        "code": code, "prefix": task.prefix, "prelude": task.prelude, "entry": task.entry,
        "records": list(task.records), "module": settings.module, "interactive": interactive,
        "cpu_seconds": settings.limits.cpu_seconds, "start": 1,
    }  # fmt: skip
