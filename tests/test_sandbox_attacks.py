"""Attacks on the sandbox: each is a test that passes because the attack fails, in both modes, and because
nothing of it is left afterwards.

An attack prints BREACH where it has succeeded, and says by its last line that it ran to its end.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onebase.verifiers.sandbox import Limits, Outcome, Sandbox
from onebase.verifiers.sandbox_script import ENTRY

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

DEMAND = ("rlimits", "seccomp", "landlock", "uid|pid")
LIMITS = Limits(cpu_seconds=2, wall_seconds=8, memory_mb=256)


@pytest.fixture(scope="module", params=["off", "auto"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param == "off" and os.geteuid() != 0:
        pytest.skip("without namespaces a run needs a uid of its own, and this user may not set uids")
    with Sandbox(LIMITS, demand=DEMAND, namespaces=request.param) as made:
        yield made


def run(sandbox: Sandbox, source: str, **options: object) -> Outcome:
    outcome = sandbox.start(ENTRY, source.encode(), **options).wait()  # type: ignore[arg-type]
    assert b"BREACH" not in outcome.stdout, outcome
    assert_nothing_left(sandbox)
    return outcome


def family(pid: int) -> list[int]:
    """All descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *family(child)]
    return found


def assert_nothing_left(sandbox: Sandbox) -> None:
    assert sandbox._zygote is not None
    janitor = sandbox._zygote.process.pid
    assert len(family(janitor)) == 1, "a process of the run outlived it"
    probe = sandbox.start(
        ENTRY, b"import os; print(os.listdir('.'), oct(os.stat('.').st_mode), os.getuid())"
    ).wait()
    assert probe.stdout.startswith(b"[] 0o40700"), f"the folder is not as it was: {probe}"
    uid = int(probe.stdout.split()[2])
    if "uid" in sandbox.layers:
        block = range(uid // 32 * 32, uid // 32 * 32 + 32)
        owners = [
            int(p.read_text().split("Uid:")[1].split()[0])
            for p in Path("/proc").glob("[0-9]*/status")
            if p.exists()
        ]
        assert not set(block) & set(owners), "a process with the uid of a run is there"


def dead_end(outcome: Outcome) -> None:
    """The attack was tried to its end."""
    assert (outcome.how, outcome.code) == ("exit", 0) and outcome.stdout.endswith(b"tried\n"), outcome


TRY = """
import os, sys
def attempt(what, *args, **kw):
    try:
        result = what(*args, **kw)
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        return None
    print('BREACH', what, args, repr(result)[:200])
    return result
"""

READ = (
    TRY
    + """
for path in {paths!r}:
    attempt(open, path)
    attempt(os.open, path, os.O_RDONLY | os.O_NOFOLLOW)
os.symlink({paths!r}[0], 'link'); attempt(open, 'link')
os.symlink('/', 'root'); attempt(os.listdir, 'root/etc')
attempt(os.link, {paths!r}[0], 'hard') if {foreign} else None
os.chdir('/'); attempt(open, {paths!r}[0][1:])
print('tried')
"""
)


def test_reading_files(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the expected answer")
    for folder in [secret, *secret.parents][:-1]:
        if folder.owner() == Path.home().owner() and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o755)  # only the sandbox is to be in the way
    import numpy

    paths = [str(secret), "/etc/passwd", "/etc/shadow", "/proc/self/maps", "/proc/self/environ", "/proc/self/mem",
             "/proc/1/environ", f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/mem", "/proc/version",
             "/sys/kernel/mm", "/dev/mem", "/dev/kmsg", "/var/log/dpkg.log", str(Path.home() / ".bashrc"),
             numpy.__file__, __file__]  # fmt: skip
    dead_end(run(sandbox, READ.format(paths=paths, foreign=True)))


def test_writing_files(sandbox: Sandbox, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("as it was")
    for folder in [target, tmp_path, *tmp_path.parents]:
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o777)
    source = (
        TRY
        + f"""
import tempfile
for path in ['/tmp/x', '/var/tmp/x', '/dev/shm/x', {str(tmp_path)!r} + '/x', '../x', os.__file__, '/etc/x', '/x']:
    attempt(open, path, 'a')
    attempt(os.mkdir, path + 'd')
    attempt(os.mkfifo, path + 'f')
    attempt(os.symlink, '/etc', path + 's')
target = {str(target)!r}
attempt(open, target, 'w'); attempt(os.truncate, target, 0); attempt(os.unlink, target)
attempt(os.rename, target, 'mine'); attempt(os.chmod, target, 0o777); attempt(os.chown, target, os.getuid(), -1)
attempt(os.setxattr, target, 'user.a', b'b'); attempt(os.setxattr, '.', 'user.a', b'b')
open('mine', 'w').write('x'); attempt(os.rename, 'mine', target); attempt(os.link, 'mine', target + '2')
attempt(os.rename, os.getcwd(), os.getcwd() + '2'); attempt(os.rmdir, os.getcwd())
print('tried')
"""
    )
    dead_end(run(sandbox, source))
    assert target.read_text() == "as it was" and sorted(p.name for p in tmp_path.iterdir()) == ["target"]


def test_network(sandbox: Sandbox) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        source = (
            TRY
            + f"""
import socket, ctypes
for family in range(0, 46):
    for kind in (1, 2, 3, 5):
        attempt(socket.socket, family, kind)
attempt(socket.create_connection, ('127.0.0.1', {server.getsockname()[1]}), 1)
for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    attempt(socket.socketpair, socket.AF_UNIX, kind)
a, b = socket.socketpair()
attempt(a.connect, '\\0onebase'); attempt(a.bind, '\\0onebase'); attempt(a.sendto, b'x', '/dev/log')
attempt(socket.getaddrinfo, 'localhost', 80, type=socket.SOCK_STREAM) and print('resolved')
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(425, 8, ctypes.create_string_buffer(200)) >= 0: print('BREACH io_uring')
print('tried')
"""
        )
        outcome = run(
            sandbox,
            source.replace(
                "attempt(socket.getaddrinfo, 'localhost', 80, type=socket.SOCK_STREAM) and print('resolved')\n",
                "",
            ),
        )
        dead_end(outcome)
        server.settimeout(0)
        with pytest.raises(OSError):
            server.accept()


def test_signals_to_others(sandbox: Sandbox) -> None:
    me = os.getpid()
    source = (
        TRY
        + f"""
import signal
for pid in ({me}, {os.getppid()}, os.getppid(), 1):
    for number in (0, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGINT):
        if pid > 0 and not (number == 0 and pid == 1):
            try: os.kill(pid, number)
            except OSError: pass
    attempt(os.killpg, os.getpgid(0) + 10**6, 9)
try: os.kill(-1, signal.SIGCONT)
except OSError: pass
print('tried')
"""
    )
    dead_end(run(sandbox, source))
    assert sandbox._zygote is not None and not sandbox._zygote.dead
    outcome = run(sandbox, "import os; os.kill(-1, 9); os.kill(0, 9)")
    assert outcome.how in ("signal", "exit")
    outcome = run(sandbox, "import os; os.killpg(0, 9)")
    assert (outcome.how, outcome.code) == ("signal", 9)


def test_other_processes(sandbox: Sandbox) -> None:
    source = (
        TRY
        + f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for pid in ({os.getpid()}, os.getppid(), 1):
    for request in (16, 0x4206, 0):
        if libc.ptrace(request, pid, 0, 0) == 0: print('BREACH ptrace', pid)
    buffer = ctypes.create_string_buffer(8)
    iov = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    if libc.process_vm_readv(pid, iov, 1, iov, 1, 0) >= 0: print('BREACH vm', pid)
    if libc.syscall(438, 0, 0, 0) >= 0: print('BREACH pidfd_getfd')
    attempt(os.listdir, f'/proc/{{pid}}')
    attempt(os.sched_setaffinity, pid, [0]); attempt(os.setpriority, os.PRIO_PROCESS, pid, 19)
    import resource; attempt(resource.prlimit, pid, resource.RLIMIT_NOFILE, (5, 5))
attempt(os.setpriority, os.PRIO_USER, 0, 19); attempt(os.listdir, '/proc')
print('tried')
"""
    )
    dead_end(run(sandbox, source))


def test_privileges(sandbox: Sandbox) -> None:
    source = (
        TRY
        + """
import ctypes, resource
libc = ctypes.CDLL(None, use_errno=True)
assert os.getuid() != 0 or 'uid' not in os.environ.get('LAYERS', 'uid')
for uid in (0, 1000, os.getuid() + 1):
    attempt(os.setuid, uid); attempt(os.setgid, uid); attempt(os.setgroups, [uid])
    attempt(os.setresuid, uid, uid, uid); attempt(os.seteuid, uid)
for path in ('/usr/bin/su', '/usr/bin/passwd', '/usr/bin/mount', '/bin/sh', '/usr/bin/python3'):
    attempt(os.execv, path, [path, '--version'])
for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE,
              resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_DATA, resource.RLIMIT_STACK):
    soft, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        attempt(resource.setrlimit, which, (soft, hard + 1))
    elif which != resource.RLIMIT_DATA: print('BREACH unlimited', which)
attempt(os.chroot, '.'); attempt(os.mknod, 'null', 0o20666, os.makedev(1, 3))
attempt(os.nice, -1)
for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000):
    if libc.unshare(flag) == 0: print('BREACH unshare', hex(flag))
    if libc.syscall(56 if os.uname().machine == 'x86_64' else 220, flag | 17, 0, 0, 0, 0) > 0: print('BREACH clone')
