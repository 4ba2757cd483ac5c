"""Runs a Task: the verifier's end of the talk with the solution's process and the test's process.

Warm sandboxes are kept per process and kind and lent to one verdict at a time, so any number of threads may
judge side by side.  What a solution's process says is a claim: it must carry the nonce of the question that
it answers, it is bounded, and it is rebuilt as plain values before anybody looks at it.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from onebase.verifiers.code_compare import output_differs, same_plain, same_value, show
from onebase.verifiers.code_task import Task
from onebase.verifiers.code_unwire import Builder, Decoder
from onebase.verifiers.code_wire import FRAME_BYTES, Node, WireError, encode
from onebase.verifiers.sandbox import Limits, Outcome, Run, Sandbox, SandboxError

HEAD = struct.Struct("<I8s")
CLOSING_SECONDS = 1.0
SOLUTION = "onebase.verifiers.code_solution"
SCRIPT = "onebase.verifiers.sandbox_script:main"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run; see `code_tests.verify`."""

    limits: Limits = field(default_factory=Limits)  # cpu_seconds: of one test
    row_cpu_seconds: float = 30.0
    demand: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    partial: bool = False
    float_tolerance: float | None = None
    objects: str = "refuse"
    module: str = "solution"
    command: tuple[str, ...] = ()
    build: tuple[str, ...] = ()
    file: str = "main.py"

    def whole(self, tests: int) -> Limits:
        """Limits of a process that answers for all tests of a row."""
        cpu = min(self.limits.cpu_seconds * (tests + 1), max(self.row_cpu_seconds, self.limits.cpu_seconds))
        return replace(self.limits, cpu_seconds=cpu, wall_seconds=self.limits.wall_seconds + 4 * cpu)


@dataclass(slots=True)
class Report:
    """What came of the tests.  `failures` maps the number of a test (from 1) to how it failed; tests that
    were not run, because an earlier one failed, are in neither."""

    total: int
    passed: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    broken: str | None = None  # why no test could be run: the code does not load
    cpu_seconds: float = 0.0
    layers: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def fail(self, number: int, how: str) -> None:
        self.failures[number] = how

    def account(self, outcome: Outcome) -> None:
        self.cpu_seconds += outcome.cpu_seconds
        self.layers = outcome.layers


class Gone(Exception):
    """The solution's process ended, or spoke out of turn.  The text says how."""


# -- warm sandboxes --------------------------------------------------------------------------------------------

_idle: dict[Any, list[Sandbox]] = {}
_lock = threading.Lock()


@contextmanager
def sandbox(settings: Settings, preload: tuple[str, ...], packages: tuple[str, ...]) -> Iterator[Sandbox]:
    key = (settings.demand, preload, packages)
    with _lock:
        found = _idle[key].pop() if _idle.get(key) else None
    if found is None:
        options: dict[str, Any] = {"demand": settings.demand} if settings.demand else {}
        found = Sandbox(settings.limits, preload=preload, packages=packages, **options)
    try:
        yield found
    except BaseException:
        found.close()  # whatever state it is in, nobody else shall have it
        raise
    with _lock:
        _idle.setdefault(key, []).append(found)


def close_all() -> None:
    """End every idle warm process of this process."""
    with _lock:
        found = [box for boxes in _idle.values() for box in boxes]
        _idle.clear()
    for box in found:
        box.close()


