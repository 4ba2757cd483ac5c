"""`code_tests` end to end: right and wrong solutions in every style, and what is an error instead."""

from __future__ import annotations

import json
import shutil
import threading

import pytest

from onebase.errors import UserError
from onebase.verifiers import code_task
from onebase.verifiers.code_host import close_all
from onebase.verifiers.code_tests import verify
from onebase.verifiers.pool import VerifierPool
from onebase.verifiers.sandbox import Sandbox, SandboxError


def unavailable() -> str:
    try:
        Sandbox().close()
    except SandboxError as error:
        return f"this machine does not give the sandbox's layers: {error}"
    return ""


REASON = unavailable()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


def fenced(code):
    return f"Here it is.\n\n```python\n{code}\n```\n"


def judge(code, tests, **row):
    return verify(fenced(code), "", tests=tests, **row)


def accepted(code, tests, **row):
    verdict = judge(code, tests, **row)
    assert verdict.reward == 1.0, verdict
    assert verdict.details["passed"] == verdict.details["total"] > 0
    assert {"rlimits", "seccomp", "landlock"} <= set(verdict.details["layers"])


def refused(code, tests, **row):
    verdict = judge(code, tests, **row)
    assert verdict.reward == 0.0 and verdict.error is None, verdict
    assert verdict.reason and "\n" not in verdict.reason and len(verdict.reason) <= 300
    return verdict.reason


def is_error(code, tests, word, **row):
    verdict = judge(code, tests, **row)
    assert verdict.reward is None and word in (verdict.error or ""), verdict


@pytest.fixture
def in_a_process(monkeypatch):
    """Simple asserts too go through the test's process."""
    monkeypatch.setattr(code_task, "direct", lambda tree, entry: None)


# -- stdio -----------------------------------------------------------------------------------------------

DOUBLE = [{"input": "2\n1 2\n3 4\n", "output": "2 4\n6 8\n"}, {"input": "1\n5", "output": "10"}]
STDIO = [
    "n = int(input())\nfor _ in range(n):\n    print(*[2 * int(x) for x in input().split()])",
    "import sys\nlines = sys.stdin.read().splitlines()\nfor line in lines[1:]:\n    sys.stdout.write(' '.join(str(2*int(x)) for x in line.split()) + ' \\n')",
    "import sys\ndata = sys.stdin.buffer.read().split(b'\\n')\nfor line in data[1:]:\n    if line: print(*(2*int(x) for x in line.split()))",
    "def main():\n    for _ in range(int(input())):\n        print(*map(lambda x: 2*int(x), input().split()))\n\nif __name__ == '__main__':\n    main()",
    "import sys\ninput = sys.stdin.readline\nfor _ in range(int(input())): print(*[2*int(x) for x in input().split()])\nsys.exit(0)",
    "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\ndef go():\n    for _ in range(int(input())): print(*[2*int(x) for x in input().split()])\nt = threading.Thread(target=go)\nt.start()\nt.join()",
    "out = []\nfor _ in range(int(open(0).readline())): pass\nimport sys",
    "import os\ndata = os.read(0, 10**6).decode().splitlines()\nos.write(1, '\\n'.join(' '.join(str(2*int(x)) for x in l.split()) for l in data[1:]).encode())",
    "import io, sys\nsys.stdin = io.StringIO(sys.stdin.read())\nfor _ in range(int(input())): print(*[2*int(x) for x in input().split()])",
    "from dataclasses import dataclass\nfrom functools import lru_cache\n@dataclass\nclass A:\n    x: int\n@lru_cache(None)\ndef f(n): return n if n == 0 else 1 + f(n - 1)\nf(400)\nfor _ in range(int(input())): print(*[2*A(int(x)).x for x in input().split()])",
    "import atexit\nout = []\natexit.register(lambda: print('\\n'.join(out)))\nfor _ in range(int(input())): out.append(' '.join(str(2*int(x)) for x in input().split()))",
]
del STDIO[6]  # reads through open(0) are line-buffered ahead; see the next test


