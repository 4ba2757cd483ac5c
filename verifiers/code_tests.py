"""Unit tests as a reward: the code of a completion runs in a sandbox and is judged outside of it.

`verify(completion, answer, **row)`.  The row holds the tests (`code_task` lists the fields and forms);
`answer` is read only where no such field is there.  Reward 1 where every test passes, else 0; with `partial`,
the share of tests that pass.  Four styles:

- `stdio`: the program gets the input, its output is compared here, line by line (`code_compare`).  A test in
  which it ends otherwise than with exit status 0 is failed, whatever it printed.
- `call`: the function gets the arguments; its result comes back as plain data and is compared here.
- `assert` (HumanEval, MBPP): the test code runs in a second sandbox, where the solution's names are stand-ins
  (`code_remote`); asserts of the form `f(literals) == literal` are compared here without running test code.
- `pytest`: a test file that imports the solution as the module `solution`, or uses its names; likewise.

So no expected value is ever in the solution's process, where everything can be read and replaced.  What that
process says is a claim about results, in a typed encoding (`code_wire`), one answer to each question.

An error, not a 0, is the outcome where nothing was learnt about the solution: the sandbox is not to be had or
lacks a layer that is demanded, or the tests cannot be understood, assert nothing, or fail before the solution
has had a say (`code_script`).  CPU time is limited, each test's by itself, and so is the time in which a run
neither works nor ends; the wall limit is far longer and for what escapes both.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from onebase.errors import UserError
from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.code_asserts import TestCodeError
from onebase.verifiers.code_extract import PYTHON_TAGS, extract
from onebase.verifiers.code_host import Report, Settings
from onebase.verifiers.code_run import run_calls, run_stdio
from onebase.verifiers.code_script import run_script
from onebase.verifiers.code_task import Task, read_task
from onebase.verifiers.sandbox import Limits, SandboxError

REASON = 300
WALL_SECONDS = 180.0  # the CPU limits decide; this is for a machine so loaded that they are far off
MEMORY_MB = 8192  # address space, the sandbox's included, which limits each run itself


def verify(
    completion: str,
    answer: str = "",
    *,
    style: str | None = None,
    partial: bool = False,
    prefix: str = "",
    prelude: str | None = None,
    module: str = "solution",
    objects: str = "refuse",
    float_tolerance: float | None = None,
    limits: Mapping[str, Any] | None = None,
    row_cpu_seconds: float = 30.0,
    idle_seconds: float = 5.0,
    demand: Sequence[str] = (),
    packages: Sequence[str] = (),
    language: Mapping[str, Any] | None = None,
    prefilled: bool = False,
    **row: Any,
) -> Verdict:
    """`style`: told from the tests where it is not given.
    `prefix`: text that the code continues, such as HumanEval's prompt; a whole program may follow it too.
    `prelude`: code that runs before the solution, or "leetcode" (the imports and node classes that LeetCode
    gives; the default where the tests call a method of Solution or use its nodes).
    `module`: the name under which pytest files import the solution.
    `objects`: "trust" compares objects of the solution's classes by their attributes, see `code_remote`.
    `float_tolerance`: allowed difference, absolute or relative; exact without.
    `limits`: fields of `sandbox.Limits`, cpu_seconds being that of one test; `row_cpu_seconds` bounds
    all tests of the row together; `idle_seconds`: how long a test may sleep (`code_patience`).
    `demand`: layers of isolation without which nothing runs (empty: `sandbox.DEMAND`).  `packages`: what the
    solution may import. `language`: {"file": "main.js", "command": ["node", "{file}"]} for stdio tests in
    another language, with "tags" (of its fenced blocks), and for compilers "build": [...] and "built": the
    file that this makes."""
    start = time.perf_counter()
    try:
        settings = Settings(
            limits=read_limits(limits or {}),
            row_cpu_seconds=row_cpu_seconds,
            idle_seconds=idle_seconds,
            demand=tuple(demand),
            packages=tuple(packages),
            partial=partial,
            float_tolerance=float_tolerance,
            objects=one_of("objects", objects, ("refuse", "trust")),
            module=module,
            **read_language(language),
        )
        task = read_task(row, answer, style or ("stdio" if language else None), prefix, module, prelude)
        if settings.command and task.style != "stdio":
            raise TestCodeError(f"language is for stdio tests; these are {task.style} tests")
        tags = tuple((language or {}).get("tags", ())) or (guess_tags(settings) if language else PYTHON_TAGS)
        code = extract(completion, tags, prefilled=prefilled)
        if code.text is None:
            return Verdict(0.0, code.how, seconds=time.perf_counter() - start, details={"style": task.style})
        report = run(task, code.text, settings)
    except TestCodeError as error:
        return failed(f"tests: {error}", time.perf_counter() - start)
    except SandboxError as error:
        return failed(f"sandbox: {error}", time.perf_counter() - start)
    return verdict(task, report, partial, code.fenced, time.perf_counter() - start)


def run(task: Task, code: str, settings: Settings) -> Report:
    if task.stdio:
        return run_stdio(task, code, settings)
    if task.calls:
        return run_calls(task, code, settings)
    return run_script(task, code, settings)


def verdict(task: Task, report: Report, partial: bool, fenced: bool, seconds: float) -> Verdict:
    whole = report.passed == report.total and report.broken is None
    reward = report.passed / report.total if partial else float(whole)
    first = next(((name, how) for name, how in report.failures.items()), None)
    if report.broken is not None:
        reason = report.broken if fenced else f"{report.broken} (no fenced block: the whole text was taken)"
    elif whole:
        reason = f"all {report.total} tests passed" if report.total > 1 else "the test passed"
    else:
        name, how = first or ("a test", "it failed")
        reason = f"{report.passed} of {report.total} tests passed; {name}: {how}"
        reason = reason if partial else f"{name} of {report.total}: {how}"
    details = {
        "style": task.style, "passed": report.passed, "total": report.total,
        "failures": {name: how[:REASON] for name, how in list(report.failures.items())[:20]},
        "layers": list(report.layers), "cpu_seconds": round(report.cpu_seconds, 4),
    }  # fmt: skip
    return Verdict(reward, one_line(reason), seconds=seconds, details=details)


def one_line(text: str) -> str:
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= REASON else text[: REASON - 1] + "…"


def read_limits(given: Mapping[str, Any]) -> Limits:
    known = [f.name for f in fields(Limits)]
    for name in given:
        if name not in known:
            raise UserError(
                f"code_tests: limits.{name}: unknown{near(name, known)}\n  known: {', '.join(known)}"
            )
    try:
        return replace(Limits(), **given)
    except (ValueError, TypeError) as error:
        raise UserError(f"code_tests: limits: {error}") from error


def read_language(language: Mapping[str, Any] | None) -> dict[str, Any]:
    """The command of a test, where a compiler's product is run instead of the source if there is one."""
    if language is None:
        return {}
    known = ("command", "file", "build", "built", "tags")
    for name in language:
        if name not in known:
            raise UserError(
                f"code_tests: language.{name}: unknown{near(name, known)}\n  known: {', '.join(known)}"
            )
    file = language.get("file", "main.txt")
    if not language.get("command"):
        raise UserError('code_tests: language needs a command, for example ["node", "{file}"]')
    if bool(language.get("build")) != bool(language.get("built")):
        raise UserError("code_tests: language.build and language.built (the file that it makes) go together")
    command, build = (
        tuple(str(word).replace("{file}", file) for word in language.get(key, ()))
        for key in ("command", "build")
    )
    return {"command": command, "build": build, "built": language.get("built", ""), "file": file}


def guess_tags(settings: Settings) -> tuple[str, ...]:
    """The file's ending and the common long names that go with it."""
    ending = settings.file.rpartition(".")[2].lower()
    long = {"js": ("javascript", "node"), "ts": ("typescript",), "cpp": ("c++", "cc"), "rs": ("rust",),
            "rb": ("ruby",), "sh": ("bash", "shell"), "pl": ("perl",), "go": ("golang",), "kt": ("kotlin",),
            "hs": ("haskell",), "cs": ("csharp", "c#"), "py": PYTHON_TAGS}  # fmt: skip
    return (ending, *long.get(ending, ()))


def one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise UserError(f"code_tests: {name}: {value!r} is not one of {', '.join(known)}{near(value, known)}")
    return value


def near(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


__all__ = ["verify"]
