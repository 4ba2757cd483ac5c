"""The caller's handle on a warm sandbox process: start it, pass it jobs with descriptors, end it.

The process is a fresh interpreter with an empty environment and without site-packages, in a session of its
own; it ends by itself when the caller is gone, however that came about (end of its socket, or the caller's
pidfd, which holds even where a forked sibling keeps the socket open).
"""

from __future__ import annotations

import ast
import marshal
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

from onebase.verifiers.sandbox_cgroup import STARVED

START_SECONDS = 60.0
MESSAGE = 1 << 16
PATH = "/usr/local/bin:/usr/bin:/bin"


class SandboxError(Exception):
    """The sandbox could not be had or broke down.  The code did not run to its end: nothing is known about
    it, so the caller reports an error, never a reward."""


_ours: weakref.WeakSet[Zygote] = weakref.WeakSet()


class Zygote:
    def __init__(self, config: dict[str, Any]) -> None:
        if not sys.platform.startswith("linux"):
            raise SandboxError(f"the sandbox needs Linux: {sys.platform} has none of its isolation layers")
        import onebase

        assert onebase.__file__ is not None
        folder = Path(onebase.__file__).resolve().parent
        self.dead = False
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.complaints = complaints = os.memfd_create("onebase", os.MFD_CLOEXEC)
        try:
            self.process = subprocess.Popen(
                [interpreter(), "-s", "-S", "-P", "-B", "-X", "utf8",
                 str(folder / "verifiers" / "sandbox_zygote.py"), str(theirs.fileno()), str(folder)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=complaints,
                pass_fds=(theirs.fileno(),), cwd="/", start_new_session=True,
                # Nothing of the caller's environment (tokens, keys) goes in; the seed of str hashes is
                # fixed, so that the order of sets, and with it a verdict, is the same in every process.
                # Numeric libraries that start threads could not be forked.
                env={"PATH": PATH, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1",
                     "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )  # fmt: skip
        finally:
            theirs.close()
        folders: list[str] = []  # its own, which it removes unless it is killed
        self._finalizer = weakref.finalize(self, _end, self.process, self.socket, folders, complaints)
        _ours.add(self)
        search = [entry for entry in sys.path if entry]
        self.send({**config, "caller": os.getpid(), "search": search, "tmp": tempfile.gettempdir()}, [])
        self.socket.settimeout(START_SECONDS)
        try:
            hello = ast.literal_eval(self.receive())
        except SandboxError:
            self.close()
            raise
        self.socket.settimeout(None)
        self.layers: tuple[str, ...] = tuple(hello["layers"])
        self.missing: dict[str, str] = hello["missing"]
        self.notes: list[str] = hello["notes"]
        folders += hello["folders"]

    def send(self, message: dict[str, Any], fds: list[int]) -> None:
        try:
            socket.send_fds(self.socket, [marshal.dumps(message)], fds)
        except OSError as error:
            self.dead = True
            raise SandboxError(f"the sandbox's warm process is gone ({error})") from error

    def receive(self) -> str:
        try:
            data = self.socket.recv(MESSAGE)
        except TimeoutError:
            raise SandboxError(
                f"the sandbox's warm process did not start within {START_SECONDS:g} s"
            ) from None
        except OSError as error:
            data, reason = b"", str(error)
        else:
            reason = "it ended"
        if not data:
            self.dead = True
            raise SandboxError(f"the sandbox's warm process is gone ({reason}){self.last_words()}")
        text = data.decode(errors="replace")
        if text.startswith(("error ", "broken ")):
            self.dead = text.startswith("broken ")
            raise SandboxError(text.partition(" ")[2])
        return text

    def starved(self) -> bool:
        """Whether it is gone because the kernel killed it, with the run in it, for want of memory."""
        if self.dead and self.process.returncode is None:
            try:
                self.process.wait(timeout=2.0)
            except subprocess.TimeoutExpired:
                pass
        return self.dead and self.process.returncode == STARVED

    def last_words(self) -> str:
        """What it wrote before it ended: the traceback, where it had one."""
        try:
            self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            pass
        told = os.pread(self.complaints, 4096, 0).decode(errors="replace").strip()
        status = self.process.returncode
        return (f", status {status}" if status is not None else "") + (f"\n{told}" if told else "")

    def close(self) -> None:
        self.dead = True
        self._finalizer()


def _end(process: subprocess.Popen[bytes], ours: socket.socket, folders: list[str], complaints: int) -> None:
    try:
        ours.shutdown(socket.SHUT_RDWR)  # wakes a thread of ours that waits on it
    except OSError:
        pass
    ours.close()
    os.close(complaints)
    try:
        process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    for folder in folders:
        try:
            os.rmdir(folder)
        except OSError:
            pass  # gone, as it should be; or not empty, and then the next sandbox to start clears it away


def _forget() -> None:
    """In a child that the caller forked: the sandboxes stay the parent's."""
    for zygote in list(_ours):
        zygote.dead = True
        zygote._finalizer.detach()
        zygote.socket.close()
        os.close(zygote.complaints)
    _ours.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def interpreter() -> str:
    """The interpreter behind a virtual environment's link, which needs nothing of the environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
