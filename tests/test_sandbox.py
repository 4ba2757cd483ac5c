"""The sandbox as its callers see it: runs, limits, channels, errors."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onebase.verifiers.sandbox import Limits, Outcome, Sandbox, SandboxError
from onebase.verifiers.sandbox_script import ENTRY

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

# What an ordinary user's machine gives too, so that these tests run there.
DEMAND = ("rlimits", "seccomp", "landlock")
IGNORE_ALL = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
"""


@pytest.fixture(scope="module", params=["off", "auto"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(demand=DEMAND, namespaces=request.param) as made:
        yield made


def run(sandbox: Sandbox, source: str, **options: object) -> Outcome:
    return sandbox.start(ENTRY, source.encode(), **options).wait()  # type: ignore[arg-type]


def test_output_status_and_measures(sandbox: Sandbox) -> None:
    outcome = run(sandbox, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert (outcome.how, outcome.code, outcome.stdout, outcome.stderr) == ("exit", 7, b"out\n", b"err\n")
    assert 0 < outcome.cpu_seconds < 2 and outcome.wall_seconds > 0 and 1 < outcome.memory_mb < 200
    assert outcome.layers == sandbox.layers and set(DEMAND) <= set(outcome.layers)


def test_an_exception_is_reported_as_the_interpreter_does(sandbox: Sandbox) -> None:
    outcome = run(sandbox, "def f():\n    return 1 / 0\nf()")
    assert (outcome.how, outcome.code) == ("exit", 1)
    assert outcome.stderr.startswith(
        b'Traceback (most recent call last):\n  File "main.py", line 3, in <module>'
    )
    assert (
        outcome.stderr.endswith(b"ZeroDivisionError: division by zero\n") and b"sandbox" not in outcome.stderr
    )


@pytest.mark.parametrize("text", [b"", b"5 6\n", b"x" * 3_000_000])
def test_stdin_of_any_size(sandbox: Sandbox, text: bytes) -> None:
    outcome = run(sandbox, "import sys; d = sys.stdin.buffer.read(); print(len(d), d[:3])", stdin=text)
    assert outcome.stdout == f"{len(text)} {text[:3]!r}\n".encode()


def test_input_reads_lines(sandbox: Sandbox) -> None:
    assert run(sandbox, "print(int(input()) + int(input()))", stdin=b"40\n2\n").stdout == b"42\n"
    assert b"EOFError" in run(sandbox, "input()").stderr


def test_files_and_folder(sandbox: Sandbox) -> None:
    source = """
import os, helper
print(helper.x, open('sub/data.txt').read(), sorted(os.listdir('.')), os.getcwd() == os.environ['HOME'])
open('new', 'w').write('y'); os.mkdir('d'); os.rename('new', 'd/new'); print(open('d/new').read())
"""
    files = {"helper.py": b"x = 5", "sub/data.txt": b"text"}
    assert run(sandbox, source, files=files).stdout.split(b"\n")[:2] == [
        b"5 text ['helper.py', 'sub'] True", b"y",
    ]  # fmt: skip
    assert run(sandbox, "import os; print(os.listdir('.'))").stdout == b"[]\n"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x"])
def test_files_outside_of_the_folder_are_refused(sandbox: Sandbox, name: str) -> None:
    with pytest.raises(SandboxError, match="own folder"):
        run(sandbox, "", files={name: b""})


def test_runs_share_nothing(sandbox: Sandbox) -> None:
    run(
        sandbox,
        "import builtins, os, sys, json; builtins.x = os.x = sys.x = 1; len = None; os.environ['A'] = 'b'",
    )
    source = (
        "import builtins, os, sys; print([hasattr(m, 'x') for m in (builtins, os, sys)], 'A' in os.environ)"
    )
    assert run(sandbox, source).stdout == b"[False, False, False] False\n"


def test_a_verdict_does_not_hang_on_chance(sandbox: Sandbox) -> None:
    """Same order of sets, same random numbers, in every process of every sandbox."""
    source = "import random; print(random.random(), {'a', 'b', 'c'}, hash('x'))"
    outputs = {run(sandbox, source).stdout for _ in range(3)}
    with Sandbox(demand=DEMAND, namespaces="off") as other:
        outputs.add(run(other, source).stdout)
    assert len(outputs) == 1


def test_the_way_back_is_closed(sandbox: Sandbox) -> None:
    """Code that takes the exit away does not get into the program that forked it."""
    source = """
import os, sys
os._exit = lambda status: None
module = sys.modules['onebase.verifiers.sandbox_child']
module.leave = lambda status: print('again')
"""
    outcome = run(sandbox, source, limits=Limits(cpu_seconds=0.2, output_bytes=1000))
    assert outcome.how in ("cpu", "output") and run(sandbox, "print(1)").stdout == b"1\n"


def test_threads_and_atexit_end_like_a_script(sandbox: Sandbox) -> None:
    source = """
import atexit, threading, time
atexit.register(print, 'last')
threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()
print('main')
"""
    assert run(sandbox, source).stdout == b"main\nthread\nlast\n"


def test_nothing_of_the_callers_environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with Sandbox(demand=DEMAND, namespaces="off") as fresh:
        out = run(fresh, "import os, sys; print(dict(os.environ), sys.argv, sys.path)").stdout
    assert b"hunter2" not in out and b"site-packages" not in out


def test_modules_of_the_standard_library(sandbox: Sandbox) -> None:
    source = """
import sqlite3, ssl, decimal, csv, asyncio, xml.etree.ElementTree, unittest, zoneinfo, ctypes, multiprocessing
print(sqlite3.connect(':memory:').execute('select 6*7').fetchone())
async def f(): return await asyncio.sleep(0.01, 'awake')
print(asyncio.run(f()), decimal.Decimal(1) / 3)
"""
    assert run(sandbox, source).stdout.split(b"\n")[:2] == [b"(42,)", b"awake 0.3333333333333333333333333333"]


def test_packages_are_asked_for() -> None:
    with Sandbox(demand=DEMAND, packages=("yaml",), preload=("yaml",)) as sandbox:
        assert run(sandbox, "import yaml; print(yaml.safe_load('a: [1]'))").stdout == b"{'a': [1]}\n"
        assert b"No module named 'numpy'" in run(sandbox, "import numpy").stderr
    with Sandbox(demand=DEMAND, packages=("pytest",)) as sandbox:
        source = """
import pytest, sys
sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'test_it.py']))
"""
        test = b"import pytest\n@pytest.mark.parametrize('x', [1, 2])\ndef test_x(x): assert x == 1\n"
        outcome = run(sandbox, source, files={"test_it.py": test})
        assert outcome.code == 1 and b"1 failed, 1 passed" in outcome.stdout, outcome
    with Sandbox(demand=DEMAND, packages=("numpy",), preload=("numpy",)) as sandbox:
        assert run(sandbox, "import numpy.linalg; print(numpy.ones(3) @ numpy.ones(3))").stdout == b"3.0\n"
    with pytest.raises(SandboxError, match="no_such_package"):
        Sandbox(demand=DEMAND, packages=("no_such_package",))


def test_packages_beside_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter without a virtual environment has them in a folder that is otherwise left out."""
    folder = Path(os.__file__).parent / "site-packages"
    if not (folder / "pip").is_dir():
        pytest.skip(f"no pip in {folder}")
    monkeypatch.syspath_prepend(str(folder))
    for namespaces in ("off", "auto"):
        with Sandbox(demand=DEMAND, packages=("pip",), namespaces=namespaces) as sandbox:
            outcome = run(sandbox, "import pip; print(pip.__version__); import setuptools")
            assert outcome.stdout and b"No module named 'setuptools'" in outcome.stderr, outcome


def test_commands() -> None:
    with Sandbox(demand=DEMAND, use=("sh", "cat")) as sandbox:
        outcome = sandbox.start(
            argv=["sh", "-c", "pwd; cat; cat note; exit 4"], stdin=b"in ", files={"note": b"n"}
        ).wait()
        assert outcome.code == 4 and outcome.stdout.endswith(b"in n")
        inside = sandbox.start(argv=["sh", "-c", "cat {dir}/note"], files={"note": b"n"}).wait()
        assert inside.stdout == b"n"
        with pytest.raises(SandboxError, match="use="):
            sandbox.start(argv=["ls"]).wait()
        with pytest.raises(SandboxError, match="use="):
            sandbox.start(argv=["/usr/bin/env", "ls"]).wait()
        assert sandbox.start(argv=["./missing"]).wait().code == 126
    with pytest.raises(SandboxError, match="no-such-command"):
        Sandbox(demand=DEMAND, use=("no-such-command",))


LANGUAGES = {
    "perl": (("perl",), ["perl", "m"], b"print 6*7"),
    "node": (("node",), ["node", "m"], b"console.log(6*7)"),
    "gcc": (("/usr", "/bin", "/lib"), ["sh", "-c", "gcc -x c m -o a && ./a"],
            b'#include <stdio.h>\nint main() { printf("%d", 6 * 7); }'),
}  # fmt: skip


@pytest.mark.parametrize("namespaces", ["off", "auto"])
@pytest.mark.parametrize("name", LANGUAGES)
def test_other_languages(name: str, namespaces: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    use, argv, source = LANGUAGES[name]
    limits = Limits(cpu_seconds=20, memory_mb=1024, processes=100, open_files=256)
    if namespaces == "off" and os.geteuid() != 0:
        pytest.skip("a command of several processes needs a uid or a pid namespace of its own")
    with Sandbox(limits, demand=DEMAND, use=use, namespaces=namespaces) as sandbox:
        outcome = sandbox.start(argv=argv, files={"m": source}).wait()
    assert outcome.stdout.strip() == b"42", outcome


def test_channel_both_ways(sandbox: Sandbox) -> None:
    ours, theirs = socket.socketpair()
    source = "import socket; s = socket.socket(fileno=3)\nwhile d := s.recv(99): s.sendall(d.upper())"
    with ours, sandbox.start(ENTRY, source.encode(), channel=theirs) as going:
        for word in (b"one", b"two"):
            ours.sendall(word)
            assert going.wait_for(ours, 10) is None and ours.recv(99) == word.upper()
        assert going.wait_for(ours, 0.01) is None  # nothing to read, and still running
        ours.shutdown(socket.SHUT_WR)
        assert going.wait().code == 0
    assert theirs.fileno() == -1


def test_channel_between_two_runs() -> None:
    one, other = socket.socketpair()
    with Sandbox(demand=DEMAND) as tester, Sandbox(demand=DEMAND) as solver:
        a = tester.start(ENTRY, b"import os; os.write(3, b'21'); print(os.read(3, 9))", channel=one)
        b = solver.start(ENTRY, b"import os; os.write(3, b'%d' % (2 * int(os.read(3, 9))))", channel=other)
        assert b.wait().code == 0 and a.wait().stdout == b"b'42'\n"


def test_a_channel_that_talks_while_output_floods(sandbox: Sandbox) -> None:
    """A caller busy with the channel must not stop a run that prints less than its limit."""
    ours, theirs = socket.socketpair()
    source = "import os\nfor _ in range(900): print('x' * 1000)\nos.write(1, b''); os.write(3, b'done')"
    with ours, sandbox.start(ENTRY, source.encode(), channel=theirs) as going:
        while going.wait_for(ours, 20) is None and ours.recv(9):
            pass
        assert len(going.wait().stdout) == 900 * 1001


@pytest.mark.parametrize(
    ("limits", "source", "how"),
    [
        (Limits(cpu_seconds=0.3), "while True: pass", "cpu"),
        (Limits(cpu_seconds=0.3), IGNORE_ALL + "while True: pass", "cpu"),
        (Limits(wall_seconds=0.3), "import time; time.sleep(60)", "wall"),
        (Limits(output_bytes=50_000), "while True: print('x' * 1000)", "output"),
        (Limits(output_bytes=50_000), "import sys\nwhile True: sys.stderr.write('x' * 1000)", "output"),
        (Limits(output_bytes=10), "print('x' * 11)", "output"),
        (Limits(), "import os; os.kill(os.getpid(), 9)", "signal"),
        (Limits(), "import os; os.abort()", "signal"),
        (Limits(), "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "signal"),
        (Limits(), "import signal, time; signal.alarm(1); time.sleep(9)", "signal"),
        (Limits(), "import signal\ntry: signal.raise_signal(2)\nexcept KeyboardInterrupt: pass", "exit"),
    ],
)  # fmt: skip
def test_limits_end_a_run(sandbox: Sandbox, limits: Limits, source: str, how: str) -> None:
    started = time.monotonic()
    outcome = run(sandbox, source, limits=limits)
    assert outcome.how == how and time.monotonic() - started < 10, outcome
    assert max(len(outcome.stdout), len(outcome.stderr)) <= limits.output_bytes
    if how == "cpu":
        assert 0.3 <= outcome.cpu_seconds < 1.0
    assert run(sandbox, "print('next')").stdout == b"next\n"


def test_output_at_the_limit_is_kept(sandbox: Sandbox) -> None:
    outcome = run(sandbox, "print('x' * 9)", limits=Limits(output_bytes=10))
    assert outcome.how == "exit" and outcome.stdout == b"x" * 9 + b"\n"


def test_memory_limit_is_an_exception_first(sandbox: Sandbox) -> None:
    source = (
        "try: bytearray(400 << 20)\nexcept MemoryError: print('refused')\nprint(len(bytearray(60 << 20)))"
    )
    outcome = run(sandbox, source, limits=Limits(memory_mb=128))
    assert outcome.stdout == f"refused\n{60 << 20}\n".encode()


def test_kill(sandbox: Sandbox) -> None:
    going = sandbox.start(ENTRY, b"import time; print(1, flush=True); time.sleep(60)")
    going.kill()
    assert going.wait().how == "killed"
    with sandbox.start(ENTRY, b"import time; time.sleep(60)") as left:
        pass
    assert left.outcome is not None and left.outcome.how == "killed"
    left.kill()  # of a run that is over: nothing happens
    assert run(sandbox, "print(2)").stdout == b"2\n"


def test_wrong_calls(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="one of them"):
        sandbox.start()
    with pytest.raises(SandboxError, match="no such function"):
        sandbox.start("os:no_such").wait()
    with pytest.raises(SandboxError, match="no such function"):
        sandbox.start("no_such_module:main").wait()
    with pytest.raises(ValueError, match="disk_mb"):
        run(sandbox, "", limits=Limits(disk_mb=10_000))
    with sandbox.start(ENTRY, b"input()"), pytest.raises(SandboxError, match="wait for it"):
        sandbox.start(ENTRY, b"")
    for wrong in ({"memory_mb": 0}, {"memory_mb": 1.5}, {"cpu_seconds": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Limits(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="namespaces"):
        Sandbox(namespaces="on")


def test_less_than_demanded_never_runs() -> None:
    with pytest.raises(SandboxError, match=r"(?s)mount.*switched off.*to go on with less"):
        Sandbox(demand=("rlimits", "mount"), namespaces="off")
    with pytest.raises(SandboxError, match="no such layer"):
        Sandbox(demand=("mantraps",))
    with Sandbox(demand=("rlimits", "mantraps|seccomp"), namespaces="off") as sandbox:
        assert "seccomp" in sandbox.layers


def test_closed_and_broken_sandboxes_are_errors() -> None:
    sandbox = Sandbox(demand=DEMAND)
    zygote = sandbox._zygote
    assert zygote is not None
    zygote.process.kill()  # the janitor; the warm process ends with it
    with pytest.raises(SandboxError):
        for _ in range(100):
            run(sandbox, "import time; time.sleep(0.01)")
    assert run(sandbox, "print(1)").stdout == b"1\n"  # a new one was started
    sandbox.close()
    sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        run(sandbox, "")


def test_closing_from_another_thread_ends_a_run() -> None:
    sandbox = Sandbox(demand=DEMAND)
    going = sandbox.start(ENTRY, b"import time; time.sleep(60)")
    timer = threading.Timer(0.2, sandbox.close)
    timer.start()
    with pytest.raises(SandboxError), going:
        going.wait()
    with pytest.raises(SandboxError):
        going.wait()
    timer.join()


def test_a_process_that_the_caller_forked_starts_its_own() -> None:
    with Sandbox(demand=DEMAND) as sandbox:
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if run(sandbox, "print(1)").stdout == b"1\n" else 1)
            finally:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        assert run(sandbox, "print(2)").stdout == b"2\n"


def test_a_warm_process_that_died_between_runs_is_replaced() -> None:
    with Sandbox(demand=DEMAND) as sandbox:
        for _ in range(3):
            assert sandbox._zygote is not None
            sandbox._zygote.process.kill()
            sandbox._zygote.process.wait()
            time.sleep(0.3)
            ours, theirs = socket.socketpair()
            outcome = sandbox.start(ENTRY, b"import os; os.write(3, b'x'); print(1)", channel=theirs).wait()
            assert outcome.stdout == b"1\n" and ours.recv(9) == b"x"
            ours.close()


def test_threads_take_turns(sandbox: Sandbox) -> None:
    outputs: list[bytes] = []

    def work(n: int) -> None:
        for k in range(5):
            outputs.append(run(sandbox, f"print({n}, {k})").stdout)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == sorted(f"{n} {k}\n".encode() for n in range(4) for k in range(5))


def test_import_is_light_and_needs_no_linux() -> None:
    """The module can be imported where the sandbox cannot run, and costs little."""
    code = """
import sys, json, time
del sys.modules['os']; import os
for name in ('memfd_create', 'MFD_CLOEXEC', 'pidfd_open', 'sched_getaffinity', 'pipe2', 'setresuid'):
    vars(os).pop(name, None)
sys.platform = 'darwin'
from onebase.verifiers.sandbox import Sandbox, SandboxError
try: Sandbox(); print('ran')
except SandboxError as error: print(json.dumps([str(error), 'torch' in sys.modules]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    message, torch = json.loads(out.stdout or out.stderr)
    assert "Linux" in message and not torch
