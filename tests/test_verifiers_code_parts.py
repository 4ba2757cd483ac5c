"""The parts of `code_tests` that need no sandbox: encoding, extraction, comparison, reading of tests."""

from __future__ import annotations

import ast
import collections
import datetime
import json
import math
import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onebase.verifiers import code_asserts
from onebase.verifiers.code_asserts import TestCodeError, complete, direct, free_names, instrument, parse
from onebase.verifiers.code_compare import output_differs, same_plain, same_value, show
from onebase.verifiers.code_extract import extract
from onebase.verifiers.code_shapes import Shape, mark_expected, read_shape
from onebase.verifiers.code_task import read_task
from onebase.verifiers.code_unwire import Decoder, decode
from onebase.verifiers.code_wire import FRAME_BYTES, Encoder, WireError, encode

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# -- the encoding ---------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False)
    | st.text()
    | st.characters(categories=["Cs"])
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.builds(range, st.integers(-99, 99), st.integers(-99, 99), st.integers(1, 9))
)
hashable = st.recursive(scalars, lambda x: st.tuples(x, x) | st.frozensets(x, max_size=3), max_leaves=6)
values = st.recursive(
    hashable,
    lambda x: (
        st.lists(x, max_size=4)
        | st.tuples(x, x)
        | st.dictionaries(hashable, x, max_size=3)
        | st.sets(hashable, max_size=3)
        | st.builds(collections.deque, st.lists(x, max_size=3))
    ),
    max_leaves=12,
)


