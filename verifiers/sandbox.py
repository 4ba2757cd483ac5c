"""Runs untrusted code in a process that the kernel holds: the caller's side.

    with Sandbox() as sandbox:
        outcome = sandbox.start(argv=["python3", "main.py"], files={"main.py": source}).wait()

`Sandbox` starts one warm interpreter (`sandbox_zygote.py`) which forks an isolated process for every run; no
container engine, no account, no set-up.  Layers are described in `sandbox_layers.py` (those which work in a
default container) and `sandbox_namespaces.py` (those which need more rights); `sandbox_check.py` attacks
them.  What a run may do to be judged is not decided here: this file gives processes, bytes and limits.

What is to be run never passes through the warm interpreter's memory, because later runs are forked from it:
the payload, the files and the input travel in memfds that only the run's own process opens, and the output
comes through pipes that only the caller reads.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onebase.verifiers.sandbox_process import SandboxError, Zygote

# What a run must have.  Where there is no Landlock (kernels before 5.13), a root of its own will do; where
# there is no uid of its own (an ordinary user), a pid namespace of its own.
DEMAND = ("rlimits", "seccomp", "landlock|mount", "uid|pid")
GRACE_SECONDS = 60.0  # past the wall limit, the warm process itself is taken for dead


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may take.  CPU time decides (a loaded machine gives the same verdict); wall time is a
    backstop against code that sleeps."""

    cpu_seconds: float = 4.0  # of all processes of the run together
    wall_seconds: float = 20.0
    memory_mb: int = 512
    processes: int = 16  # threads included, the first one too
    output_bytes: int = 1 << 20  # of stdout and of stderr, each
    disk_mb: int = 16
    open_files: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            whole = name not in ("cpu_seconds", "wall_seconds")
            if not value > 0 or whole and not isinstance(value, int):
                kind = "a whole number" if whole else "a number"
                raise ValueError(f"sandbox limit {name}={value!r}: must be {kind} above 0")


@dataclass(slots=True)
class Outcome:
    """How a run ended.  `how`: exit (`code` = status), signal (`code` = number), or the limit that ended it:
    cpu, wall, memory, output, disk; killed = by the caller."""

    how: str
    code: int
    stdout: bytes
    stderr: bytes
    cpu_seconds: float
    wall_seconds: float
    memory_mb: float
    layers: tuple[str, ...]
    outlived: int = 0  # processes that were still there when the first one ended, and were killed


