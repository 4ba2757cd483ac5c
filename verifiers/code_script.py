"""The styles whose tests are code: assert and pytest.  The test code runs in a sandbox of its own.

The verifier stands between the two processes and passes their frames on, so at every moment it knows which of
them is at work, and whose fault an end is:
- The solution's process ends, or breaks the protocol: the test under way fails, whatever the test code makes
  of it.
- The test's process ends early, or its code raises outside a test: a failure where the solution has had a say
  (an answer of it, or a value or name that it should define), else an error of the data: the same would have
  happened with any solution.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import socket
import struct
from typing import Any

from onebase.verifiers.code_asserts import TestCodeError
from onebase.verifiers.code_host import (
    SOLUTION,
    Gone,
    Report,
    Settings,
    Solution,
    how_it_ended,
    sandbox,
    solution_source,
)
from onebase.verifiers.code_patience import Patience, silent
from onebase.verifiers.code_run import load
from onebase.verifiers.code_task import Script, Task
from onebase.verifiers.code_wire import FRAME_BYTES
from onebase.verifiers.sandbox import Outcome, Sandbox, SandboxError

HEAD = struct.Struct("<I1s")
TESTER = "onebase.verifiers.code_tester"
PYTEST = "onebase.verifiers.code_pytest"
FILE = "test_solution.py"


def run_script(task: Task, code: str, settings: Settings) -> Report:
    assert task.script is not None
    preload: tuple[str, ...] = (TESTER,)
    packages = settings.packages
    if task.style == "pytest":
        if importlib.util.find_spec("pytest") is None:
            raise TestCodeError("pytest tests need pytest, which is not installed: pip install pytest")
        preload, packages = (TESTER, PYTEST, "pytest"), (*packages, "pytest")
    with (
        sandbox(settings, (SOLUTION,), settings.packages) as inner,
        sandbox(settings, preload, packages) as outer,
    ):
        relay = Relay(task, task.script, code, settings, inner)
        try:
            relay.start(outer)
            return relay.report
        finally:
            relay.close()


class Relay:
    """One row: two processes, and the account of what the tests reported."""

    def __init__(self, task: Task, script: Script, code: str, settings: Settings, inner: Sandbox) -> None:
        self.task, self.script, self.settings, self.inner = task, script, settings, inner
        self.source = solution_source(task, code, settings, interactive=True)
        self.limits = settings.whole(task.total)
        self.report = Report(task.total)
        self.tally = Tally(script.tests, numbered=task.style == "assert")
        self.solution: Solution | None = None
        self.names_question: bytes | None = None
        self.starts = 0
        self.had_say = False
        self.ended = False
        self.gone: str | None = None
        self.nonce = secrets.token_hex(8)
        self.tester: Tester | None = None

    def start(self, outer: Sandbox) -> None:
        if (problem := self.start_solution()) is not None:
            self.report.broken = problem
            return
        spec = {
            "style": self.task.style, "source": self.script.source, "prelude": self.script.prelude,
            "names": self.script.names, "imported": self.script.imported, "mentioned": self.script.mentioned,
            "records": list(self.task.records), "module": self.settings.module, "file": FILE,
            "objects": self.settings.objects, "nonce": self.nonce, "stop": not self.settings.partial,
            "shadowed": list(self.script.shadowed),
        }  # fmt: skip
        files = {FILE: self.script.source.encode()} if self.task.style == "pytest" else {}
        self.tester = Tester(outer, json.dumps(spec).encode(), files, self.settings, self.task.total)
        try:
            while not self.ended and (frame := self.tester.receive()) is not None:
                kind, body = frame
                if kind == b"Q":
                    self.pass_on(body)
                else:
                    self.hear(json.loads(body))
        finally:
            outcome = self.tester.end()
            self.report.account(outcome)
        if not self.ended:
            self.ended_early(outcome)
        self.report.passed = self.tally.passed()
        self.report.total = self.tally.total()
        self.report.failures = self.tally.failures(everything=self.settings.partial)

    def start_solution(self) -> str | None:
        """None, or why the code does not load.  A second process (after the first has died) gets the same
        first question again, so that the test's stand-ins mean the same functions."""
        self.starts += 1
        self.solution = Solution(
            self.inner, {**self.source, "start": self.starts}, self.settings, self.limits
        )
        problem = load(self.solution)
        if problem is None and self.names_question is not None:
            self.solution.ask(self.names_question)
        return problem

    def pass_on(self, body: bytes) -> None:
        """A question of the test's process to the solution's, and the answer back."""
        assert self.tester is not None
        try:
            if self.solution is None:
                if (problem := self.settings.spent(self.report)) is not None:
                    raise Gone(problem)
                if (problem := self.start_solution()) is not None:
                    raise Gone(problem)
            assert self.solution is not None
            answer = self.solution.ask(body)
        except Gone as gone:
            self.gone = self.tally.gone = str(gone)
            self.had_say = True
            self.end_solution()
            self.tester.send(b"X", self.gone.encode())
            return
        if self.names_question is None:
            self.names_question = body
        else:
            self.had_say = True
        self.tester.send(b"A", answer)

    def hear(self, event: list[Any]) -> None:
        nonce, what, *values = event
        if not secrets.compare_digest(nonce, self.nonce):
            raise SandboxError("the test's process reported without its nonce")
        if what == "ready":
            self.had_say |= values[0]
        elif what == "collected":
            self.tally.collect(values[0])
        elif what == "test":
            name, text, last = values
            self.tally.add(name, text, last)
        elif what == "problem":
            text, blame = values
            if not (blame or self.had_say):
                raise TestCodeError(f"the test code itself fails: {text}")
            self.tally.stop(f"the test code stops: {text}")
        elif what == "end":
            self.ended = True

    def ended_early(self, outcome: Outcome) -> None:
        how = how_it_ended(outcome, self.limits)
        if not self.had_say:
            raise TestCodeError(f"the test code does not come to an end: {how}")
        self.tally.stop(f"the test code did not come to an end with what the solution gave: {how}")

    def end_solution(self) -> None:
        if self.solution is not None:
            self.report.account(self.solution.end())
            self.solution = None

    def close(self) -> None:
        self.end_solution()


