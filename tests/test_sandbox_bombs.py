"""Runs that take too much, litter, or will not end: each is bounded, and nothing of it is left afterwards."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

import pytest

from onebase.verifiers.sandbox import Limits, Outcome, Sandbox
from onebase.verifiers.sandbox_check import TRY
from onebase.verifiers.sandbox_script import ENTRY
from onebase.verifiers.sandbox_soak import left_behind

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

DEMAND = ("rlimits", "seccomp", "landlock", "uid|pid")
LIMITS = Limits(cpu_seconds=2, wall_seconds=8, memory_mb=256)


def blocks(text: str) -> dict[str, str]:
    """Programs by name, from a text in which each stands below "## name"."""
    return dict(block.split("\n", 1) for block in text.split("## ")[1:])


@pytest.fixture(scope="module", params=["off", "auto"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param == "off" and os.geteuid() != 0:
        pytest.skip("without namespaces a run needs a uid of its own, and this user may not set uids")
    with Sandbox(LIMITS, demand=DEMAND, namespaces=request.param) as made:
        yield made


def run(sandbox: Sandbox, source: str, **options: object) -> Outcome:
    outcome = sandbox.start(ENTRY, source.encode(), **options).wait()  # type: ignore[arg-type]
    assert b"BREACH" not in outcome.stdout, outcome
    assert not left_behind(sandbox)
    return outcome


def dead_end(outcome: Outcome) -> None:
    """The attack was tried to its end."""
    assert (outcome.how, outcome.code) == ("exit", 0) and outcome.stdout.endswith(b"tried\n"), outcome


def test_fork_bomb(sandbox: Sandbox) -> None:
    started = time.monotonic()
    outcome = run(sandbox, "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass")
    # the kernel's own memory for so many forks counts, too
    assert outcome.how in ("cpu", "memory") and time.monotonic() - started < 7, outcome
    outcome = run(
        sandbox, "import os\nwhile True:\n  try:\n    if os.fork(): os._exit(0)\n  except OSError: pass"
    )
    assert outcome.how in ("exit", "cpu", "memory")


def test_a_fork_bomb_may_take_the_warm_process_with_it_and_is_still_a_verdict() -> None:
    """With little memory the kernel often kills the largest of the group, which is not the run's."""
    with Sandbox(Limits(cpu_seconds=2, wall_seconds=8, memory_mb=24, disk_mb=8), namespaces="auto") as made:
        for _ in range(4):
            outcome = run(made, "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass")
            assert outcome.how in ("cpu", "memory"), outcome
            assert run(made, "print(6 * 7)").stdout == b"42\n"


def test_number_of_processes_and_threads(sandbox: Sandbox) -> None:
    source = """
import os, time
n = 0
try:
    while n < 100:
        if os.fork() == 0: time.sleep(60)
        n += 1
except BlockingIOError: pass
print('BREACH' if n >= 16 else 'held', n)
"""
    outcome = run(sandbox, source)
    assert outcome.stdout == b"held 15\n" and outcome.outlived == 15
    source = """
import threading, time
n = 0
try:
    while n < 100: threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1
except RuntimeError: pass
print('BREACH' if n >= 16 else 'held')
import os, sys; sys.stdout.flush(); os._exit(0)
"""
    assert run(sandbox, source).stdout == b"held\n"


def test_a_fork_bomb_does_not_buy_cpu(sandbox: Sandbox) -> None:
    """Children that nobody waits for, and whose time the kernel throws away."""
    source = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        if os.fork() == 0:
            end = time.process_time() + 0.05
            while time.process_time() < end: pass
            os._exit(0)
    except OSError: time.sleep(0.001)
"""
    started = time.monotonic()
    outcome = run(sandbox, source, limits=Limits(cpu_seconds=1, wall_seconds=30))
    assert outcome.how == "cpu" and time.monotonic() - started < 12, outcome


MEMORY_BOMBS = blocks(
    r"""
