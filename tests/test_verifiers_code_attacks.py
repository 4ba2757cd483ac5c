"""Wrong solutions that try to be paid: every test here passes because the attack fails.

`f(3)` should be SECRET, which no solution can know.  An attack must earn 0, and be judged: an error would be
a way out of a bad reward.
"""

from __future__ import annotations

import os

import pytest

from onebase.verifiers import code_task
from onebase.verifiers.code_tests import verify
from onebase.verifiers.sandbox import Sandbox, SandboxError

SECRET = 40_961_783


def unavailable() -> str:
    try:
        Sandbox().close()
    except SandboxError as error:
        return f"this machine does not give the sandbox's layers: {error}"
    return ""


REASON = unavailable()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)
LIMITS = {"cpu_seconds": 0.5}

EQUAL = """
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return hash(40_961_783 // 1)
    def __iter__(self): return iter([40_961_783 * 0])
    def __len__(self): return 1
    def __bool__(self): return True
    def __contains__(self, other): return True
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __mul__ = __truediv__ = __mod__ = __sub__
    def __abs__(self): return self
    def __getitem__(self, key): return self
    def __call__(self, *args): return self
    def __getattr__(self, name): return self
    def __repr__(self): return "40961783"
    def __instancecheck__(self, other): return True
    def __reduce__(self): return (eval, ("40_961_783",))
    def __round__(self, *a): return self
""".replace("40_961_783 // 1", "1").replace("40_961_783 * 0", "0").replace("40_961_783", "1").replace("40961783", "1")

SEEK = """
import gc, sys, threading
def seek():
    found = []
    frames = list(sys._current_frames().values())
    for frame in frames:
        while frame is not None:
            found.append(dict(frame.f_locals)); found.append(frame.f_globals)
            frame = frame.f_back
    found += [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]
    seen = set()
    for o in found:
        for v in (o.values() if isinstance(o, dict) else o):
            if isinstance(v, int) and 40_000_000 < v < 50_000_000: return v
            if isinstance(v, (str, bytes)) and (b"40961" if isinstance(v, bytes) else "40961") in v: return v
            for name in ("expected", "output", "tests", "calls", "stdio", "answer"):
                if hasattr(v, name): return getattr(v, name)
    return None
"""
HARNESS = """
import onebase.verifiers.code_wire as wire, onebase.verifiers.code_unwire as unwire
import onebase.verifiers.code_solution as server
import sys
"""