if libc.syscall(435, ctypes.create_string_buffer(88), 88) >= 0: print('BREACH clone3')
if libc.mount(b'none', b'.', b'tmpfs', 0, b'') == 0: print('BREACH mount')
if libc.umount2(b'/', 2) == 0: print('BREACH umount')
for name, args in (('bpf', (321, 0, 0, 0)), ('keyctl', (250, 0, -1, 1)), ('userfaultfd', (323, 0)),
                   ('perf', (298, 0, 0, -1, -1, 0)), ('memfd', (319, b'x', 0)), ('shmget', (29, 0, 4096, 0o1600)),
                   ('semget', (64, 0, 1, 0o1600)), ('msgget', (68, 0, 0o1600)), ('mq_open', (240, b'x', 0o100, 0, 0)),
                   ('personality', (135, 0x40000)), ('kcmp', (312, 1, 1, 0, 0, 0)), ('new', (463, 0, 0, 0, 0)),
                   ('x32 getpid', (0x40000000 + 39,)), ('setns', (308, 0, 0)), ('adjtimex', (159, 0))):
    if os.uname().machine == 'x86_64' and libc.syscall(*args) >= 0: print('BREACH', name)
for option, value in ((28, 0), (8, 1), (24, 0)):
    if libc.prctl(option, value, 0, 0, 0) == 0 and option != 8: print('BREACH prctl', option)
