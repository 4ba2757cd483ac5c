"""The layers of a run, and the plan that says which of them hold on this machine.

    rlimits   memory, CPU seconds, file size, open files, processes
    uid       a uid of the run's own: none of the caller's files or processes belong to it
    seccomp   refuses system calls (sandbox_seccomp.py); no_new_privs goes with it
    landlock  the files that can be opened (sandbox_landlock.py)
    user, pid, mount, net, ipc, uts   namespaces (sandbox_namespaces.py)
    cgroup    the run's memory and processes counted by the kernel (sandbox_cgroup.py)

The first four work in a default container.  Each is tried for real, in a forked process, before it is
believed; what was tried and failed is kept with its reason.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

from onebase.verifiers import sandbox_seccomp
from onebase.verifiers.sandbox_cgroup import Cgroup
from onebase.verifiers.sandbox_imports import Descriptors

BASIC = ("rlimits", "uid", "seccomp", "landlock")
NAMESPACES = ("user", "pid", "mount", "net", "ipc", "uts")
PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 38, 36
PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_SET_SECUREBITS = 24, 47, 28
SECUREBITS = 0x2F  # root's uid gives no capabilities, and that cannot be taken back
FIRST_UID, UIDS_EACH = 1 << 30, 16

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(third), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


@dataclass
class Plan:
    """What holds here, decided before the first run; every run is made from it."""

    box: str  # the folder of the runs, emptied after each
    complaints: tuple[int, int]  # a pipe: what kept the code from being started
    proc: int  # /proc, opened before it went out of sight
    janitor: socket.socket  # the zygote's way to the janitor
    uids: list[int] = field(default_factory=list)  # taken in turns
    killer: int = 0  # a uid that may kill those, and that they may not kill
    claim: socket.socket | None = None  # holds the uids for as long as it is open
    layers: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # layer: why it is not here
    descriptors: Descriptors | None = None  # see sandbox_imports
    cgroup: Cgroup | None = None  # in the janitor
    other_tasks: int = 0  # tasks that the process limit counts besides the run's
    own_space: int = 0  # the warm process's address space and data, which every run starts with
    own_data: int = 0
    folders: list[str] = field(default_factory=list)  # of the sandbox, on this machine, inner ones first
    notes: list[str] = field(default_factory=list)

    def has(self, layer: str) -> bool:
        return layer in self.layers

    @property
    def alone(self) -> bool:
        """A run has neither a uid nor a pid namespace of its own: see sandbox_seccomp.alone."""
        return "uid" not in self.layers and "pid" not in self.layers

    def complaint(self) -> str:
        try:
            return os.read(self.complaints[0], 4096).decode(errors="replace")
        except BlockingIOError:
            return ""


def rlimits(limits: dict[str, Any], command: bool, plan: Plan) -> list[tuple[int, tuple[int, int]]]:
    """Soft and hard alike, so none can be raised.  Address space is limited for Python only: other runtimes
    reserve much more than they use, so a command has its private writable memory limited instead."""
    memory = limits["memory_mb"] << 20
    wanted = [
        (resource.RLIMIT_CPU, math.ceil(limits["cpu_seconds"]) + 1),  # the fractions are counted by others
        (resource.RLIMIT_DATA, memory + (0 if command else plan.own_data)),
        (resource.RLIMIT_STACK, min(64 << 20, memory)),
        (resource.RLIMIT_FSIZE, limits["disk_mb"] << 20),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"] + plan.other_tasks),
    ]
    wanted += [] if command else [(resource.RLIMIT_AS, memory + plan.own_space)]
    return [(which, (value, value)) for which, value in ((w, within(w, v)) for w, v in wanted)]


# The same for every run, and so the zygote's too.  One byte of core: none is written, and none is piped to
# the machine's crash handler, which a limit of 0 does not prevent.
CONSTANT_RLIMITS = (
    (resource.RLIMIT_CORE, 1),
    (resource.RLIMIT_MEMLOCK, 64 << 10),
    (resource.RLIMIT_MSGQUEUE, 0),
    (resource.RLIMIT_SIGPENDING, 256),
    (resource.RLIMIT_NICE, 0),
    (resource.RLIMIT_RTPRIO, 0),
)


def set_constant_rlimits() -> None:
    for which, value in CONSTANT_RLIMITS:
        value = within(which, value)
        resource.setrlimit(which, (value, value))


def within(which: int, value: int) -> int:
    """Never more than this process may have itself."""
    hard = resource.getrlimit(which)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def become(uid: int) -> None:
    """Another user in every respect, with no way back.  Leaving uid 0 gives up all capabilities."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """For a run that keeps its uid (inside a user namespace, or root without a uid to spare)."""
    for option, value, third in [
        (PR_SET_SECUREBITS, SECUREBITS, 0),
        (PR_CAP_AMBIENT, 4, 0),
        *((PR_CAPBSET_DROP, capability, 0) for capability in range(64)),
    ]:
        try:
            prctl(option, value, third)
        except OSError:
            pass  # not held, or beyond the last one
    header, none = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    if libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset: the capabilities cannot be dropped")


def stay_alone() -> None:
    sandbox_seccomp.install(sandbox_seccomp.alone(os.uname().machine, os.getpid()), libc)


def children(plan: Plan, pid: str) -> list[int]:
    """Children of all threads of a process, by /proc."""
    found: list[int] = []
    try:
        folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=plan.proc)
    except OSError:
        return found
    try:
        for thread in os.listdir(folder):
            found += map(int, text(plan, f"{pid}/task/{thread}/children").split())
    finally:
        os.close(folder)
    return found


def text(plan: Plan, path: str) -> str:
    """A file of /proc; empty where the process has gone meanwhile."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=plan.proc)
    except OSError:
        return ""
    try:
        return os.read(fd, 1 << 14).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def number_after(text: str, name: str) -> int:
    _, found, rest = text.partition(name)
    return int(rest.split(None, 1)[0]) if found else 0


def claim_uids() -> tuple[list[int], int, socket.socket]:
    """A block of uids (and gids of the same numbers) that no other sandbox on this machine uses.  The block
    follows from the pid; an abstract socket with its number in the name makes sure and is let go by the
    kernel.  OSError or ValueError where there is none to be had."""
    for block in blocks():
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0onebase-uids-{block}")
        except OSError as error:
            claim.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return list(range(block, block + UIDS_EACH)), block + UIDS_EACH, claim
    raise OSError(errno.EAGAIN, "all blocks of uids are taken by other sandboxes")


def blocks() -> list[int]:
    """First uids of blocks to try, in order, all mapped in this user namespace."""
    maps = [mapped("/proc/self/uid_map"), mapped("/proc/self/gid_map")]
    width = 2 * UIDS_EACH
    space = os.stat("/proc/self/ns/pid").st_ino % 8  # pids are told apart by their namespace
    high = FIRST_UID + (space << 27) + os.getpid() * width
    low = range(20_000, 60_000 - width, width)
    at = os.getpid() % len(low)
    wished = [*range(high, high + 64 * width, width), *low[at:], *low[:at]]
    found = [
        block
        for block in wished
        if all(any(a <= block and block + width <= a + n for a, n in ranges) for ranges in maps)
    ]
    if not found:
        raise ValueError(f"this user namespace has no uids to spare (uid_map: {maps[0]})")
    return found


def mapped(path: str) -> list[tuple[int, int]]:
    with open(path) as stream:
        rows = [line.split() for line in stream]
    return [(int(inside), int(count)) for inside, _, count in rows]
