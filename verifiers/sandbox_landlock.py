"""The Landlock layer: the files a run may open, TCP, and signals and sockets across its border.

Default is refusal: a rule names each file or folder that may be read and executed; the run's own folder is
the one place to write.  Landlock holds for opening, making and removing files, not for asking after them:
`stat` tells that a file exists, its size and its times (a mount namespace hides them).

Source: linux/landlock.h and Documentation/userspace-api/landlock.rst; ABI 1 (kernel 5.13) to 7.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable

CREATE, ADD, RESTRICT = 444, 445, 446  # the same numbers on every architecture
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
FOR_FILES = (
    EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
)  # the rights that a rule on a file may have
TCP = 0b11  # bind, connect: ABI 4
SCOPES = 0b11  # abstract unix sockets, signals: ABI 6
QUIET = 1  # ABI 7: refusals are what a sandbox is for, none goes to the audit log

READ = READ_FILE | READ_DIR | EXECUTE
LIST = READ_DIR
DEVICE = READ_FILE | WRITE_FILE


def abi(libc: ctypes.CDLL) -> int:
    """The kernel's Landlock version.  OSError where it has none (ENOSYS) or has it switched off
    (EOPNOTSUPP)."""
    version = libc.syscall(CREATE, None, ctypes.c_size_t(0), 1)
    if version < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (needs kernel 5.13 and landlock among its active LSMs)")
    return version


def ruleset(libc: ctypes.CDLL, rules: Iterable[tuple[str, int]], writable: str) -> int:
    """A descriptor of the rules (path, rights); `writable` is given all rights but devices and sockets."""
    version = abi(libc)
    handled = ALL_BY_ABI[min(version, 5)]
    attributes = struct.pack("<QQQ", handled, TCP, SCOPES)[: 8 if version < 4 else 16 if version < 6 else 24]
    made = libc.syscall(CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if made < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    whole = handled & ~(MAKE_CHAR | MAKE_BLOCK | MAKE_SOCK | IOCTL_DEV)
    for path, rights in [*rules, (writable, whole)]:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                rights &= FOR_FILES
            beneath = struct.pack("<Qi", rights & handled, fd)
            if libc.syscall(ADD, made, 1, beneath, 0) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"landlock_add_rule {path} ({errno.errorcode.get(number, number)})")
        finally:
            os.close(fd)
    return made


def restrict(libc: ctypes.CDLL, made: int) -> None:
    """Put the rules on this thread and all its forks, for good (no_new_privs must be set)."""
    result = libc.syscall(RESTRICT, made, QUIET if abi(libc) >= 7 else 0)
    number = ctypes.get_errno()
    os.close(made)
    if result != 0:
        raise OSError(number, f"landlock_restrict_self ({os.strerror(number)})")
