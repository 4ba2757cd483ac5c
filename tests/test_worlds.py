"""The worlds: pure functions of their arguments, disjoint splits, sound traces, a strict checker."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase.errors import UserError
from onebase.verifiers.registry import is_inline, load
from onebase.verifiers.worlds import check_trace, verify
from onebase.worlds import FAMILIES, SPLITS, Problem, equation, expression, functions, problem, stream
from onebase.worlds.base import Draft, held_out, make
from onebase.worlds.traces import TRACES, linear, solution

NAMES = list(FAMILIES)
GOLDEN = Path(__file__).parent / "golden" / "worlds" / "cases.jsonl"


def some(family: str, count: int, split: str = "train", seed: int = 0, **kw: object) -> list[Problem]:
    return list(itertools.islice(stream(family, split=split, seed=seed, **kw), count))  # type: ignore[arg-type]


def judged(p: Problem, completion: str, **options: object) -> float | None:
    return verify(completion, p.answer, family=p.family, problem=p.prompt, **p.check, **options).reward  # type: ignore[arg-type]


# --- items and splits


def test_the_families_are_the_promised_ones() -> None:
    promised = "chain addition multiplication equation countdown path lists code wordproblem"
    assert NAMES == promised.split()
    for name, family in FAMILIES.items():
        assert family.name == name and family.description
        assert family.allowed[0] <= family.default[0] <= family.default[1] < family.ood[0] <= family.ood[1]
        assert family.ood[1] <= family.allowed[1]


@given(
    st.sampled_from(NAMES),
    st.sampled_from(SPLITS),
    st.integers(-(2**63), 2**63),
    st.integers(0, 2**40),
)
@settings(max_examples=150, deadline=None)
def test_any_item_at_any_seed_is_whole(family: str, split: str, seed: int, index: int) -> None:
    p = problem(family, split=split, seed=seed, index=index)
    low, high = FAMILIES[family].ood if split == "ood" else FAMILIES[family].default
    assert p == problem(family, split=split, seed=seed, index=index)
    assert p.family == family and low <= p.difficulty <= high
    assert tuple(p.thoughts) == FAMILIES[family].styles and all(p.thoughts.values())
    assert p.prompt == p.prompt.strip() and p.answer == p.answer.strip() and p.prompt and p.answer
    assert json.loads(json.dumps(p.check)) == p.check
    assert not {"problem", "answer", "family", "difficulty", "completion"} & set(p.check)
    texts = [p.prompt, p.answer, *p.thoughts.values()]
    assert all(text.isascii() and "<" not in text.replace("x <", "").replace("<=", "") for text in texts)


def test_items_do_not_depend_on_the_process() -> None:
    code = (
        "from onebase.worlds import *\n"
        "for f in FAMILIES:\n"
        "    for s in SPLITS: print(repr(problem(f, split=s, seed=3, index=7)))\n"
    )
    out = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": h},
        ).stdout
        for h in ("1", "2")
    ]
    assert out[0] == out[1] and out[0].count("Problem(") == len(NAMES) * len(SPLITS)
    here = "".join(f"{problem(f, split=s, seed=3, index=7)!r}\n" for f in NAMES for s in SPLITS)
    assert out[0] == here


def test_stream_is_random_access() -> None:
    for family in NAMES:
        assert some(family, 3, start=5) == [
            problem(family, split="train", seed=0, index=5 + i) for i in range(3)
        ]


def test_arguments_matter() -> None:
    for family in NAMES:
        base = problem(family, split="train", seed=0, index=0)
        assert base != problem(family, split="train", seed=1, index=0)
        assert base != problem(family, split="train", seed=0, index=1)
        assert base.prompt != problem(family, split="heldout", seed=0, index=0).prompt


def key(p: Problem) -> str:
    """The canonical key, worked out from the prompt alone (not for word problems)."""
    numbers = re.findall("[0-9]+", p.prompt)
    if p.family in ("addition", "multiplication"):
        a, b = sorted(map(int, numbers), reverse=True)
        return f"{a}{'+' if p.family == 'addition' else '*'}{b}"
    if p.family == "countdown":
        return f"{numbers[0]}:{sorted(map(int, numbers[1:]))}"
    if p.family == "path":
        ends, edges = p.prompt.split(": ")
        return (
            "".join(sorted(ends.split(" to ")))
            + " "
            + " ".join(sorted("-".join(sorted(edge.split("-"))) for edge in edges.split(" ")))
        )
    if p.family == "code":
        return p.prompt.removeprefix("Write f(xs): ").removesuffix(".").removesuffix(", return the list")
    return p.prompt


@pytest.mark.parametrize("family", [name for name in NAMES if name != "wordproblem"])
def test_the_hash_of_the_key_decides_the_split(family: str) -> None:
    for split in SPLITS:
        for difficulty in (None, FAMILIES[family].ood):
            for p in some(family, 40, split, difficulty=difficulty):
                assert held_out(family, key(p)) == (split != "train"), p.prompt


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_splits_are_disjoint_over_many_draws(family: str) -> None:
    count = 8_000 if family in ("code", "wordproblem") else 20_000
    wide = (FAMILIES[family].default[0], FAMILIES[family].ood[1])
    train = {p.prompt for p in some(family, count)} | {p.prompt for p in some(family, 2_000, difficulty=wide)}
    heldout = {p.prompt for p in some(family, 1_000, "heldout")}
    ood = {p.prompt for p in some(family, 500, "ood")}
    assert not train & heldout and not train & ood and not heldout & ood
    assert len(train) > 0.5 * count, "training repeats itself"
    assert len(heldout) > 500 and len(ood) > 450


def test_one_problem_in_sixteen_is_held_out() -> None:
    for name, family in FAMILIES.items():
        rng = Random(0)
        keys = {family.generate(rng, family.default[1]).key for _ in range(4_000)}
        share = sum(held_out(name, k) for k in keys) / len(keys)
        assert abs(share - 1 / 16) < 0.016, (name, share)  # four standard deviations


def test_word_problems_of_one_calculation_are_in_one_split() -> None:
    """Held-out word problems differ from trained ones in more than names."""

    def shape(p: Problem) -> str:
        return "\n".join(line.split("=", 1)[1] for line in p.thoughts["steps"].split("\n"))

    train = {shape(p) for p in some("wordproblem", 3_000, difficulty=(2, 2))}
    heldout = {shape(p) for p in some("wordproblem", 300, "heldout", difficulty=(2, 2))}
    assert len(train) > 1_000 and len(heldout) > 100 and not train & heldout


def test_bad_arguments_are_told() -> None:
    with pytest.raises(UserError, match="did you mean 'countdown'"):
        problem("countdwon", split="train", seed=0, index=0)
    with pytest.raises(UserError, match="did you mean 'heldout'"):
        problem("chain", split="held_out", seed=0, index=0)
    for bad in ((5, 4), (0, 3), (3, 1_000)):
        with pytest.raises(UserError, match=r"within 1\.\.64"):
            problem("chain", split="train", seed=0, index=0, difficulty=bad)


def test_a_split_without_problems_is_told() -> None:
    lone = replace(FAMILIES["chain"], generate=lambda rng, d: Draft("1+1 mod 10", (1, [0])))
    assert not held_out("chain", "1+1 mod 10")
    assert make(lone, "train", 0, 0, (1, 1)).answer == "2"
    with pytest.raises(UserError, match=r"'heldout' holds no problem of difficulty 1..1; take a harder"):
        make(lone, "heldout", 0, 0, (1, 1))


# --- answers


@pytest.mark.parametrize("family", [name for name in NAMES if name != "code"])
@pytest.mark.parametrize("split", SPLITS)
def test_canonical_answers_score_one(family: str, split: str) -> None:
    for p in some(family, 60, split):
        assert judged(p, p.answer) == 1 and judged(p, f"  {p.answer}\n") == 1
        assert judged(p, f"\\boxed{{{p.answer}}}") == 1
        for thought in p.thoughts.values():
            assert judged(p, f"<think>{thought}</think>{p.answer}") == 1
            assert judged(p, f"{thought}</think>\n\n{p.answer}") == 1  # the prompt had opened the thought


@pytest.mark.parametrize("family", [name for name in NAMES if name != "code"])
def test_wrong_and_evasive_answers_score_zero(family: str) -> None:
    for p, other in itertools.pairwise(some(family, 60)):
        wrong = ["", "?", f"{p.answer} {p.answer}", f"{p.answer},{p.answer}", f"{p.answer}0", f"-{p.answer}"]
        wrong += [f"{p.answer} or {other.answer}", f"the answer is {p.answer}", f"{p.answer}."]
        box = f"\\boxed{{{p.answer}}}"
        wrong += [f"{box} {box}", f"{p.answer} {box}", f"{box} or {{{other.answer}}}", box[:-1], "\\boxed{}"]
        wrong += [f"<think>{p.answer}", f"<think>{p.answer}</think>", f"{p.answer}<think></think>{p.answer}"]
        wrong += [f"<think></think>{p.answer}<think></think>{p.answer}", f"</think>{p.answer}<think>"]
        if family not in ("countdown", "path"):
            wrong += [f"{int(p.answer) + 1}", f"{int(p.answer) - 1}", f"+{p.answer}", f"0{p.answer}"]
        if family == "lists" and p.answer != p.answer[::-1]:
            wrong.append(p.answer[::-1])
        if other.answer != p.answer:
            wrong.append(other.answer)
        for text in wrong:
            assert judged(p, text) == 0, (p.prompt, p.answer, text)
    assert "thought not closed" in verify("<think>7+5=2", "2", family="chain").reason


def test_countdown_takes_any_right_expression_and_no_other() -> None:
    row: dict[str, Any] = {"family": "countdown", "numbers": [3, 7, 8, 2], "target": 24}
    for text in ("(7-3)*(8-2)", "(8-2)*(7-3)", "((7 - 3) * (8 - 2))", "8*(7-3-2/2)"):
        right = text != "8*(7-3-2/2)"
        assert verify(text, "(7-3)*(8-2)", **row).reward == right, text
    wrong = {
        "8*3": "uses",  # numbers left out
        "8*3*7-8*3*2-8*3*4": "uses",
        "3*7+8/2-2+1": "uses",
        "(7-3)*(8-2)*1": "uses",
        "(7-3)*(8-2)=24": "no expression",
        "24=(7-3)*(8-2)": "no expression",
        "(7-3)*(8-2) (7-3)*(8-2)": "no expression",
        "(7-3)*(8-2": "not closed",
        "(7-3)(8-2)": "after a whole",
        "7+3+8+2": "is 20, not 24",
        "-3+7+8*2": "a number was expected",
        "3**7-8-2": "a number was expected",
        "3^7-8-2": "no expression",
        "37-8-2": "uses",
        "2/(8-8)*7*3": "division by zero",
        "__import__('os')": "no expression",
        "(" * 900 + "3" + ")" * 90: "a number was expected",
        "3+" * 4_000: "at most",
        "03+7+8*2-2": "no expression",
        "٣+7+8*2": "no expression",
    }
    for text, reason in wrong.items():
        v = verify(text, "(7-3)*(8-2)", **row)
        assert v.reward == 0 and reason in v.reason, (text, v.reason)


@given(st.recursive(st.integers(0, 99), lambda t: st.tuples(st.sampled_from("+-*/"), t, t), max_leaves=12))
def test_shown_expressions_are_read_back(tree: expression.Tree) -> None:
    def value(t: expression.Tree) -> tuple[Fraction, list[int]]:
        if isinstance(t, int):
            return Fraction(t), [t]
        (a, used), (b, more) = value(t[1]), value(t[2])
        result = a + b if t[0] == "+" else a - b if t[0] == "-" else a * b if t[0] == "*" else a / b
        return result, used + more

    text = expression.show(tree)
    try:
        wanted = value(tree)
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="division by zero"):
            expression.parse(text)
    else:
        assert expression.parse(text) == wanted


@given(st.text(alphabet="0123456789+-*/() x", max_size=40) | st.text(max_size=30))
def test_any_text_gets_a_verdict(text: str) -> None:
    for family in NAMES:
        p = problem(family, split="train", seed=0, index=0)
        v = verify(text, p.answer, family=family, **p.check)
        assert v.reward in ((None,) if family == "code" else (0.0, 1.0))
        assert v.reward != 1 or text.strip() == p.answer or family in ("countdown", "path")
        check_trace(p, text)


def test_path_takes_any_shortest_path_and_no_other() -> None:
    row: dict[str, Any] = {
        "family": "path",
        "edges": ["A-B", "C-B", "E-A", "C-E", "C-D", "D-F", "F-B"],
        "start": "A",
        "goal": "D",
    }
    for text in ("A-B-C-D", "A-E-C-D", "A-B-F-D"):
        assert verify(text, "A-B-C-D", **row).reward == 1, text
    for text, reason in {
        "A-B-C": "does not lead",
        "D-C-B-A": "does not lead",
        "A-D": "no edge",
        "A-E-B-D": "no edge",
        "A-E-C-B-F-D": "longer",
        "A B C D": "does not lead",
        "A-B-C-D A-E-C-D": "no edge",
        "A--D": "no edge",
    }.items():
        v = verify(text, "A-B-C-D", **row)
        assert v.reward == 0 and reason in v.reason, (text, v.reason)


def test_rows_that_cannot_be_judged_are_errors_not_zeros() -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"family": "nope"},
        {"family": "code", "tests": [], "entry_point": "f"},
        {"family": "countdown", "numbers": [1, 2]},
        {"family": "countdown", "numbers": None, "target": 3},
        {"family": "path", "edges": ["AB"], "start": "A", "goal": "B"},
        {"family": "multiplication", "trace": True, "problem": "2*3"},
        {"family": "chain", "trace": True},
        {"family": "chain", "trace": True, "problem": "what?"},
    ]
    for row in rows:
        v = verify("<think>1</think>1+2", "1+2", **row)
        assert v.reward is None and v.error, row
    assert load("worlds") is verify and is_inline("worlds")
    assert "code_tests" in str(verify("x", "x", family="code").error)


def test_golden_cases() -> None:
    cases = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    assert {case["kind"] for case in cases} == {"accepted", "rejected", "adversarial", "error"}
    for case in cases:
        v = verify(case["completion"], case["answer"], **case["row"])
        wanted = {"accepted": 1.0, "error": None}.get(case["kind"], 0.0)
        assert v.reward == wanted and v.reason and "\n" not in v.reason, (case, v)
        if case["kind"] != "error" and not case["row"].get("trace"):  # the gold answer itself is paid
            assert verify(f"\\boxed{{{case['answer']}}}", case["answer"], **case["row"]).reward == 1


# --- traces


@pytest.mark.parametrize("family", NAMES)
def test_every_trace_ends_at_the_answer(family: str) -> None:
    for split in ("train", "ood"):
        for p in some(family, 60, split):
            for style, thought in p.thoughts.items():
                if family == "code":
                    assert p.answer.endswith(thought.split("\n")[-1].split(": ")[-1]), (style, thought)
                elif family == "equation" and style == "search":
                    assert thought.split("\n")[-1].startswith(f"x={p.answer}:")
                else:
                    assert re.split(r"[ \n:=]", thought)[-1] == p.answer, (style, thought)


@pytest.mark.parametrize("family", list(TRACES))
@pytest.mark.parametrize("split", SPLITS)
def test_canonical_traces_are_sound(family: str, split: str) -> None:
    for p in some(family, 100, split):
        for style, thought in p.thoughts.items():
            v = check_trace(p, thought)
            assert v.reward == 1, (p.prompt, style, thought, v.reason)
            assert judged(p, f"<think>{thought}</think>{p.answer}", trace=True) == 1


@pytest.mark.parametrize("family", list(TRACES))
def test_damaged_traces_are_not_sound(family: str) -> None:
    """A trace loses its last step, repeats its first, is another problem's, or has one sign changed."""
    rng = Random(0)
    for p, other in itertools.pairwise(some(family, 80)):
        for style, thought in p.thoughts.items():
            separator = "\n" if "\n" in thought else " "
            parts = thought.split(separator)
            damaged = [other.thoughts[style], "", separator.join(parts[:-1]), thought + separator + "9"]
            if family in ("chain", "addition", "lists", "countdown") and parts[0][-1] != "x":
                damaged.append(separator.join([parts[0], *parts]))
            at = rng.choice(
                [i for i, c in enumerate(thought) if c.isdigit() or (family == "path" and c.isupper())]
            )
            swap = "ABCDEFGHIJ" if family == "path" else "0123456789"
            new = rng.choice([c for c in swap if c != thought[at]])
            damaged.append(thought[:at] + new + thought[at + 1 :])
            for text in damaged:
                v = check_trace(p, text)
                # A changed digit of a rejected attempt may leave it wrong, as it should be; a shortened
                # breadth-first search of equals or a bare value may still be whole.
                if v.reward == 1 and text == damaged[-1] and "x" in thought:
                    continue
                if v.reward == 1 and family == "path" and "-" in parts[-1] and text == p.answer:
                    continue
                assert v.reward == 0, (p.prompt, style, thought, text)


