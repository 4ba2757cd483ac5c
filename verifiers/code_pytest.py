"""Runs one pytest file in the test's process and reports every test."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
from _pytest.config import default_plugins

for _name in default_plugins:  # what pytest would import at the start of every session
    importlib.import_module(f"_pytest.{_name}")


class Plugin:
    """Hears what pytest collects and how each test ends.  A test that is skipped did not pass."""

    def __init__(self, reporter: Any) -> None:
        self.reporter = reporter
        self.failures: dict[str, str] = {}
        self.error: BaseException | None = None

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        self.reporter.say("collected", [short(item.nodeid) for item in items if not expected_to_fail(item)])

    def pytest_collectreport(self, report: Any) -> None:
        from onebase.verifiers.code_tester import blames_solution

        if report.failed:
            text = str(report.longrepr).strip().splitlines()[-1:] or ["it cannot be imported"]
            error = self.error or ImportError()
            self.reporter.say("problem", text[0][:300], blames_solution(error, self.reporter.bridge))

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        self.error = call.excinfo.value.__cause__ or call.excinfo.value if call.excinfo else None

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = short(report.nodeid)
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash is not None else str(report.longrepr)
            self.failures.setdefault(name, " ".join(message.split())[:300] or "failed")
        elif report.skipped and not hasattr(report, "wasxfail"):
            self.failures.setdefault(name, "skipped")
        if report.when == "teardown":
            self.reporter.test(name, self.failures.get(name))


def short(nodeid: str) -> str:
    """Without the file's name."""
    return nodeid.partition("::")[2]


def expected_to_fail(item: Any) -> bool:
    return item.get_closest_marker("xfail") is not None or item.get_closest_marker("skip") is not None


def run(spec: dict[str, Any], reporter: Any) -> None:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    plugins = (
        "cacheprovider",
        "terminal",
        "faulthandler",
        "junitxml",
        "pastebin",
        "stepwise",
        "doctest",
        "logging",
    )
    arguments = [
        spec["file"],
        "--capture=no",
        "-c",
        os.devnull,
        "--rootdir=.",
        "--confcutdir=.",
        "--import-mode=importlib",
    ]
    for name in plugins:
        arguments += ["-p", f"no:{name}"]
    if spec["stop"]:
        arguments.append("--maxfail=1")
    pytest.main(arguments, plugins=[Plugin(reporter)])
