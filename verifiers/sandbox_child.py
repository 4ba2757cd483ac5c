"""What happens in the forked process of a run: put on the layers that must be new, unpack the job, become the
code.

Descriptors here: 0, 1, 2 are the run's own, 3 is the channel; 4 is the job, 5 takes complaints (whatever
keeps the code from being started, so that it is an error and not a verdict).  The zygote keeps these
numbers free or, for 0 and 5, already right.  4 and 5 are closed before the code starts.
"""

from __future__ import annotations

import marshal
import os
import resource
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from onebase.verifiers.sandbox_layers import Plan, drop_capabilities, rlimits, stay_alone
from onebase.verifiers.sandbox_view import which

# As a fresh interpreter has them; the zygote ignores these.
SIGNALS = (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, int(signal.SIG_DFL)),
    (signal.SIGHUP, int(signal.SIG_DFL)),
)
set_handler = sys.modules["_signal"].signal  # without the conversions to enums and back of signal.signal
CHANNEL, JOB, COMPLAIN, FIRST_FREE = 3, 4, 5, 6
FIRST_KEPT = 100  # folders held open for imports, see sandbox_imports.Descriptors
LAST = 1 << 12  # no descriptor of the zygote's is above; old kernels close them one by one
Step = tuple[Callable[..., Any], tuple[Any, ...]]
after_fork: list[dict[str, Any]] = []  # what warm modules want done after a fork: see import_warm
leave = os._exit


def steps(
    plan: Plan, uid: int | None, limits: dict[str, Any], fds: dict[str, int], command: bool
) -> list[Step]:
    """Everything between the fork and the job, as calls of built-in functions prepared beforehand.  The order
    matters: descriptors and the folder while they can be reached, then limits, then the uid."""
    made: list[Step] = [(os.setsid, ())]
    made += [(set_handler, pair) for pair in SIGNALS]
    made += [
        (os.dup2, (fds["stdout"], 1)),
        (os.dup2, (fds["stderr"], 2)),
        (os.dup2, (fds["job"], JOB, False)),
    ]
    made += [(os.dup2, (fds["stdin"], 0))] if "stdin" in fds else []
    made += [(os.dup2, (fds["channel"], CHANNEL))] if "channel" in fds else [(os.close, (CHANNEL,))]
    if plan.descriptors is None:
        made.append((os.closerange, (FIRST_FREE, LAST)))
    else:
        made.append((os.closerange, (FIRST_FREE, FIRST_KEPT)))
        made.append((os.closerange, (FIRST_KEPT + len(plan.descriptors.open), LAST)))
    made.append((os.chdir, (plan.box,)))
    made += [(resource.setrlimit, pair) for pair in rlimits(limits, command, plan)]
    made.append((drop_capabilities, ()) if uid is None else (os.setresuid, (uid, uid, uid)))
    made += [(stay_alone, ())] if plan.alone and plan.has("seccomp") else []
    return made


def main(made: list[Step], function: Any, size: int, names: list[str]) -> NoReturn:
    try:
        for call, arguments in made:
            call(*arguments)
        argv, files, payload = marshal.loads(read(JOB, size))
        for name in files:
            write_file(name, files[name])
        if argv is not None:
            execute(argv)
        os.closerange(JOB, FIRST_FREE)
        for calls in after_fork:
            os.register_at_fork(**calls)
    except BaseException as error:
        complain(f"a run could not be isolated or started: {type(error).__name__}: {error}")
    status = call_entry(function, payload, CHANNEL if "channel" in names else None)
    while True:  # whatever the code has put in its place, there is no way back into the zygote's program
        leave(status)


def call_entry(function: Any, payload: bytes, channel: int | None) -> int:
    """The entry as a script would be run: its exit status."""
    status = 0
    try:
        function(payload, channel)
    except SystemExit as leaving:
        status = exit_status(leaving.code)
    except BaseException as error:
        status = 1
        error.__traceback__ = from_code(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            status = status or 1
    return status


def warm_up() -> None:
    """Go the way of a run without its consequences, before the first fork: the interpreter specialises code
    and fills its caches where it first runs, and that should not be in every child."""
    from onebase.verifiers import sandbox_script

    path, argv, main_module = sys.path[:], sys.argv[:], sys.modules["__main__"]
    job = marshal.dumps((None, {}, SAMPLE))
    for _ in range(20):
        for call, arguments in [(os.getpid, ())]:
            call(*arguments)
        payload = marshal.loads(job)[2]
        call_entry(sandbox_script.main, payload, None)
        try:
            raise SystemExit(0)
        except SystemExit as leaving:
            exit_status(leaving.code)
    sys.path[:], sys.argv[:], sys.modules["__main__"] = path, argv, main_module


SAMPLE = b"""
from typing import List
import math, sys
def add(numbers: List[int], more=0) -> int:
    total = more
    for n in numbers:
        total += n
    return total
class Solution:
    def solve(self, text):
        return sorted(set(text.split())), {word: len(word) for word in text.split()}
assert add([1, 2], more=3) == 6, f"{math.pi:.3f}"
assert Solution().solve("b a")[0] == ["a", "b"]
try:
    [][0]
except IndexError as error:
    str(error)
"""


def read(fd: int, size: int) -> bytes:
    part = os.read(fd, size)
    if len(part) == size:
        return part
    parts = [part]
    while part and (size := size - len(part)):
        part = os.read(fd, size)
        parts.append(part)
    return b"".join(parts)


def write_file(name: str, data: bytes) -> None:
    if os.path.isabs(name) or ".." in name.split("/"):
        raise ValueError(f"file {name!r}: must lie in the run's own folder")
    if "/" in name:
        os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "wb") as stream:
        stream.write(data)


def find(entry: str) -> Any:
    """The function behind "module:name", or a text saying that there is none."""
    module, _, name = entry.partition(":")
    function = getattr(sys.modules.get(module), name, None)
    return function if callable(function) else f"entry={entry!r}: no such function in a preloaded module"


def execute(argv: list[str]) -> NoReturn:
    """Become the command.  One that is not there, or may not be executed, is the caller's mistake (an
    exception here); a file of the run's own that cannot be executed is the code's (status 126)."""
    here = os.getcwd()
    argv = [word.replace("{dir}", here) for word in argv]
    program = argv[0] if "/" in argv[0] else which(argv[0])
    if program is None:
        raise FileNotFoundError(f"there is no command {argv[0]!r} here; a sandbox takes more with use=")
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(program, argv)
    except OSError as error:
        if os.path.isabs(program) and not program.startswith(here + "/"):
            text = f"{program}: {error.strerror}; a sandbox executes what is named in use="
            raise OSError(error.errno, text) from None
        os.write(2, f"cannot run {program}: {error.strerror}\n".encode())
    os._exit(126)


def exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def from_code(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this package's own files, as the interpreter would show it."""
    own = os.path.dirname(__file__) + os.sep
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(own):
        trace = trace.tb_next
    return trace


def complain(text: str) -> NoReturn:
    os.write(COMPLAIN, f"error {text[:4000]}".encode(errors="replace"))
    os._exit(1)