def same_types(a, b):
    """Equal, and of the same types all through; sets and dicts by their contents."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, list | tuple | collections.deque):
        return all(map(same_types, a, b))
    return all(same_types(a[k], b[k]) for k in a) if isinstance(a, dict) else True


@QUICK
@given(values)
def test_what_is_encoded_comes_back(value):
    (back,) = decode(encode(value))
    assert same_types(back, value)


@QUICK
@given(st.floats())
def test_floats_keep_their_bits(value):
    (back,) = decode(encode(value))
    assert (math.isnan(back) and math.isnan(value)) or (
        back == value and math.copysign(1, back) == math.copysign(1, value)
    )


def test_collections_keep_their_kind():
    for value in (
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.Counter({"a": -2, "b": 0}),
        collections.deque([1, 2], maxlen=2),
        bytearray(b"ab"),
        {1: 2}.keys(),
        ...,
        {1, "a"},
        frozenset([()]),
        datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
        Decimal("1.50"),
        Fraction(1, 3),
        -0.0,
    ):
        (back,) = decode(encode(value))
        assert back == value and type(back) is type(value) and repr(back) == repr(value)


def test_shared_cyclic_and_deep_values_keep_their_shape():
    cyclic: list = [1]
    cyclic.append(cyclic)
    (back,) = decode(encode(cyclic))
    assert back[1] is back
    inner: list = []
    (back,) = decode(encode([inner, inner]))
    assert back[0] is back[1]
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    (back,) = decode(encode(deep))
    for _ in range(100_000):
        (back,) = back
    assert back == []


def test_subclasses_are_reduced_by_the_base_types_own_methods():
    def never(*args):
        raise RuntimeError("a method of the subclass was called")

    def evil(base, *names):
        return type("Evil", (base,), dict.fromkeys(names, never))

    always = ("__eq__", "__ne__", "__hash__", "__repr__", "__str__", "__len__", "__bool__", "__reduce__")
    cases = [
        (evil(int, *always, "__int__", "__index__"), 7),
        (evil(str, *always, "__iter__", "encode"), "é"),
        (evil(float, *always, "__float__"), 1.5),
        (evil(bytes, *always, "__iter__"), b"x"),
        (evil(list, *always, "__iter__", "__getitem__"), [1]),
        (evil(tuple, *always, "__iter__"), (1, 2)),
        (evil(dict, *always, "__iter__", "items", "keys", "__getitem__"), {1: 2}),
        (evil(set, *always, "__iter__", "__contains__"), {3}),
        (evil(frozenset, *always, "__iter__"), frozenset([3])),
    ]
    for kind, value in cases:
        (back,) = decode(encode(kind(value)))
        assert type(back) is type(value) and back == value
    point = collections.namedtuple("Point", "x y")(1, 2)
    (back,) = decode(encode(point))
    assert back == (1, 2) and back.x == 1 and type(back).__name__ == "Point"


def test_things_that_are_not_plain_data_are_refused():
    deep: tuple = ()
    for _ in range(500):
        deep = (deep,)
    for value in (object(), print, int, iter([]), deep):
        with pytest.raises(WireError):
            encode(value)


bad = [
    b"",
    b"[",
    b"{}",
    b"[]",
    b"[[],[],[]]",
    b"[[[0]],[]]",
    b'[[["x","y"]],[]]',
    b'[[{"a":1}],[]]',
    b"[[NaN],[]]",
    b"[[Infinity],[]]",
    b'[[[true]],[["l",null]]]',
    b'[[[0]],[["?",null]]]',
    b'[[[0]],[["l"]]]',
    b"[[[0]],[[1,null]]]",
    b'[[[0]],[["t",null,[0]]]]',
    b'[[[0]],[["t",null,[1]],["t",null]]]',
    b'[[[0]],[["d",null,1]]]',
    b'[[[0]],[["d",null,[0],1]]]',
    b'[[[0]],[["s",null,[0]]]]',
    b'[[[0]],[["b",5]]]',
    b'[[[0]],[["b","*"]]]',
    b'[[[0]],[["c",["1"]]]]',
    b'[[[0]],[["c",[[],"1"]]]]',
    b'[[[0]],[["r",null,1,2]]]',
    b'[[[0]],[["r",null,1,2,0]]]',
    b'[[[0]],[["q",null,1,0]]]',
    b'[[[0]],[["m","x"]]]',
    b'[[[0]],[["m",5]]]',
    b'[[[0]],[["date",[0,0,0]]]]',
    b'[[[0]],[["date",[2020,1]]]]',
    b'[[[0]],[["datetime",null]]]',
    b'[[[0]],[["n",["P"],1]]]',
    b'[[[0]],[["n",["P","class"],1]]]',
    b'[[[0]],[["n",["P","a b"],1]]]',
    b'[[[0]],[["n",[5,"a"],1]]]',
    b'[[[0]],[["A",["<f8",[3]],[0]]]]',
    b'[[[0]],[["h",[1,2]]]]',
    b'[[["i","zz"]],[]]',
    b'[[["s","ff"]],[]]',
    b'[[["f","1"]],[]]',
    b"[[" + b"9" * 5000 + b"],[]]",
    b"[" * 100_000,
    b"\xff",
    b'[[[0]],[["D",-1]]]',
    b'[[[0]],[["delta",[1e9,0,0]]]]',
    b'[[[0]],[["delta",[999999999999,0,0]]]]',
    b"x" * (FRAME_BYTES + 1),
]


@pytest.mark.parametrize("data", bad, ids=range(len(bad)))
def test_frames_out_of_form_are_wire_errors(data):
    with pytest.raises(WireError):
        decode(data)


@QUICK
@given(st.binary(max_size=60) | st.text(alphabet='[]",0123456789lthnr-{}:a ').map(str.encode))
def test_no_bytes_raise_anything_else(data):
    try:
        decode(data)
    except WireError:
        pass


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.sampled_from(["l", "t", "d", "s", "z", "n", "i", "f", "R", "k", "A"]),
    lambda x: st.lists(x, max_size=4),
    max_leaves=20,
)


@QUICK
@given(st.lists(json_values, max_size=3), st.lists(json_values, max_size=5))
def test_no_frame_of_the_right_outline_raises_anything_else(roots, nodes):
    try:
        decode(json.dumps([roots, nodes]).encode())
    except WireError:
        pass


def test_hashing_is_bounded():
    """Shared tuples, whose hash would take 2**60 steps, and numbers that were chosen to collide."""
    nodes: list = [["t", None, 1, 1]]
    for k in range(60):
        nodes.append(["t", None, [k], [k]])
    prime = (1 << 61) - 1
    colliding = [["i", hex(prime * k)] for k in range(1, 20_000)]
    tuples = [["t", None, number] for number in colliding]
    start = time.process_time()
    for document in (
        [[[61]], [*nodes, ["z", None, [60]]]],
        [[[0]], [["s", None, *colliding]]],
        [[[0]], [["d", None, *[x for c in colliding for x in (c, 1)]]]],
        [[[0]], [["z", None, *colliding]]],
        [[[0]], [["s", None, *[[k] for k in range(1, 20_000)]], *tuples]],
        [
            [[0]],
            [
                ["s", None, *[[k] for k in range(1, 999)]],
                *[["c", [f"{-1000003 * k}", f"{k}"]] for k in range(999)],
            ],
        ],
    ):
        with pytest.raises(WireError):
            decode(json.dumps(document).encode())
    assert time.process_time() - start < 5


def test_changed_containers_are_put_back_into_the_originals():
    mine, inner = [3, 1, 2], [0]
    encoder = Encoder()
    encoder.frame(["call", [mine, {"k": inner}], {}])
    sent = encoder.mutables[2:]
    assert sent[0] is mine and len(sent) == 3
    theirs, their_inner = [1, 2, 3], [9]
    their_dict = {"k": their_inner, "new": theirs}
    reply = encode("ok", theirs, [theirs, their_dict, their_inner], "")
    answer = Decoder().frame(reply, sent)
    assert (
        answer[1] is mine
        and mine == [1, 2, 3]
        and inner == [9]
        and sent[1]["k"] is inner
        and sent[1]["new"] is mine
    )
    for wrong in ([theirs], [theirs, theirs, their_dict], [[], {}, {}], 5, "x"):
        with pytest.raises(WireError):
            Decoder().frame(encode("ok", None, wrong, ""), sent)


# -- extraction ------------------------------------------------------------------------------------------

FENCE_INSIDE = 'def f():\n    """\n    ```\n    f()\n    ```\n    """\n'
EXTRACTED = [
    ("```python\nx = 1\n```", "x = 1\n"),
    ("text\n```py\nx = 1\n```\nmore\n```python\ny = 2\n```\nend", "y = 2\n"),
    ("```python\nx = 1\n```\nOutput:\n```\n5\n```", "x = 1\n"),
    ("```\nx = 1\n```\n```text\n5\n```", "x = 1\n"),
    ("~~~python\nx = 1\n~~~", "x = 1\n"),
    ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
    (f"```python\n{FENCE_INSIDE}```", FENCE_INSIDE),
    ("- item\n    ```python\n    def f():\n        return 1\n    ```", "def f():\n    return 1\n"),
    ("<think>```python\nx = 0\n```</think>```python\nx = 1\n```", "x = 1\n"),
    ("<think>a</think>\n```python\ns.split('</think>')\n```", "s.split('</think>')\n"),
    ("<think>a</think>\n```python\nx = 1\n```\n<think>```python\nx = 2\n```\n</think>\nbye", "x = 1\n"),
    ("<think>a</think>def f():\n    return 1<|im_end|>", "def f():\n    return 1\n"),
    ("    return x\n", "    return x\n"),
    ("```Python title='a'\r\nx = 1\r\n```\r\n", "x = 1\n"),
    ("```{.python .numberLines}\nx = 1\n```", "x = 1\n"),
    ("```python\n```", "\n"),
]
NOTHING = [
    "<think>```python\nx = 1\n```",
    "```python\nx = 1\n",
    "```python\nx = 0\n```\n```python\nx = 1",
    "",
    "<think>a</think>  \n",
    "```bash\nls\n```",
    "```python\nx = 1\n``",
    "<think>a</think>b<think>```python\nx = 1\n```",
    "x" * 500_000,
]


@pytest.mark.parametrize(("text", "code"), EXTRACTED, ids=range(len(EXTRACTED)))
def test_code_is_found(text, code):
    assert extract(text).text == code


@pytest.mark.parametrize("text", NOTHING, ids=range(len(NOTHING)))
def test_no_code_is_found(text):
    found = extract(text)
    assert found.text is None and found.how


def test_an_opened_thought_must_close():
    assert extract("```python\nx = 1\n```", prefilled=True).text is None
    assert extract("hm</think>```python\nx = 1\n```", prefilled=True).text == "x = 1\n"


def test_other_languages_have_their_own_tags():
    text = "```js\nlet x\n```\n```python\nx = 1\n```"
    assert extract(text, ("js", "javascript")).text == "let x\n"


@QUICK
@given(st.text(alphabet="`~ \n<think/>apy", max_size=300))
def test_extraction_never_fails(text):
    found = extract(text)
    assert (found.text is None) or "</think>" not in text or found.text in text + "\n" or found.fenced


def test_extraction_is_fast_on_hostile_text():
    start = time.process_time()
    for text in (
        "`" * 300_000,
        "```\n" * 90_000,
        "<think>" * 50_000,
        "~~~`" * 90_000,
        " " * 390_000 + "```",
        "<|" * 190_000,
    ):
        extract(text)
    assert time.process_time() - start < 3


# -- comparison -----------------------------------------------------------------------------------------

SAME_OUTPUT = [
    (b"1 2\n3\n", "1 2\n3"),
    (b"1 2  \n3", "1 2\n3\n"),
    (b"", ""),
    (b"\n", ""),
    (b"a\r\nb\r\n", "a\nb"),
    (b"5\n", "5\n\n\n"),
    (b"5\n\n\n", "5\n\n\n"),
    (b"", "\n"),
    ("é\n".encode(), "é"),
]
OTHER_OUTPUT = [
    (b"1 2\n3\n4\n", "1 2\n3"),
    (b"1 2\n", "1 2\n3"),
    (b"1  2", "1 2"),
    (b" 1", "1"),
    (b"5\n\n", "5"),
    (b"\n5", "5"),
    (b"", "5"),
    (b"5", ""),
    (b"5.0", "5"),
    (b"1 2 3", "1\n2\n3"),
    (b"\xff", "\ufffd"),
    (b"NO", "no"),
]


@pytest.mark.parametrize(("got", "expected"), SAME_OUTPUT)
def test_output_is_right(got, expected):
    assert output_differs(got, expected) is None


@pytest.mark.parametrize(("got", "expected"), OTHER_OUTPUT)
def test_output_is_wrong(got, expected):
    assert output_differs(got, expected)


def test_tolerance_is_for_decimal_numbers_only():
    assert output_differs(b"0.3333333 x\n", "0.33333334 x", 1e-6) is None
    assert output_differs(b"1e3", "1000.0", 1e-6) is None
    for got, expected in [
        (b"0.34", "0.33"),
        (b"10000001", "10000000"),
        (b"nan", "1.0"),
        (b"inf", "1.0"),
        (b"1.0 2.0", "1.0"),
        (b"1_0.0", "10.0"),
        (b"1.0\n", "1.0\n2.0"),
        (b"y", "x"),
    ]:
        assert output_differs(got, expected, 1e-6), (got, expected)


def test_values_of_call_tests():
    same = [
        ((1, 2), [1, 2]),
        ([(1, 2)], [[1, 2]]),
        ({1: "a"}, {"1": "a"}),
        ({True: 1}, {"true": 1}),
        (1, 1.0),
        ({1, 2}, {2, 1}),
        (float("nan"), float("nan")),
        (None, None),
        ([[]], [[]]),
    ]
    other = [
        ([1], [1, 2]),
        ([1, 2], [2, 1]),
        ("12", [1, 2]),
        ("1", 1),
        (None, 0),
        ({1: 1, "1": 1}, {"1": 1}),
        ({}, []),
        (0.1 + 0.2, 0.3),
        (object(), 1),
        ({"a": 1}, {"a": 1, "b": 2}),
        (float("nan"), 1.0),
        ({1, 2}, [1, 2]),
    ]
    assert all(same_value(a, b) for a, b in same), [x for x in same if not same_value(*x)]
    assert not any(same_value(a, b) for a, b in other), [x for x in other if same_value(*x)]
    assert same_value([0.1 + 0.2], [0.3], 1e-9) and not same_value([10**400], [0.3], 1e-9)
    assert not same_value([3], [4], 0.5)  # an integer is exact


def test_comparing_and_showing_hostile_values_ends():
    deep: list = []
    for _ in range(50_000):
        deep = [deep]
    cyclic: list = []
    cyclic.append(cyclic)
    shared: list = []
    for _ in range(60):
        shared = [shared, shared]
    start = time.process_time()
    for value in (
        deep,
        cyclic,
        shared,
        10**100_000,
        "x" * 1_000_000,
        list(range(100_000)),
        {i: i for i in range(9999)},
    ):
        assert len(show(value)) <= 120 and "\n" not in show(value)
        assert not same_plain(value, [1]) and not same_value(value, [[1]])
    assert not same_plain(deep, [deep, 1])
    assert time.process_time() - start < 3


# -- test code -------------------------------------------------------------------------------------------

CHECK = """
METADATA = {'a': 1}

