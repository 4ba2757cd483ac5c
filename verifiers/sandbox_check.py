"""Attacks the sandbox on this machine and tells what it gives: the self-test behind `Sandbox` and `onebase
doctor`, and the measurement behind the benchmark.

    python -m onebase.verifiers.sandbox_check

Each attack is a program that prints BREACH where it succeeds.  The test of these attacks themselves is that
they do succeed outside of a sandbox.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onebase.verifiers.sandbox import Limits, Outcome, Sandbox, SandboxError
from onebase.verifiers.sandbox_script import ENTRY

BASIC = ("rlimits", "uid", "seccomp", "landlock")  # the layers that a default container has
LIMITS = Limits(cpu_seconds=4.0, wall_seconds=15.0, memory_mb=256, processes=16)

TRY = """
import os, sys
def attempt(what, *args, **kw):
    try:
        result = what(*args, **kw)
    except (OSError, ValueError, MemoryError, OverflowError):
        return None
    print('BREACH', getattr(what, '__name__', what), args, repr(result)[:100])
    return result
"""

# Placeholders: SECRET a file that everybody may read, TARGET one that everybody may write, PORT of a server
# on loopback, PARENT the pid of the caller.
ATTACKS = {
    "read a secret file": """
attempt(open, SECRET)
os.symlink(SECRET, 'link'); attempt(open, 'link')
os.symlink('/', 'root'); attempt(open, 'root' + SECRET)
os.chdir('/'); attempt(open, SECRET[1:]); attempt(open, '/etc/passwd')
""",
    "write outside of its folder": """
attempt(open, TARGET, 'a'); attempt(os.truncate, TARGET, 0); attempt(os.unlink, TARGET)
attempt(os.rename, TARGET, 'mine'); attempt(os.chmod, TARGET, 0o777)
for path in ('/tmp/onebase', '/var/tmp/onebase', '/dev/shm/onebase', '../onebase'):
    attempt(os.mkdir, path)
""",
    "reach the network": """
import socket
attempt(socket.create_connection, ('127.0.0.1', PORT), 1)
for family, kind in ((socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM),
                     (socket.AF_NETLINK, socket.SOCK_RAW)):
    attempt(socket.socket, family, kind)
""",
    "signal the caller": """
attempt(os.kill, PARENT, 0)
""",
    "look into the caller": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name in ('environ', 'mem', 'maps', 'status'): attempt(open, f'/proc/{PARENT}/{name}', 'rb')
if libc.ptrace(0x4206, PARENT, 0, 0) == 0: print('BREACH ptrace')
data = ctypes.create_string_buffer(8)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(data), 8)
if libc.process_vm_readv(PARENT, vector, 1, vector, 1, 0) >= 0: print('BREACH process_vm_readv')
""",
    "gain rights": """
import ctypes, resource
libc = ctypes.CDLL(None, use_errno=True)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
attempt(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard + 1 if hard > 0 else hard))
if os.getuid(): attempt(os.setuid, 0)
else: print('BREACH uid 0')
attempt(os.chroot, '.')
for flag in (0x10000000, 0x20000):
    if libc.unshare(flag) == 0: print('BREACH unshare', hex(flag))
""",
    "start many processes": """
import signal, time
pids = []
try:
    for _ in range(64):
        pid = os.fork()
        if pid == 0:
            time.sleep(20); os._exit(0)
        pids.append(pid)
    print('BREACH', len(pids), 'processes')
except OSError: pass
for pid in pids: os.kill(pid, signal.SIGKILL)
""",
    "take 2 GiB of memory": """
attempt(lambda: len(bytes(2 << 30)))
""",
    "outlive its run": """
try:
    if os.fork() == 0:
        import time
        os.setsid()
        if os.fork() == 0:
            for fd in (0, 1, 2): os.close(fd)
            time.sleep(20)
        os._exit(0)
    os.wait()
except PermissionError: pass  # a run is one process here
""",
}

# The layers that stop them, written as in `demand`: without one of each, an attack is not held against the
# sandbox, since its caller has said that it will do without.
STOPPED_BY = {
    "read a secret file": ("landlock|mount",),
    "write outside of its folder": ("landlock|mount",),
    "reach the network": ("seccomp",),
    "signal the caller": ("uid|pid|seccomp",),
    "look into the caller": ("seccomp", "landlock|mount"),
    "gain rights": ("uid|user", "seccomp"),
    "start many processes": ("rlimits", "uid|user"),
    "take 2 GiB of memory": ("rlimits",),
    "outlive its run": (),
}


@dataclass(frozen=True)
class Result:
    attack: str
    expected: bool  # whether the layers at hand should stop it
    held: bool
    told: str  # what the attack printed, or how it ended


@dataclass(frozen=True)
class Report:
    layers: tuple[str, ...]
    missing: dict[str, str]
    notes: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def breaches(self) -> list[Result]:
        return [result for result in self.results if result.expected and not result.held]