class Tally:
    """What the tests reported, against the tests that the test code was read to have."""

    def __init__(self, tests: list[str], numbered: bool) -> None:
        self.texts = tests
        self.numbered = numbered
        self.wanted: dict[str, set[str]] = {
            f"test {n}" if numbered else name: set() for n, name in enumerate(tests, 1)
        }
        self.results: dict[str, str | None] = {}
        self.stopped: str | None = None
        self.gone: str | None = None  # the solution's process died in the test under way

    def collect(self, items: list[str]) -> None:
        """pytest's items: one for each set of parameters."""
        for item in items:
            self.wanted.setdefault(item.partition("[")[0], set()).add(item)

    def add(self, name: int | str, text: str | None, last: str | None) -> None:
        item = f"test {name + 1}" if isinstance(name, int) else name
        if self.gone is not None:
            text, last, self.gone = self.gone, None, None
        elif text is not None and isinstance(name, int):
            asked = self.texts[name].removeprefix("assert ")
            text = f"{asked}: {text}" + (f" (the solution's last result: {last})" if last is not None else "")
        if self.results.get(item) is None:  # a test that runs in a loop reports often: any failure counts
            self.results[item] = text

    def stop(self, text: str) -> None:
        self.stopped = self.stopped or self.gone or text

    def _state(self, unit: str) -> str | None:
        items = {unit} if self.numbered else self.wanted[unit]
        if not items:
            return self.stopped or "it was not run"
        for item in sorted(items):
            if item not in self.results:
                return self.stopped or "it did not report"
            if self.results[item] is not None:
                return self.results[item]
        return None

    def total(self) -> int:
        return len(self.wanted)

    def passed(self) -> int:
        return sum(self._state(unit) is None for unit in self.wanted)

    def failures(self, everything: bool) -> dict[str, str]:
        found = {unit: state for unit in self.wanted if (state := self._state(unit)) is not None}
        if everything:
            return found
        reported = [u for u in found if self.numbered and self.results.get(u) is not None] or [
            u for u in found if any(self.results.get(i) is not None for i in self.wanted[u])
        ]
        return {u: found[u] for u in (reported or list(found))[:1]}


class Tester:
    """The test's process: it speaks when it likes, and is answered."""

    def __init__(
        self, box: Sandbox, payload: bytes, files: dict[str, bytes], settings: Settings, tests: int
    ) -> None:
        limits = settings.whole(tests)
        self.box, self.idle_seconds = box, settings.idle_seconds
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        try:
            self.run = box.start(f"{TESTER}:main", payload, files=files, channel=theirs, limits=limits)
        except BaseException:
            self.channel.close()
            raise
        self.incoming = bytearray()

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next frame, or None at the end of the process."""
        head = self._read(HEAD.size)
        if head is None:
            return None
        size, kind = HEAD.unpack(head)
        if size > FRAME_BYTES:
            return None
        body = self._read(size)
        return None if body is None else (kind, body)

    def _read(self, size: int) -> bytes | None:
        patience = Patience(self.box, self.run, self.idle_seconds)
        while len(self.incoming) < size:
            try:
                data = self.channel.recv(min(1 << 20, size - len(self.incoming)))
            except BlockingIOError:
                if patience.wait(self.channel) is not None:
                    return None
                if self.run.outcome is not None:  # the channel says the rest, and then its end
                    self.channel.setblocking(True)
                continue
            except OSError:
                data = b""
            if not data:
                return None
            self.incoming += data
        taken = bytes(self.incoming[:size])
        del self.incoming[:size]
        return taken

    def send(self, kind: bytes, body: bytes) -> None:
        """Where that fails, `receive` will say so."""
        patience = Patience(self.box, self.run, self.idle_seconds)
        patience.send(self.channel, HEAD.pack(len(body), kind) + body)

    def end(self) -> Outcome:
        try:
            if self.run.outcome is None:
                self.run.wait_for(silent(), 0.05)
                self.run.kill()
            return self.run.wait()
        finally:
            self.channel.close()