@pytest.mark.parametrize("code", STDIO, ids=range(len(STDIO)))
def test_programs_that_print_the_right_output(code):
    accepted(code, DOUBLE)


def test_programs_that_do_not():
    assert "line 1" in refused("n = int(input())\nfor _ in range(n): print(1)", DOUBLE)
    assert "ValueError" in refused("int('x')", DOUBLE)
    assert "exited with 3" in refused("print('2 4')\nprint('6 8')\nimport sys\nsys.exit(3)", DOUBLE)
    assert "lines" in refused(STDIO[0] + "\nprint()\nprint(1)", DOUBLE)
    assert "SyntaxError" in refused("def f(:", DOUBLE)
    refused(STDIO[0] + "\nimport os\nos.abort()", DOUBLE)


def test_an_exception_with_an_empty_expected_output_is_a_failure():
    empty = [{"input": "", "output": ""}]
    accepted("pass", empty)
    for code in ("raise ValueError", "1/0", "import sys\nsys.exit(1)", "import os\nos.abort()", "import os\nos._exit(9)"):
        refused(code, empty)


def test_each_stdio_test_has_its_own_cpu_limit():
    limits = {"cpu_seconds": 1.0}
    burn = "import time\nwhile time.process_time() < 0.6: pass\nprint(int(input()) + 1)"
    accepted(burn, [{"input": str(n), "output": str(n + 1)} for n in range(2)], limits=limits)
    assert "CPU" in refused("while True: pass", DOUBLE, limits=limits)


def test_partial_reward_is_the_share_of_tests():
    tests = [{"input": str(n), "output": str(abs(n))} for n in (1, -2, 3, -4)]
    assert judge("print(int(input()))", tests, partial=True).reward == 0.5
    assert judge("print(int(input()))", tests).reward == 0.0
    verdict = judge("print(int(input()))", tests, partial=True)
    assert verdict.reason.startswith("2 of 4 tests passed; test 2: ") and set(verdict.details["failures"]) == {"test 2", "test 4"}


@pytest.mark.skipif(shutil.which("sh") is None, reason="no sh")
def test_other_languages_are_a_command():
    shell = {"file": "main.sh", "command": ["sh", "{file}"]}
    tests = [{"input": "3 4\n", "output": "7"}]
    text = "```sh\nread a b\necho $((a + b))\n```\n```python\nprint(7)\n```"
    verdict = verify(text, "", tests=tests, language=shell)
    assert verdict.reward == 1.0, verdict
    assert verify(text.replace("+", "-"), "", tests=tests, language=shell).reward == 0.0
    assert verify(text.replace("echo", "exit 1; echo"), "", tests=tests, language=shell).reward == 0.0
    built = {"file": "in.sh", "build": ["cp", "in.sh", "out.sh"], "built": "out.sh", "command": ["sh", "out.sh"]}
    assert verify(text, "", tests=tests, language=built).reward == 1.0
    broken = verify(text, "", tests=tests, language={**built, "build": ["cp", "absent", "out.sh"]})
    assert broken.reward == 0.0 and "building exited with 1" in broken.reason
    assert verify(text, "", tests="assert f(1) == 2", style="assert", language=shell).error


def test_node_if_it_is_here():
    if shutil.which("node") is None:
        pytest.skip("no node")
    code = "const [a, b] = require('fs').readFileSync(0, 'utf8').trim().split(' ').map(Number);\nconsole.log(a + b);"
    tests = [{"input": "3 4\n", "output": "7"}]
    language = {"file": "main.js", "command": ["node", "{file}"]}
    limits = {"memory_mb": 2048, "processes": 64}
    right = verify(f"```js\n{code}\n```", "", tests=tests, language=language, limits=limits)
    wrong = verify(f"```js\n{code.replace('+', '-')}\n```", "", tests=tests, language=language, limits=limits)
    assert (right.reward, wrong.reward) == (1.0, 0.0), (right, wrong)


# -- call ------------------------------------------------------------------------------------------------