print('tried')
"""
    )
    dead_end(run(sandbox, source))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code of x86-64")
def test_the_32_bit_entry_kills(sandbox: Sandbox) -> None:
    """int 0x80 reaches another table of system calls: number 20 there is getpid."""
    source = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex('b814000000cd80c3'))
print('BREACH', ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""
    assert run(sandbox, source).how == "signal"


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import ctypes; ctypes.CDLL(None)._exit(0)",
        "import os, threading; threading.Thread(target=os._exit, args=(0,)).start()\nwhile True: pass",
        "raise SystemExit",
        "import os; os.execv('/proc/self/exe', ['x'])",
        "import sys; sys.stdout = sys.stderr = None",
        "import os\nfor fd in range(200):\n  try: os.close(fd)\n  except OSError: pass",
        "import os\nfor fd in range(200):\n  try: os.write(fd, b'exit 0 0 0 0 0')\n  except OSError: pass",
        "import sys; sys.settrace(lambda *a: 1/0); sys.setrecursionlimit(10**8)\ndef f(): f()\nf()",
        "import gc, sys\nfor o in gc.get_objects():\n  try: o.clear()\n  except Exception: pass",
        "import builtins; builtins.__dict__.clear()",
        "import ctypes; ctypes.string_at(0)",
        "import sys; sys.excepthook = sys.stdout.flush = lambda *a: 1/0\n1/0",
        "import os; os._exit = lambda s: None\nimport sys; sys.exit(3)",
        "import faulthandler, os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    ],
)
def test_endings_do_not_harm_the_sandbox(sandbox: Sandbox, source: str) -> None:
    outcome = run(sandbox, source)
    assert outcome.how in ("exit", "signal", "cpu", "memory"), outcome


def test_descriptors_are_only_the_runs_own(sandbox: Sandbox) -> None:
    source = """
