"""Watches a run (CPU time of all its processes, memory, files) and ends it: kill everything, wait until
nothing is left.

Most runs are over before the first look.  A longer one is looked at every 20 to 50 ms, and earlier when its
CPU time is nearly spent; what decides is the total that `wait` reports afterwards, not when somebody looked.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from onebase.verifiers import sandbox_box
from onebase.verifiers.sandbox_layers import Plan

TICKS = os.sysconf("SC_CLK_TCK")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FIRST_LOOK, SHORTEST, LONGEST = 0.02, 0.002, 0.05


@dataclass
class Ended:
    """What `wait` told about the processes of a run."""

    cpu: float = 0.0
    peak_mb: float = 0.0
    status: int | None = None  # of the first process
    killed: int = 0

    def reap(self, first: int, flags: int) -> int:
        """One `wait`: the pid, 0 if none has ended yet, -1 if there are no children at all."""
        try:
            pid, status, usage = os.wait4(-1, flags)
        except ChildProcessError:
            return -1
        if pid:
            self.cpu += usage.ru_utime + usage.ru_stime
            self.peak_mb = max(self.peak_mb, usage.ru_maxrss / 1024)
            if pid == first:
                self.status = status
            elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                self.killed += 1
        return pid


def kill_all(plan: Plan, uids: list[int]) -> None:
    """SIGKILL to every process of the run.  The kernel does not let a fork slip through a kill(-1)."""
    if plan.has("pid") and os.getpid() == 1:
        try:
            os.kill(-1, signal.SIGKILL)  # from pid 1: all others of the namespace
        except ProcessLookupError:
            pass
        return
    for uid in uids:
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                # Effective uid of the run, so it may kill; real and saved uid another, so it is not killed.
                os.setresuid(plan.killer, uid, plan.killer)
                os.kill(-1, signal.SIGKILL)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    if not uids:
        for pid in children(plan, "self"):  # a run is one process then
            os.kill(pid, signal.SIGKILL)


def reap_all(plan: Plan, uids: list[int], first: int, ended: Ended) -> None:
    """Kill and wait until there are no children: then nothing of the run is left."""
    while (pid := ended.reap(first, os.WNOHANG)) >= 0:
        if pid == 0:
            kill_all(plan, uids)
            again = time.monotonic() + 0.1
            while (pid := ended.reap(first, os.WNOHANG)) >= 0 and time.monotonic() < again:
                if pid == 0:
                    time.sleep(0.0005)


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


def children(plan: Plan, pid: str) -> list[int]:
    """Children of all threads of a process."""
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


@dataclass
class Watch:
    """One run's looks.  `look` names the limit that is overrun."""

    plan: Plan
    limits: dict[str, Any]
    first: int
    started: float = field(default_factory=time.monotonic)
    ended: Ended = field(default_factory=Ended)
    pause: float = FIRST_LOOK
    looked: float = 0.0
    seen: dict[int, Process] = field(default_factory=dict)
    debt: float = 0.0  # CPU seconds of processes that vanished, less those that were reported meanwhile
    reported: float = 0.0
    hidden: float = 0.0
    peak_mb: float = 0.0

    def seconds(self) -> float:
        """Until the next look, or the wall limit."""
        left = self.started + self.limits["wall_seconds"] - time.monotonic()
        return max(0.0, min(left, self.pause))

    def look(self) -> str | None:
        now = time.monotonic()
        while self.ended.reap(self.first, os.WNOHANG) > 0:
            pass  # zombies count as processes of the run
        processes = tree(self.plan)
        cpu = self.cpu(processes, now)
        memory = memory_mb(self.plan, processes)
        self.peak_mb = max(self.peak_mb, memory)
        self.looked, self.seen = now, processes
        left = self.limits["cpu_seconds"] - cpu
        self.pause = max(
            SHORTEST, min(LONGEST, left / CORES, 5 * (time.monotonic() - now) + SHORTEST + LONGEST / 2)
        )
        if left <= 0:
            return "cpu"
        if memory > self.limits["memory_mb"]:
            return "memory"
        if not self.plan.has("mount") and sandbox_box.over(
            self.plan, self.limits["disk_mb"], list(processes)
        ):
            return "disk"
        return "wall" if now - self.started >= self.limits["wall_seconds"] else None

    def cpu(self, processes: dict[int, Process], now: float) -> float:
        """CPU seconds of the run so far.  A process that ignores SIGCHLD has its children's time thrown
        away by the kernel: when processes vanish and the time they had is reported by nobody, the whole
        interval is charged, on as many cores as they may have used."""
        gone = [process for pid, process in self.seen.items() if pid not in processes]
        reported = self.ended.cpu + sum(process.waited for process in processes.values())
        lost = sum(process.cpu + process.waited for process in gone)
        self.debt = max(-0.02, self.debt + lost - max(0.0, reported - self.reported))
        self.reported = reported
        if gone and self.debt > 0.03:
            self.hidden += (now - self.looked) * min(CORES, len(gone))
        return reported + self.hidden + sum(process.cpu for process in processes.values())


@dataclass
class Process:
    cpu: float
    waited: float  # of children it has waited for


def tree(plan: Plan) -> dict[int, Process]:
    """All processes of the run, by their pids in the /proc at hand."""
    found: dict[int, Process] = {}
    todo = children(plan, "self")
    while todo:
        pid = todo.pop()
        fields = text(plan, f"{pid}/stat").rpartition(")")[2].split()
        if pid in found or len(fields) < 15:
            continue
        own, waited = (int(fields[n]) + int(fields[n + 1]) for n in (11, 13))
        exact = text(plan, f"{pid}/schedstat").split()  # the first thread's, but in nanoseconds
        found[pid] = Process(max(own / TICKS, int(exact[0]) / 1e9 if exact else 0.0), waited / TICKS)
        todo += children(plan, str(pid))
    return found


def memory_mb(plan: Plan, processes: Iterable[int]) -> float:
    """What the processes have of their own beyond what they share with the zygote.  The quick sum counts a
    page that several map several times; over the limit's neighbourhood the kernel's proportional sum is
    asked."""
    total = 0
    for pid in processes:
        status = text(plan, f"{pid}/status")
        anonymous, shared = (number_after(status, name) for name in ("RssAnon:", "RssShmem:"))
        total += max(0, anonymous - plan.own_anon_kb) + shared
    return total / 1024


def number_after(status: str, name: str) -> int:
    _, found, rest = status.partition(name)
    return int(rest.split(None, 1)[0]) if found else 0
