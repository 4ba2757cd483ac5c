"""The janitor of a warm sandbox process: finds out what the kernel gives, forks the zygote into it, waits,
and clears away what is left when it has ended, however it ended.
"""

from __future__ import annotations

import fcntl
import importlib
import marshal
import os
import select
import signal
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any

from onebase.verifiers import sandbox_box, sandbox_cgroup, sandbox_namespaces
from onebase.verifiers.sandbox_child import after_fork
from onebase.verifiers.sandbox_imports import Packages
from onebase.verifiers.sandbox_layers import NAMESPACES, PR_SET_CHILD_SUBREAPER, Plan, claim_uids, prctl
from onebase.verifiers.sandbox_prepare import Serve, zygote
from onebase.verifiers.sandbox_reap import Ended, reap_all
from onebase.verifiers.sandbox_view import View, view
from onebase.verifiers.sandbox_watch import Watch

# What short programs import most.
WARM = (
    *("bisect", "collections", "dataclasses", "functools", "heapq", "itertools", "math", "operator"),
    *("random", "re", "string", "threading", "typing"),
)
PREFIX = "onebase-box-"
FORBIDDING = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ("kernel/unprivileged_userns_clone", "0"),
    ("user/max_user_namespaces", "0"),
)
ATTEMPTS = (("pid", "mount", "net", "ipc", "uts"), ("user", "pid", "mount", "net", "ipc", "uts"))


