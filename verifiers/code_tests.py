"""Unit tests as a reward: the code of a completion runs in a sandbox and is judged outside of it."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any

from onebase.errors import UserError
from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.code_asserts import TestCodeError
from onebase.verifiers.code_extract import PYTHON_TAGS, extract
from onebase.verifiers.code_run import Report, Settings, run_calls, run_stdio
from onebase.verifiers.code_script import run_script
from onebase.verifiers.code_task import Task, read_task
from onebase.verifiers.sandbox import Limits, SandboxError


def verify(
    completion: str,
    answer: str = "",
    *,
    style: str | None = None,
    partial: bool = False,
    limits: dict[str, Any] | None = None,
    demand: list[str] | tuple[str, ...] = (),
    packages: list[str] | tuple[str, ...] = (),
    prefix: str = "",
    objects: str="refuse", scripts: bool=False,
    prefilled: bool = False,
    float_tolerance: float | None = None,
    **row: Any,
) -> Verdict:
    start = time.perf_counter()
    settings = Settings(
        limits=replace(Limits(), **(limits or {})),
        demand=tuple(demand),
        packages=tuple(packages),
        partial=partial,
        float_tolerance=float_tolerance,
    )
    try:
        task = read_task(row, answer, style, prefix, settings.module, scripts)
    except TestCodeError as error:
        return failed(f"tests: {error}", time.perf_counter() - start)
    code = extract(completion, PYTHON_TAGS, prefilled=prefilled)
    if code.text is None:
        return Verdict(0.0, code.how)
    try:
        report = run(task, code.text, settings)
    except SandboxError as error:
        return failed(f"sandbox: {error}")
    except TestCodeError as error:
        return failed(f"tests: {error}")
    reward = report.passed / report.total if partial else float(report.passed == report.total)
    how = report.broken or next((f"{n}: {t}" for n, t in report.failures.items()), "")
    return Verdict(
        reward,
        f"{report.passed} of {report.total} tests passed; {how}"[:300],
        seconds=time.perf_counter() - start,
        details={"layers": report.layers, "cpu": report.cpu_seconds, "failures": report.failures},
    )


def run(task: Task, code: str, settings: Settings) -> Report:
    if task.stdio:
        return run_stdio(task, code, settings)
    if task.calls:
        return run_calls(task, code, settings)
    return run_script(task, code, settings)