def test_planted_faults_in_traces_are_named() -> None:
    cases = [
        ("chain", "3+4*7-1 mod 10", "3+4=7 7*7=9 9-1=8", ""),
        ("chain", "3+4*7-1 mod 10", "3+4=8x 3+4=7 7*7=9 9-1=8", ""),
        ("chain", "3+4*7-1 mod 10", "3+4=7x 3+4=7 7*7=9 9-1=8", "3+4 is 7"),  # thrown away though right
        ("chain", "3+4*7-1 mod 10", "3+4=8 8*7=6 6-1=5", "3+4 is 7"),
        ("chain", "3+4*7-1 mod 10", "3+4=7 7-1=6", "the step here is 7*7"),
        ("chain", "3+4*7-1 mod 10", "7 9 8", ""),
        ("chain", "3+4*7-1 mod 10", "7 8 8", "7*7 is 9"),
        ("chain", "3+4*7-1 mod 10", "8", "3+4 is 7"),
        ("addition", "95+7", "5+7+0=12:2 9+0+1=10:102", ""),
        ("addition", "95+7", "5+7+0=12:2 9+0+0=9:92", "the column here is 9+0+1"),  # the carry forgotten
        ("addition", "95+7", "9+0+0=9:9 5+7+0=12:102", "the column here is 5+7+0"),
        ("addition", "95+7", "5+7+0=12:2 9+0+1=10:92", "so far is 102"),
        ("equation", "3x+5=20", "3x=15\nx=5", ""),
        ("equation", "3x+5=20", "3x=25\nx=5", "has the solution 25/3"),
        ("equation", "3x+5=20", "3x=15", "is not x=5"),
        ("equation", "3x+5=20", "x=5", "does not follow"),  # both subtracted and divided
        ("equation", "3x+5=20", "2x+1=11\n2x=10\nx=5", "does not follow"),  # another equation
        ("equation", "3x+5=2(x+5)", "3x+5=2x+10\n6x+10=4x+20\n4x+20=6x+10\n-2x=-10\nx=5", ""),
        ("equation", "3x+5=20", "x=4:17,20\nx=5:20,20", ""),
        ("equation", "3x+5=20", "x=4:20,20", "the sides are 17,20"),
        ("equation", "3x+5=20", "x=4:17,20", "does not agree"),
        ("countdown", "make 24 from 3,7,8,2", "7-3=4:8,2,4 8-2=6:4,6 4*6=24 (7-3)*(8-2)", ""),
        ("countdown", "make 24 from 3,7,8,2", "7-3=4:8,2,4 8-2=6:4,6 4*6=24 4*6", "does not make"),
        ("countdown", "make 24 from 3,7,8,2", "7-3=4:8,4 8-2=6:4,6 4*6=24 (7-3)*(8-2)", "the numbers left"),
        (
            "countdown",
            "make 24 from 3,7,8,2",
            "8-2=6 6*7=42 42-3=39x back:3,7,8,2 7-3=4 8-2=6 4*6=24 (7-3)*(8-2)",
            "",
        ),
        (
            "countdown",
            "make 24 from 3,7,8,2",
            "8-2=6 6*7=42 42-3=39x back:3,7,8 7-3=4 8*4=32 (7-3)*(8-2)",
            "not an earlier",
        ),
        (
            "countdown",
            "make 24 from 3,7,8,2",
            "8-2=6 6*7=42 42-3=39 back:3,7,8,2 7-3=4 (7-3)*(8-2)",
            "not marked",
        ),
        ("countdown", "make 24 from 3,7,8,2", "8*3=24 (7-3)*(8-2)", "the steps end"),
        ("path", "A to D: B-A C-B E-B C-D", "A:B B:C,E C:D A-B-C-D", ""),
        ("path", "A to D: B-A C-B E-B C-D", "A:B B:C C:D A-B-C-D", "new at B are C,E"),
        ("path", "A to D: B-A C-B E-B C-D", "A:B C:D A-B-C-D", "the node to take is B"),
        ("path", "A to D: B-A C-B E-B C-D", "A-B-Ex A-B-C-D", ""),
        ("path", "A to D: B-A C-B E-B C-D", "A-B-Cx A-B-C-D", "there is a way on"),
        ("path", "A to D: B-A C-B E-B C-D", "A-C-Ex A-B-C-D", "no edge A-C"),
        ("path", "A to D: B-A C-B E-B C-D", "A B C,E D A-B-C-D", ""),
        ("path", "A to D: B-A C-B E-B C-D", "A B C D A-B-C-D", "this level is C,E"),
        ("path", "A to D: B-A C-B E-B C-D", "A:B B:C,E C:D A-C-D", "no shortest path"),
        ("lists", "3141 reverse,add2", "reverse:1413 add2:3635", ""),
        ("lists", "3141 reverse,add2", "reverse:1413 add2:3634", "the list is 3635"),
        ("lists", "3141 reverse,add2", "add2:5363 reverse:3635", "the operation here is reverse"),
    ]
    for family, prompt, thought, reason in cases:
        v = check_trace(Problem(family, prompt, "", 1, {}, {}), thought)
        assert v.reward == (0 if reason else 1) and reason in v.reason, (prompt, thought, v.reason)