def check(candidate):
    assert candidate(1) == 2
    assert candidate(x=[2]) == (3, -1.5)
"""


def test_simple_asserts_become_calls():
    calls = direct(
        parse("assert f(1, 'a', k=[2]) == {'a': (1,)}\nassert None is g()\nassert 5 == f(-1), 'why'"), None
    )
    assert calls is not None
    assert [(c.entry, c.args, c.kwargs, c.expected, c.same) for c in calls] == [
        ("f", (1, "a"), {"k": [2]}, {"a": (1,)}, False),
        ("g", (), {}, None, True),
        ("f", (-1,), {}, 5, False),
    ]
    tree = parse(CHECK)
    complete(tree, "Solution().f")
    calls = direct(tree, "Solution().f")
    assert (
        calls is not None
        and [c.entry for c in calls] == ["Solution().f"] * 2
        and calls[1].expected == (3, -1.5)
    )


@pytest.mark.parametrize(
    "code",
    [
        "assert f(1)",
        "assert f(x) == 1",
        "assert f(1) == g(1)",
        "assert not f(1)",
        "assert f(1) < 2",
        "assert f(*[1]) == 2",
        "assert f(**{'a': 1}) == 2",
        "assert o.f(1) == 2",
        "x = f(1)\nassert x == 2",
        "assert len([1]) == 1",
        "assert f(1) is 2",
        "import os\nassert f(1) == 2",
        "for i in range(3):\n    assert f(i) == 2",
        "assert f(1) == 2 == 2",
        "def f(x): return 2\nassert f(1) == 2",
        "def check(c, d):\n    assert c(1) == 2\ncheck(f, g)",
        "def check(c=f):\n    assert c(1) == 2\ncheck(f)",
    ],
)
def test_other_test_code_is_run(code):
    assert direct(parse(code), "f") is None


def test_tests_are_counted_where_they_stand():
    cases = {
        "assert f(1)\nassert f(2)": 2,
        "x = f(1)\nif x:\n    assert x\n    assert x": 1,
        "for i in range(9):\n    assert f(i)": 1,
        "def helper(x):\n    assert x\nhelper(f(1))\nhelper(f(2))": 2,
        "def a(x):\n    assert x\ndef b(x):\n    a(x)\nb(f(1))": 1,
        "def check(c):\n    assert c(1)\n    x = c(2)\n    for i in x:\n        assert i\ncheck(f)": 2,
        "def check(c):\n    if c(1) != 2:\n        raise ValueError\ncheck(f)": 1,
        "def check(c):\n    assert c(1)\ncheck(f)\ncheck(g)": 2,
        "try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass": 1,
    }
    for code, count in cases.items():
        tree = parse(code)
        tests = instrument(tree)
        assert len(tests) == count, code
        reports: dict = {}
        space = {"f": lambda x: [x], "g": lambda x: [x], code_asserts.REPORT: reports.__setitem__}
        exec(compile(tree, "tests", "exec"), space)
        assert set(reports) == set(range(count)), code


@pytest.mark.parametrize(
    "code", ["x = 1", "f(1)", "", "def check(c):\n    pass\ncheck(f)", "def g():\n    assert True"]
)
def test_code_that_asserts_nothing_is_an_error(code):
    with pytest.raises(TestCodeError):
        instrument(parse(code))


def test_names_wanted_from_the_solution():
    code = """
