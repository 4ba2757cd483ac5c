"""A row of a data set → what is to be run: the style of its tests, the tests, and what the solution is given.

Tests are looked for under `tests`, `test`, `test_list`, `input_output`, `unit_tests`, then in `answer`; text
that is JSON is read.  The style is told from their form where the row does not give it:

- stdio: `[{"input": text, "output": text}, …]` or `{"inputs": [text, …], "outputs": [text, …]}`
- call: `[{"args": […], "kwargs": {…}, "output": value}, …]` with `entry_point`, or `{"inputs": [[…], …],
  "outputs": […], "fn_name": name}`
- assert: test code as one text or a list of texts, with `test_setup_code` before it
- pytest: a text with test functions or TestCase classes
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from onebase.verifiers.code_asserts import (
    Call,
    TestCodeError,
    complete,
    direct,
    free_names,
    imported,
    instrument,
    mentioned,
    parse,
    shadowed,
)
from onebase.verifiers.code_prelude import LEETCODE, LEETCODE_RECORDS, LEETCODE_TESTS, TEST_NAMES
from onebase.verifiers.code_shapes import mark_expected

STYLES = ("stdio", "call", "assert", "pytest")
_FIELDS = ("tests", "test", "test_list", "input_output", "unit_tests")


@dataclass(frozen=True, slots=True)
class Script:
    """Test code that runs in a process of its own.  `tests` are the texts of assert tests, or the names of
    test functions; `names` is what the code wants from the solution."""

    source: str
    tests: list[str]
    names: list[str]
    imported: list[str]
    mentioned: list[str]
    prelude: str = ""
    shadowed: tuple[str, ...] = ()  # of `names`, those that Python defines too


@dataclass(frozen=True, slots=True)
class Task:
    style: str
    entry: str | None
    stdio: list[tuple[str, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    script: Script | None = None
    prefix: str = ""
    prelude: str = ""
    records: tuple[str, ...] = ()
    loose: bool = False  # values of `calls` come from JSON: compare as `same_value` does

    @property
    def total(self) -> int:
        return len(self.stdio) or len(self.calls) or len(self.script.tests if self.script else [])


def read_task(
    row: dict[str, Any],
    answer: str,
    style: str | None = None,
    prefix: str = "",
    module: str = "solution",
    prelude: str | None = None,
) -> Task:
    """Raises TestCodeError where the row's tests cannot be understood."""
    task = _read_task(row, answer, style, prefix, module)
    if prelude == "leetcode":
        return replace(task, prelude=LEETCODE, records=LEETCODE_RECORDS)
    return task if prelude is None else replace(task, prelude=prelude, records=())


def _read_task(row: dict[str, Any], answer: str, style: str | None, prefix: str, module: str) -> Task:
    tests = _tests(row, answer)
    entry = row.get("entry_point") or (tests.get("fn_name") if isinstance(tests, dict) else None)
    if entry is not None and not isinstance(entry, str):
        raise TestCodeError(f"entry_point is a {type(entry).__name__}, not a text")
    style = style or _style(tests, entry)
    if style not in STYLES:
        raise TestCodeError(f"style {style!r}: one of {', '.join(STYLES)}")
    if style in ("stdio", "call"):
        pairs = _pairs(tests)
        if not pairs:
            raise TestCodeError("there are no tests")
        if style == "stdio":
            return Task(style, None, stdio=[_stdio(n, pair) for n, pair in enumerate(pairs, 1)])
        if not entry:
            raise TestCodeError("call tests need the row's entry_point: the name of the function")
        prelude, records = (
            (LEETCODE, LEETCODE_RECORDS) if "Solution" in entry or _is_method(row) else ("", ())
        )
        calls = [_call(n, entry, pair) for n, pair in enumerate(pairs, 1)]
        return Task(style, entry, calls=calls, prefix=prefix, prelude=prelude, records=records, loose=True)
    source = _source(tests, row)
    if style == "pytest":
        return Task(style, None, script=_pytest(source, module), prefix=prefix)
    return _asserts(source, entry, prefix, module)


def _tests(row: dict[str, Any], answer: str) -> Any:
    for name in _FIELDS:
        if row.get(name) not in (None, "", []):
            return _read(row[name])
    if not answer.strip():
        raise TestCodeError(f"the row has no tests: none of {', '.join(_FIELDS)}, and answer is empty")
    return _read(answer)


def _read(tests: Any) -> Any:
    """JSON text is read; other text is test code."""
    if isinstance(tests, str) and tests.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(tests)
        except ValueError:
            return tests
    return tests


def _style(tests: Any, entry: str | None) -> str:
    if isinstance(tests, dict):
        if not {"inputs", "outputs"} <= set(tests):
            raise TestCodeError(f"tests is an object of {sorted(tests)}; expected inputs and outputs")
        return "call" if entry else "stdio"
    if isinstance(tests, list) and all(isinstance(t, dict) for t in tests):
        if any("args" in t or "kwargs" in t for t in tests):
            return "call"
        return "stdio" if all(isinstance(_input(t), str) for t in tests) else "call"
    if isinstance(tests, list) and all(isinstance(t, str) for t in tests):
        return "assert"
    if not isinstance(tests, str):
        raise TestCodeError(f"tests is a {type(tests).__name__}; expected a list, an object or test code")
    tree = parse(tests)
    collected = _collected(tree)
    return "pytest" if collected and not any(isinstance(s, ast.Assert) for s in tree.body) else "assert"