def test_linear_sides() -> None:
    assert linear("-x+12-3(2x-5)+(x+1)") == (-1 - 6 + 1, 12 + 15 + 1)
    assert linear("12(x+1)") == (12, 12)
    assert solution("2x+1=2x+3") is None
    for bad in ("", "x*x", "2 x", "x2", "3((x))", "x(2)", "x^2", "+-x", "(x+1", "1_0"):
        with pytest.raises(ValueError):
            linear(bad)


@given(st.integers(-99, 99), st.integers(-99, 99))
def test_sides_are_written_as_they_are_read(a: int, b: int) -> None:
    assert linear(equation.show(a, b)) == (a, b)


# --- single families


def test_chain_has_no_step_to_skip() -> None:
    """Every step permutes the residues, so answers are uniform."""
    counts = [0] * 10
    for p in some("chain", 3_000):
        counts[int(p.answer)] += 1
    assert max(counts) < 380 and min(counts) > 230


def test_search_traces_hold_mistakes_and_others_none() -> None:
    for family in NAMES:
        if family in ("equation", "wordproblem"):
            continue
        mark = re.compile(r" x f\(" if family == "code" else r"x( |\n|$)")
        found = [{s: bool(mark.search(t)) for s, t in p.thoughts.items()} for p in some(family, 100)]
        assert sum(f["search"] for f in found) > 25, family
        assert not any(f["steps"] or f["terse"] for f in found), family