## one process
x = [bytearray(1 << 20) for _ in range(4000)]
## mmap
import mmap
m = [mmap.mmap(-1, 64 << 20) for _ in range(40)]
for x in m: x.write(bytes(64 << 20))
## shared
import mmap
m = mmap.mmap(-1, 2 << 30)
for i in range(0, 2 << 30, 4096): m[i] = 1
## threads
import threading
for _ in range(12): threading.Thread(target=lambda: [bytearray(1 << 20) for _ in range(4000)]).start()
## stack
import threading, sys
sys.setrecursionlimit(10**9); threading.stack_size(200 << 20)
def f(): return [f()]
t = threading.Thread(target=f); t.start(); t.join()
## integer
x = 1 << (1 << 40)
## pipes
import os
import fcntl
for _ in range(25):
  r, w = os.pipe()
  fcntl.fcntl(w, 1031, 1 << 20)
  os.set_blocking(w, False)
  os.write(w, bytes(1 << 20))
"""
)


@pytest.mark.parametrize("name", MEMORY_BOMBS)
def test_memory_bombs(sandbox: Sandbox, name: str) -> None:
    outcome = run(sandbox, MEMORY_BOMBS[name])
    assert outcome.how in ("exit", "signal", "memory", "cpu") and outcome.memory_mb < 400, outcome


def test_memory_bomb_of_many_processes(sandbox: Sandbox) -> None:
    source = """
import os, time
for _ in range(10):
    if os.fork() == 0:
        x = [bytearray(b'x') * (1 << 20) for _ in range(100)]
        time.sleep(60); os._exit(0)
time.sleep(60)
"""
    outcome = run(sandbox, source)
    assert outcome.how == "memory" and outcome.wall_seconds < 6, outcome


def test_memory_that_processes_share_counts_once(sandbox: Sandbox) -> None:
    """Pages that were written before a fork and only read after it."""
    source = """
import os, time
x = bytearray(b'x') * (100 << 20)
for _ in range(5):
    if os.fork() == 0:
        time.sleep(0.3); os._exit(x[5] != ord('x'))
print([os.wait()[1] for _ in range(5)])
"""
    outcome = run(sandbox, source)
    assert outcome.stdout == b"[0, 0, 0, 0, 0]\n", outcome


def test_endless_output(sandbox: Sandbox) -> None:
    for source in (
        "while True: print('x' * 100_000)",
        "import os\nos.fork()\nos.fork()\nwhile True: os.write(2, b'x' * 100_000)",
        "import os\nif os.fork(): os._exit(0)\nos.setsid()\nwhile True: os.write(1, b'x' * 9999)",
    ):
        outcome = run(sandbox, source)
        assert outcome.how in ("output", "exit") and len(outcome.stdout) <= LIMITS.output_bytes


def test_large_files(sandbox: Sandbox) -> None:
    source = (
        TRY
        + """
f = open('big', 'wb')
try:
    for _ in range(10_000): f.write(bytes(1 << 20)); f.flush()
    print('BREACH')
except OSError: pass
if os.path.getsize('big') > 17 << 20: print('BREACH')
attempt(os.truncate, 'big', 10 << 30); attempt(os.posix_fallocate, os.open('b2', 66), 0, 10 << 30)
print('tried')
"""
    )
    dead_end(run(sandbox, source))


def test_many_files(sandbox: Sandbox) -> None:
    source = """
i = 0
try:
    while True:
        with open(f'f{i}', 'wb') as f: f.write(bytes(1 << 20))
        i += 1
except OSError: pass
print('held')
"""
    outcome = run(sandbox, source)
    assert outcome.how == "disk" or outcome.stdout == b"held\n", outcome
    outcome = run(sandbox, "i = 0\nwhile True:\n  open(f'{i}', 'w').close(); i += 1")
    assert outcome.how in ("disk", "cpu") or b"No space" in outcome.stderr, outcome


def test_removed_but_open_files(sandbox: Sandbox) -> None:
    source = """
