"""The sandbox under a caller with fewer rights: an ordinary user, root of a default container, both; and the
end of a caller who is killed.

The container is imitated by its capabilities and a seccomp filter that refuses what the default profile of
container engines refuses.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from onebase.verifiers.sandbox import Sandbox
from onebase.verifiers.sandbox_check import ATTACKS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")
ROOT = Path(__file__).resolve().parent.parent

FILTER = """
import ctypes, errno, os
from onebase.verifiers import sandbox_seccomp as s
column, _ = s.ARCHITECTURES[os.uname().machine]
code = s.opening(os.uname().machine)
code += s.refusals([s.MOUNTS.replace('chroot 161 51,', ''), s.MACHINE, 'bpf 321 280, perf_event_open 298 241',
                    'keyctl 250 219, add_key 248 217, request_key 249 218'], column, errno.EPERM)
code += s.refusals(['clone3 435 435'], column, errno.ENOSYS)
code += s.rule('clone 56 220', column, [
    (s.LOAD, 0, 0, s.argument(0)), (s.JUMP_SET, 0, 1, s.NEW_NAMESPACES),
    (s.RETURN, 0, 0, s.ERRNO | errno.EPERM), (s.RETURN, 0, 0, s.ALLOW)])
s.install([*code, (s.RETURN, 0, 0, s.ALLOW)], ctypes.CDLL(None, use_errno=True))
"""
CAPABILITIES = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
kept = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)  # what engines leave to root by default
for capability in range(64):
    if capability not in kept: libc.prctl(24, capability, 0, 0, 0)
mask = sum(1 << c for c in kept)
assert libc.capset(struct.pack('<Ii', 0x20080522, 0), struct.pack('<6I', mask, mask, 0, 0, 0, 0)) == 0
"""
CONTAINER = FILTER + CAPABILITIES
NOBODY = """
import os
os.setgroups([]); os.setresgid(54321, 54321, 54321); os.setresuid(54321, 54321, 54321)
"""
DRIVER = """
import json, sys
from onebase.verifiers.sandbox import Limits, Sandbox, SandboxError
from onebase.verifiers.sandbox_script import ENTRY
from onebase.verifiers import sandbox_check
asked = json.load(sys.stdin)
answer = {}
try:
    limits = Limits(cpu_seconds=2, wall_seconds=8)
    with Sandbox(limits, demand=asked['demand'], namespaces=asked['namespaces']) as sandbox:
        answer['layers'], answer['missing'], answer['notes'] = sandbox.layers, sandbox.missing, sandbox.notes
        answer['attacks'] = [[r.attack, r.expected, r.held, r.told] for r in sandbox_check.attack(sandbox)]
        answer['runs'] = []
        for source in asked['sources']:
            o = sandbox.start(ENTRY, source.encode()).wait()
            answer['runs'].append([o.how, o.code, o.stdout.decode(), o.stderr.decode(), o.outlived])
except SandboxError as error: answer['error'] = str(error)
print(json.dumps(answer))
"""


def open_to_all(path: str) -> bool:
    return all(
        os.stat(p).st_mode & stat.S_IXOTH for p in [Path(path).resolve(), *Path(path).resolve().parents]
    )