def run_code(source: str, tests: list[str]) -> int:
    """How many of our own tests our own code fails."""
    space: dict[str, object] = {}
    exec(source, space)
    failures = 0
    for test in tests:
        try:
            exec(test, space)
        except (AssertionError, TypeError):
            failures += 1
    return failures


def test_code_answers_pass_their_tests_and_maimed_ones_do_not() -> None:
    for split in ("train", "ood"):
        for p in some("code", 80, split):
            assert p.check["entry_point"] == "f" and len(p.check["tests"]) == functions.TESTS
            assert run_code(p.answer, p.check["tests"]) == 0, p.answer
            assert run_code("def f(xs):\n    return xs", p.check["tests"]) > 0
            assert run_code("def f(xs):\n    return 0", p.check["tests"]) > 0
            lines = p.answer.split("\n")
            for i in range(1, len(lines) - 1):
                maimed = "\n".join(lines[:i] + lines[i + 1 :])
                assert run_code(maimed, p.check["tests"]) > 0, maimed


def test_every_word_of_a_function_says_what_its_python_does() -> None:
    xs = [4, -3, 0, 7, 7, 2, 5, -8, 1, 6, 10, 9]
    by_words = {
        "reverse": [9, 10, 6, 1, -8, 5, 2, 7, 7, 0, -3, 4],
        "sort rising": [-8, -3, 0, 1, 2, 4, 5, 6, 7, 7, 9, 10],
        "sort falling": [10, 9, 7, 7, 6, 5, 4, 2, 1, 0, -3, -8],
        "drop repeated values": [4, -3, 0, 7, 2, 5, -8, 1, 6, 10, 9],
        "take every second": [4, 0, 7, 5, 1, 10],
        "negate each": [-4, 3, 0, -7, -7, -2, -5, 8, -1, -6, -10, -9],
        "keep the even": [4, 0, 2, -8, 6, 10],
        "keep the odd": [-3, 7, 7, 5, 1, 9],
        "keep those above 5": [7, 7, 6, 10, 9],
        "keep those below 0": [-3, -8],
        "drop the first 3": [7, 7, 2, 5, -8, 1, 6, 10, 9],
        "take the first 2": [4, -3],
        "take each modulo 3": [1, 0, 0, 1, 1, 2, 2, 1, 1, 0, 1, 0],
        "multiply each by 2": [8, -6, 0, 14, 14, 4, 10, -16, 2, 12, 20, 18],
        "return how many there are": 12,
        "return the largest or 0": 10,
        "return the smallest or 0": -8,
        "return the sum": 40,
        "return the sum of squares": 434,
    }
    steps = {step.words: step for step in [*functions.LIST_STEPS, *functions.RETURNS]}
    for words, wanted in by_words.items():
        assert functions.run([steps[words]], xs) == wanted, words


