"""The janitor of a warm sandbox process: finds out what the kernel gives, forks the zygote into it, waits,
and clears away what is left when it has ended, however it ended.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import platform
import resource
import select
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from onebase.verifiers import sandbox_landlock, sandbox_namespaces, sandbox_seccomp
from onebase.verifiers.sandbox_child import FIRST_KEPT
from onebase.verifiers.sandbox_imports import Descriptors, Packages
from onebase.verifiers.sandbox_layers import (
    BASIC,
    NAMESPACES,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NO_NEW_PRIVS,
    Plan,
    become,
    claim_uids,
    libc,
    prctl,
    set_rlimits,
)
from onebase.verifiers.sandbox_script import ENTRY
from onebase.verifiers.sandbox_view import View, dynload, stdlib, view
from onebase.verifiers.sandbox_watch import Ended, number_after, reap_all, text

PREFIX = "onebase-box-"
ATTEMPTS = (("pid", "mount", "net", "ipc", "uts"), ("user", "pid", "mount", "net", "ipc", "uts"))
Serve = Callable[[Plan], None]


def main(ours: socket.socket, config: dict[str, Any], serve: Serve) -> None:
    """Returns when the sandbox is over.  Exceptions before that are the caller's to hear of."""
    caller = os.pidfd_open(config["caller"])
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # should the zygote be killed, its run falls to this process
    packages = Packages(config["packages"], config["search"])
    sys.meta_path.append(packages)
    for name in [ENTRY.partition(":")[0], *config["preload"]]:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(
            f"preload={config['preload']}: one of them starts threads; such a process cannot be forked"
        )
    plan, lock = make_plan(config["tmp"])
    try:
        shown = view(packages.places, config["use"])
        pid = start(plan, shown, packages, config, serve)
        ours.close()
        wait_for(pid, caller)
        end_what_is_left(plan)
    finally:
        shutil.rmtree(os.path.dirname(plan.box), ignore_errors=True)
        os.close(lock)


