"""The styles whose tests are data: standard input and output, and calls with their expected values.

Nothing of the data set's runs here.  For each test the solution gets what it is given, and what comes back is
compared on this side.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from onebase.verifiers.code_asserts import Call, TestCodeError
from onebase.verifiers.code_compare import output_differs, same_plain, same_value, show
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
from onebase.verifiers.code_task import Task
from onebase.verifiers.code_unwire import Builder, Decoder
from onebase.verifiers.code_wire import WireError, encode
from onebase.verifiers.sandbox import Outcome, Sandbox

BUILD_DISK_MB = 64
SCRIPT = "onebase.verifiers.sandbox_script:main"


def run_stdio(task: Task, code: str, settings: Settings) -> Report:
    """Every test is a process of its own."""
    report = Report(task.total)
    source = code.encode("utf-8", "surrogatepass")
    commands = tuple(words[0] for words in (settings.command, settings.build) if words)
    preload, use = ((), ("sh", "cat", *commands)) if settings.command else ((SOLUTION,), ())
    disk_mb = BUILD_DISK_MB if settings.build else 0
    with sandbox(settings, preload, settings.packages, use, disk_mb) as box:
        file = source
        if settings.build:
            built = _build(box, source, settings, report)
            if report.broken is not None:
                return report
            file = built
        for number, (given, expected) in enumerate(task.stdio, 1):
            if (problem := settings.spent(report)) is not None:
                report.failures[f"test {number}"] = problem
                break
            stdin = given.encode("utf-8", "surrogatepass")
            if settings.command:
                run = box.start(
                    argv=settings.command,
                    stdin=stdin,
                    files={settings.built or settings.file: file},
                    limits=settings.limits,
                )
            else:
                run = box.start(SCRIPT, source, stdin=stdin, limits=settings.limits)
            patience, how = Patience(box, run, settings.idle_seconds), None
            while run.outcome is None and how is None:
                how = patience.wait(silent())
            if run.outcome is None:
                run.kill()
            outcome = run.wait()
            report.account(outcome)
            how = how or _judge_output(outcome, expected, settings)
            if how is None:
                report.passed += 1
                continue
            report.failures[f"test {number}"] = how
            if not settings.partial:
                break
    return report


def _build(box: Sandbox, source: bytes, settings: Settings, report: Report) -> bytes:
    """The compiler's product, brought out of the sandbox through standard output."""
    line = f"{shlex.join(settings.build)} >&2 && cat {shlex.quote(settings.built)}"
    limits = replace(settings.limits, cpu_seconds=settings.row_cpu_seconds, output_bytes=BUILD_DISK_MB << 20)
    limits = replace(limits, disk_mb=max(BUILD_DISK_MB, limits.disk_mb))
    outcome = box.start(argv=("sh", "-c", line), files={settings.file: source}, limits=limits).wait()
    report.account(outcome)
    if outcome.how != "exit":
        report.broken = f"building: {how_it_ended(outcome, limits)}"
    elif outcome.code != 0:
        said = outcome.stderr.decode("utf-8", "replace").strip().splitlines()[:1] or ["no message"]
        report.broken = f"building exited with {outcome.code}: {said[0]}"
    return outcome.stdout


def _judge_output(outcome: Outcome, expected: str, settings: Settings) -> str | None:
    if outcome.how != "exit":
        return how_it_ended(outcome, settings.limits)
    if outcome.code != 0:
        last = outcome.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        return f"it exited with {outcome.code}: {last[0][:200]}"
    return output_differs(outcome.stdout, expected, settings.float_tolerance)


class Opaque:
    """Something of the solution's own that is not plain data.  Equal to nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _opaque(meta: Any, _: list[Any]) -> Opaque:
    name = meta[-1] if isinstance(meta, list) and isinstance(meta[-1], str) else meta
    return Opaque(f"an object of class {str(name)[:60]}")


_OPAQUE: dict[str, Builder] = {tag: _opaque for tag in ("h", "x", "K", "y", "g")}
_RECORDS = {"R": (lambda meta: Opaque(f"a {str(meta)[:60]}"), lambda thing, meta, children: None)}


def run_calls(task: Task, code: str, settings: Settings) -> Report:
    """Arguments go out one test at a time; results come back as plain values and are compared here."""
    report = Report(task.total)
    source = solution_source(task, code, settings, interactive=False)
    with sandbox(settings, (SOLUTION,), settings.packages) as box:
        solution: Solution | None = None
        for number, call in enumerate(task.calls, 1):
            try:
                if solution is None:
                    if (problem := settings.spent(report)) is not None:
                        report.failures[f"test {number}"] = problem
                        break
                    solution = Solution(box, source, settings, settings.whole(task.total))
                    if (problem := load(solution)) is not None:
                        report.broken = problem
                        break
                how = _one_call(solution, call, task.loose, settings.float_tolerance)
            except Gone as gone:
                assert solution is not None
                report.account(solution.end())
                solution, how = None, f"{call.text}: {gone}"
            if how is None:
                report.passed += 1
                continue
            report.failures[f"test {number}"] = how
            if not settings.partial:
                break
        if solution is not None:
            report.account(solution.end())
    return report


def load(solution: Solution) -> str | None:
    """None, or why the code does not load."""
    try:
        answer = claim(solution.ask(encode("load")))
    except Gone as gone:
        return f"loading the code: {gone}"
    except WireError as error:
        return f"loading the code: {error}"
    return None if answer[0] == "ok" else f"loading the code {raised(answer)}"


def _one_call(solution: Solution, call: Call, loose: bool, tolerance: float | None) -> str | None:
    """None where the result is right, else how it is not.  In call tests each call of a method has an object
    of its own; asserts share one, as they would in one program."""
    try:
        body = encode("ask", call.entry, loose, call.args, call.kwargs)
    except WireError as error:
        raise TestCodeError(f"the arguments of {call.text}: {error}") from error
    try:
        answer = claim(solution.ask(body))
        if answer[0] != "ok":
            return f"{call.text} {raised(answer)}"
        got = answer[1]
    except WireError as error:
        return f"{call.text}: an answer out of form ({error})"
    if call.same:
        fine = got is call.expected
    elif loose:
        fine = same_value(got, call.expected, tolerance)
    else:
        fine = same_plain(got, call.expected)
    return None if fine else f"{call.text} gave {show(got)}, expected {show(call.expected)}"


def claim(body: bytes) -> list[Any]:
    """The values of an answer: `["ok", result, …]` or `["raise", class, message, …]`."""
    answer = Decoder(_OPAQUE, _RECORDS).frame(body)
    if not (answer[:1] == ["ok"] and len(answer) == 4 or answer[:1] == ["raise"] and len(answer) == 6):
        raise WireError("neither a result nor an exception")
    return answer


def raised(answer: list[Any]) -> str:
    name = answer[1].name.rpartition(" ")[2] if isinstance(answer[1], Opaque) else "an exception"
    return f"raised {name}: {str(answer[2])[:200]}".replace("\n", " ")