def test_calls_with_values_from_json():
    tests = [
        {"args": [[3, 1, 2]], "output": [1, 2, 3]}, {"args": [[]], "output": []},
        {"args": [], "kwargs": {"xs": ["b", "a"]}, "output": ["a", "b"]},
    ]  # fmt: skip
    code = "def f(xs):\n    print('noise')\n    return tuple(sorted(xs))"
    accepted(code, tests, entry_point="f")
    assert refused(code.replace("sorted", "list"), tests, entry_point="f") == "test 1 of 3: f([3, 1, 2]) gave (3, 1, 2), expected [1, 2, 3]"
    assert "NameError" in refused("def g(): pass", tests, entry_point="f")
    assert "raised TypeError" in refused("def f(): pass", tests, entry_point="f")
    accepted("def f(d):\n    return {k: -v for k, v in d.items()}", [{"args": [{"1": 2}], "output": {"1": -2}}], entry_point="f")
    accepted("def f(n):\n    return {n: n}", {"inputs": [[1], [2]], "outputs": [{"1": 1}, {"2": 2}], "fn_name": "f"})


def test_call_tests_of_a_leetcode_solution():
    code = "class Solution:\n    seen = 0\n    def addAll(self, xs: List[int], k: Optional[int] = 0) -> int:\n        self.seen += 1\n        return sum(xs) + k + inf * 0 if False else sum(xs) + k + self.seen - 1"
    tests = [{"args": [[1, 2]], "output": 3}, {"args": [[1, 2]], "kwargs": {"k": 4}, "output": 7}]
    accepted(code, tests, entry_point="addAll", prompt="class Solution:")
    accepted(code, tests, entry_point="Solution().addAll")


def test_tolerance_and_specials():
    tests = [{"args": [1], "output": 0.3333333}]
    refused("def f(x): return x / 3", tests, entry_point="f")
    accepted("def f(x): return x / 3", tests, entry_point="f", float_tolerance=1e-6)
    refused("def f(x): return float('nan')", tests, entry_point="f", float_tolerance=1e-6)
    accepted("def f(x): return 10 ** 6000", [{"args": [1], "output": 10**6000}], entry_point="f")
    refused("def f(x): return 10 ** 6000 + 1", [{"args": [1], "output": 10**6000}], entry_point="f")
    accepted("def f(x): return x", [{"args": ["\ud800é\x00"], "output": "\ud800é\x00"}], entry_point="f")


def test_a_crash_costs_one_call_only_with_partial():
    tests = [{"args": [n], "output": n} for n in range(4)]
    code = "import os\ndef f(n):\n    if n == 1: os._exit(0)\n    return n"
    verdict = judge(code, tests, entry_point="f", partial=True)
    assert verdict.reward == 0.75 and list(verdict.details["failures"]) == ["test 2"]
    assert refused(code, tests, entry_point="f") == "test 2 of 4: f(1): its process exited with 0"


# -- assert ----------------------------------------------------------------------------------------------

SORT = "def f(xs, key=None):\n    return sorted(xs, key=key)"
CHECK = "def check(candidate):\n    assert candidate([2, 1]) == [1, 2]\n    assert abs(sum(candidate([0.1, 0.2])) - 0.3) < 1e-9\n    for n in range(3):\n        assert candidate(range(n)) == list(range(n))\n"


def test_humaneval_form():
    accepted(SORT, CHECK, entry_point="f")
    refused(SORT.replace("sorted(xs, key=key)", "list(xs)"), CHECK, entry_point="f")
    prompt = 'from typing import List\n\ndef helper(x: int) -> int:\n    return -x\n\ndef f(xs: List[int]) -> List[int]:\n    """Sort."""\n'
    for completion in (
        "    return sorted(xs)\n", fenced("    return sorted(xs)"), "    return sorted(xs, key=lambda x: -helper(x))\n",
        fenced("def f(xs: List[int]):\n    return sorted(xs)"), fenced(prompt + "    return sorted(xs)"),
    ):  # fmt: skip
        verdict = verify(completion, "", test=CHECK, entry_point="f", prefix=prompt)
        assert verdict.reward == 1.0, (completion, verdict)
    assert verify("    return xs\n", "", test=CHECK, entry_point="f", prefix=prompt).reward == 0.0
    decode = CHECK + "    assert candidate([helper(1), 0]) == [-1, 0]\n"
    assert verify("    return sorted(xs)\n", "", test=decode, entry_point="f", prefix=prompt).reward == 1.0


