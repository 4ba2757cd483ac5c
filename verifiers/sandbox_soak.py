"""Thousands of runs in one sandbox, a third of them hostile: is a verdict lost, does one harm the next, does
anything grow?

    python -m onebase.verifiers.sandbox_soak 10000

An honest run is given two numbers and must answer with their product; a hostile one must not be found to have
answered, nor change what comes after it.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from onebase.verifiers.sandbox import Limits, Sandbox, SandboxError
from onebase.verifiers.sandbox_script import ENTRY

LIMITS = Limits(cpu_seconds=0.3, wall_seconds=5.0, memory_mb=128, output_bytes=100_000, disk_mb=4)
HONEST = b"a, b = map(int, input().split())\nprint(a * b)\n"
HOSTILE = [
    source.strip().encode()
    for source in r"""
import sys; sys.exit(0)
---
import os; os._exit(0)
---
import os; os.kill(os.getppid(), 9); os.kill(-1, 9)
---
import os
while True:
    try: os.fork()
    except OSError: pass
---
x = [bytearray(1 << 20) for _ in range(4000)]
---
while True: print('x' * 10_000)
---
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(60)
---
import threading, time, os
threading.Thread(target=time.sleep, args=(60,)).start(); os._exit(0)
---
import os
for i in range(300): os.makedirs(f'{i}/a/b'); open(f'{i}/f', 'w').write('x')
---
import os
for i in range(500): os.mkdir('d'); os.chdir('d')
---
import os
os.makedirs('a/b'); os.symlink('/', 'a/r'); os.chmod('a', 0); os.chmod('.', 0)
---
f = open('big', 'wb')
while True: f.write(bytes(1 << 20))
---
import os
for fd in range(300):
    try: os.write(fd, b'exit 0 0 0 0 0'); os.close(fd)
    except OSError: pass
---
import os, signal
if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(-1, os.WUNTRACED)
---
import ctypes; ctypes.string_at(0)
---
import signal
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except Exception: pass
while True: pass
---
import os
for _ in range(9):
    if os.fork() == 0: os._exit(0)
os.execv('/bin/sh', ['sh'])
---
import gc
for o in gc.get_objects():
    try: o.clear()
    except Exception: pass
---
import builtins; builtins.__dict__.clear(); 1/0
---
import os, socket
a, b = socket.socketpair()
socket.send_fds(a, [b'x'], [0, 1, 2]); os.closerange(0, 99)
""".split("---\n")
]


def soak(
    runs: int = 10_000, namespaces: str = "auto", seed: int = 0, hostile_share: float = 1 / 3
) -> dict[str, Any]:
    """What happened: runs by how they ended, errors, wrong answers of honest runs, answers found with hostile
    ones, and what grew: kB and descriptors of the warm process, processes, folders."""
    draw = random.Random(seed)
    found: dict[str, Any] = {"runs": runs, "hostile": 0, "errors": [], "wrong": [], "false": 0, "how": {}}
    with Sandbox(LIMITS, demand=(), namespaces=namespaces) as sandbox:
        for _ in range(50):
            sandbox.start(ENTRY, HONEST, stdin=b"1 1").wait()
        before = footprint(sandbox)
        started = time.perf_counter()
        for _ in range(runs):
            a, b = draw.randrange(10**6), draw.randrange(10**6)
            source = draw.choice(HOSTILE) if draw.random() < hostile_share else HONEST
            try:
                outcome = sandbox.start(ENTRY, source, stdin=f"{a} {b}\n".encode()).wait()
            except SandboxError as error:
                found["errors"].append(f"{error}: {source!r}")
                continue
            right = (outcome.how, outcome.code, outcome.stdout) == ("exit", 0, f"{a * b}\n".encode())
            if source is HONEST and not right:
                found["wrong"].append(outcome)
            elif source is not HONEST:
                found["hostile"] += 1
                found["false"] += right
            found["how"][outcome.how] = found["how"].get(outcome.how, 0) + 1
        found["seconds"] = time.perf_counter() - started
        after = footprint(sandbox)
        found["layers"], found["grown"] = sandbox.layers, {key: after[key] - before[key] for key in before}
        janitor = sandbox._zygote.process.pid if sandbox._zygote else 0
    found["processes_left"] = len(family(janitor)) + Path(f"/proc/{janitor}").exists()
    return found


def footprint(sandbox: Sandbox) -> dict[str, int]:
    """Of the warm process and its janitor: kB of private memory, descriptors; and their descendants."""
    assert sandbox._zygote is not None
    janitor = sandbox._zygote.process.pid
    pids = [janitor, *family(janitor)]
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return {
        "memory_kb": sum(int(text.split("RssAnon:")[1].split()[0]) for text in status),
        "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
        "own_descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(pids),
    }


def left_behind(sandbox: Sandbox) -> list[str]:
    """What of earlier runs is still there: processes, files, a folder that is not as it was."""
    assert sandbox._zygote is not None
    found = [f"process {pid}" for pid in family(sandbox._zygote.process.pid)[1:]]
    look = b"import os; print(os.getuid(), oct(os.stat('.').st_mode), os.listdir('.'))"
    outcome = sandbox.start(ENTRY, look).wait()
    if not outcome.stdout.endswith(b" 0o40700 []\n"):
        found.append(f"the folder: {outcome}")
    if "uid" in sandbox.layers:
        first = int(outcome.stdout.split()[0]) // 32 * 32  # a sandbox's uids begin at a multiple of that
        for path in Path("/proc").glob("[0-9]*/status"):
            try:
                uid = int(path.read_text().split("Uid:")[1].split()[0])
            except OSError:
                continue
            found += [f"{path.parent.name} has uid {uid}"] if first <= uid < first + 32 else []
    return found


def family(pid: int) -> list[int]:
    """All descendants of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *family(child)]
    return found


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    status = 0
    for namespaces in ("off", "auto"):
        found = soak(runs, namespaces)
        print(f"namespaces={namespaces}", {key: value for key, value in found.items() if key != "layers"})
        status |= bool(found["errors"] or found["wrong"] or found["false"] or found["processes_left"])
    return status


if __name__ == "__main__":
    sys.exit(main())