def read_word_problem(prompt: str) -> int:
    """Solves a word problem from its sentences alone, by another way than the generator's."""
    *sentences, question = re.split(r"(?<=[.?]) ", prompt)
    rules: dict[tuple[str, str], tuple[str, int, list[tuple[str, str]]]] = {}
    for sentence in sentences:
        who, rest = sentence.rstrip(".").split(" has ", 1)
        if m := re.fullmatch(r"(\d+) (\w+)", rest):
            rules[who, m[2]] = ("=", int(m[1]), [])
        elif m := re.fullmatch(r"(\d+) (more|fewer) (\w+) than (\w+) has (\w+)", rest):
            rules[who, m[3]] = (m[2], int(m[1]), [(m[4], m[5])])
        elif m := re.fullmatch(r"(\d+) times as many (\w+) as (\w+) has (\w+)", rest):
            rules[who, m[2]] = ("times", int(m[1]), [(m[3], m[4])])
        else:
            m = re.fullmatch(r"as many (\w+) as (\w+) has (\w+) and (\w+) has (\w+) together", rest)
            assert m, sentence
            rules[who, m[1]] = ("sum", 0, [(m[2], m[3]), (m[4], m[5])])

    def value(name: tuple[str, str]) -> int:
        kind, number, parents = rules[name]
        values = [value(parent) for parent in parents]
        if kind == "times":
            return values[0] * number
        return sum(values) + (-number if kind == "fewer" else number)

    m = re.fullmatch(r"How many (\w+) does (\w+) have\?", question)
    assert m, question
    return value((m[2], m[1]))


def test_word_problems_say_what_they_ask() -> None:
    for split in SPLITS:
        for p in some("wordproblem", 100, split):
            assert read_word_problem(p.prompt) == int(p.answer)
            operations = sum(line.count("=") == 2 for line in p.thoughts["steps"].split("\n"))
            assert operations == p.difficulty


def test_difficulty_is_what_the_family_says() -> None:
    for d in range(2, 7):
        assert all(len(re.findall(r"[-+*]", p.prompt)) == d for p in some("chain", 20, difficulty=(d, d)))
        assert all(max(map(len, p.prompt.split("+"))) == d for p in some("addition", 20, difficulty=(d, d)))
        assert all(
            sum(map(len, p.prompt.split("*"))) == d for p in some("multiplication", 20, difficulty=(d, d))
        )
        assert all(len(p.check["numbers"]) == d for p in some("countdown", 20, difficulty=(d, d)))
        assert all(p.answer.count("-") == d for p in some("path", 20, difficulty=(d, d)))
        assert all(p.prompt.count(",") == d - 1 for p in some("lists", 20, difficulty=(d, d)))


def test_importing_worlds_imports_no_heavy_package() -> None:
    code = "import sys, onebase.worlds; print([m for m in ('torch', 'numpy', 'sympy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