def test_mbpp_form():
    row = {"test_list": ["assert f([2, 1]) == [1, 2]", "assert f(data) == [4]"], "test_setup_code": "data = [4]"}
    assert verify(fenced(SORT), "", **row).reward == 1.0
    assert verify(fenced("def f(x): return [4]"), "", **row).reward == 0.0
    assert verify(SORT, "def f(): unused", **row).reward == 1.0  # no fence, and an answer beside the tests


SIMPLE = [
    ("def f(x): return x + 1", "assert f(1) == 2\nassert f(2) == 3", 1), ("def f(x): return x", "assert f(1) == 2", 0),
    ("def f(x): return (x, [x])", "assert f(1) == (1, [1])", 1), ("def f(x): return [x, [x]]", "assert f(1) == (1, [1])", 0),
    ("def f(x): return True", "assert f(1) == 1", 1), ("def f(x): return 1", "assert f(1) is True", 0),
    ("def f(x): pass", "assert f(1) is None", 1), ("def f(x): return {1: {2}}", "assert f(1) == {1: {2}}", 1),
    ("from collections import Counter\ndef f(x): return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}", 1),
    ("def f(x): return (i for i in x)", "assert f([1]) == [1]", 0), ("def f(x): return map(int, x)", "assert f(['1']) == [1]", 0),
    ("def f(x): return range(3)", "assert f(1) == [0, 1, 2]", 0), ("def f(x): return float('nan')", "assert f(1) == 1.0", 0),
    ("def f(x): return x / 0", "assert f(1) == 1", 0), ("def f(x): return '\\ud800' + x", "assert f('a') == '\\ud800a'", 1),
    ("def f(x): return b'a'", "assert f(1) == b'a'", 1), ("def f(x): return 'a'", "assert f(1) == b'a'", 0),
    ("def f(x): return -0.0", "assert f(1) == 0", 1), ("def f(x): return 10**5000", "assert f(1) == 5", 0),
    ("import enum\nclass C(str, enum.Enum):\n    A = 'a'\ndef f(x): return C.A", "assert f(1) == 'a'", 1),
    ("def f(x):\n    l = []\n    l.append(l)\n    return l", "assert f(1) == [1]", 0), ("def f(x): return int", "assert f(1) == 5", 0),
    ("def f(*a, target=0, **k): return a, target, k", "assert f(1, target=2, self=3) == ((1,), 2, {'self': 3})", 1),
]  # fmt: skip


@pytest.mark.parametrize(("code", "tests", "reward"), SIMPLE, ids=range(len(SIMPLE)))
def test_the_direct_path_gives_the_same_verdict(code, tests, reward, monkeypatch):
    direct = judge(code, tests)
    monkeypatch.setattr(code_task, "direct", lambda tree, entry: None)
    run = judge(code, tests)
    assert direct.reward == run.reward == reward, (direct, run)
    assert direct.details["total"] == run.details["total"]


