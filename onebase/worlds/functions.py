"""Family "code": small Python functions with unit tests.

    Write f(xs): add 3 to each, keep the even, return the sum.

A function is a pipeline over a list of whole numbers; the last step may give one number.  Difficulty n is
the number of steps.  The tests are not shown.  They reject every pipeline with one step left out and every
constant: where a step changes nothing on the tests, another problem is drawn.  (`functions` because a module
must not be named like the standard library's `code`.)  49 problems at 1, about 2,000 at 2, 80,000 at 3; hence
the default from 3.

    steps    a line for each step: its words and its Python
    terse    the Python alone
    search   a draft with a wrong step is run on an example in the head, found wrong, and mended
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from onebase.worlds.base import Draft, Family, Solved

ENTRY_POINT = "f"
TESTS = 6


class Step(NamedTuple):
    words: str
    python: str
    """An expression over xs."""
    run: Callable[[list[int]], Any]
    kind: str
    """Neighbours of one kind are not drawn."""


def _step(words: str, python: str, kind: str) -> Step:
    """`python` is one of the expressions of this file, so compiling it here is safe, and text and function
    cannot differ."""
    return Step(words, python, eval(f"lambda xs: {python}"), kind)


def _steps() -> list[Step]:
    """Steps from list to list."""
    out = [
        _step("reverse", "xs[::-1]", "order"),
        _step("sort rising", "sorted(xs)", "order"),
        _step("sort falling", "sorted(xs, reverse=True)", "order"),
        _step("drop repeated values", "list(dict.fromkeys(xs))", "unique"),
        _step("take every second", "xs[::2]", "second"),
        _step("square each", "[x * x for x in xs]", "square"),
        _step("negate each", "[-x for x in xs]", "negate"),
        _step("keep the even", "[x for x in xs if x % 2 == 0]", "parity"),
        _step("keep the odd", "[x for x in xs if x % 2 == 1]", "parity"),
    ]
    out += [_step(f"add {k} to each", f"[x + {k} for x in xs]", "add") for k in range(1, 10)]
    out += [_step(f"multiply each by {k}", f"[x * {k} for x in xs]", "multiply") for k in range(2, 6)]
    out += [_step(f"take each modulo {k}", f"[x % {k} for x in xs]", "modulo") for k in range(3, 7)]
    out += [_step(f"keep those above {k}", f"[x for x in xs if x > {k}]", "above") for k in range(6)]
    out += [_step(f"keep those below {k}", f"[x for x in xs if x < {k}]", "below") for k in range(6)]
    out += [_step(f"drop the first {k}", f"xs[{k}:]", "drop") for k in range(1, 4)]
    out += [_step(f"take the first {k}", f"xs[:{k}]", "take") for k in range(2, 5)]
    return out


LIST_STEPS = _steps()
RETURNS = [
    _step("return the sum", "sum(xs)", "return"),
    _step("return how many there are", "len(xs)", "return"),
    _step("return the largest or 0", "max(xs, default=0)", "return"),
    _step("return the smallest or 0", "min(xs, default=0)", "return"),
    _step("return the sum of squares", "sum(x * x for x in xs)", "return"),
]


def run(steps: list[Step], xs: list[int]) -> Any:
    value: Any = xs
    for step in steps:
        value = step.run(value)
    return value


def telling(steps: list[Step], inputs: list[list[int]]) -> bool:
    """Whether these inputs reject each pipeline with a step left out, and constants."""
    wanted = [run(steps, xs) for xs in inputs]
    if len({repr(value) for value in wanted}) < 3:
        return False
    # The last step of a pipeline that returns a number cannot be left out: what remains is a list.
    count = len(steps) - (steps[-1].kind == "return")
    return all([run(steps[:i] + steps[i + 1 :], xs) for xs in inputs] != wanted for i in range(count))


def generate(rng: Random, difficulty: int) -> Draft:
    steps: list[Step] = []
    returns = rng.random() < 0.5
    while len(steps) < difficulty - returns:
        step = LIST_STEPS[int(rng.random() * len(LIST_STEPS))]
        if not steps or step.kind != steps[-1].kind:
            steps.append(step)
    if returns:
        steps.append(RETURNS[int(rng.random() * len(RETURNS))])
    return Draft(", ".join(step.words for step in steps), steps)


def _inputs(rng: Random) -> list[list[int]]:
    """The empty list, lists of mixed numbers, and one of few values for the steps that look at repeats."""
    draw = rng.random
    mixed = [[int(draw() * 25) - 9 for _ in range(3 + int(draw() * 6))] for _ in range(TESTS - 2)]
    return [[], *mixed, [int(draw() * 4) for _ in range(6)]]


def _lines(steps: list[Step]) -> list[str]:
    """The function's body: one assignment a step, the last one returned."""
    lines = [f"xs = {step.python}" for step in steps[:-1]]
    return [*lines, f"return {steps[-1].python}"]


def source(steps: list[Step]) -> str:
    return "\n".join([f"def {ENTRY_POINT}(xs):", *(f"    {line}" for line in _lines(steps))])


def _search(rng: Random, steps: list[Step], inputs: list[list[int]]) -> str:
    """One wrong step, noticed on the first input that tells it apart."""
    lines = _lines(steps)
    i = int(rng.random() * len(steps))
    pool = [s for s in (RETURNS if steps[i].kind == "return" else LIST_STEPS) if s.words != steps[i].words]
    for wrong in rng.sample(pool, len(pool)):
        draft = [*steps[:i], wrong, *steps[i + 1 :]]
        for xs in inputs:
            got, want = run(draft, xs), run(steps, xs)
            if got != want:
                tried = _lines(draft)
                tried[i] += f" x f({xs})={got} but {want}"
                return "\n".join(
                    [*tried, *lines[i:]] if i + 1 == len(steps) else [*tried[: i + 1], *lines[i:]]
                )
    return "\n".join(lines)


def finish(rng: Random, draft: Draft) -> Solved | None:
    steps: list[Step] = draft.state
    inputs = _inputs(rng)
    if not telling(steps, inputs):
        return None
    lines = _lines(steps)
    thoughts = {
        "steps": "\n".join(f"{step.words}: {line}" for step, line in zip(steps, lines, strict=True)),
        "terse": "\n".join(lines),
        "search": _search(rng, steps, inputs),
    }
    tests = [f"assert {ENTRY_POINT}({xs}) == {run(steps, xs)}" for xs in inputs]
    ending = "" if steps[-1].kind == "return" else ", return the list"
    prompt = f"Write {ENTRY_POINT}(xs): {draft.key}{ending}."
    return Solved(prompt, source(steps), thoughts, {"tests": tests, "entry_point": ENTRY_POINT})


FAMILY = Family(
    name="code",
    description="small Python functions over lists, with unit tests; difficulty: steps",
    default=(3, 4),
    ood=(5, 6),
    allowed=(1, 8),
    styles=("steps", "terse", "search"),
    generate=generate,
    finish=finish,
)