import math as m
from os import path
y = 1
def h(a, *b, c=2, **d):
    z = a + b + y
    global w
    w = 1
    return z + q
class K:
    attr = base
    def m(self):
        return attr2
[u for u in items if v]
w
print(m, path, h, K)
lambda t: t + s
"""
    assert free_names(code) == ["attr2", "base", "items", "q", "s", "v"]


def test_objects_written_down_to_be_compared_with_are_marked():
    marked = {
        "assert f(Box(1)) == Box(2)": 1,
        "assert Box(1) == Box(1)": 2,
        "assert f() == [Box(1), (m.Box(2), {'a': Box(3)})]": 3,
        "expected = Box(1)": 1,
        "b = Box(1)": 0,
        "self.assertEqual(f(), Box(1))": 1,
        "assert f(Box(1)) == 1": 0,
        "Box(1)": 0,
        "assert f() == box(1)": 0,
        "assert Box(1).x == 2": 0,
        "assert f() in [Box(1)]": 1,
        "with raises(E):\n    Box(1)": 0,
    }
    for code, count in marked.items():
        assert mark_expected(ast.parse(code)) == count, code


def test_shapes_bind_as_a_constructor_does():
    shape = Shape("data", ("x", "y"), (0,))
    assert shape.bind("P", (1,), {}) == {"x": 1, "y": 0} and shape.bind("P", (), {"y": 2, "x": 1}) == {
        "x": 1,
        "y": 2,
    }
    for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"x": 1})]:
        with pytest.raises(TypeError):
            shape.bind("P", args, kwargs)
    for meta, defaults in [
        ([1, "P", "data", []], []),
        ([1, "P", "other", ["x"]], []),
        ([1, "P", "data", ["x", "x"]], []),
        ([1, "P", "data", [5]], []),
        ([1, "P", "enum", ["x"]], []),
        ([1, "P", "data", ["x"]], [1, 2]),
        ([1, "P", "data", "x"], []),
    ]:
        with pytest.raises(WireError):
            read_shape(meta, defaults)


# -- rows ------------------------------------------------------------------------------------------------


def test_styles_are_told_from_the_tests():
    def style(row, answer=""):
        return read_task(row, answer).style

    assert style({"tests": [{"input": "1", "output": "2"}]}) == "stdio"
    assert style({"tests": json.dumps([{"input": "1", "output": "2"}])}) == "stdio"
    assert style({}, json.dumps([{"input": "1", "output": "2"}])) == "stdio"
    assert style({"tests": {"inputs": ["1"], "outputs": ["2"]}}) == "stdio"
    assert style({"tests": {"inputs": [[1]], "outputs": [2], "fn_name": "f"}}) == "call"
    assert style({"tests": [{"args": [1], "output": 2}], "entry_point": "f"}) == "call"
    assert style({"tests": [{"input": [1], "output": 2}], "entry_point": "f"}) == "call"
    assert style({"test_list": ["assert f(1) == 2"], "test_setup_code": ""}) == "assert"
    assert style({"test": CHECK, "entry_point": "f"}) == "assert"
    assert style({"tests": "from solution import f\ndef test_f():\n    assert f(1) == 2\n"}) == "pytest"
    assert (
        style(
            {"tests": "import unittest\nclass A(unittest.TestCase):\n    def test_f(self):\n        pass\n"}
        )
        == "pytest"
    )


ROWS = [
    ({}, "no tests"),
    ({"tests": []}, "no tests"),
    ({"tests": [{"input": "1"}]}, "no output"),
    ({"tests": 5}, "int"),
    ({"tests": {"a": 1}}, "inputs and outputs"),
    ({"tests": {"inputs": ["1"], "outputs": []}}, "one length"),
    ({"tests": [{"args": [1], "output": 2}]}, "entry_point"),
    ({"tests": "assert f(1) == (2"}, "compile"),
    ({"tests": CHECK}, "entry_point"),
    ({"tests": "x = 1"}, "asserts nothing"),
    ({"tests": [1, 2]}, "list"),
    ({"tests": ["assert 1", 5]}, "list"),
    ({"tests": "x = 1", "style": "x"}, "asserts nothing"),
    ({"tests": [{"args": 5, "output": 1}], "entry_point": "f"}, "args must be"),
    ({"tests": [{"input": 5, "output": "1"}]}, "entry_point"),
    ({"tests": CHECK, "entry_point": "f("}, "not an expression"),
    ({"tests": "assert 1", "entry_point": 5}, "entry_point is a int"),
]


@pytest.mark.parametrize(("row", "word"), ROWS, ids=range(len(ROWS)))
def test_rows_that_cannot_be_understood(row, word):
    with pytest.raises(TestCodeError, match=".*" + word):
        read_task(row, "")


def test_skipped_and_parametrised_tests_are_read():
    code = """
import pytest, unittest
def helper(): pass
def test_a(): pass
@pytest.mark.parametrize("x", [1, 2])
def test_b(x): pass
@pytest.mark.skip
def test_c(): pass
@pytest.mark.xfail(reason="x")
def test_d(): pass
class TestX:
    def test_e(self): pass
    def other(self): pass
class Case(unittest.TestCase):
    def test_f(self): pass
class NoTests:
    def test_g(self): pass
"""
    script = read_task({"tests": code}, "").script
    assert script is not None and script.tests == ["test_a", "test_b", "TestX::test_e", "Case::test_f"]