WITH_TEST_CODE = {
    "in place": ("def f(xs):\n    xs.sort()", "xs = [2, 1]\nalias = xs\nassert f(xs) is None\nassert xs == alias == [1, 2]"),
    "in place, nested": ("def f(g):\n    g['a'].append({1})\n    g['b'] = g['a']", "a = []\ng = {'a': a}\nf(g)\nassert a == [{1}] and g['b'] is a"),
    "result is the argument": ("def f(xs):\n    xs.append(1)\n    return xs", "xs = []\nassert f(xs) is xs and xs == [1]"),
    "function passed": ("def f(g, xs):\n    return [g(x) for x in xs]", "calls = []\ndef g(x):\n    calls.append(x)\n    return x * 2\nassert f(g, [1, 2]) == [2, 4]\nassert calls == [1, 2]"),
    "builtin passed": ("def f(g, xs):\n    return [x for x in xs if isinstance(x, g)]", "assert f(str, [1, 'a']) == ['a']"),
    "function of a function": ("def f(n):\n    return lambda x: x + n", "add = f(2)\nassert add(3) == 5 and f(1)(1) == 2"),
    "decorator": ("def twice(g):\n    return lambda *a, **k: 2 * g(*a, **k)", "@twice\ndef g(x, y=1):\n    return x + y\nassert g(1, y=2) == 6"),
    "generator": ("def f(n):\n    for i in range(n):\n        yield i", "assert list(f(3)) == [0, 1, 2]\ng = f(1)\nassert next(g) == 0 and next(g, None) is None"),
    "infinite generator": ("def f():\n    i = 0\n    while True:\n        yield i\n        i += 1", "from itertools import islice\nassert list(islice(f(), 4)) == [0, 1, 2, 3]"),
    "generator passed": ("def f(xs):\n    return sum(xs)", "assert f(x for x in [1, 2]) == 3 and f(iter({3: 4})) == 3"),
    "exception": ("def f(x):\n    raise ValueError('no ' + x)", "try:\n    f('way')\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no way' and e.args == ('no way',)"),
    "own exception": ("class Bad(KeyError):\n    def __init__(self, n):\n        super().__init__(n)\n        self.n = n\ndef f():\n    raise Bad(5)", "try:\n    f()\n    assert False\nexcept Bad as e:\n    assert isinstance(e, KeyError) and e.n == 5\ntry:\n    f()\nexcept LookupError:\n    pass"),
    "class": ("class Stack:\n    size = 0\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x); return self\n    def __len__(self): return len(self.items)\n    def __iter__(self): return iter(self.items)\n    def __contains__(self, x): return x in self.items\n    def __getitem__(self, i): return self.items[i]\n    @property\n    def top(self): return self.items[-1]\n    def __repr__(self): return 'S%r' % self.items", "s = Stack()\ns.push(1).push(2)\nassert len(s) == 2 and s.top == 2 and list(s) == [1, 2] and 2 in s and 3 not in s and s[0] == 1\nassert s.items == [1, 2] and str(s) == 'S[1, 2]' and isinstance(s, Stack) and Stack.size == 0 and bool(s)\nassert not hasattr(s, 'pop') and type(s).__name__ == 'Stack' and s != Stack() and s == s"),
    "operators": ("class Vec:\n    def __init__(self, x, y=0): self.x, self.y = x, y\n    def __add__(self, o): return Vec(self.x + o.x, self.y + o.y)\n    def __mul__(self, k): return Vec(self.x * k, self.y * k)\n    def __eq__(self, o): return isinstance(o, Vec) and (self.x, self.y) == (o.x, o.y)\n    def __lt__(self, o): return self.x < o.x\n    def __neg__(self): return Vec(-self.x, -self.y)", "a, b = Vec(1, 2), Vec(3)\nassert a + b == Vec(4, 2)\nassert Vec(1, 2) * 2 == Vec(2, 4) and -a == Vec(-1, -2)\nassert a < b and not b < a and Vec(1) == Vec(1) and Vec(1) != Vec(2)\nassert [a + a] == [Vec(2, 4)] and a + b != Vec(4, 3) and max(Vec(1), Vec(5)).x == 5"),
    "data class": ("from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\n    y: int = 0\n    def norm(self): return abs(self.x) + abs(self.y)\ndef move(p, d): return Point(p.x + d, p.y)\ndef grow(p): p.x += 1", "p = Point(1)\nassert move(p, 2) == Point(3, 0) and move(p, 2) != Point(2) and p.norm() == 1\ngrow(p)\nassert p.x == 2 and p == Point(2) and repr(Point(1)) == 'Point(x=1, y=0)'\nexpected = [Point(1), Point(2)]\nassert [move(Point(0), i) for i in (1, 2)] == expected"),
    "named tuple": ("from typing import NamedTuple\nclass Pair(NamedTuple):\n    a: int\n    b: int = 5\ndef f(x): return Pair(x, x)", "assert f(1) == Pair(1, 1) == (1, 1) and f(2).b == 2 and Pair(1).b == 5"),
    "enumeration": ("import enum\nclass Color(enum.Enum):\n    RED = 1\n    BLUE = 2\nclass Level(enum.IntEnum):\n    LOW = 1\ndef f(): return Color.RED", "assert f() == Color.RED and f() is Color.RED and f() != Color.BLUE and f().name == 'RED'\nassert Color(2) == Color.BLUE and [c.value for c in Color] == [1, 2] and Level.LOW == 1"),
    "attributes": ("class Box: pass\ndef f(b): return b.value * 2\ncount = 3", "b = Box()\nb.value = 4\nassert f(b) == 8 and count == 3\ndel b.value\nassert not hasattr(b, 'value')"),
    "values of many types": ("def f(x): return x", "import datetime, decimal, fractions, collections\nfor v in (1+2j, {1, 2}, frozenset({3}), b'x', bytearray(b'y'), decimal.Decimal('1.5'), fractions.Fraction(1, 3),\n          datetime.date(2024, 1, 2), collections.deque([1]), range(3), 2**100, float('inf'), None, ..., '\\u20ac', ValueError):\n    assert f(v) == v and type(f(v)) is type(v)"),
    "context manager": ("class Log:\n    def __init__(self): self.events = []\n    def __enter__(self): self.events.append('in'); return self\n    def __exit__(self, *a): self.events.append('out')", "log = Log()\nwith log as inner:\n    assert inner.events == ['in']\nassert log.events == ['in', 'out']"),
    "coroutine": ("import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + 1", "import asyncio\nassert asyncio.run(f(1)) == 2\nasync def both():\n    return [await f(1), await f(2)]\nassert asyncio.run(both()) == [2, 3]"),
    "test's own class": ("def total(node):\n    return 0 if node is None else node.value + total(node.next)\ndef reverse(node):\n    last = None\n    while node:\n        node.next, last, node = last, node, node.next\n    return last", "class Node:\n    def __init__(self, value, next=None):\n        self.value, self.next = value, next\na = Node(1, Node(2))\nassert total(a) == 3\nb = reverse(a)\nassert b.value == 2 and b.next is a and a.next is None"),
    "printing": ("def f(x):\n    print('got', x)", "import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n    f(1)\nassert out.getvalue() == 'got 1\\n'"),
    "imports the module": ("def f(x): return x\nN = 4", "from solution import f\nimport solution as s\nassert f(1) == 1 and s.N == 4 and s.f(2) == 2\ns.N = 5\nassert s.N == 5 and not hasattr(s, 'absent')"),
    "helper functions": ("def f(x): return x", "def ok(x, y):\n    assert f(x) == y, (x, y)\nok(1, 1)\nok('a', 'a')"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_TEST_CODE)
def test_test_code_that_does_more(name):
    accepted(*WITH_TEST_CODE[name])


def test_reasons_name_the_test_and_the_result():
    reason = refused("def f(x):\n    return x", "import math\nassert f(1) == 1\nassert f(4) == math.factorial(3)")
    assert reason == "test 2 of 2: f(4) == math.factorial(3): assertion failed (the solution's last result: 4)"
    assert refused("def f(x: return x", "assert f(1) == 1").startswith("loading the code raised SyntaxError")
    assert "NameError" in refused("def g(x): return x", "assert sorted(f(1)) == 1")


def test_objects_of_other_classes_are_compared_only_on_trust():
    code = "class Ratio:\n    def __init__(self, top, low): self.t, self.l = top, low\ndef half(): return Ratio(1, 2)"
    refused(code, "assert half() == Ratio(1, 2)")
    assert "objects" in refused(code, "assert half() == Ratio(1, 2)")
    accepted(code, "assert half() == Ratio(1, 2)", objects="trust")
    refused(code, "assert half() == Ratio(1, 3)", objects="trust")


def test_partial_counts_asserts_and_outlives_crashes(in_a_process):
    code = "import os\ndef f(n):\n    if n == 2: os._exit(0)\n    if n == 4: raise ValueError\n    return n"
    tests = "\n".join(f"assert f({n}) == {n}" for n in range(6))
    verdict = judge(code, tests, partial=True)
    assert verdict.reward == pytest.approx(4 / 6) and set(verdict.details["failures"]) == {"test 3", "test 5"}, verdict


def test_leetcode_nodes_travel_by_value():
    code = "class Solution:\n    def f(self, head: Optional[ListNode], n: int) -> Optional[ListNode]:\n        while n:\n            head, n = head.next, n - 1\n        return head\n"
    tests = "def check(candidate):\n    assert is_same_list(candidate(head=list_node([1, 2, 3]), n=1), list_node([2, 3]))\n    assert is_same_list(candidate(list_node([]), 0), list_node([]))\n\ncheck(Solution().f)\n"
    accepted(code, tests, entry_point="Solution().f")
    refused(code.replace("head.next, n - 1", "head, n - 1"), tests, entry_point="Solution().f")
    cycle = "class Solution:\n    def f(self, head, n):\n        head.next = head\n        return head\n"
    refused(cycle, tests, entry_point="Solution().f")
    flip = "class Solution:\n    def f(self, t: TreeNode):\n        if t:\n            t.left, t.right = self.f(t.right), self.f(t.left)\n        return t\n"
    tree = "def check(candidate):\n    assert is_same_tree(candidate(tree_node([1, 2, None, 3])), tree_node([1, None, 2, None, 3]))\n\ncheck(Solution().f)\n"
    accepted(flip, tree, entry_point="Solution().f")
    refused(flip.replace("self.f(t.right), self.f(t.left)", "t.right, t.left"), tree, entry_point="Solution().f")


# -- pytest ----------------------------------------------------------------------------------------------

LIBRARY = """
class Empty(Exception):
    pass

class Queue:
    def __init__(self, items=()):
        self.items = list(items)

    def take(self):
        if not self.items:
            raise Empty("nothing to take")
        return self.items.pop(0)

    def __len__(self):
        return len(self.items)

def ratio(a, b):
    if b < 0:
        raise ValueError("b is negative")
    return a / b

def greet():
    print("hello", input("who? "))

def price(item):
    return fetch(item) * 2

def fetch(item):
    raise OSError("no network")
"""
SUITE = """
import pytest
from unittest import TestCase, mock
import solution
from solution import Empty, Queue, ratio

@pytest.mark.parametrize(("a", "b", "c"), [(1, 2, 0.5), (3, 3, 1)])
def test_ratio(a, b, c):
    assert ratio(a, b) == pytest.approx(c)

def test_raises():
    with pytest.raises(ZeroDivisionError):
        ratio(1, 0)
    with pytest.raises(ValueError, match="negative"):
        ratio(1, -1)

@pytest.fixture
def queue():
    return Queue([1, 2])

class TestQueue:
    def test_take(self, queue):
        assert queue.take() == 1
        assert len(queue) == 1

    def test_empty(self):
        with pytest.raises(Empty) as caught:
            Queue().take()
        assert "nothing" in str(caught.value)

class Case(TestCase):
    def test_items(self):
        self.assertEqual(Queue([3]).items, [3])
        with self.assertRaises(solution.Empty):
            Queue().take()

def test_output(capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "Ada")
    solution.greet()
    assert capsys.readouterr().out == "hello Ada\\n"

def test_patched():
    with mock.patch("solution.fetch", return_value=4) as fetch:
        assert solution.price("x") == 8
    fetch.assert_called_once_with("x")
    with pytest.raises(OSError):
        solution.price("x")

@pytest.mark.skip(reason="later")
def test_later():
    assert False
"""


def test_a_whole_pytest_file():
    accepted(LIBRARY, SUITE)
    reason = refused(LIBRARY.replace("a / b", "a // b"), SUITE)
    assert reason.startswith("test_ratio of 7: ") and "0.5" in reason, reason
    verdict = judge(LIBRARY.replace("raise Empty", "raise IndexError").replace("a / b", "a // b"), SUITE, partial=True)
    assert verdict.reward == pytest.approx(4 / 7), verdict
    assert set(verdict.details["failures"]) == {"test_ratio", "TestQueue::test_empty", "Case::test_items"}
    assert "cannot import name" in refused("x = 1", SUITE)


def test_names_that_a_pytest_file_does_not_import():
    accepted("def f(x): return x", "def test_f():\n    assert f(1) == 1\n", style="pytest")
    accepted("def f(x): return x", "from my_code import *\ndef test_f():\n    assert f(1) == 1\n", module="my_code")
    refused("def f(x): return 2", "def test_f():\n    assert f(1) == 1\n")


# -- what is an error ------------------------------------------------------------------------------------


def test_tests_that_fail_by_themselves_are_errors():
    code = "def f(x): return x"
    is_error(code, "assert f(1) == (1", "does not compile")
    is_error(code, "f(1)", "asserts nothing")
    is_error(code, "import no_such_module\nassert f(1) == 1", "no_such_module")
    is_error(code, "import no_such_module\ndef test_f():\n    assert f(1) == 1", "no_such_module")
    is_error(code, "1/0\nassert sorted(f(1)) == 1", "ZeroDivisionError")
    is_error(code, "while True: pass\nassert sorted(f(1)) == 1", "CPU", limits={"cpu_seconds": 0.3})
    is_error(code, "def test_f(:\n    pass", "compile")
    is_error(code, [{"args": [object()], "output": 1}], "plain", entry_point="f")


def test_the_gold_solution_as_the_answer():
    """As `onebase verify code_tests --gold --field answer=SOLUTION` asks it."""
    verdict = verify("def f(x):\n    return x\n", "def f(x):\n    return x\n", test_list=["assert f(1) == 1"])
    assert verdict.reward == 1.0


def test_a_layer_that_is_not_here_is_an_error():
    is_error("def f(x): return x", "assert f(1) == 1", "no_such_layer", demand=["rlimits", "no_such_layer"])


def test_options_that_do_not_exist_are_told():
    for options, word in [
        ({"limits": {"cpu_second": 1}}, "did you mean 'cpu_seconds'"), ({"limits": {"cpu_seconds": -1}}, "above 0"),
        ({"objects": "trusted"}, "did you mean 'trust'"), ({"language": {"file": "x"}}, "needs a command"),
        ({"language": {"comand": []}}, "did you mean 'command'"), ({"language": {"command": ["a"], "build": ["b"]}}, "built"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=word):
            judge("x = 1", "assert f(1) == 1", **options)


def test_completions_without_code_score_0():
    for completion in ("", "I cannot do this.", "<think>```python\ndef f(x): return x\n```", "```python\ndef f(x): return x", "42"):
        verdict = verify(completion, "", tests="assert f(1) == 1")
        assert verdict.reward == 0.0 and verdict.reason, (completion, verdict)


# -- side by side ----------------------------------------------------------------------------------------


def test_threads_judge_side_by_side():
    wrong = []

    def work(n):
        for k in range(4):
            good, tests = (n + k) % 2 == 0, f"assert f({n}) == {n + k}\nassert f(0) == {k}"
            if judge(f"def f(x): return x + {k if good else k + 1}", tests).reward != float(good):
                wrong.append((n, k))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    close_all()


def test_on_a_pool():
    tests = json.dumps([{"input": "1", "output": "2"}])
    rows = [{"completion": fenced(f"print(int(input()) + {n % 2})"), "answer": tests} for n in range(8)]
    with VerifierPool(workers=2, wall_seconds=60) as pool:
        assert [v.reward for v in pool.run("code_tests", rows)] == [0.0, 1.0] * 4