atexit.register(close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


# -- the solution's process ------------------------------------------------------------------------------------


class Solution:
    """Asks one process one question at a time."""

    def __init__(self, box: Sandbox, source: dict[str, Any], limits: Limits) -> None:
        self.limits = limits
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        try:
            self.run: Run = box.start(
                f"{SOLUTION}:main", json.dumps(source).encode(), channel=theirs, limits=limits
            )
        except BaseException:
            self.channel.close()
            raise
        self.incoming = bytearray()

    def ask(self, body: bytes) -> bytes:
        """The body of the answer; Gone where there is none."""
        if self._readable():
            raise Gone("it wrote before it was asked")
        nonce = secrets.token_bytes(8)
        self._send(HEAD.pack(len(body), nonce) + body)
        size, given = HEAD.unpack(self._read(HEAD.size))
        if given != nonce:
            raise Gone("an answer with a nonce that was not asked for")
        if size > FRAME_BYTES:
            raise Gone(f"an answer of {size} bytes; the limit is {FRAME_BYTES}")
        return self._read(size)

    def _readable(self) -> bool:
        if self.incoming:
            return True
        try:
            return bool(self.channel.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        except OSError:
            return False

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.channel.send(view) :]
            except BlockingIOError:
                if (outcome := self.run.wait_for(self.channel, 0.02)) is not None:
                    raise Gone(how_it_ended(outcome, self.limits)) from None
            except OSError:
                raise Gone(how_it_ended(self.run.wait(), self.limits)) from None

    def _read(self, size: int) -> bytes:
        while len(self.incoming) < size:
            try:
                data = self.channel.recv(min(1 << 20, size - len(self.incoming)))
            except BlockingIOError:
                if (outcome := self.run.wait_for(self.channel)) is not None and not self._peek():
                    raise Gone(how_it_ended(outcome, self.limits)) from None
                continue
            except OSError:
                data = b""
            if not data:  # it closed the channel: whatever else it does is of no use
                self._give_time_to_end()
                raise Gone(how_it_ended(self.end(), self.limits, closed=True))
            self.incoming += data
        taken = bytes(self.incoming[:size])
        del self.incoming[:size]
        return taken

    def _peek(self) -> bool:
        try:
            return bool(self.channel.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _give_time_to_end(self) -> None:
        """A process that dies closes its channel a moment before its end is known."""
        silent, other = socket.socketpair()
        with silent, other:
            self.run.wait_for(silent, CLOSING_SECONDS)

    def end(self) -> Outcome:
        """Nothing more is asked."""
        try:
            if self.run.outcome is None:
                self.run.kill()
            return self.run.wait()
        finally:
            self.channel.close()


def how_it_ended(outcome: Outcome, limits: Limits, closed: bool = False) -> str:
    how, code = outcome.how, outcome.code
    if how == "cpu" or (how == "signal" and code in (signal.SIGPROF, signal.SIGXCPU)):
        return f"it took too much CPU time ({outcome.cpu_seconds:.1f} s)"
    if how == "wall":
        return f"it waited too long ({outcome.wall_seconds:.0f} s, of which {outcome.cpu_seconds:.1f} s of CPU)"
    if how == "memory":
        return f"it took more than {limits.memory_mb} MB of memory"
    if how in ("output", "disk"):
        return f"it wrote more {how} than it may"
    if how == "killed":
        return "it closed its channel" if closed else "it was ended"
    if how == "signal":
        return f"its process died of {signal.Signals(code).name if code in set(signal.Signals) else code}"
    return f"its process exited with {code}"


def solution_source(task: Task, code: str, settings: Settings, interactive: bool) -> dict[str, Any]:
    return {
        "code": code, "prefix": task.prefix, "prelude": task.prelude, "entry": task.entry,
        "records": list(task.records), "module": settings.module, "interactive": interactive,
        "cpu_seconds": settings.limits.cpu_seconds,
    }  # fmt: skip


# -- stdio -----------------------------------------------------------------------------------------------------


def run_stdio(task: Task, code: str, settings: Settings) -> Report:
    report = Report(task.total)
    packages = settings.packages
    with sandbox(settings, (SOLUTION,), packages) as box:
        for number, (given, expected) in enumerate(task.stdio, 1):
            how = _one_stdio(box, code, given, expected, settings, report)
            if how is None:
                report.passed += 1
                continue
            report.fail(number, how)
            if not settings.partial:
                break
    return report


def _one_stdio(
    box: Sandbox, code: str, given: str, expected: str, settings: Settings, report: Report
) -> str | None:
    stdin, source = given.encode("utf-8", "surrogatepass"), code.encode("utf-8", "surrogatepass")
    if settings.command:
        argv = list(settings.command)
        run = box.start(argv=argv, stdin=stdin, files={settings.file: source}, limits=settings.limits)
    else:
        run = box.start(SCRIPT, source, stdin=stdin, limits=settings.limits)
    outcome = run.wait()
    report.account(outcome)
    if outcome.how != "exit":
        return how_it_ended(outcome, settings.limits)
    if outcome.code != 0:
        last = outcome.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        return f"it exited with {outcome.code}: {last[0][:200]}"
    return output_differs(outcome.stdout, expected, settings.float_tolerance)


# -- calls, compared here ----------------------------------------------------------------------------------------


class Opaque:
    """Something of the solution's own that is not plain data.  Equal to nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _opaque(meta: Any, _: list[Any]) -> Opaque:
    name = meta[-1] if isinstance(meta, list) and isinstance(meta[-1], str) else meta
    return Opaque(f"an object of class {str(name)[:60]}")


class Ref:
    """Something in the solution's process, to be named there again."""

    def __init__(self, tag: str, meta: Any) -> None:
        self.tag, self.meta = tag, meta


def _ref(tag: str) -> Builder:
    return lambda meta, _: Ref(tag, meta)


def ref_node(thing: Any) -> Node:
    if not isinstance(thing, Ref):
        raise WireError(f"a {type(thing).__name__} is not plain data")
    return Node(thing.tag, thing.meta)


_TAGS = ("h", "x", "K", "y", "g")
_OPAQUE: dict[str, Builder] = {tag: _opaque for tag in _TAGS}
_REFS: dict[str, Builder] = {tag: _ref(tag) for tag in _TAGS}
_RECORDS = {"R": (lambda meta: Opaque(f"a {str(meta)[:60]}"), lambda thing, meta, children: None)}


def run_calls(task: Task, code: str, settings: Settings) -> Report:
    """Arguments go out one test at a time; results come back as plain values and are compared here."""
    report = Report(task.total)
    source = solution_source(task, code, settings, interactive=False)
    with sandbox(settings, (SOLUTION,), settings.packages) as box:
        solution: Solution | None = None
        entries: dict[str, Any] = {}
        for number, call in enumerate(task.calls, 1):
            try:
                if solution is None:
                    entries = {}
                    solution = Solution(box, source, settings.whole(task.total))
                    if (problem := _load(solution)) is not None:
                        report.broken = problem
                        break
                how = _one_call(solution, call, task.loose, entries, settings.float_tolerance)
            except Gone as gone:
                assert solution is not None
                report.account(solution.end())
                solution, how = None, f"{call.text}: {gone}"
            if how is None:
                report.passed += 1
                continue
            report.fail(number, how)
            if not settings.partial:
                break
        if solution is not None:
            report.account(solution.end())
    return report


def _load(solution: Solution) -> str | None:
    """None, or why the code does not load."""
    try:
        answer = Decoder(_OPAQUE, _RECORDS).frame(solution.ask(encode("load")))
    except Gone as gone:
        return f"loading the code: {gone}"
    except WireError as error:
        return f"loading the code: {error}"
    return None if answer[0] == "ok" else f"loading the code {raised(answer)}"


def _one_call(
    solution: Solution, call: Any, loose: bool, entries: dict[str, Any], tolerance: float | None
) -> str | None:
    """None where the result is right, else how it is not."""
    try:
        if loose or call.entry not in entries:  # call tests: a fresh instance of `Solution` for each
            body = solution.ask(encode("entry", call.entry))
            found = Decoder(_REFS, _RECORDS).frame(body)
            if found[0] != "ok":
                return f"{call.entry} {raised(Decoder(_OPAQUE, _RECORDS).frame(body))}"
            entries[call.entry] = found[1]
        entry = entries[call.entry]
        body = encode("ask", entry, call.args, call.kwargs, hook=ref_node)
        answer = Decoder(_OPAQUE, _RECORDS).frame(solution.ask(body))
        if answer[0] != "ok":
            return f"{call.text} {raised(answer)}"
        got = answer[1]
    except (WireError, IndexError) as error:
        return f"{call.text}: an answer out of form ({error})"
    if call.same:
        fine = got is call.expected
    elif loose:
        fine = same_value(got, call.expected, tolerance)
    else:
        fine = same_plain(got, call.expected)
    return None if fine else f"{call.text} gave {show(got)}, expected {show(call.expected)}"


def raised(answer: list[Any]) -> str:
    if len(answer) < 3 or answer[0] != "raise":
        return "answered out of form"
    name = answer[1].name.rpartition(" ")[2] if isinstance(answer[1], Opaque) else "an exception"
    return f"raised {name}: {str(answer[2])[:200]}".replace("\n", " ")


__all__ = ["Report", "SandboxError", "Settings", "close_all", "run_calls", "run_stdio", "sandbox"]
