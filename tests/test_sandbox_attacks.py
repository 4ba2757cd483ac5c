"""Attacks on the sandbox: each is a test that passes because the attack fails, in both modes, and because
nothing of it is left afterwards.

An attack prints BREACH where it has succeeded, and says by its last line that it ran to its end.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from onebase.verifiers.sandbox import Limits, Outcome, Sandbox
from onebase.verifiers.sandbox_check import TRY
from onebase.verifiers.sandbox_script import ENTRY
from onebase.verifiers.sandbox_soak import left_behind

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
    assert not left_behind(sandbox)
    return outcome


def dead_end(outcome: Outcome) -> None:
    """The attack was tried to its end."""
    assert (outcome.how, outcome.code) == ("exit", 0) and outcome.stdout.endswith(b"tried\n"), outcome


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
        if folder.stat().st_uid == os.geteuid() and str(folder).startswith(tempfile.gettempdir() + "/"):
            folder.chmod(folder.stat().st_mode | 0o755)  # only the sandbox is to be in the way
    import numpy

    paths = [
        str(secret),
        "/etc/passwd",
        "/etc/shadow",
        numpy.__file__,
        __file__,
        str(Path.home() / ".bashrc"),
    ]
    paths += ["/proc/self/maps", "/proc/self/environ", "/proc/self/mem", "/proc/1/environ", "/proc/version"]
    paths += [f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/mem", "/sys/kernel/mm", "/dev/mem"]
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
here = {str(tmp_path)!r}
for path in ['/tmp/x', '/var/tmp/x', '/dev/shm/x', here + '/x', '../x', os.__file__, '/etc/x', '/x']:
    attempt(open, path, 'a')
    attempt(os.mkdir, path + 'd')
    attempt(os.mkfifo, path + 'f')
    attempt(os.symlink, '/etc', path + 's')
target = {str(target)!r}
attempt(open, target, 'w'); attempt(os.truncate, target, 0); attempt(os.unlink, target)
attempt(os.rename, target, 'mine'); attempt(os.chmod, target, 0o777)
attempt(os.chown, target, os.getuid(), -1)
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
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(425, 8, ctypes.create_string_buffer(200)) >= 0: print('BREACH io_uring')
print('tried')
"""
        )
        outcome = run(sandbox, source)
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
    number = 56 if os.uname().machine == 'x86_64' else 220
    if libc.syscall(number, flag | 17, 0, 0, 0, 0) > 0: print('BREACH clone')
if libc.syscall(435, ctypes.create_string_buffer(88), 88) >= 0: print('BREACH clone3')
if libc.mount(b'none', b'.', b'tmpfs', 0, b'') == 0: print('BREACH mount')
if libc.umount2(b'/', 2) == 0: print('BREACH umount')
for name, args in (('bpf', (321, 0, 0, 0)), ('keyctl', (250, 0, -1, 1)), ('userfaultfd', (323, 0)),
                   ('perf', (298, 0, 0, -1, -1, 0)), ('memfd', (319, b'x', 0)),
                   ('shmget', (29, 0, 4096, 0o1600)), ('semget', (64, 0, 1, 0o1600)),
                   ('msgget', (68, 0, 0o1600)), ('mq_open', (240, b'x', 0o100, 0, 0)),
                   ('personality', (135, 0x40000)), ('kcmp', (312, 1, 1, 0, 0, 0)), ('new', (463, 0, 0)),
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
flag = ctypes.c_int.in_dll(ctypes.pythonapi, 'Py_NoSiteFlag')
tops = {{id(sys), id(wanted), ctypes.addressof(flag), id(os.read)}}
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
