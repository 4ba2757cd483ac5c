"""Which files untrusted code may see: the interpreter, the standard library, shared libraries, the packages
and commands that were asked for, five devices.  The Landlock rules and the mount namespace are both made
from it.

Never site-packages as a whole (data sets with their answers are installed there), never /proc, and of /etc
only what the dynamic loader, the clock and OpenSSL read.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import sys
from dataclasses import dataclass, field

from onebase.verifiers.sandbox_landlock import DEVICE, LIST, READ

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
SMALL = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/ssl/openssl.cnf",
    "/usr/share/zoneinfo",
    "/usr/lib/locale",
)
PACKAGE_FOLDERS = ("site-packages", "dist-packages")
LEFT_OUT = (*PACKAGE_FOLDERS, "test", "idlelib", "ensurepip", "turtledemo")


@dataclass(frozen=True)
class View:
    trees: tuple[str, ...]  # whole folders, or single files
    masked: tuple[str, ...]  # folders inside a tree that do not belong to it
    rules: tuple[tuple[str, int], ...] = field(default=())  # the same for Landlock, which cannot mask


def view(packages: list[str], use: list[str]) -> View:
    """`packages`: folders and files of importable packages; `use`: names of commands, or paths."""
    trees = [os.path.realpath(sys.executable), stdlib(), dynload(), *libraries(), *SMALL, *packages]
    for name in use:
        trees += command(name)
    trees = list(dict.fromkeys(tree for tree in trees if tree and os.path.exists(tree)))
    rules: list[tuple[str, int]] = [(path, DEVICE) for path in DEVICES]
    masked = []
    for tree in dict.fromkeys(map(os.path.realpath, trees)):
        wanted, unwanted = split(tree)
        masked += unwanted
        rules += [(tree, READ)] if not unwanted else [(tree, LIST), *((path, READ) for path in wanted)]
    return View(tuple(trees), tuple(masked), tuple(dict.fromkeys(rules)))


def split(tree: str) -> tuple[list[str], list[str]]:
    """The entries of a folder of libraries that belong to the view, and those that hold other people's
    packages."""
    wanted: list[str] = []
    unwanted: list[str] = []
    if os.path.isdir(tree) and (tree == stdlib() or fnmatch.fnmatch(os.path.basename(tree), "lib*")):
        for name in sorted(os.listdir(tree)):
            path = os.path.join(tree, name)
            out = name in LEFT_OUT if tree == stdlib() else holds_packages(path)
            (unwanted if out and os.path.isdir(path) else wanted).append(path)
    return wanted, unwanted


def holds_packages(path: str) -> bool:
    name = os.path.basename(path)
    return name in PACKAGE_FOLDERS or (
        name.startswith("python")
        and any(os.path.isdir(os.path.join(path, inner)) for inner in PACKAGE_FOLDERS)
    )


def stdlib() -> str:
    return os.path.realpath(os.path.dirname(os.__file__))


def dynload() -> str:
    """The folder of extension modules, where it is not inside the standard library's."""
    for path in sys.path:
        if path.endswith("lib-dynload") and os.path.isdir(path):
            real = os.path.realpath(path)
            return "" if real.startswith(stdlib() + os.sep) else real
    return ""


def libraries() -> list[str]:
    """Folders of shared libraries and what is mapped here and now; libpython wherever it lies."""
    triplet = getattr(sys.implementation, "_multiarch", "") or f"{os.uname().machine}-linux-gnu"
    folders = [f"{root}/{triplet}" for root in ("/lib", "/usr/lib", "/usr/local/lib")] + [
        "/lib64",
        "/usr/lib64",
    ]
    found = [folder for folder in folders if os.path.isdir(folder)]
    files = glob.glob(os.path.join(sys.base_prefix, "lib", "*.so*")) + glob.glob("/lib/ld-*")
    with open("/proc/self/maps") as maps:
        files += {line.split(None, 5)[5].strip() for line in maps if ".so" in line and "/" in line}
    inside = tuple(os.path.realpath(folder) + os.sep for folder in found)
    return found + [path for path in files if not os.path.realpath(path).startswith(inside)]


def which(name: str) -> str | None:
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def command(name: str) -> list[str]:
    """A command's file and, where it lives in a prefix of its own (a JDK, a toolchain), that prefix; a path
    stands for itself."""
    if os.sep in name:
        return [name]
    path = which(name)
    if path is None:
        raise FileNotFoundError(f"use={name!r}: there is no such command in {os.environ.get('PATH')}")
    real = os.path.realpath(path)
    prefix = os.path.dirname(os.path.dirname(real))
    own = os.path.basename(os.path.dirname(real)) == "bin" and prefix not in ("/", "/usr", "/usr/local")
    return [path, real, prefix] if own else [path, real]