import os, stat
for fd in range(4, 2000):
    try: info = os.fstat(fd)
    except OSError: continue
    kind = 'dir' if stat.S_ISDIR(info.st_mode) else 'BREACH'
    try: os.open('site-packages/numpy/__init__.py', os.O_RDONLY, dir_fd=fd); kind = 'BREACH'
    except OSError: pass
    for up in ('..', '../..', '../../..', '../../../..', '../../../../.ssh', '../../../../.bashrc'):
        try: os.listdir(os.open(up, os.O_RDONLY, dir_fd=fd)); kind = 'BREACH ' + up
        except OSError: pass
    print(fd, kind)
print('tried')
"""
    dead_end(run(sandbox, source))


def test_fork_bomb(sandbox: Sandbox) -> None:
    started = time.monotonic()
    outcome = run(sandbox, "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass")
    assert outcome.how == "cpu" and time.monotonic() - started < 7, outcome
    outcome = run(
        sandbox, "import os\nwhile True:\n  try:\n    if os.fork(): os._exit(0)\n  except OSError: pass"
    )
    assert outcome.how in ("exit", "cpu")


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


MEMORY_BOMBS = {
    "one process": "x = [bytearray(1 << 20) for _ in range(4000)]",
    "mmap": "import mmap\nm = [mmap.mmap(-1, 64 << 20) for _ in range(40)]\nfor x in m: x.write(bytes(64 << 20))",
    "shared": "import mmap\nm = mmap.mmap(-1, 2 << 30)\nfor i in range(0, 2 << 30, 4096): m[i] = 1",
    "threads": "import threading\nfor _ in range(12): threading.Thread(target=lambda: [bytearray(1 << 20) for _ in range(4000)]).start()",
    "stack": "import threading, sys\nsys.setrecursionlimit(10**9); threading.stack_size(200 << 20)\ndef f(): return [f()]\nt = threading.Thread(target=f); t.start(); t.join()",
    "integer": "x = 1 << (1 << 40)",
    "pipes": "import os\nimport fcntl\nfor _ in range(25):\n  r, w = os.pipe(); fcntl.fcntl(w, 1031, 1 << 20); os.set_blocking(w, False); os.write(w, bytes(1 << 20))",
}  # fmt: skip


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


def test_endless_output(sandbox: Sandbox) -> None:
    for source in (
        "while True: print('x' * 100_000)",
        "import os\nos.fork()\nos.fork()\nwhile True: os.write(2, b'x' * 100_000)",
        "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nif os.fork(): os._exit(0)\nos.setsid()\nwhile True: os.write(1, b'x' * 9999)",
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


LITTER = {
    "deep": "import os\nfor i in range(3000): os.mkdir('d'); os.chdir('d')",
    "deep names": "import os\nfor i in range(300): os.mkdir('d' * 250); os.chdir('d' * 250); open('f', 'w')",
    "closed": "import os\nos.makedirs('a/b/c'); open('a/b/f', 'w'); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)",
    "odd names": "import os\nfor n in (b'\\xff\\xfe', b' ', b'-rf', b'\\n', b'..x', b'*'): os.mkdir(n); os.close(os.open(n + b'/' + n, 66))",
    "links": "import os\nos.symlink('/', 'r'); os.symlink('x', 'x'); os.mkdir('d'); os.symlink('..', 'd/up'); os.mkfifo('d/p'); os.mkfifo('p')",
    "read-only": "import os\nos.mkdir('d'); open('d/f', 'w'); os.chmod('d/f', 0o400); os.chmod('d', 0o555); os.chmod('.', 0o555)",
    "many": "import os\nfor i in range(2000): os.mkdir(f'd{i}'); open(f'd{i}/f', 'w').close()",
    "open": "import os\nos.mkdir('d'); f = os.open('d', 0); os.chdir('d'); g = open('g', 'w')\nif os.fork() == 0:\n  import time; time.sleep(60)",
    "hard links": "import os\nopen('a', 'w'); os.mkdir('d')\nfor i in range(200): os.link('a', f'd/{i}')",
}  # fmt: skip


@pytest.mark.parametrize("name", LITTER)
def test_whatever_is_left_is_removed(sandbox: Sandbox, name: str) -> None:
    outcome = run(sandbox, LITTER[name])
    assert outcome.how in ("exit", "disk"), outcome


OUTLIVING = {
    "daemon": "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    [os.close(n) for n in (0, 1, 2)]; time.sleep(60)\n  os._exit(0)\nos.wait()",
    "thread": "import threading, time, os\nthreading.Thread(target=time.sleep, args=(60,)).start()\nos._exit(0)",
    "stopped": "import os, signal\nif os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)\nos.waitpid(-1, os.WUNTRACED)",
    "deaf": "import os, signal, time\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): pass\nif os.fork() == 0: time.sleep(60)",
    "zombies": "import os, time\nfor _ in range(10):\n  if os.fork() == 0: os._exit(0)\ntime.sleep(0.2)",
    "many generations": "import os\nfor _ in range(300):\n  if os.fork(): os._exit(0)\nprint('end')",
    "forking for ever": "import os\nif os.fork() == 0:\n  while True:\n    try:\n      if os.fork(): os._exit(0)\n    except OSError: pass",
    "spinning killers": "import os\nfor _ in range(6):\n  if os.fork() == 0:\n    while True:\n      try: os.kill(-1, 18)\n      except OSError: pass",
    "subreaper": "import os, ctypes, time\nctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\nif os.fork() == 0:\n  if os.fork() == 0: time.sleep(60)\n  os._exit(0)",
    "vfork": "import os, time\npid = os.posix_spawn if 0 else None\nif os.fork() == 0:\n  os.setpgid(0, 0); time.sleep(60)",
}  # fmt: skip


@pytest.mark.parametrize("name", OUTLIVING)
def test_nothing_outlives_its_run(sandbox: Sandbox, name: str) -> None:
    started = time.monotonic()
    run(sandbox, OUTLIVING[name])
    assert time.monotonic() - started < 5


def test_leftovers_of_memory_tell_nothing(sandbox: Sandbox) -> None:
    """What an earlier run was given or printed is not in the memory that later runs start with."""
    secret = os.urandom(8).hex()
    run(
        sandbox,
        f"print('{secret}')  # {secret}",
        stdin=secret.encode() * 50,
        files={"f": secret.encode() * 50},
    )
    half = secret[:8], secret[8:]
    source = f"""
import ctypes, sys
wanted = bytes({half[0]!r}, 'ascii')
libc = ctypes.CDLL(None, use_errno=True)
import os
r, w = os.pipe()
found = 0
def readable(address):  # write() tells with EFAULT what cannot be read
    n = libc.write(w, ctypes.c_void_p(address), ctypes.c_size_t(4096))
    return os.read(r, 4096) if n == 4096 else None
here = id(wanted) & ~0xfff
tops = {{id(sys), id(wanted), ctypes.addressof(ctypes.c_long.in_dll(ctypes.pythonapi, 'Py_NoSiteFlag')), id(os.read)}}
for top in tops:
    for page in range((top >> 12) - 3000, (top >> 12) + 3000):
        data = readable(page << 12)
        while data and (at := data.find(wanted)) >= 0:
            found += data[at + 8 : at + 16] == bytes({half[1]!r}, 'ascii')
            data = data[at + 1 :]
print('BREACH' if found else 'clean')
"""
    outcome = run(sandbox, source)
    assert outcome.stdout == b"clean\n", outcome