ATTACKS = {
    "exit at import": "import sys\nsys.exit(0)",
    "exit in the call": "import sys\ndef f(x): sys.exit(0)",
    "_exit at import": "import os\nos._exit(0)",
    "_exit in the call": "import os\ndef f(x): os._exit(0)",
    "ctypes exit": "import ctypes\ndef f(x): ctypes.CDLL(None)._exit(0)",
    "thread that exits": "import os, threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), os._exit(0))).start()\ndef f(x):\n    time.sleep(0.3)\n    return x",
    "thread that outlives": "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\ndef f(x): return x",
    "child that outlives": "import os, time\ndef f(x):\n    if os.fork() == 0:\n        time.sleep(99)\n    return x",
    "equal object": "class E:" + EQUAL + "def f(x): return E()",
    "equal int": "class E(int):" + EQUAL + "def f(x): return E(1)",
    "equal str": "class E(str):" + EQUAL + "def f(x): return E('1')",
    "equal float": "class E(float):" + EQUAL + "def f(x): return E(1)",
    "equal list": "class E(list):" + EQUAL + "def f(x): return E([1])",
    "equal tuple": "class E(tuple):" + EQUAL + "def f(x): return E((1,))",
    "equal dict": "class E(dict):" + EQUAL + "def f(x): return E(a=1)",
    "equal set": "class E(set):" + EQUAL + "def f(x): return E([1])",
    "equal exception": "class E(Exception):" + EQUAL.replace("    def __getattr__(self, name): return self\n", "") + "def f(x): return E()",
    "equal class": "class M(type):" + EQUAL.replace("    def __getattr__(self, name): return self\n", "") + "class E(metaclass=M): pass\ndef f(x): return E",
    "a class that is called as the function": "class f:" + EQUAL + "    def __init__(self, x): pass",
    "a class that makes equal objects": "class E:" + EQUAL + "class f:\n    def __new__(cls, x): return E()",
    "equal items": "class E:" + EQUAL + "def f(x): return [E()]",
    "equal enumeration": "import enum\nclass C(enum.Enum):\n    A = 1\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return C.A",
    "equal mock": "from unittest import mock\ndef f(x): return mock.ANY",
    "lying class": "class E:\n    __class__ = property(lambda self: int)" + EQUAL + "def f(x): return E()",
    "lying module of the class": "class E:" + EQUAL + "E.__module__ = 'numpy'\nE.__qualname__ = 'ndarray'\ndef f(x): return E()",
    "frames and objects": SEEK + "def f(x): return seek()",
    "frames from a thread": SEEK + "def f(x):\n    out = []\n    t = threading.Thread(target=lambda: out.append(seek()))\n    t.start(); t.join()\n    return out[0]",
    "frames in __del__": SEEK + "got = []\nclass D:\n    def __del__(self): got.append(seek())\ndef f(x):\n    D()\n    return got[-1]",
    "trace": "import sys\nseen = []\ndef trace(frame, event, arg):\n    for v in frame.f_locals.values():\n        if isinstance(v, int) and v > 10**7: seen.append(v)\n    return trace\nsys.settrace(trace)\nsys.setprofile(lambda *a: trace(*a) and None)\ndef f(x): return seen[-1] if seen else x",
    "verdict through the frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for scope in (frame.f_locals, frame.f_globals):\n            for name in list(scope):\n                if name in ('passed', 'failed', 'ok', 'result', 'reward', 'report', 'error'):\n                    try: scope[name] = 1\n                    except Exception: pass\n        frame = frame.f_back\n    return x",
    "patched builtins": "import builtins\nfor n in ('all', 'any', 'isinstance', 'len', 'abs', 'sorted', 'repr', 'exec', 'eval', 'compile', 'print', 'type', 'AssertionError', 'Exception', 'BaseException', 'getattr', 'hasattr', 'zip', 'list', 'dict', 'int', 'str'):\n    setattr(builtins, n, lambda *a, **k: True)\ndef f(x): return x",
    "patched exceptions": "import builtins\nclass Quiet(BaseException): pass\nbuiltins.AssertionError = Quiet\ndef f(x): return x",
    "patched unittest": "import unittest, sys, types\nunittest.TestCase.assertEqual = unittest.TestCase.assertAlmostEqual = lambda *a, **k: None\nfake = types.ModuleType('pytest')\nsys.modules['pytest'] = fake\ndef f(x): return x",
    "patched stdout": "import sys, io\nsys.stdout = sys.stderr = sys.__stdout__ = io.StringIO()\ndef f(x):\n    sys.stdout = None\n    return x",
    "patched comparison": HARNESS + "import onebase.verifiers.code_solution\ntry:\n    import onebase.verifiers.code_compare as c\n    c.same_plain = c.same_value = c.output_differs = lambda *a: True\nexcept ImportError: pass\ndef f(x): return x",
    "patched encoding": HARNESS + "wire.Encoder.value = lambda self, x, depth=0: 1\ndef f(x): return x",
    "patched decoding": HARNESS + "unwire.Decoder.frame = lambda self, *a: ['ask', lambda *a: 1, (), {}]\ndef f(x): return x",
    "patched server": HARNESS + "server.Server.answer = lambda self, *v: self.send(wire.encode('ok', 1, None, ''))\ndef f(x): return x",
    "server that passes": HARNESS + "server.Server.one_question = lambda self: self.send(b'[\"ok\",true,null,\"\"]')\ndef f(x): return x",
    "prints the marks of success": "print('PASSED', 'ok', '1 passed', 'OK', '{\"passed\": true}')\ndef f(x):\n    print(True)\n    return x",
    "writes on every descriptor": "import os, struct\ndef spray():\n    body = b'[[\"ok\",1,null,\"\"],[]]'\n    for fd in range(64):\n        for data in (b'1\\n', b'ok\\n', struct.pack('<I8s', len(body), bytes(8)) + body, struct.pack('<I1s', 20, b'R') + b'[\"\",\"test\",0,null,null]'):\n            try: os.write(fd, data)\n            except OSError: pass\nspray()\ndef f(x):\n    spray()\n    return x",
    "answers before it is asked": HARNESS + "import gc, os\nfor s in gc.get_objects():\n    if type(s).__name__ == 'Server':\n        for _ in range(5): s.send(wire.encode('ok', 1, None, ''))\ndef f(x): return x",
    "finds the server and answers": HARNESS + "import gc\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        s = frame.f_locals.get('self')\n        if type(s).__name__ == 'Server':\n            s.answer('ok', 1, None, ''); s.answer('ok', 1, None, '')\n        frame = frame.f_back\n    return x",
    "replays": HARNESS + "old = server.Server.send\ndef send(self, body):\n    old(self, body); old(self, body)\nserver.Server.send = send\ndef f(x): return x",
    "nonces of its own": HARNESS + "import itertools\nold = server.Server.send\ndef send(self, body):\n    for n in range(200):\n        self.nonce = n.to_bytes(8, 'little'); old(self, body)\nserver.Server.send = send\ndef f(x): return x",
    "closes the channel": "import os\nos.closerange(3, 99)\ndef f(x): return x",
    "closes the channel in the call": "import os, time\ndef f(x):\n    os.closerange(0, 99)\n    time.sleep(20)",
    "half a frame": HARNESS + "import os, struct, time\ndef f(x):\n    os.write(3, struct.pack('<I', 100))\n    time.sleep(0.1)\n    os._exit(0)",
    "a frame of 4 GB": HARNESS + "def send(self, body):\n    import os\n    os.write(self.channel, server.HEAD.pack(2**32 - 1, self.nonce) + b'x' * 1000)\nserver.Server.send = send\ndef f(x): return x",
    "garbage": HARNESS + "old = server.Server.send\nserver.Server.send = lambda self, body: old(self, b'\\x00\\xff' * 50)\ndef f(x): return x",
    "deep garbage": HARNESS + "old = server.Server.send\nserver.Server.send = lambda self, body: old(self, b'[' * 2_000_000)\ndef f(x): return x",
    "wrong outline": HARNESS + "old = server.Server.send\nserver.Server.send = lambda self, body: old(self, wire.encode())\ndef f(x): return x",
    "answers of the wrong kind": HARNESS + "old = server.Server.send\nserver.Server.send = lambda self, body: old(self, wire.encode('raise', 1, 2, 3, 4, 5))\ndef f(x): return x",
    "calls functions that were not passed": HARNESS + "def f(x):\n    frame = sys._getframe()\n    while type(frame.f_locals.get('self')).__name__ != 'Server': frame = frame.f_back\n    return frame.f_locals['self'].call_back(-1, (), {})",
    "deep value": "def f(x):\n    v = []\n    for _ in range(300_000): v = [v]\n    return v",
    "deep tuple": "def f(x):\n    v = ()\n    for _ in range(300_000): v = (v,)\n    return v",
    "wide value": "def f(x): return list(range(3_000_000))",
    "shared value": "def f(x):\n    v = ()\n    for _ in range(90): v = (v, v)\n    return v",
    "cyclic value": "def f(x):\n    v = []\n    v += [v, v]\n    return v",
    "colliding keys": "def f(x): return {k * (2**61 - 1): 0 for k in range(2000)}",
    "huge int": "def f(x): return 1 << 20_000_000",
    "unprintable int": "def f(x): return 10 ** 20_000",
    "nan": "def f(x): return float('nan')",
    "surrogates": "def f(x): return '\\ud800\\udfff' * 5",
    "own text": "def f(x): return '40961783\\n\\x00\\u202e'",
    "recursion": "def f(x): return f(x)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "endless loop": "def f(x):\n    while True: pass",
    "endless loop that will not be told": "import signal\nsignal.setitimer(signal.ITIMER_PROF, 0)\nsignal.signal(signal.SIGPROF, signal.SIG_IGN)\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\ndef f(x):\n    while True: pass",
    "endless generator": "def f(x):\n    while True: yield 0",
    "endless output": "def f(x):\n    while True: print('x' * 1000)",
    "memory": "def f(x): return [0] * (10**10)",
    "endless printing to descriptor 1": "import os\ndef f(x):\n    while True: os.write(1, b'x' * 65536)",
    "asserts": "def f(x): raise AssertionError",
    "stops iteration": "def f(x): raise StopIteration(40961783)",
    "ends generators": "def f(x): raise GeneratorExit",
    "interrupts": "def f(x): raise KeyboardInterrupt",
    "exits well": "def f(x): raise SystemExit(0)",
    "raises BaseException": "class E(BaseException):" + EQUAL.replace("    def __getattr__(self, name): return self\n", "") + "def f(x): raise E()",
    "skips": "import unittest\ndef f(x): raise unittest.SkipTest('no')",
    "skips as pytest does": "class Skipped(BaseException):\n    __module__ = 'Skipped'\n    msg = 'x'\n    allow_module_level = True\ndef f(x): raise Skipped('x')",
    "raises at import what pytest skips on": "import unittest\nraise unittest.SkipTest('no')",
    "raises what cannot be shown": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\n    __repr__ = __str__\ndef f(x): raise E()",
    "exits at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return x",
    "kills its parent": "import os, signal\ndef f(x):\n    for p in (os.getppid(), -1, 0):\n        try: os.kill(p, signal.SIGKILL)\n        except OSError: pass\n    return x",
    "stops itself": "import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    return x",
    "writes files": "import os\ndef f(x):\n    for name in ('result.json', 'test_solution.py', 'conftest.py', '../x', '/tmp/x', '/dev/shm/x'):\n        try: open(name, 'w').write('{\"passed\": true}')\n        except OSError: pass\n    return x",
    "reads the machine": "import glob, os\ndef f(x):\n    for p in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline') + glob.glob('/proc/*/mem') + glob.glob('/work/*'):\n        try:\n            if b'40961783' in open(p, 'rb').read(10**6): return 40961783\n        except OSError: pass\n    return x",
    "module of its own": "import sys, types\nclass M(types.ModuleType):\n    def __getattr__(self, name): return lambda *a: 1\nsys.modules[__name__] = M('solution')\nsys.modules['solution'] = M('solution')\ndef f(x): return x",
    "syntax": "def f(x) return 40961783",
    "null bytes": "def f(x): return '\x00'",
    "nothing": "pass",
}  # fmt: skip
NAMES = [name for name in ATTACKS if "40961783" not in ATTACKS[name] or name in ("reads the machine", "own text", "syntax", "stops iteration")]

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
QUICK = ["equal object", "equal int", "a class that is called as the function", "a class that makes equal objects", "equal items",
         "stops iteration", "exits well", "asserts", "patched server", "frames and objects", "equal mock", "lying class",
         "equal class", "_exit in the call", "endless generator", "cyclic value", "nan", "module of its own"]  # fmt: skip


