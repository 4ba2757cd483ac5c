"""The test's process: runs the data set's test code against stand-ins for the solution, in the sandbox.

Nothing of the solution's runs here; only plain values come in.  Results go to the verifier on this process's
own channel, each with the nonce of the row, and are counted there.  Frames: 4 bytes of length, one byte of
kind, the body.  Kinds out: Q, a question or answer for the solution; R, a result as JSON.  Kinds in: A, an
answer or call of the solution's; X, the solution's process is gone.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
import types
from typing import Any

from onebase.verifiers import code_asserts
from onebase.verifiers.code_bridge import Bridge, SolutionGone, SolutionModule
from onebase.verifiers.code_compare import show
from onebase.verifiers.code_remote import Remote
from onebase.verifiers.code_shapes import MARK

ENTRY = "onebase.verifiers.code_tester:main"


class Stop(BaseException):
    """A test failed and no more are wanted."""


class Reporter:
    def __init__(self, bridge: Bridge, nonce: str, stop: bool) -> None:
        self.bridge, self.nonce, self.stop = bridge, nonce, stop

    def say(self, event: str, *values: Any) -> None:
        self.bridge.frame(b"R", json.dumps([self.nonce, event, *values]).encode())

    def test(self, test: int | str, error: BaseException | str | None) -> None:
        text = error if error is None or isinstance(error, str) else describe(error)
        bridge, self.bridge.last, last = self.bridge, None, self.bridge.last
        text = text or bridge.failed_callback
        notes, bridge.notes, bridge.failed_callback = bridge.notes, [], None
        shown = None if text is None or last is None or isinstance(last, Remote) else show(last, 80)
        if text is not None and notes:
            text = f"{text}; {'; '.join(notes)}"
        self.say("test", test, text, shown)
        if text is not None and self.stop:
            raise Stop


def describe(error: BaseException) -> str:
    try:
        message = " ".join(str(error).split())[:300]
    except Exception:
        message = ""
    if isinstance(error, AssertionError):
        return message or "assertion failed"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def main(payload: bytes, channel: int | None) -> None:
    assert channel is not None
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):
        os.dup2(null, fd)

    def read(size: int) -> bytes:
        parts = []
        while size:
            part = os.read(channel, size)
            if not part:
                os._exit(0)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(channel, view) :]

    spec = json.loads(payload)
    bridge = Bridge(read, write, spec)
    reporter = Reporter(bridge, spec["nonce"], spec["stop"] and spec["style"] == "assert")
    builtins.__dict__[MARK] = lambda thing: getattr(thing, "_onebase_expected", thing)
    module = SolutionModule(spec["module"], bridge)
    sys.modules[spec["module"]] = module
    try:
        # One question, the first: see Relay.start_solution.
        found = bridge.names([*spec["names"], *spec["imported"]])
    except (Exception, SolutionGone) as error:
        reporter.say("problem", f"the solution's names: {describe(error)}", True)
        reporter.say("end")
        return
    module.__dict__["_onebase_found"] = {n: v for n, v in found.items() if isinstance(v, Remote | type)}
    found = {name: value for name, value in found.items() if name in spec["names"]}
    reporter.say("ready", any(not isinstance(value, Remote | type) for value in found.values()))
    if spec["style"] == "pytest":
        from onebase.verifiers import code_pytest

        builtins.__dict__.update(found)  # names that nothing else defines
        code_pytest.run(spec, reporter)
    else:
        run_asserts(spec, reporter, found)
    reporter.say("end")


def run_asserts(spec: dict[str, Any], reporter: Reporter, names: dict[str, Any]) -> None:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    space = module.__dict__
    space.update({name: undefined(name) for name in spec["shadowed"]})
    space.update(names)
    space[code_asserts.REPORT] = reporter.test
    try:
        if spec["prelude"]:
            exec(compile(spec["prelude"], "prelude.py", "exec", dont_inherit=True), space)
            reporter.bridge.record_classes = {name: space[name] for name in spec["records"]}
        tree = ast.parse(spec["source"])
        code_asserts.instrument(tree)
        exec(compile(tree, "tests.py", "exec", dont_inherit=True), space)
    except Stop:
        pass
    except BaseException as error:
        reporter.say("problem", describe(error), blames_solution(error, reporter.bridge))


def undefined(name: str) -> Any:
    """In place of the built-in function of that name, which the solution should have replaced."""

    def call(*args: Any, **kwargs: Any) -> Any:
        raise NameError(f"name {name!r} is not defined")

    return call


def blames_solution(error: BaseException, bridge: Bridge) -> bool:
    """A name that is nowhere defined is one that the solution should define."""
    if isinstance(error, ImportError):
        return error.name == bridge.spec["module"]
    return isinstance(error, NameError | SolutionGone) or bridge.answers > 1
