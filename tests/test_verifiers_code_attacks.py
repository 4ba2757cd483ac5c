"""Wrong solutions that try to be paid: every test here passes because the attack fails.

`f(3)` should be SECRET, which no solution can know.  An attack must earn 0, and be judged: an error would be
a way out of a bad reward.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onebase.verifiers.code_host import close_all
from onebase.verifiers.code_tests import verify
from onebase.verifiers.sandbox import Sandbox, SandboxError

SECRET = 40_961_783
GOLDEN = Path(__file__).parent / "golden"


def unavailable() -> str:
    try:
        Sandbox().close()
    except SandboxError as error:
        return f"this machine does not give the sandbox's layers: {error}"
    return ""


REASON = unavailable()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)
LIMITS = {"cpu_seconds": 0.5}


def sections(name):
    """The parts of a file of cases: a line `=== NAME` opens one, `--- tests` separates the tests from the
    solution, and a line `@NAME` stands for another part."""
    text = (GOLDEN / name).read_text(encoding="utf-8")
    parts = {}
    for part in text.split("\n=== ")[1:]:
        title, _, body = part.partition("\n")
        parts[title] = body.strip("\n")
    shared = {title: body for title, body in parts.items() if title.startswith("@")}

    def whole(body):
        for title, other in shared.items():
            body = re.sub(rf"^ *{title}$", lambda _, other=other: other, body, flags=re.M)
        return body

    cases = {title: whole(body) for title, body in parts.items() if title not in shared}
    return {
        title: tuple(body.split("\n--- tests\n")) if "\n--- tests\n" in body else body
        for title, body in cases.items()
    }


ATTACKS = sections("code_attacks.txt") | {"null bytes": "def f(x): return '\x00'"}
PARTICULAR = sections("code_attacks_on_tests.txt")
PROGRAMS = sections("code_attacks_by_programs.txt")
RUN_TESTS = {
    "equal": "y = f(3)\nassert y == SECRET",
    "turned round": "assert SECRET == f(3) and not SECRET != f(3)",
    "not unequal": "assert not f(3) != SECRET",
    "near": "assert abs(f(3) - SECRET) < 1e-6",
    "near, turned round": "assert abs(SECRET - f(3)) < 1e-6",
    "is close": "import math\nassert math.isclose(f(3), SECRET)",
    "in": "assert f(3) in [SECRET]",
    "items": "assert list(map(f, [3])) == [SECRET] and [f(3)] == [SECRET]",
    "all": "assert all(f(x) == y for x, y in [(3, SECRET)])",
    "map stops": "assert [f(x) for x in [3]][0] == SECRET\nassert list(map(f, [3])) != []",
    "set": "assert {f(3)} == {SECRET}",
    "key": "assert {SECRET: 1}[f(3)] == 1",
    "sum": "assert sum([f(3)]) == SECRET",
    "order": "assert SECRET <= f(3) <= SECRET",
    "max": "assert max(f(3), SECRET) == min(f(3), SECRET) == SECRET",
    "text": "assert str(f(3)) == str(SECRET) and f(3) == SECRET",
    "kind": "assert isinstance(f(3), int) and f(3) == SECRET",
    "bare except": "try:\n    y = f(3)\nexcept:\n    y = None\nassert y == SECRET",
    "loop": "for x, y in [(3, SECRET)]:\n    assert f(x) == y",
    "unpacked": "(y,) = [f(3)]\nassert y == SECRET",
    "check": "def check(candidate):\n    y = candidate(3)\n    assert y == SECRET\ncheck(f)",
}
PYTEST = """
import unittest
import pytest
from solution import f

def test_equal():
    assert f(3) == SECRET

def test_near():
    assert f(3) == pytest.approx(SECRET)

class Case(unittest.TestCase):
    def test_it(self):
        self.assertEqual(f(3), SECRET)
        self.assertAlmostEqual(f(3), SECRET)
