"""The end of a run: kill all of its processes, wait until nothing is left."""

from __future__ import annotations

import os
import signal
import time

from onebase.verifiers.sandbox_layers import Plan, children


class Ended:
    """What `wait` told about the processes of a run."""

    __slots__ = ("cpu", "peak_mb", "status", "killed")

    def __init__(self) -> None:
        self.cpu = 0.0
        self.peak_mb = 0.0  # of the largest process
        self.status: int | None = None  # of the first process
        self.killed = 0

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
            elif status & 0x7F == signal.SIGKILL:
                self.killed += 1
        return pid


def kill_all(plan: Plan, uids: list[int], alone: list[int]) -> None:
    """SIGKILL to every process of the run.  The kernel does not let a fork slip through a kill(-1).  `alone`:
    the run's one process, where it has neither a uid nor a pid namespace."""
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
    for pid in [] if uids else alone:
        os.kill(pid, signal.SIGKILL)


def reap_all(plan: Plan, uids: list[int], first: int, ended: Ended, kill: bool) -> None:
    """Wait until there are no children: then nothing of the run is left.  Those that the first process left
    behind are killed; all are, if `kill`.  `first` is 0 in the janitor, which did not start the run."""
    while (pid := ended.reap(first, os.WNOHANG)) >= 0:
        if pid == 0 and (kill or ended.status is not None):
            alone = children(plan, "self") if first == 0 else [first] if ended.status is None else []
            kill_all(plan, uids, alone)
            again = time.monotonic() + 0.1
            while (pid := ended.reap(first, os.WNOHANG)) >= 0 and time.monotonic() < again:
                if pid == 0:
                    time.sleep(0.0005)