def make_plan(tmp: str) -> tuple[Plan, int]:
    """A folder for the runs, a claim on uids; what follows needs the zygote."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    plan = Plan("", (reader, writer), os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        if os.geteuid() != 0:
            raise PermissionError(f"uid {os.geteuid()} may not set uids: run as root or with CAP_SETUID")
        plan.uids, plan.killer, plan.claim = claim_uids()
    except (OSError, ValueError) as error:
        plan.missing["uid"] = str(error)
    sweep(tmp)
    base = tempfile.mkdtemp(prefix=PREFIX, dir=passable(tmp) if plan.uids else tmp)
    lock = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if plan.uids:
        os.chmod(base, 0o711)
    plan.box = os.path.join(base, "box")
    os.mkdir(plan.box, 0o700)
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
                shutil.rmtree(entry.path, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(fd)


def start(plan: Plan, shown: View, packages: Packages, config: dict[str, Any], serve: Serve) -> int:
    """Fork the zygote into as many namespaces as there are to be had; its pid."""
    reasons = []
    for attempt in ATTEMPTS if config["namespaces"] == "auto" else ():
        ready, told = os.pipe2(os.O_CLOEXEC)
        mapped, tell_mapped = os.pipe2(os.O_CLOEXEC)
        flags = sum(sandbox_namespaces.CLONE[name] for name in attempt)
        try:
            pid = sandbox_namespaces.fork_into(flags, platform.machine())
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
                zygote(plan, shown, packages, config, serve)
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
        plan.missing[name] = "; ".join(reasons) or "switched off (namespaces='off')"
    pid = os.fork()
    if pid == 0:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        zygote(plan, shown, packages, config, serve)
    return pid


def inside_namespaces(plan: Plan, shown: View, config: dict[str, Any]) -> None:
    base = os.path.dirname(plan.box)
    sandbox_namespaces.enter_new_root(shown, base, config["limits"]["disk_mb"])
    plan.box = sandbox_namespaces.BOX


def zygote(plan: Plan, shown: View, packages: Packages, config: dict[str, Any], serve: Serve) -> None:
    """In the zygote: see which of the basic layers hold, put on what holds for all runs, serve."""
    status = 1
    try:
        measure_self(plan)
        try:
            plan.landlock_abi = sandbox_landlock.abi(libc)
            plan.rules = sandbox_landlock.ruleset(libc, shown.rules, plan.box)
        except OSError as error:
            plan.missing["landlock"] = f"{error} (needs kernel 5.13 and landlock among its active LSMs)"
        results = probe(plan, shown, config)
        for n, layer in enumerate(BASIC):
            if results.get(layer) == "":
                plan.layers.insert(n, layer)
            else:
                plan.missing.setdefault(layer, results.get(layer, "the probe died"))
        if not plan.has("uid"):
            plan.uids = []
        elif closed := results.get("closed"):
            roots = [
                place for place in (stdlib(), dynload(), *packages.places) if place and os.path.isdir(place)
            ]
            roots = [root for root in roots if any(root == path or root.startswith(path) for path in closed)]
            plan.descriptors = Descriptors(
                roots, [stdlib(), os.path.join(stdlib(), "lib-dynload"), dynload()], packages
            )
            plan.descriptors.move(FIRST_KEPT)
            plan.notes.append(f"uid {plan.uids[0]} may not enter {closed[0]}")
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if plan.has("seccomp"):
            machine = platform.machine()
            sandbox_seccomp.install(sandbox_seccomp.program(machine), libc, machine)
        serve(plan)
        status = 0
    finally:
        os._exit(status)


def measure_self(plan: Plan) -> None:
    pages = text(plan, "self/statm").split()
    plan.own_space = int(pages[0]) * resource.getpagesize()
    plan.own_data = int(pages[5]) * resource.getpagesize()
    plan.own_anon_kb = number_after(text(plan, "self/status"), "RssAnon:")


def probe(plan: Plan, shown: View, config: dict[str, Any]) -> dict[str, Any]:
    """Each basic layer put on in a forked process and looked at from the inside: layer -> "" or why not."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        results: dict[str, Any] = {}
        try:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            if plan.uids:
                results["uid"] = tried(
                    lambda: become(plan.uids[0]), lambda: os.getresuid() == (plan.uids[0],) * 3
                )
                results["closed"] = [tree for tree in shown.trees if not os.access(tree, os.R_OK)]
            results["rlimits"] = tried(
                lambda: set_rlimits(config["limits"], False, plan),
                lambda: resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
            )
            if plan.rules >= 0:
                results["landlock"] = tried(
                    lambda: sandbox_landlock.restrict(libc, plan.rules, plan.landlock_abi),
                    lambda: refused(lambda: os.open("self/status", os.O_RDONLY, dir_fd=plan.proc)),
                )
            results["seccomp"] = tried(lambda: install(), lambda: refused(lambda: socket.socket()))
        finally:
            os.write(writer, json.dumps(results).encode())
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else {}


def install() -> None:
    machine = platform.machine()
    if machine not in sandbox_seccomp.ARCHITECTURES:
        raise OSError(f"no system call table for {machine} (there is one for x86_64 and aarch64)")
    sandbox_seccomp.install(sandbox_seccomp.program(machine), libc, machine)


def tried(action: Callable[[], Any], holds: Callable[[], bool]) -> str:
    try:
        action()
        return "" if holds() else "the kernel took it, and it has no effect"
    except (OSError, ValueError) as error:
        return str(error)


def refused(action: Callable[[], Any]) -> bool:
    try:
        action()
    except OSError:
        return True
    return False


def wait_for(pid: int, caller: int) -> None:
    """Until the zygote has ended; when the caller is gone it is given a second to do so."""
    child = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(child, select.POLLIN)
    poll.register(caller, select.POLLIN)
    if child not in [fd for fd, _ in poll.poll()]:
        poll.unregister(caller)
        if not poll.poll(1000):
            os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def end_what_is_left(plan: Plan) -> None:
    """Processes of a run whose zygote was killed outright: they are this process's children by now."""
    reap_all(plan, plan.uids, 0, Ended())
