"""Running operation chains modulo 10, evaluated from left to right: `7+5-3*7 mod 10`.

Multipliers are 3, 7 and 9 only: every step is then a permutation of the residues, so that no step can be
skipped (a `*0` or `*5` would hide all that came before) and the answer is uniform, a guess being right one
time in ten.  Traces echo the running value and the operand: a very small model learns them far sooner than
bare values.  Difficulty n is the number of operations, with 10 * 21^n problems: 4,410 at 2, 1.9 million at 4.

    steps    7+5=2 2-3=9 9*7=3
    terse    2 9 3
    search   as steps, with wrong values that are noticed (`7+5=4x`) and redone
"""

from __future__ import annotations

from random import Random

from onebase.worlds.base import Draft, Family, Solved

MOVES = [(op, n) for op in "+-" for n in range(1, 10)] + [("*", n) for n in (3, 7, 9)] * 3
TEXT = [f"{op}{n}" for op, n in MOVES]
SLIP = 0.2


def apply(value: int, op: str, n: int) -> int:
    return (value + n if op == "+" else value - n if op == "-" else value * n) % 10


# (value, move) -> its trace step and value: the loader makes a problem in a few tens of microseconds.
STEPS = [[f"{v}{op}{n}={apply(v, op, n)}" for op, n in MOVES] for v in range(10)]


def generate(rng: Random, difficulty: int) -> Draft:
    draw, count = rng.random, len(MOVES)
    first = int(draw() * 10)
    moves = [int(draw() * count) for _ in range(difficulty)]
    prompt = f"{first}{''.join([TEXT[m] for m in moves])} mod 10"
    return Draft(prompt, (first, moves))


def finish(rng: Random, draft: Draft) -> Solved:
    value, moves = draft.state
    draw = rng.random
    steps, values, search = [], [], []
    for move in moves:
        step = STEPS[value][move]
        value = int(step[-1])
        if draw() < SLIP:
            search.append(f"{step[:-1]}{(value + 1 + int(draw() * 9)) % 10}x")
        steps.append(step)
        search.append(step)
        values.append(step[-1])
    thoughts = {"steps": " ".join(steps), "terse": " ".join(values), "search": " ".join(search)}
    return Solved(draft.key, values[-1], thoughts, {})


FAMILY = Family(
    name="chain",
    description="running +, -, * modulo 10 from left to right; difficulty: operations",
    default=(4, 8),
    ood=(9, 12),
    allowed=(1, 64),
    styles=("steps", "terse", "search"),
    generate=generate,
    finish=finish,
)
