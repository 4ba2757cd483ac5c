"""The namespace layers: a warm process in user, pid, mount, net, ipc and uts namespaces of its own.

They are made once, with the warm process, and cost a run nothing.  That is enough because no run leaves
anything in them: the warm process is pid 1 of the pid namespace, so it can kill everything else in it with
one call and wait until nothing is left; the tree of files is read-only but for a small tmpfs that is
emptied; the network namespace has no interface that is up; objects of the ipc namespace cannot be made
(seccomp).  And if the warm process dies, the kernel kills the whole pid namespace.

The new root is a tmpfs with bind mounts of what `sandbox_view` lists, at their usual places.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from typing import Any

from onebase.verifiers.sandbox_layers import libc
from onebase.verifiers.sandbox_view import DEVICES, View

CLONE = {"mount": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000,
         "net": 0x40000000}  # fmt: skip
CLONE_CALL = {"x86_64": 56, "aarch64": 220}
PIVOT_CALL = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR_CALL = 442
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MS_REMOUNT = 32
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
FLAGS = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
}
AT_RECURSIVE, AT_FDCWD = 0x8000, -100
MNT_DETACH = 2
MAX_INODES = 8192
BOX = "/box"


def fork_into(flags: int, machine: str) -> int:
    """fork() with CLONE_NEW* flags.  The interpreter is told as os.fork tells it, so that the child is a
    whole Python process."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = libc_holding_gil.syscall(
        CLONE_CALL[machine], ctypes.c_ulong(flags | signal.SIGCHLD), None, None, None, None
    )
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    number = ctypes.get_errno()
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, f"clone: {os.strerror(number)}")
    return pid


libc_holding_gil = ctypes.PyDLL(None, use_errno=True)


def map_ids(pid: int) -> None:
    """Give the child's user namespace the ids of this one, all of them where this process may, else its
    own."""
    whole = {kind: open(f"/proc/self/{kind}_map").read() for kind in ("uid", "gid")}
    everything = {
        kind: "".join(
            f"{line.split()[0]} {line.split()[0]} {line.split()[2]}\n" for line in text.splitlines()
        )
        for kind, text in whole.items()
    }
    own = {"uid": f"{os.geteuid()} {os.geteuid()} 1\n", "gid": f"{os.getegid()} {os.getegid()} 1\n"}
    try:
        write(f"/proc/{pid}/gid_map", everything["gid"])
        write(f"/proc/{pid}/uid_map", everything["uid"])
    except PermissionError:
        write(f"/proc/{pid}/setgroups", "deny")
        write(f"/proc/{pid}/gid_map", own["gid"])
        write(f"/proc/{pid}/uid_map", own["uid"])


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def enter_new_root(view: View, base: str, disk_mb: int) -> None:
    """Build the new root on `base` (an empty folder), make it this process's only one.  OSError says which
    mount the kernel refused."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", base, "tmpfs", MS_NOSUID, "size=1m,mode=0755")
    hidden = tuple(os.path.realpath(folder) + "/" for folder in view.masked)
    trees = sorted((*view.trees, *DEVICES), key=lambda tree: len(os.path.realpath(tree)))
    shown: list[str] = []
    for tree in trees:
        if not os.path.realpath(tree).startswith(hidden):
            show(tree, base, shown)  # a folder before what lies in it
    for folder in view.masked:
        mount(
            "tmpfs",
            base + os.path.realpath(folder),
            "tmpfs",
            MS_NOSUID | MS_NODEV,
            "size=1m,mode=0755",
        )
    shown = []
    for tree in trees:
        if os.path.realpath(tree).startswith(hidden):
            show(tree, base, shown)
    os.makedirs(base + BOX)
    os.mkdir(base + "/proc")
    # For the dynamic loader, which asks /proc/self/exe where a program lies; Landlock keeps the files closed.
    # Not everywhere to be had, and few programs miss it.
    quiet(mount, "proc", base + "/proc", "proc", MS_NOSUID | MS_NODEV, "subset=pid,hidepid=2")
    set_attributes(base, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    for device in DEVICES:
        set_attributes(base + device, ATTR_NOSUID | ATTR_RDONLY, clear=ATTR_NODEV)
    options = f"size={disk_mb}m,nr_inodes={MAX_INODES},mode=0700"
    mount("tmpfs", base + BOX, "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chdir(base)
    check(libc.syscall(PIVOT_CALL[os.uname().machine], b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def show(path: str, base: str, shown: list[str], links: int = 0) -> None:
    """Bind `path` into the new root at the same place, if it is not there already; links on the way are made
    again."""
    if links > 40:
        raise OSError(errno.ELOOP, path)
    at = "/"
    parts = [part for part in path.split("/") if part]
    for n, part in enumerate(parts):
        at = os.path.join(at, part)
        if os.path.islink(at):
            target = os.readlink(at)
            if not os.path.lexists(base + at):
                os.symlink(target, base + at)
            resolved = os.path.normpath(os.path.join(os.path.dirname(at), target))
            show(os.path.join(resolved, *parts[n + 1 :]), base, shown, links + 1)
            return
        if n < len(parts) - 1 and not os.path.isdir(base + at):
            os.mkdir(base + at, 0o755)
    place = base + at
    if any(at == tree or at.startswith(tree + "/") for tree in shown):
        return
    shown.append(at)
    if os.path.isdir(at):
        os.makedirs(place, exist_ok=True)
    elif not os.path.exists(place):
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(at, place, None, MS_BIND | MS_REC)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    result = libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode(),
    )
    check(result, f"mount {source} on {target}")


def set_attributes(path: str, attributes: int, clear: int = 0) -> None:
    """Of the mount at `path` and all below."""
    packed = struct.pack("<QQQQ", attributes, clear, 0, 0)
    arguments = AT_FDCWD, path.encode(), AT_RECURSIVE, packed, ctypes.c_size_t(32)
    result = libc.syscall(MOUNT_SETATTR_CALL, *arguments)
    if result != 0 and ctypes.get_errno() == errno.ENOSYS:
        one_by_one(path, attributes, clear)
    else:
        check(result, f"mount_setattr {path}")


def one_by_one(path: str, attributes: int, clear: int) -> None:
    """The same for kernels before 5.12.  A mount keeps the flags it has, which it may have to keep."""
    with open("/proc/self/mountinfo") as stream:
        mounts = [line.split()[4:6] for line in stream]
    for target, options in mounts:
        if target == path or target.startswith(path + "/"):
            has = sum(flag for name, flag in FLAGS.items() if name in options.split(","))
            # The attributes have the same numbers as the flags.
            flags = MS_REMOUNT | MS_BIND | (has & ~clear) | attributes
            mount("none", target, None, flags)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def quiet(action: Any, *arguments: Any) -> str:
    """The error of an action, or an empty text."""
    try:
        action(*arguments)
    except OSError as error:
        return str(error)
    return ""