def _pairs(tests: Any) -> list[dict[str, Any]]:
    if isinstance(tests, dict):
        inputs, outputs = tests.get("inputs"), tests.get("outputs")
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise TestCodeError("inputs and outputs must be lists of one length")
        return [{"input": a, "output": b} for a, b in zip(inputs, outputs, strict=True)]
    if not isinstance(tests, list) or not all(isinstance(t, dict) for t in tests):
        raise TestCodeError("expected a list of objects with input and output")
    return tests


def _input(test: dict[str, Any]) -> Any:
    return test.get("input", test.get("stdin", ""))


def _output(n: int, test: dict[str, Any]) -> Any:
    for name in ("output", "expected", "expected_output", "stdout"):
        if name in test:
            return test[name]
    raise TestCodeError(f"test {n} has no output; it has: {', '.join(sorted(test))}")


def _stdio(n: int, test: dict[str, Any]) -> tuple[str, str]:
    given, expected = _input(test), _output(n, test)
    # APPS and TACO give some texts as lists of lines.
    given, expected = ("\n".join(map(str, x)) if isinstance(x, list) else x for x in (given, expected))
    if not isinstance(given, str) or not isinstance(expected, str):
        raise TestCodeError(f"test {n}: input and output of a stdio test are texts")
    return given, expected


def _call(n: int, entry: str, test: dict[str, Any]) -> Call:
    args = test.get("args", test.get("input", []))
    kwargs = test.get("kwargs") or {}
    if isinstance(args, dict) and not kwargs:
        args, kwargs = [], args
    if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
        raise TestCodeError(f"test {n}: args must be a list and kwargs an object")
    shown = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
    return Call(entry, tuple(args), kwargs, _output(n, test), False, f"{entry}({shown})"[:200])


def _is_method(row: dict[str, Any]) -> bool:
    return "class Solution" in str(row.get("starter_code", "") or row.get("prompt", ""))


def _source(tests: Any, row: dict[str, Any]) -> str:
    if isinstance(tests, list):
        if not all(isinstance(t, str) for t in tests):
            raise TestCodeError("assert tests are texts")
        tests = "\n".join(tests)
    if not isinstance(tests, str):
        raise TestCodeError(f"test code is a {type(tests).__name__}, not a text")
    setup = row.get("test_setup_code") or ""
    imports = row.get("test_imports") or []
    return "\n".join([*imports, setup, tests]) if setup or imports else tests


@lru_cache(maxsize=256)
def _asserts(source: str, entry: str | None, prefix: str, module: str) -> Task:
    """Kept, because a group of completions is judged by the same tests."""
    tree = parse(source)
    complete(tree, entry)
    ours = shadowed(tree, entry)
    names = set(free_names(tree)) | ours
    helpers = names & set(TEST_NAMES)
    leetcode = bool(helpers) or "Solution" in names
    given = (
        {"prefix": prefix, "prelude": LEETCODE, "records": LEETCODE_RECORDS}
        if leetcode
        else {"prefix": prefix}
    )
    calls = direct(tree, entry)
    if calls:
        return Task("assert", entry, calls=calls, **given)  # type: ignore[arg-type]
    said = sorted(mentioned(tree))
    mark_expected(tree)
    script = Script(
        source=ast.unparse(tree),
        tests=instrument(tree),
        names=sorted(names - helpers),
        imported=imported(tree, module),
        mentioned=said,
        prelude=LEETCODE_TESTS if helpers else "",
        shadowed=tuple(ours),
    )
    return Task("assert", entry, script=script, **given)  # type: ignore[arg-type]


def _collected(tree: ast.Module) -> list[str]:
    """Names under which pytest finds tests: functions `test…`, methods of `Test…` and TestCase classes."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            found.append((node.name, node))
        elif isinstance(node, ast.ClassDef):
            case = any("TestCase" in ast.unparse(base) for base in node.bases)
            for part in node.body if case or node.name.startswith("Test") else []:
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name.startswith("test"):
                    found.append((f"{node.name}::{part.name}", part))
    return [name for name, node in found if not _skipped(node)]


def _skipped(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Marked by the test file itself as not to be run, or as expected to fail: no test of the solution."""
    marks = ("mark.skip", "mark.xfail", "unittest.skip", "unittest.expectedFailure")
    return any(any(mark in ast.unparse(d) for mark in marks) for d in node.decorator_list)


@lru_cache(maxsize=256)
def _pytest(source: str, module: str) -> Script:
    tree = parse(source)
    tests = _collected(tree)
    if not tests:
        raise TestCodeError("the test code has no test functions")
    names, said = free_names(tree), sorted(mentioned(tree))
    source = ast.unparse(tree) if mark_expected(tree) else source
    return Script(source, tests, names, imported(tree, module), said)