def main(ours: socket.socket, config: dict[str, Any], serve: Serve) -> None:
    """Returns when the sandbox is over.  Exceptions before that are the caller's to hear of."""
    caller = os.pidfd_open(config["caller"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # both processes end with their caller and not otherwise
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # should the zygote be killed, its run falls to this process
    import_warm()
    packages = Packages(config["packages"], config["search"])
    sys.meta_path.append(packages)
    for name in config["preload"]:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(
            f"preload={config['preload']}: one of them starts threads; such a process cannot be forked"
        )
    line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    plan, lock = make_plan(config["tmp"], theirs)
    try:
        shown = view(packages.places, config["use"])

        def become_zygote() -> None:
            line.close()  # so that the zygote hears of the janitor's end
            zygote(plan, shown, packages, config, serve)

        pid = start(plan, shown, config, become_zygote)
        ours.close()
        theirs.close()
        starved = Janitor(plan, pid, line).attend(caller)
    finally:
        remove(os.path.dirname(plan.box))
        os.close(lock)
    if starved:
        raise SystemExit(sandbox_cgroup.STARVED)


def import_warm() -> None:
    """Import what runs shall find warm.  threading and random ask to be called after every fork; that is put
    off until the code runs (sandbox_child), because it takes a tenth of a run's time for nothing: the zygote
    has one thread and no lock is held.  So the random numbers of a run are the same each time."""
    assert not {"threading", "random"} & set(sys.modules), "imported too early to be held back"
    asked, os.register_at_fork = os.register_at_fork, lambda **calls: after_fork.append(calls)
    try:
        for name in ("onebase.verifiers.sandbox_script", *WARM):
            importlib.import_module(name)
    finally:
        os.register_at_fork = asked
    sys.modules["random"].seed(0)


def make_plan(tmp: str, line: socket.socket) -> tuple[Plan, int]:
    """A folder for the runs, a claim on uids; what follows needs the zygote."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    plan = Plan("", (reader, writer), os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), line)
    try:
        if os.geteuid() != 0:
            raise PermissionError(f"uid {os.geteuid()} may not set uids: run as root or with CAP_SETUID")
        plan.uids, plan.killer, plan.claim = claim_uids()
    except (OSError, ValueError) as error:
        plan.missing["uid"] = str(error)
    sweep(tmp)
    folder, name = passable(tmp) if plan.uids else tmp, f"{PREFIX}{os.getpid()}-{os.urandom(6).hex()}"
    new, base = os.path.join(folder, f".{name}"), os.path.join(folder, name)
    os.mkdir(new, 0o700)
    lock = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(new, base)  # only now can others' sweeping find it, and it is locked
    if plan.uids:
        os.chmod(base, 0o711)
    plan.box = os.path.join(base, "box")
    os.mkdir(plan.box, 0o700)
    plan.folders = [plan.box, base]
    return plan, lock


def passable(tmp: str) -> str:
    """`tmp`, or where another uid cannot get there, a common folder that it can."""
    for folder in (tmp, "/tmp", "/var/tmp", "/dev/shm"):
        path, open_to_all = os.path.realpath(folder), os.path.isdir(folder)
        while open_to_all and path != "/":
            open_to_all, path = bool(os.stat(path).st_mode & stat.S_IXOTH), os.path.dirname(path)
        if open_to_all and os.access(folder, os.W_OK):
            return folder
    raise PermissionError("no folder for temporary files that every uid may enter")


def sweep(tmp: str) -> None:
    """Remove folders of sandboxes whose janitor was killed: nobody holds their lock."""
    for entry in os.scandir(tmp):
        if entry.name.startswith(PREFIX) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
            try:
                fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(entry.path)
            except BlockingIOError:
                pass
            finally:
                os.close(fd)


def remove(base: str) -> None:
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        sandbox_box.wipe(fd)
    finally:
        os.close(fd)
    os.rmdir(base)


def start(plan: Plan, shown: View, config: dict[str, Any], become_zygote: Callable[[], None]) -> int:
    """Fork the zygote into as many namespaces as there are to be had; its pid."""
    reasons = []
    for attempt in ATTEMPTS if config["namespaces"] == "auto" else ():
        ready, told = os.pipe2(os.O_CLOEXEC)
        mapped, tell_mapped = os.pipe2(os.O_CLOEXEC)
        flags = sum(sandbox_namespaces.CLONE[name] for name in attempt)
        try:
            pid = sandbox_namespaces.fork_into(flags, os.uname().machine)
        except OSError as error:
            reasons.append(f"{'+'.join(attempt)}: {error}")
            continue
        if pid == 0:
            os.close(tell_mapped)
            os.read(mapped, 1)
            error_text = sandbox_namespaces.quiet(inside_namespaces, plan, shown, config)
            os.write(told, error_text.encode() or b"ok")
            if not error_text:
                plan.layers += attempt
                if "user" not in attempt:
                    plan.missing["user"] = "not needed: this process may make the other namespaces itself"
                become_zygote()
            os._exit(1)
        os.close(told)
        if "user" in attempt:
            sandbox_namespaces.quiet(sandbox_namespaces.map_ids, pid)
        os.close(tell_mapped)
        answer = os.read(ready, 4096).decode()
        if answer == "ok":
            return pid
        os.waitpid(pid, 0)
        reasons.append(f"{'+'.join(attempt)}: {answer}")
    for name in NAMESPACES:
        plan.missing[name] = (
            "; ".join([*reasons, *forbidden()]) if reasons else "switched off (namespaces='off')"
        )
    pid = os.fork()
    if pid == 0:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        become_zygote()
    return pid


def forbidden() -> list[str]:
    """Settings of the machine by which its owner keeps user namespaces from ordinary users."""
    found = []
    for path, value in FORBIDDING:
        try:
            with open(f"/proc/sys/{path}") as stream:
                if stream.read().strip() == value:
                    found.append(f"forbidden by {path.replace('/', '.')}={value}")
        except OSError:
            continue
    return found


def inside_namespaces(plan: Plan, shown: View, config: dict[str, Any]) -> None:
    base = os.path.dirname(plan.box)
    sandbox_namespaces.enter_new_root(shown, base, config["limits"]["disk_mb"])
    plan.box = sandbox_namespaces.BOX


def counted(plan: Plan, zygote: int) -> list[str] | str:
    """Put the zygote into a cgroup of its own: its folders, or why not."""
    if "switched off" in plan.missing.get("pid", ""):
        return plan.missing["pid"]
    try:
        plan.cgroup = sandbox_cgroup.make()
        plan.cgroup.join(zygote)
    except OSError as error:
        if plan.cgroup is not None:
            plan.cgroup.remove()
        plan.cgroup = None
        return f"{error} (a group with the memory and pids controllers must be writable)"
    return plan.cgroup.folders


class Janitor:
    """The zygote's helper outside, until it has ended."""

    def __init__(self, plan: Plan, zygote: int, line: socket.socket) -> None:
        self.plan, self.zygote, self.line = plan, zygote, line
        self.watch = Watch(plan, str(zygote), 0.0)
        self.box = -1  # a descriptor of the runs' folder, which may lie in another mount namespace
        self.kills = 0
        # One count earlier: the kernel may kill the zygote while its question waits here to be answered.
        self.former = 0

    def attend(self, caller: int) -> bool:
        """Answer the zygote until it has ended; whether the kernel killed it for want of memory.  When the
        caller is gone it is told so, and given a second."""
        child = os.pidfd_open(self.zygote)
        poll = select.poll()
        for fd in (child, caller, self.line.fileno()):
            poll.register(fd, select.POLLIN)
        patience, starved = None, False
        try:
            while True:
                ready = [fd for fd, _ in poll.poll(patience)]
                if child in ready:
                    ended = os.waitid(os.P_PIDFD, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    killed = ended is not None and ended.si_status == signal.SIGKILL
                    starved = killed and self.all_kills() > self.former
                if child in ready or not ready:
                    break
                if self.line.fileno() in ready and not self.answers(child):
                    poll.unregister(self.line)
                if caller in ready:
                    poll.unregister(caller)
                    self.line.shutdown(socket.SHUT_RDWR)
                    patience = 1000
        finally:
            signal.pidfd_send_signal(child, signal.SIGKILL)
            os.waitpid(self.zygote, 0)
            # Had the zygote been killed, its run has come to this process.
            reap_all(self.plan, self.plan.uids, 0, Ended(), kill=True)
            if self.plan.cgroup is not None:
                self.plan.cgroup.remove()
        return starved

    def answers(self, child: int) -> bool:
        """`answer`, where what goes wrong because the zygote is dying is the end of questions."""
        try:
            return self.answer()
        except (OSError, ValueError, IndexError):
            dying = select.poll()
            dying.register(child, select.POLLIN)
            if not dying.poll(1000):
                raise
            return False

    def answer(self) -> bool:
        """One question of the zygote's; False when there will be no more."""
        data, fds, _, _ = socket.recv_fds(self.line, 1 << 16, 1)
        if not data:
            return False
        question = marshal.loads(data)
        answer: Any = True
        if isinstance(question, list):  # its layers, and its folder
            self.plan.layers, self.box = question, fds[0]
            self.plan.uids = self.plan.uids if self.plan.has("uid") else []
            answer = counted(self.plan, self.zygote)
        elif question == "wipe":
            sandbox_box.wipe(self.box)
        elif question == "starved":
            before, self.kills = self.kills, self.all_kills()
            answer = self.kills > before
        elif len(question) == 2:
            assert self.plan.cgroup is not None
            self.plan.cgroup.limit(*question)
        else:
            started, limits, cpu = question
            if self.watch.started != started:
                self.former, self.kills = self.kills, self.all_kills()
                self.watch = Watch(self.plan, str(self.zygote), started, self.kills)
            answer = self.watch.look(limits, cpu)
        self.line.send(marshal.dumps(answer))
        return True

    def all_kills(self) -> int:
        return self.plan.cgroup.kills() if self.plan.cgroup is not None else 0
