"""Looks at runs that take longer: CPU time of all their processes, memory, files.  In the janitor, which is
outside of the layers and so can see.

What decides about CPU time is the total that `wait` reports at the end, not when somebody looked; a look only
ends what would go on for ever.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from onebase.verifiers import sandbox_box
from onebase.verifiers.sandbox_layers import Plan, children, number_after, text

TICKS = os.sysconf("SC_CLK_TCK")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ROUNDING = 0.05  # CPU seconds by which a difference of two clocks of different grain may be wrong
SHORTEST, LONGEST = 0.002, 0.05  # pauses between looks


@dataclass
class Process:
    cpu: float
    waited: float  # of children it has waited for


@dataclass
class Watch:
    """One run's looks."""

    plan: Plan
    zygote: str  # its pid in the /proc at hand
    started: float
    kills: int = 0  # for want of memory in the cgroup, before these looks
    looked: float = 0.0
    seen: dict[int, Process] = field(default_factory=dict)
    debt: float = 0.0  # CPU seconds of processes that vanished, less those that were reported meanwhile
    reported: float = 0.0
    hidden: float = 0.0
    uncounted: float | None = None  # CPU seconds of the cgroup that are not this run's

    def look(self, limits: dict[str, Any], reaped: float) -> tuple[str | None, float]:
        """The limit that is overrun, or None, and the pause until the next look.  `reaped`: CPU seconds that
        the zygote has been told of."""
        now = time.monotonic()
        processes = tree(self.plan, self.zygote)
        left = limits["cpu_seconds"] - self.cpu(processes, reaped, now)
        self.looked, self.seen = now, processes
        wall = limits["wall_seconds"] - (now - self.started)
        over = None
        if left <= 0:
            over = "cpu"
        elif self.starved(limits["memory_mb"], list(processes)):
            over = "memory"
        elif not self.plan.has("mount") and sandbox_box.over(self.plan, limits["disk_mb"], list(processes)):
            over = "disk"
        elif wall <= 0:
            over = "wall"
        effort = 5 * (time.monotonic() - now)  # many files or processes are not to buy our time either
        return over, max(SHORTEST, effort, min(LONGEST, left / CORES, wall))

    def starved(self, limit_mb: int, processes: list[int]) -> bool:
        """Whether the run has too much memory: the kernel has killed one of its processes for it, or, where
        the kernel does not count, the sum is too high."""
        if self.plan.cgroup is not None:
            return self.plan.cgroup.kills() > self.kills
        return memory_mb(self.plan, self.zygote, processes, limit_mb) > limit_mb

    def cpu(self, processes: dict[int, Process], reaped: float, now: float) -> float:
        """CPU seconds of the run so far.  A process that ignores SIGCHLD has its children's time thrown away
        by the kernel: when processes vanish and the time they had is reported by nobody, the whole interval
        is charged, on as many cores as they may have used."""
        gone = [process for pid, process in self.seen.items() if pid not in processes]
        reported = reaped + sum(process.waited for process in processes.values())
        lost = sum(process.cpu + process.waited for process in gone)
        self.debt = max(-0.02, self.debt + lost - max(0.0, reported - self.reported))
        self.reported = reported
        if gone and self.debt > 0.03:
            self.hidden += (now - self.looked) * min(CORES, len(gone))
        cpu = reported + self.hidden + sum(process.cpu for process in processes.values())
        if self.plan.cgroup is None or not self.plan.cgroup.cpu:
            return cpu
        total = self.plan.cgroup.cpu_seconds() - own_seconds(self.plan, self.zygote)
        self.uncounted = total - cpu if self.uncounted is None else self.uncounted
        return max(cpu, total - self.uncounted - ROUNDING)


def own_seconds(plan: Plan, pid: str) -> float:
    """CPU seconds of the zygote itself, since it started."""
    fields = text(plan, f"{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS if len(fields) > 12 else 0.0


def tree(plan: Plan, zygote: str) -> dict[int, Process]:
    """All processes of the run."""
    found: dict[int, Process] = {}
    todo = children(plan, zygote)
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


def memory_mb(plan: Plan, zygote: str, processes: list[int], limit_mb: int) -> float:
    """What the processes have of their own, beyond what each shares with the zygote.  In the quick sum a page
    counts for each that maps it; where that is over the limit, the kernel's proportional sum is asked, if it
    may be."""
    base = number_after(text(plan, f"{zygote}/status"), "RssAnon:")
    total = 0
    for pid in processes:
        status = text(plan, f"{pid}/status")
        total += max(0, number_after(status, "RssAnon:") - base) + number_after(status, "RssShmem:")
    if total / 1024 > limit_mb and len(processes) > 1:
        shares = {pid: text(plan, f"{pid}/smaps_rollup") for pid in processes}
        # An empty text is of a process that has ended, or of one that may not be looked into.
        if not any("RssAnon:" in text(plan, f"{pid}/status") for pid in processes if not shares[pid]):
            total = sum(number_after(s, "Pss_Anon:") + number_after(s, "Pss_Shmem:") for s in shares.values())
    return total / 1024