""".replace("SECRET", str(SECRET))
QUICK = [
    "equal object",
    "equal int",
    "a class that is called as the function",
    "a class that makes equal objects",
    "equal items",
    "stops iteration",
    "exits well",
    "asserts",
    "patched server",
    "frames and objects",
    "equal mock",
    "lying class",
    "equal class",
    "_exit in the call",
    "endless generator",
    "cyclic value",
    "nan",
    "module of its own",
]

NAIVE = [
    "exit at import",
    "exit in the call",
    "_exit at import",
    "_exit in the call",
    "ctypes exit",
    "equal object",
    "equal int",
    "equal str",
    "equal float",
    "equal list",
    "equal tuple",
    "equal dict",
    "equal set",
    "equal mock",
    "exits well",
    "a class that is called as the function",
    "lying class",
]


def attack(code, **row):
    verdict = verify(f"```python\n{code}\n```", "", limits=LIMITS, idle_seconds=1.0, **row)
    assert verdict.reward == 0.0 and verdict.error is None, verdict
    assert verdict.reason and "\n" not in verdict.reason
    return verdict


@pytest.mark.parametrize("name", ATTACKS)
def test_call_tests(name):
    attack(ATTACKS[name], tests=[{"args": [3], "output": SECRET}], entry_point="f")


@pytest.mark.parametrize("name", ATTACKS)
def test_asserts_that_are_compared_here(name):
    attack(ATTACKS[name], tests=[f"assert f(3) == {SECRET}"])


@pytest.mark.parametrize("name", ATTACKS)
def test_asserts_in_the_tests_process(name):
    attack(ATTACKS[name], tests=RUN_TESTS["equal"].replace("SECRET", str(SECRET)))


@pytest.mark.parametrize("name", ATTACKS)
def test_pytest_files(name):
    attack(ATTACKS[name], tests=PYTEST)


@pytest.mark.parametrize("form", RUN_TESTS)
@pytest.mark.parametrize("name", QUICK)
def test_other_forms_of_asserts(name, form):
    attack(ATTACKS[name], tests=RUN_TESTS[form].replace("SECRET", str(SECRET)))


@pytest.mark.parametrize("name", QUICK)
def test_partial_reward_is_not_got_either(name):
    for tests in (RUN_TESTS["equal"].replace("SECRET", str(SECRET)), PYTEST):
        attack(ATTACKS[name], tests=tests, partial=True)


# -- attacks on particular test code -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTICULAR)
def test_attacks_on_particular_test_code(name):
    code, tests = PARTICULAR[name]
    attack(code, tests=tests)


# -- programs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    attack(PROGRAMS[name], tests=[{"input": "x\n", "output": "40\n41\n"}])


@pytest.mark.parametrize(
    "name", ["exit", "_exit", "right, then an exception", "killed", "memory", "no end", "endless output"]
)
def test_programs_with_nothing_expected(name):
    code = PROGRAMS[name]
    if name in ("exit", "_exit"):
        code = "import sys\nsys.exit('no')"
    attack(code.replace("print(40)\n1/0", "1/0"), tests=[{"input": "", "output": ""}])


@pytest.mark.parametrize(
    "name", ["does not read", "answers before it is asked", "closes the channel", "_exit at import"]
)
def test_large_arguments(name):
    """Larger than what the channel holds."""
    attack(ATTACKS[name], tests=[{"args": ["x" * 3_000_000], "output": SECRET}], entry_point="f")
    attack(ATTACKS[name], tests=f"assert sorted([f('x' * 3_000_000)]) == [{SECRET}]")


def test_nothing_is_left_over():
    """After hostile runs a right solution is still paid, and when the sandboxes are closed no process is
    left."""
    close_all()
    others = set(descendants(os.getpid()))  # of other tests: pools, Ray
    for name in (
        "child that outlives",
        "thread that outlives",
        "kills its parent",
        "closes the channel in the call",
    ):
        attack(ATTACKS[name], tests=f"assert f(3) == {SECRET}")
    right = verify("```python\ndef f(x): return x\n```", "", tests="assert f(3) == 3")
    assert right.reward == 1.0
    assert set(descendants(os.getpid())) - others
    close_all()
    assert not set(descendants(os.getpid())) - others


def descendants(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def test_the_attacks_are_real():
    """A grader of the usual kind, which runs solution and tests in one process and looks at the exit status,
    pays for these."""
    paid = []
    for name in ATTACKS:
        if name in NAIVE:
            code = f"{ATTACKS[name]}\nassert f(3) == {SECRET}\n"
            run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
            paid += [name] if run.returncode == 0 else []
    assert sorted(paid) == sorted(NAIVE)