def interpreter(for_others: bool) -> str:
    """This one, or where other uids may not enter its folder, the system's."""
    real = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    if not for_others or open_to_all(real):
        return real
    system = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if system is None or not open_to_all(system) or not open_to_all(str(ROOT)):
        pytest.skip(f"another uid can run neither {real} nor a python3 of the system")
    version = subprocess.run(
        [system, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True
    )
    if version.stdout.strip() != b"True":
        pytest.skip(f"{real} is closed to other uids and {system} is too old")
    return system


def restricted(
    wrapper: str, sources: list[str], demand: tuple[str, ...], namespaces: str = "auto"
) -> dict[str, Any]:
    if wrapper and os.geteuid() != 0:
        pytest.skip("only root can give up rights to see what is left")
    asked = json.dumps({"sources": sources, "demand": demand, "namespaces": namespaces})
    command = [interpreter(NOBODY in wrapper), "-s", "-S", "-c", wrapper + DRIVER]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TMPDIR": "/tmp"}
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120, cwd="/", env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FORK = "import os\nif os.fork() == 0:\n  import time; time.sleep(60)\nprint('forked')"
IDENTITY = "import os; print(os.getuid(), os.getpid(), os.getgroups())"
THREADS = "import threading, os, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\nos._exit(0)"
SIGNALS = """
import os, signal
for pid in (os.getppid(), 1, -1, 0):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP):
        if pid > 0 or pid == -1 and number == signal.SIGINT and False:
            try: os.kill(pid, number)
            except OSError: pass
print('alive')
"""
LITTER = """
import os
os.makedirs('a/b/c'); open('a/b/f', 'w')
try: os.chmod('a/b', 0)
except OSError: pass
print(1)
"""
SOURCES = [IDENTITY, FORK, THREADS, SIGNALS, LITTER, "import os; print(os.listdir('.'))"]


def held(answer: dict[str, Any]) -> None:
    assert "error" not in answer, answer["error"]
    assert [name for name, *_ in answer["attacks"]] == list(ATTACKS)
    for name, expected, holds, told in answer["attacks"]:
        assert holds or not expected, (name, told)
    runs = answer["runs"]
    assert (
        runs[2][:2] == ["exit", 0] and "alive" in runs[3][2] and runs[4][2] == "1\n" and runs[5][2] == "[]\n"
    ), runs


def test_root_of_a_default_container() -> None:
    answer = restricted(CONTAINER, SOURCES, ("rlimits", "uid", "seccomp", "landlock"))
    held(answer)
    assert answer["layers"][:4] == ["rlimits", "uid", "seccomp", "landlock"] and "pid" not in answer["layers"]
    assert "not permitted" in answer["missing"]["pid"]
    uid, pid, _ = answer["runs"][0][2].split(" ", 2)
    assert int(uid) > 10_000 and int(pid) > 2
    assert answer["runs"][1][2] == "forked\n" and answer["runs"][1][4] == 1


def test_an_ordinary_user() -> None:
    answer = restricted(NOBODY, SOURCES, ("rlimits", "seccomp", "landlock", "uid|pid"))
    if "error" in answer and "user" in answer["error"]:
        pytest.skip(f"ordinary users have no namespaces here: {answer['error']}")
    held(answer)
    assert {"user", "pid", "mount", "net", "ipc", "uts"} <= set(answer["layers"]) and "uid" not in answer[
        "layers"
    ]
    assert "may not set uids" in answer["missing"]["uid"]
    assert answer["runs"][0][2].startswith("54321 ")
    assert answer["runs"][1][2] == "forked\n" and answer["runs"][1][4] == 1


def test_an_ordinary_user_of_a_default_container() -> None:
    """Nothing but rlimits, seccomp and Landlock: a run is one process then, because no other could be told
    from the caller's."""
    asked = ("rlimits", "seccomp", "landlock")
    answer = restricted(CONTAINER + NOBODY, SOURCES, asked)
    held(answer)
    assert answer["layers"] == list(asked)
    how, code, out, err, _ = answer["runs"][1]
    assert code == 1 and "PermissionError" in err and out == ""
    answer = restricted(CONTAINER + NOBODY, [], ("rlimits", "uid", "seccomp", "landlock"))
    assert "uid 54321 may not set uids" in answer["error"]


def test_root_without_the_right_to_make_namespaces_but_with_user_namespaces() -> None:
    """Capabilities of a container, no filter: user namespaces are to be had, and uids inside them."""
    answer = restricted(CAPABILITIES, SOURCES, ("rlimits", "uid", "seccomp", "landlock"))
    held(answer)
    if "user" not in answer["layers"]:
        pytest.skip(f"no user namespaces here: {answer['missing']['user']}")
    assert {"uid", "pid", "mount"} <= set(answer["layers"])


OLD_KERNEL = """
import ctypes, errno, os
from onebase.verifiers import sandbox_seccomp as s
machine = os.uname().machine
code = s.opening(machine) + [(s.JUMP_GE, 0, 1, 435), (s.RETURN, 0, 0, s.ERRNO | errno.ENOSYS)]
s.install([*code, (s.RETURN, 0, 0, s.ALLOW)], ctypes.CDLL(None, use_errno=True))
"""


@pytest.mark.parametrize("wrapper", ["", NOBODY], ids=["root", "user"])
def test_a_kernel_of_2019(wrapper: str) -> None:
    """5.4: no Landlock, no mount_setattr, no close_range; a root of its own keeps the files."""
    answer = restricted(OLD_KERNEL + wrapper, SOURCES, ("rlimits", "seccomp", "landlock|mount", "uid|pid"))
    if "no_new_privs" in answer.get("error", ""):
        pytest.skip(answer["error"])
    held(answer)
    assert "mount" in answer["layers"] and "kernel 5.13" in answer["missing"]["landlock"]


def test_the_systems_interpreter() -> None:
    """Another layout of interpreter, libraries and packages."""
    path = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if path is None:
        pytest.skip("the system has no python3")
    code = """
import os
from onebase.verifiers.sandbox import Sandbox
from onebase.verifiers.sandbox_script import ENTRY
source = b'''
import ssl, sqlite3, subprocess, sys
print(subprocess.run([sys.executable, '-S', '-c', 'print(6*7)'], capture_output=True))
'''
for namespaces in ('off', 'auto')[os.geteuid() != 0 :]:
    with Sandbox(demand=('rlimits', 'seccomp', 'uid|pid'), namespaces=namespaces) as s:
        print(s.start(ENTRY, source).wait().stdout)
"""
    done = subprocess.run([path, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    if "SyntaxError" in done.stderr or "requires" in done.stderr:
        pytest.skip("the system's python3 is too old")
    assert done.stdout.count("42") == (1 if os.geteuid() else 2), (done.stdout, done.stderr)


HOST = """
import os, sys, time
from onebase.verifiers.sandbox import Sandbox, Limits
from onebase.verifiers.sandbox_script import ENTRY
limits = Limits(cpu_seconds=60, wall_seconds=100)
s = Sandbox(limits, namespaces=sys.argv[1], demand=('rlimits', 'seccomp'))
if sys.argv[2] == 'sibling' and os.fork() == 0: time.sleep(100)
run = s.start(ENTRY, b'''
import os, time
open('left', 'w')
try:
    for _ in range(3):
        if os.fork() == 0: os.setsid()
except PermissionError: pass  # a run is one process, where it has neither a uid nor a pid namespace
print('running', flush=True)
time.sleep(100)
''')
print(s._zygote.process.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("namespaces", ["off", "auto"])
@pytest.mark.parametrize("sibling", ["none", "sibling"])
def test_a_killed_caller_takes_everything_along(namespaces: str, sibling: str) -> None:
    """Also where a process that the caller had forked lives on with copies of its descriptors."""
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, namespaces, sibling], stdout=subprocess.PIPE, start_new_session=True
    )
    assert host.stdout is not None
    janitor = int(host.stdout.readline())
    time.sleep(0.5)
    before = everything(janitor)
    assert len(before) >= 3, "janitor, zygote, and the run's processes"
    os.kill(host.pid, signal.SIGKILL)
    host.wait()
    deadline = time.monotonic() + 2.0
    while any(map(alive, before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [pid for pid in before if alive(pid)]
    os.killpg(host.pid, signal.SIGKILL) if sibling == "sibling" else None
    assert not left
    assert not list(Path(tempfile.gettempdir()).glob(f"onebase-box-{janitor}-*"))


def test_a_killed_zygote_takes_its_run_along() -> None:
    """Without a pid namespace nobody but the janitor is left to end what the zygote had started."""
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, "off", "none"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert host.stdout is not None
    janitor = int(host.stdout.readline())
    time.sleep(0.5)
    before = everything(janitor)
    os.kill(before[1], signal.SIGKILL)
    deadline = time.monotonic() + 2.0
    while any(map(alive, before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [pid for pid in before if alive(pid)]
    host.kill()
    host.wait()
    assert not left


def test_a_killed_janitor_leaves_nothing_once_its_caller_notices() -> None:
    with Sandbox(demand=()) as sandbox:
        assert sandbox._zygote is not None
        janitor = sandbox._zygote.process
        pids = everything(janitor.pid)
        janitor.kill()
        janitor.wait()
        deadline = time.monotonic() + 2.0
        while any(map(alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(alive, pids))
    left = list(Path(tempfile.gettempdir()).glob(f"onebase-box-{janitor.pid}-*"))
    left += list(Path("/sys/fs/cgroup").glob(f"**/onebase-sandbox-{janitor.pid}-*"))
    assert not left


def everything(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in (task / "children").read_text().split():
            found += everything(int(child))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