def attack_source(name: str, **places: Any) -> str:
    values = "".join(f"{key} = {value!r}\n" for key, value in places.items())
    return TRY + values + ATTACKS[name] + "print('tried')\n"


def attack(sandbox: Sandbox) -> tuple[Result, ...]:
    """Every attack, once, in this sandbox."""
    with tempfile.TemporaryDirectory(prefix="onebase-check-") as folder, _server() as server:
        secret, target = Path(folder, "secret"), Path(folder, "target")
        for path in (secret, target):
            path.write_text("secret")
            path.chmod(0o666)
        os.chmod(folder, 0o755)  # only the sandbox is to be in the way
        places = {
            "SECRET": str(secret), "TARGET": str(target), "PORT": server.getsockname()[1],
            "PARENT": os.getpid(),
        }  # fmt: skip
        return tuple(_one(sandbox, name, attack_source(name, **places)) for name in ATTACKS)


def _one(sandbox: Sandbox, name: str, source: str) -> Result:
    ours, theirs = socket.socketpair()
    with ours:
        limits = replace(LIMITS, disk_mb=min(LIMITS.disk_mb, sandbox.limits.disk_mb))
        outcome = sandbox.start(ENTRY, source.encode(), channel=theirs, limits=limits).wait()
        ours.settimeout(2.0)
        try:
            over = ours.recv(1) == b""  # the end of the channel: nobody holds it any more
        except OSError:
            over = False
    expected = all(any(layer in sandbox.layers for layer in wish.split("|")) for wish in STOPPED_BY[name])
    text = told(outcome) if over else "a process outlived its run"
    return Result(name, expected, over and held(outcome), text)


def held(outcome: Outcome) -> bool:
    """It was tried to its end, and did not get through."""
    return b"BREACH" not in outcome.stdout and outcome.stdout.endswith(b"tried\n")


def told(outcome: Outcome) -> str:
    text = (outcome.stdout + outcome.stderr).decode(errors="replace").strip().replace("\n", "; ")
    return f"{outcome.how} {outcome.code}: {text[-300:]}"


def _server() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


_passed: set[tuple[str, ...]] = set()


def self_test(sandbox: Sandbox) -> None:
    """Once in a process for each set of layers: SandboxError if an attack gets through."""
    if sandbox.layers in _passed:
        return
    breaches = [result for result in attack(sandbox) if result.expected and not result.held]
    if breaches:
        lines = [f"  {result.attack}: {result.told}" for result in breaches]
        raise SandboxError(
            f"the sandbox does not hold on this machine (layers {', '.join(sandbox.layers)}):\n"
            + "\n".join(lines)
            + "\nNothing was run in it.  Please report this with the kernel's version."
        )
    _passed.add(sandbox.layers)


def check(namespaces: str = "auto") -> Report:
    """What this machine gives, and what the attacks say about it."""
    with Sandbox(LIMITS, demand=(), namespaces=namespaces, self_test=False) as sandbox:
        return Report(sandbox.layers, sandbox.missing, tuple(sandbox.notes), attack(sandbox))


SMALL_TEST = b"""
def add(a, b):
    return a + b
assert add(1, 2) == 3
assert add(-1, 1) == 0
"""


def measure(n: int = 500, namespaces: str = "auto", source: bytes = SMALL_TEST) -> dict[str, Any]:
    """Runs of a small test in one sandbox: wall and CPU milliseconds a run (ours, the warm process's and the
    run's together), the start apart."""

    def once(runs: int) -> tuple[float, float]:
        before = sum(os.times()[:4])
        with Sandbox(demand=(), namespaces=namespaces, self_test=False) as sandbox:
            layers.append(sandbox.layers)
            started = time.perf_counter()
            for _ in range(runs):
                outcome = sandbox.start(ENTRY, source).wait()
                assert (outcome.how, outcome.code) == ("exit", 0), outcome
            wall = time.perf_counter() - started
        return sum(os.times()[:4]) - before, wall

    layers: list[tuple[str, ...]] = []
    start_cpu, _ = once(1)
    cpu, wall = once(n)
    return {
        "runs": n, "layers": layers[-1], "cpu_ms": 1000 * (cpu - start_cpu) / n, "wall_ms": 1000 * wall / n,
        "start_cpu_ms": 1000 * start_cpu,
    }  # fmt: skip


def verdict(result: Result) -> str:
    return "held" if result.held else "BREACH" if result.expected else "works here"


def main() -> int:
    status = 0
    for namespaces in ("off", "auto"):
        report = check(namespaces)
        print(f"namespaces={namespaces}: {', '.join(report.layers)}")
        for layer, reason in report.missing.items():
            print(f"  no {layer}: {reason}")
        for note in report.notes:
            print(f"  note: {note}")
        for result in report.results:
            print(f"  {verdict(result)}  {result.attack}  ({result.told})")
        status |= bool(report.breaches)
    return status


if __name__ == "__main__":
    sys.exit(main())
