"""The folder of a run: empty before it, measured during it where no tmpfs bounds it, empty again after it,
whatever was put there.
"""

from __future__ import annotations

import errno
import marshal
import os
import stat
import time

from onebase.verifiers.sandbox_layers import Plan

MAX_FILES, MAX_DEPTH = 8192, 64
MODE = 0o700


def empty(plan: Plan) -> None:
    """In the zygote: remove what a run left.  Plain files are removed here; for more the janitor is asked,
    because moving folders about may be against the zygote's own Landlock rules."""
    if stat.S_IMODE(os.stat(plan.box).st_mode) != MODE:
        os.chmod(plan.box, MODE)
    names = os.listdir(plan.box)
    for name in names:
        try:
            os.unlink(os.path.join(plan.box, name))
        except OSError:
            plan.janitor.send(marshal.dumps("wipe"))
            if not plan.janitor.recv(1 << 10):
                raise OSError(errno.EIO, "the janitor could not empty the folder of a run") from None
            return


def wipe(top: int) -> None:
    """Empty the folder behind a descriptor.  Folders inside folders are first moved to the top under new
    names, so that neither depth nor the length of paths matters, and nothing is followed."""
    todo = os.listdir(top)
    stamp, count = time.monotonic_ns(), 0
    while todo:
        name = todo.pop()
        try:
            os.unlink(name, dir_fd=top)
            continue
        except IsADirectoryError:
            pass
        try:
            os.rmdir(name, dir_fd=top)
            continue
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        os.chmod(name, MODE, dir_fd=top)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            for child in os.listdir(inner):
                try:
                    os.unlink(child, dir_fd=inner)
                except IsADirectoryError:
                    count += 1
                    moved = f".{stamp}-{count}"
                    os.chmod(child, MODE, dir_fd=inner)  # moving a folder writes its ".."
                    os.rename(child, moved, src_dir_fd=inner, dst_dir_fd=top)
                    todo.append(moved)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=top)


def over(plan: Plan, disk_mb: int, processes: list[int]) -> bool:
    """Whether the run has more than `disk_mb` in its folder, or too many files, or too deep a tree, for a
    quick count.  Files that were removed and are still open count too, where this process may look at other
    processes' descriptors."""
    limit, total, files = disk_mb << 20, 0, 0
    todo = [(plan.box, 0)]
    while todo:
        folder, depth = todo.pop()
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        files += len(names)
        if files > MAX_FILES or depth > MAX_DEPTH:
            return True
        for name in names:
            path = f"{folder}/{name}"
            try:
                info = os.stat(path, follow_symlinks=False)
            except OSError:
                continue
            total += info.st_blocks * 512
            if stat.S_ISDIR(info.st_mode):
                todo.append((path, depth + 1))
        if total > limit:
            return True
    return total + removed_but_open(plan, processes) > limit


def removed_but_open(plan: Plan, processes: list[int]) -> int:
    found: dict[tuple[int, int], int] = {}
    for pid in processes:
        try:
            folder = os.open(f"{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=plan.proc)
        except OSError:
            continue
        try:
            for name in os.listdir(folder):
                info = os.stat(name, dir_fd=folder)
                if info.st_nlink == 0 and stat.S_ISREG(info.st_mode):
                    found[info.st_dev, info.st_ino] = info.st_blocks * 512
        except OSError:
            pass
        finally:
            os.close(folder)
    return sum(found.values())
