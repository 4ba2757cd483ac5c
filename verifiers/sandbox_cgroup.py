"""The cgroup layer: memory, processes and CPU time of a sandbox counted and limited by the kernel itself.

One group for the warm process and its runs, made once: moving a process into a group costs more than a run,
and whatever the warm process forks is in the group from its first instruction.  Version 1 (a folder in each
controller's tree) and version 2, where the trees can be written.

Sources: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

NAME = "onebase-sandbox-"
SLACK_MB = 16  # the warm process's own pages, written since it joined
STALE_SECONDS = 60.0
STARVED = 75
"""Exit status of a warm process that the kernel killed for want of memory.  It may choose that one: what a
storm of forks costs in the kernel is counted in the group, and the warm process is its largest."""


@dataclass
class Cgroup:
    folders: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)  # files of limits in bytes
    pids: str = ""
    events: str = ""  # file that counts kills for want of memory
    cpu: str = ""
    limits: tuple[int, int] = (0, 0)

    def join(self, pid: int) -> None:
        for folder in self.folders:
            write(f"{folder}/cgroup.procs", str(pid))

    def limit(self, memory_mb: int, processes: int) -> None:
        """`memory_mb` with the temporary files in it; the warm process counts too, and one that kills."""
        if self.limits == (memory_mb, processes):
            return
        value = str((memory_mb + SLACK_MB) << 20)
        for path in [
            *self.memory,
            *self.memory,
        ]:  # twice: which of them must come first hangs on the direction
            try:
                write(path, value)
            except OSError:
                continue
        if int(read(self.memory[0])) > int(value):
            raise OSError(f"{self.memory[0]}: the limit was not taken")
        write(self.pids, str(processes + 2))
        self.limits = (memory_mb, processes)

    def kills(self) -> int:
        """For want of memory, so far."""
        for line in read(self.events).splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    def cpu_seconds(self) -> float:
        """Of the warm process and all its runs."""
        text = read(self.cpu)
        return (
            int(text) / 1e9 if text.strip().isdigit() else int(text.split("usage_usec")[1].split()[0]) / 1e6
        )

    def remove(self) -> None:
        for folder in self.folders:
            try:
                os.rmdir(folder)
            except OSError:
                pass


def make() -> Cgroup:
    """A new group below, or beside, the one this process is in.  OSError says why there can be none."""
    name = f"{NAME}{os.getpid()}-{os.urandom(4).hex()}"
    mounts, own = mounted(), groups()
    if all(controller in own and controller in mounts for controller in ("memory", "pids")):
        return make_v1(name, mounts, own)
    if "" in mounts and "" in own:
        return make_v2(name, *mounts[""], own[""])
    raise OSError("no cgroup file system with the memory and pids controllers is mounted")


def make_v1(name: str, mounts: dict[str, tuple[str, str]], own: dict[str, str]) -> Cgroup:
    group = Cgroup()
    try:
        for controller in ("memory", "pids", "cpuacct"):
            if controller not in mounts or controller not in own:
                continue
            parent = place(*mounts[controller], own[controller])
            sweep(parent)
            folder = f"{parent}/{name}"
            if folder not in group.folders:
                os.mkdir(folder)
                group.folders.append(folder)
            if controller == "memory":
                files = [f"{folder}/memory.limit_in_bytes", f"{folder}/memory.memsw.limit_in_bytes"]
                group.memory = [path for path in files if os.path.exists(path)]
                group.events = f"{folder}/memory.oom_control"
            elif controller == "pids":
                group.pids = f"{folder}/pids.max"
            else:
                group.cpu = f"{folder}/cpuacct.usage"
    except OSError:
        group.remove()
        raise
    return group


def make_v2(name: str, point: str, root: str, own: str) -> Cgroup:
    """A group with processes in it cannot have children with limits, so the parent may have to be one further
    up (in a user's session, the slice that is delegated to the user)."""
    parent, reason = place(point, root, own), ""
    while parent.startswith(point):
        folder = f"{parent}/{name}"
        try:
            if not {"memory", "pids"} <= set(read(f"{parent}/cgroup.subtree_control").split()):
                write(f"{parent}/cgroup.subtree_control", "+memory +pids")
            sweep(parent)
            os.mkdir(folder)
            try:
                write(f"{folder}/memory.swap.max", "0")
            except OSError:
                pass  # no swap accounting
            return Cgroup([folder], [f"{folder}/memory.max"], f"{folder}/pids.max", f"{folder}/memory.events",
                          f"{folder}/cpu.stat")  # fmt: skip
        except OSError as error:
            reason = reason or f"{parent}: {error.strerror}"
            parent = os.path.dirname(parent)
    raise OSError(reason or f"{own} is not below {point}")


def sweep(parent: str) -> None:
    """Remove groups of sandboxes that were killed with all their processes; one in use cannot be removed."""
    for entry in os.scandir(parent):
        if entry.name.startswith(NAME) and time.time() - entry.stat().st_mtime > STALE_SECONDS:
            try:
                os.rmdir(entry.path)
            except OSError:
                pass


def mounted() -> dict[str, tuple[str, str]]:
    """Controller ("" for version 2): where its tree is mounted, and which of its folders that is."""
    found = {}
    with open("/proc/self/mountinfo") as stream:
        for line in stream:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(None, 2)
            root, point = left.split()[3:5]
            if kind == "cgroup2":
                found[""] = (point, root)
            elif kind == "cgroup":
                found.update({option: (point, root) for option in options.strip().split(",")})
    return found


def groups() -> dict[str, str]:
    """Controller ("" for version 2): the group that this process is in."""
    with open("/proc/self/cgroup") as stream:
        rows = [line.rstrip("\n").split(":", 2) for line in stream]
    return {controller: path for _, names, path in rows for controller in names.split(",")}


def place(point: str, root: str, own: str) -> str:
    inner = own.removeprefix(root.rstrip("/")).strip("/")
    return f"{point}/{inner}".rstrip("/")


def read(path: str) -> str:
    with open(path) as stream:
        return stream.read()


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