def attack(code, **row):
    verdict = verify(f"```python\n{code}\n```", "", limits=LIMITS, idle_seconds=1.0, **row)
    assert verdict.reward == 0.0 and verdict.error is None, verdict
    assert verdict.reason and "\n" not in verdict.reason
    return verdict


@pytest.mark.parametrize("name", NAMES)
def test_call_tests(name):
    attack(ATTACKS[name], tests=[{"args": [3], "output": SECRET}], entry_point="f")


@pytest.mark.parametrize("name", NAMES)
def test_asserts_that_are_compared_here(name):
    attack(ATTACKS[name], tests=[f"assert f(3) == {SECRET}"])


@pytest.mark.parametrize("name", NAMES)
def test_asserts_in_the_tests_process(name):
    attack(ATTACKS[name], tests=RUN_TESTS["equal"].replace("SECRET", str(SECRET)))


@pytest.mark.parametrize("name", NAMES)
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

MADE = "class E:" + EQUAL
PARTICULAR = {
    "StopIteration empties a map": ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))"),
    "StopIteration's child": ("class S(StopIteration): pass\ndef f(x): raise S", "assert all(map(f, [1, 2]))"),
    "StopIteration in next": ("class I:\n    def __iter__(self): return self\n    def __next__(self): raise ValueError\ndef f(x): return I()", "for y in f(1):\n    assert y == 2\nassert f(1) is not None"),
    "GeneratorExit in a generator": ("def f(x): raise GeneratorExit", "def g():\n    yield f(1)\nfor x in g():\n    assert x == 2"),
    "an expected exception that is not": ("def f(x): import os; os._exit(0)", "try:\n    f(1)\n    assert False\nexcept Exception:\n    pass\nexcept BaseException:\n    pass"),
    "an expected exception of another name": ("class ValueError2(Exception): pass\nValueError2.__name__ = 'ValueError'\ndef f(x): raise ValueError2", "try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass"),
    "a context manager that swallows": ("class C:\n    def __enter__(self): return 5\n    def __exit__(self, *a): return True\ndef f(): return C()", "with f() as c:\n    assert c == 6"),
    "a context manager that hides": ("class C:\n    def __enter__(self): raise ValueError\n    def __exit__(self, *a): return True\ndef f(): return C()", "with f() as c:\n    assert c == 6"),
    "an assert in a callback is swallowed": ("def f(g):\n    try: g(1)\n    except BaseException: pass", "def g(x):\n    assert x == 2\nf(g)\nassert f(g) is None"),
    "a forged answer of equality": ("class Box:\n    def __init__(self, n): self.n = 0\n    def __eq__(self, o): return True\ndef f(b): return Box(0)", "assert f(Box(1)) == Box(2)"),
    "a class without state": ("class Box:\n    def __init__(self, *a): pass\n    def __eq__(self, o): return True\n    def __add__(self, o): return self", "assert Box(1) + Box(2) == Box(3)"),
    "equality after a change": ("class Box:\n    def __init__(self, n): self.n = n\n    def grow(self): pass\n    def __eq__(self, o): return True", "b = Box(1)\nb.grow()\nassert b == Box(2)\n"),
    "equality of a changed object in a variable": ("class Box:\n    def __init__(self, n): self.n = n\n    def grow(self): pass\n    def __eq__(self, o): return True", "b = Box(1)\nb.grow()\nwanted_box = Box(2)\nc = Box(2)\nassert b == c\n"),
    "the last object made is changed": ("class Box:\n    made = []\n    def __init__(self, n):\n        self.n = n\n        for b in Box.made: b.n = n\n        Box.made.append(self)\ndef f(b): return Box(0)", "assert f(Box(1)) == Box(2)"),
    "a data class that is all alike": ("from dataclasses import dataclass\n@dataclass\nclass Box:\n    n: int\n    def __eq__(self, o): return True\n    def __getattribute__(self, name): return 0 if name == 'n' else object.__getattribute__(self, name)\ndef f(b): return b", "assert f(Box(1)) == Box(2)"),
    "a data class whose fields are hidden": ("from dataclasses import dataclass, field\n@dataclass\nclass Box:\n    n: int = field(compare=False)\ndef f(b): return b", "assert f(Box(1)) == Box(2)"),
    "a constructor that returns what came before": ("from typing import NamedTuple\nclass Box(NamedTuple):\n    n: int\ndef f(b): return b", "assert f(Box(1)) == Box(2)"),
    "an operator that is told the expected value": (MADE + "class Area:\n    def __new__(cls, *a): return E()\n", "assert abs(area(2) - 12.5) < 0.1".replace("area", "f")),
    "an object the test made, returned": ("class Circle:\n    def __init__(self, r): self.r = r\n    def __sub__(self, o): return 0.0\ndef area(c): return c", "assert abs(area(Circle(2)) - 12.5) < 0.1"),
    "an alias of a class the test knows": ("class Circle:\n    def __init__(self, r): self.r = r\n    def __sub__(self, o): return 0.0\n    __rsub__ = __sub__\narea = Circle", "assert Circle(1).r == 1 and abs(area(2) - 12.5) < 0.1"),
    "an attribute that is the object": ("class Circle:\n    def __init__(self, r): self.r = r\n    def __sub__(self, o): return 0.0\n    @property\n    def area(self): return self", "c = Circle(2)\nassert abs(c.area - 12.5) < 0.1"),
    "an operator's result, told the expected value": ("class Money:\n    def __init__(self, r): self.r = r\n    def __sub__(self, o): return 0.0\n    def __mul__(self, o): return self", "assert abs(Money(2) * Money(3) - 6) < 0.1"),
    "membership that is always true": (MADE + "def f(x): return E()", "assert 5 in f(1)"),
    "a length that changes": ("class E:\n    n = 0\n    def __len__(self):\n        E.n += 1\n        return True\ndef f(x): return E()", "assert len(f(1)) == 2"),
    "a skip": ("def f(x): return 1", "import pytest\ndef test_f():\n    if f(1) != 2:\n        pytest.skip('no')\n    assert f(1) == 2"),
    "a constant that skips at collection": ("cases = []\ndef f(x): return 1", "import pytest, solution\n@pytest.mark.parametrize('x', solution.cases)\ndef test_f(x):\n    assert solution.f(x) == 2"),
    "a constant that hides a test": ("LEVEL = 0\ndef f(x): return 1", "import pytest, solution\nif solution.LEVEL:\n    pass\nelse:\n    pytest.skip('no', allow_module_level=True)\ndef test_f():\n    assert solution.f(1) == 2"),
    "a test that ends the process": ("def f(x): raise SystemExit(0)", "import pytest\ndef test_f():\n    f(1)\ndef test_g():\n    assert f(1) == 2"),
    "a test that is told to stop": ("def f(x): raise KeyboardInterrupt", "def test_f():\n    f(1)\ndef test_g():\n    f(2)"),
    "a test name that is replaced": ("def test_f(): pass\ndef check(c): pass\ndef f(x): return 1", "from solution import *\ndef test_f():\n    assert f(1) == 2"),
    "names of the test's own": ("def check(c): pass\ncandidate = 5\ndef __onebase_report__(*a): pass\nAssertionError = ValueError\nlen = lambda x: 2\ndef f(x): return [1]", "def check(candidate):\n    assert len(candidate(1)) == 2\ncheck(f)"),
    "an endless generator in a list": ("def f(x):\n    while True: yield x", "assert list(f(1)) == [1]"),
    "an early end": ("def f(x): return 1", "for x in range(f(0)):\n    assert f(x) == 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTICULAR)
def test_attacks_on_particular_test_code(name):
    code, tests = PARTICULAR[name]
    attack(code, tests=tests)


# -- programs ------------------------------------------------------------------------------------------

PROGRAMS = {
    "exit": "import sys\nsys.exit(0)", "_exit": "import os\nos._exit(0)", "right, then an exception": "print(40)\n1/0",
    "part of the lines": "print(40)", "more lines": "print(40)\nprint(41)\nprint(42)", "all answers": "for n in range(99): print(n)",
    "one line of all": "print(' '.join(map(str, range(99))))", "endless output": "while True: print(40)", "no end": "print(40)\nprint(41)\nwhile True: pass",
    "frames": SEEK + "print(seek())", "harness": HARNESS + "print(1)", "reads itself": "print(open(__file__).read())" if False else "print(__doc__)",
    "equal text": "class E(str):" + EQUAL + "import sys\nsys.stdout.write(E('1'))", "stdout replaced": "import sys\nclass W:\n    def write(self, s): pass\n    def flush(self): pass\nsys.stdout = W()\nprint(40)\nprint(41)",
    "every descriptor": "import os\nfor fd in range(64):\n    try: os.write(fd, b'ok 1 passed')\n    except OSError: pass", "nothing": "", "killed": "import os\nos.abort()",
    "writes to stderr": "import sys\nprint('40\\n41', file=sys.stderr)", "empty file names": "import os\nfor n in os.listdir('.'): print(open(n).read())",
    "memory": "x = [0] * 10**10", "sockets": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)", "input is not there": "print(input()); print(input()); print(input())",
    "a child that prints later": "import os, time\nif os.fork() == 0:\n    time.sleep(0.2)\n    print(41)\nelse:\n    print(40)",
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    attack(PROGRAMS[name], tests=[{"input": "x\n", "output": "40\n41\n"}])


@pytest.mark.parametrize("name", ["exit", "_exit", "right, then an exception", "killed", "memory", "no end", "endless output"])
def test_programs_with_nothing_expected(name):
    code = PROGRAMS[name]
    if name in ("exit", "_exit"):
        code = "import sys\nsys.exit('no')"
    attack(code.replace("print(40)\n1/0", "1/0"), tests=[{"input": "", "output": ""}])


def test_nothing_is_left_over():
    """After hostile runs: no process of a run, and the sandbox still judges right solutions."""
    right = verify("```python\ndef f(x): return x\n```", "", tests="assert f(3) == 3")
    assert right.reward == 1.0
    names = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/status") as status:
                fields = dict(line.split(":", 1) for line in status if ":" in line)
        except OSError:
            continue
        if int(fields["Uid"].split()[0]) >= 1 << 30 and fields["State"].strip()[0] != "Z":
            names.append((pid, fields["Name"].strip()))
    assert not names
