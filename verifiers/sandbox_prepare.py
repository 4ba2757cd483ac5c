"""The zygote before its first run: see which of the basic layers hold, put on what holds for all runs."""

from __future__ import annotations

import marshal
import os
import resource
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from onebase.verifiers import sandbox_landlock, sandbox_seccomp
from onebase.verifiers.sandbox_child import FIRST_KEPT
from onebase.verifiers.sandbox_imports import Descriptors, Packages
from onebase.verifiers.sandbox_layers import (
    BASIC,
    PR_SET_NO_NEW_PRIVS,
    Plan,
    become,
    libc,
    number_after,
    prctl,
    rlimits,
    set_constant_rlimits,
    text,
)
from onebase.verifiers.sandbox_view import View, dynload, stdlib

Serve = Callable[[Plan], None]


def zygote(plan: Plan, shown: View, packages: Packages, config: dict[str, Any], serve: Serve) -> NoReturn:
    """All that the zygote's process does; it does not come back."""
    status = 1
    try:
        pages = text(plan, "self/statm").split()
        plan.own_space, plan.own_data = (int(pages[n]) * resource.getpagesize() for n in (0, 5))
        rules = -1
        try:
            rules = sandbox_landlock.ruleset(libc, shown.rules, plan.box)
        except OSError as error:
            plan.missing["landlock"] = str(error)
        put_on(plan, rules, packages, probe(plan, rules, shown, config))
        box = os.open(plan.box, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        socket.send_fds(plan.janitor, [marshal.dumps(plan.layers)], [box])
        os.close(box)
        counted = marshal.loads(plan.janitor.recv(1 << 12))
        if isinstance(counted, str):
            plan.missing["cgroup"] = counted
        else:
            plan.layers.append("cgroup")
            plan.folders += counted
        serve(plan)
        status = 0
    except Exception:
        traceback.print_exc()  # the caller reads it where a sandbox does not start
    finally:
        os._exit(status)


def put_on(plan: Plan, rules: int, packages: Packages, results: dict[str, Any]) -> None:
    for n, layer in enumerate(BASIC):
        if results.get(layer) == "":
            plan.layers.insert(n, layer)
        else:
            plan.missing.setdefault(layer, results.get(layer, "the process that tried it died"))
    if plan.has("uid"):
        os.setgroups([])
        os.setresgid(plan.uids[0], plan.uids[0], plan.uids[0])
        os.chown(plan.box, -1, plan.uids[0])
        if results["closed"]:
            hold_open(plan, packages, results["closed"])
    else:
        plan.uids = []
        # The process limit counts all tasks of a uid; in a user namespace of its own, and by kernels from
        # 5.14 on, only those inside: here this one.
        inside = plan.has("user") and results.get("fork") == ""
        plan.other_tasks = 1 if inside else tasks_of(plan, os.getuid())
    if plan.has("rlimits"):
        set_constant_rlimits()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if plan.has("landlock"):
        sandbox_landlock.restrict(libc, rules)
    if plan.has("seccomp"):
        sandbox_seccomp.install(sandbox_seccomp.program(os.uname().machine), libc)


def hold_open(plan: Plan, packages: Packages, closed: list[str]) -> None:
    """Keep a way to the folders of modules that the runs' uids may not enter."""
    places = [place for place in (stdlib(), dynload(), *packages.places) if place and os.path.isdir(place)]
    roots = [root for root in places if any((root + os.sep).startswith(path) for path in closed)]
    tops = [stdlib(), os.path.join(stdlib(), "lib-dynload"), dynload()]
    plan.descriptors = Descriptors(roots, tops, packages)
    plan.descriptors.move(FIRST_KEPT)
    sys.meta_path.insert(0, plan.descriptors)
    plan.notes.append(
        f"{closed[0]} is closed to other uids: runs import from there through descriptors held open, and "
        "cannot start a second interpreter"
    )


def probe(plan: Plan, rules: int, shown: View, config: dict[str, Any]) -> dict[str, Any]:
    """Each basic layer put on in a forked process and looked at from the inside: layer -> "" or why not.
    Under "closed": what the uid may not enter."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        results: dict[str, Any] = {"closed": []}
        try:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            results["rlimits"] = tried(lambda: limit(plan, config["limits"]), lambda: True)
            results["fork"] = tried(fork_once, lambda: True)
            if plan.uids:
                uid = plan.uids[0]
                results["uid"] = tried(lambda: become(uid), lambda: os.getresuid() == (uid, uid, uid))
                results["closed"] = [tree for tree in shown.trees if not os.access(tree, os.R_OK)]
            if rules >= 0:
                results["landlock"] = tried(
                    lambda: sandbox_landlock.restrict(libc, rules),
                    lambda: refused(lambda: os.open("self/status", os.O_RDONLY, dir_fd=plan.proc)),
                )
            results["seccomp"] = tried(install, lambda: refused(socket.socket))
        finally:
            os.write(writer, marshal.dumps(results))
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    return marshal.loads(answer) if answer else {}


def limit(plan: Plan, limits: dict[str, Any]) -> None:
    set_constant_rlimits()
    for which, pair in rlimits(limits, False, plan):
        resource.setrlimit(which, pair)


def fork_once() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def tasks_of(plan: Plan, uid: int) -> int:
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=plan.proc)
    pids = [name for name in os.listdir(folder) if name.isdigit()]
    os.close(folder)
    status = [text(plan, f"{pid}/status") for pid in pids]
    return sum(number_after(each, "Threads:") for each in status if number_after(each, "Uid:") == uid)


def install() -> None:
    machine = os.uname().machine
    if machine not in sandbox_seccomp.ARCHITECTURES:
        raise OSError(f"no system call table for {machine} (there is one for x86_64 and aarch64)")
    sandbox_seccomp.install(sandbox_seccomp.program(machine), libc)


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