class Sandbox:
    """One warm process; one run at a time.  Any thread may call; others wait for their turn.

    demand: layers without which nothing may run ("uid|pid": one of them); missing ones are a SandboxError.
    preload: modules to import once, before any run is forked.  packages: installed packages that the code
    may import (with what they require).  use: more files, folders or commands that it may read and execute.
    namespaces: "auto" takes those the kernel gives, "off" none.  self_test: attack the sandbox first, once
    in a process for each set of layers (sandbox_check.py), and be no sandbox if an attack gets through.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        demand: Sequence[str] = DEMAND,
        preload: Sequence[str] = (),
        packages: Sequence[str] = (),
        use: Sequence[str] = (),
        namespaces: str = "auto",
        self_test: bool = True,
    ) -> None:
        if namespaces not in ("auto", "off"):
            raise ValueError(f"namespaces={namespaces!r}: 'auto' or 'off'")
        self.limits = limits or Limits()
        self._config: dict[str, Any] = {
            "demand": list(demand), "preload": list(preload), "packages": list(packages),
            "use": list(use), "namespaces": namespaces, "limits": asdict(self.limits),
        }  # fmt: skip
        self._turn = threading.Lock()
        self._owner: int | None = None
        self._closed = False
        self._zygote: Zygote | None = None
        self.layers: tuple[str, ...] = ()
        self.missing: dict[str, str] = {}  # layer: why it is not there
        self.notes: list[str] = []
        self._open()
        if self_test:
            from onebase.verifiers import sandbox_check

            try:
                sandbox_check.self_test(self)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        if self._zygote is not None:
            self._zygote.close()
        self._zygote = Zygote(self._config)
        self.layers, self.missing = self._zygote.layers, self._zygote.missing
        self.notes = self._zygote.notes

    def close(self) -> None:
        """End the warm process and whatever runs in it; from any thread, any number of times."""
        self._closed = True
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.close()

    def start(
        self,
        entry: str | None = None,
        payload: bytes = b"",
        argv: Sequence[str] | None = None,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        channel: socket.socket | None = None,
        limits: Limits | None = None,
    ) -> Run:
        """Start `entry` ("module:function" of a preloaded module, called with the payload and the channel's
        descriptor or None) or the command `argv` ("{dir}" in it stands for the run's own folder, which is its
        working directory and holds `files`).  `channel` is passed on and closed here."""
        if (entry is None) == (argv is None):
            raise ValueError("a run is an entry or an argv: give one of them")
        if self._owner == threading.get_ident():
            raise SandboxError("this thread has a run in this sandbox: wait for it before starting another")
        self._turn.acquire()
        try:
            self._owner = threading.get_ident()
            if self._closed:
                raise SandboxError("the sandbox is closed")
            if limits is not None and limits.disk_mb > self.limits.disk_mb:
                raise ValueError(f"disk_mb={limits.disk_mb}: a run may have less than its sandbox, not more")
            job = marshal.dumps((None if argv is None else list(argv), dict(files or {}), payload))
            fresh = self._zygote is None or self._zygote.dead
            if fresh:
                self._open()
            try:
                return Run(self, entry, job, stdin, channel, limits or self.limits)
            except SandboxError:
                if fresh:
                    raise
                self._open()  # the warm process had died since the last run; this one was not begun
                return Run(self, entry, job, stdin, channel, limits or self.limits)
        except BaseException:
            self._release()
            raise
        finally:
            if channel is not None:
                channel.close()

    def _release(self) -> None:
        self._owner = None
        self._turn.release()


class Run:
    """A run under way.  `wait()` must be called (or the Run be used in a `with`), else the sandbox stays
    taken."""

    def __init__(
        self,
        sandbox: Sandbox,
        entry: str | None,
        job: bytes,
        stdin: bytes,
        channel: socket.socket | None,
        limits: Limits,
    ) -> None:
        assert sandbox._zygote is not None
        self._sandbox, self._zygote, self._limits = sandbox, sandbox._zygote, limits
        self._kept: dict[int, list[bytes]] = {}
        self._sizes: dict[int, int] = {}
        self._flooded = False
        self.outcome: Outcome | None = None
        self._lost = ""  # why there will be no outcome
        ours, theirs = [], [memfd(job)]
        try:
            for _ in ("stdout", "stderr"):
                reader, writer = pipe(limits.output_bytes)
                ours.append(reader)
                theirs.append(writer)
            fds = ["job", "stdout", "stderr"]
            if stdin:
                theirs.append(memfd(stdin))
                fds.append("stdin")
            passed = list(theirs)
            if channel is not None:
                passed.append(channel.fileno())
                fds.append("channel")
            order = {"limits": asdict(limits), "fds": fds, "entry": entry, "size": len(job)}
            self._zygote.send(order, passed)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._out, self._err = ours
        for fd in ours:
            os.set_blocking(fd, False)
            self._kept[fd], self._sizes[fd] = [], 0
        self._open = set(ours)
        self._deadline = time.monotonic() + limits.wall_seconds + GRACE_SECONDS

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self.outcome is None and not self._lost:
            self.kill()
            self.wait()

    def kill(self) -> None:
        """End the run now; its Outcome says "killed"."""
        if self.outcome is None and not self._lost:
            try:
                self._zygote.send({"kill": "killed"}, [])
            except SandboxError:
                pass  # it is gone, and its run with it: wait() says so

    def wait(self) -> Outcome:
        """Block until the run and everything it started are gone."""
        while self.outcome is None:
            self._pump(None)
        return self.outcome

    def wait_for(self, channel: socket.socket, timeout: float | None = None) -> Outcome | None:
        """Block until `channel` can be read (or is at its end) or `timeout` has passed: None; or until
        the run is over and the channel has no more to say: its Outcome."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.outcome is None:
            if self._pump(channel, end) or (end is not None and time.monotonic() >= end):
                return None
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        return None if poll.poll(0) else self.outcome

    def _pump(self, channel: socket.socket | None, end: float | None = None) -> bool:
        """One round of reading; True when the channel has something to read."""
        if self._lost:
            raise SandboxError(self._lost)
        poll = select.poll()
        line = self._zygote.socket.fileno()
        if line < 0:
            raise self._lose(SandboxError("the sandbox was closed while it ran"))
        poll.register(line, select.POLLIN)
        for fd in self._open:
            poll.register(fd, select.POLLIN)
        if channel is not None:
            poll.register(channel, select.POLLIN)
        until = self._deadline if end is None else min(end, self._deadline)
        ready = {fd for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000 + 1)}
        try:
            if not ready and time.monotonic() > self._deadline:
                self._zygote.close()
                raise SandboxError("the sandbox's warm process does not answer: it was ended")
            for fd in ready & self._open:
                self._read(fd)
            if line in ready:
                self._finish(self._zygote.receive())
        except SandboxError as error:
            if not self._zygote.starved():
                raise self._lose(error) from None
            self._flooded = True  # what it printed last is not looked for
            seconds = time.monotonic() - self._deadline + self._limits.wall_seconds + GRACE_SECONDS
            self._finish(f"memory {signal.SIGKILL.value} 0 {seconds} {self._limits.memory_mb} 0")
        return channel is not None and channel.fileno() in ready

    def _read(self, fd: int) -> bool:
        """Take what the pipe holds, at most one block; False when there is no more for now."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._open.discard(fd)
            return False
        room = self._limits.output_bytes - self._sizes[fd]
        self._sizes[fd] += len(data)
        if room > 0:
            self._kept[fd].append(data[:room])
        if len(data) > room and not self._flooded:
            self._flooded = True
            self._zygote.send({"kill": "output"}, [])
        return True

    def _finish(self, answer: str) -> None:
        how, *numbers = answer.split()
        code, cpu, wall, memory, outlived = map(float, numbers)
        for fd in list(self._open):
            while not self._flooded and self._read(fd):
                pass
        if self._flooded and how in ("exit", "signal"):
            how = "output"  # it ended before the order to kill it arrived
        stdout, stderr = (b"".join(self._kept[fd]) for fd in (self._out, self._err))
        layers = self._zygote.layers
        self._close()
        self.outcome = Outcome(
            how, int(code), stdout, stderr, cpu, wall, round(memory, 1), layers, int(outlived)
        )

    def _lose(self, error: SandboxError) -> SandboxError:
        self._lost = str(error)
        self._close()
        return error

    def _close(self) -> None:
        for fd in (self._out, self._err):
            os.close(fd)
        self._open = set()
        self._kept.clear()
        self._sandbox._release()


def memfd(data: bytes) -> int:
    """A file in memory with these bytes, rewound, which nobody can write any more."""
    import fcntl

    fd = os.memfd_create("onebase", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 15)  # SEAL | SHRINK | GROW | WRITE
    return fd


def pipe(size: int) -> tuple[int, int]:
    """A pipe that holds `size` bytes where the kernel allows it, so that a caller who is busy elsewhere does
    not stop a run that prints."""
    import fcntl

    reader, writer = os.pipe2(os.O_CLOEXEC)
    if size > 1 << 16:
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, min(size, 1 << 20))
        except OSError:
            pass  # over the user's share: reading goes on in wait()
    return reader, writer