import os, time
kept = []
try:
    for n in range(40):
        kept.append(open('x', 'wb')); kept[-1].write(bytes(8 << 20)); kept[-1].flush(); os.unlink('x')
    time.sleep(3)
    print('BREACH')
except OSError: print('held')
"""
    outcome = run(sandbox, source)
    assert outcome.how == "disk" or outcome.stdout == b"held\n", outcome


LITTER = blocks(
    r"""
## deep
import os
for i in range(3000): os.mkdir('d'); os.chdir('d')
## deep names
import os
for i in range(300): os.mkdir('d' * 250); os.chdir('d' * 250); open('f', 'w')
## closed
import os
os.makedirs('a/b/c'); open('a/b/f', 'w'); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)
## odd names
import os
for n in (b'\xff\xfe', b' ', b'-rf', b'\n', b'..x', b'*'): os.mkdir(n); os.close(os.open(n + b'/' + n, 66))
## links
import os
os.symlink('/', 'r')
os.symlink('x', 'x')
os.mkdir('d')
os.symlink('..', 'd/up')
os.mkfifo('d/p')
os.mkfifo('p')
## read-only
import os
os.mkdir('d'); open('d/f', 'w'); os.chmod('d/f', 0o400); os.chmod('d', 0o555); os.chmod('.', 0o555)
## many
import os
for i in range(2000): os.mkdir(f'd{i}'); open(f'd{i}/f', 'w').close()
## open
import os
os.mkdir('d'); f = os.open('d', 0); os.chdir('d'); g = open('g', 'w')
if os.fork() == 0:
  import time; time.sleep(60)
## hard links
import os
open('a', 'w'); os.mkdir('d')
for i in range(200): os.link('a', f'd/{i}')
"""
)


@pytest.mark.parametrize("name", LITTER)
def test_whatever_is_left_is_removed(sandbox: Sandbox, name: str) -> None:
    outcome = run(sandbox, LITTER[name])
    assert outcome.how in ("exit", "disk"), outcome


OUTLIVING = blocks(
    r"""
## daemon
import os, time
if os.fork() == 0:
  os.setsid()
  if os.fork() == 0:
    [os.close(n) for n in (0, 1, 2)]; time.sleep(60)
  os._exit(0)
os.wait()
## thread
import threading, time, os
threading.Thread(target=time.sleep, args=(60,)).start()
os._exit(0)
## stopped
import os, signal
if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(-1, os.WUNTRACED)
## deaf
import os, signal, time
for s in range(1, 65):
  try: signal.signal(s, signal.SIG_IGN)
  except (OSError, ValueError): pass
if os.fork() == 0: time.sleep(60)
## zombies
import os, time
for _ in range(10):
  if os.fork() == 0: os._exit(0)
time.sleep(0.2)
## many generations
import os, time
if os.fork(): time.sleep(0.3); os._exit(0)
for _ in range(300):
  if os.fork(): os._exit(0)
time.sleep(60)
## forking for ever
import os
if os.fork() == 0:
  while True:
    try:
      if os.fork(): os._exit(0)
    except OSError: pass
## spinning killers
import os, time
for _ in range(2):
  if os.fork() == 0:
    while True:
      try: os.kill(-1, 9)
      except OSError: pass
time.sleep(0.1)
## subreaper
import os, ctypes, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
if os.fork() == 0:
  if os.fork() == 0: time.sleep(60)
  os._exit(0)
## another group
import os, time
if os.fork() == 0:
  os.setpgid(0, 0); time.sleep(60)
"""
)


@pytest.mark.parametrize("name", OUTLIVING)
def test_nothing_outlives_its_run(sandbox: Sandbox, name: str) -> None:
    started = time.monotonic()
    run(sandbox, OUTLIVING[name])
    assert time.monotonic() - started < 5
