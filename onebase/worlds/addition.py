"""Addition of natural numbers: `738+94`.

Difficulty n is the number of digits of the longer number; the shorter has n or n-1.  a+b and b+a are one
problem when splits are made.  Distinct sums: 55 at 1, 4,995 at 2, 486,450 at 3; hence the default from 3.

The trace goes from the lowest digit.  A column is `digit+digit+carry=sum`, then after the colon the result
so far, so that nothing has to be gathered from far back:

    steps    8+4+0=12:2 3+9+1=13:32 7+0+1=8:832
    terse    12 13 8 832          (column sums, then the result)
    search   as steps, with wrong column sums that are noticed (`8+4+0=13x`) and redone
"""

from __future__ import annotations

from random import Random

from onebase.worlds.base import Draft, Family, Solved

SLIP = 0.2


def generate(rng: Random, difficulty: int) -> Draft:
    draw = rng.random
    low = 10 ** (difficulty - 1)
    a = low + int(draw() * 9 * low) if difficulty > 1 else int(draw() * 10)
    if difficulty > 1 and draw() < 0.25:
        low //= 10
    b = low + int(draw() * 9 * low) if low > 1 else int(draw() * 10)
    key = f"{a}+{b}" if a >= b else f"{b}+{a}"
    if draw() < 0.5:
        a, b = b, a
    return Draft(key, (a, b))


def finish(rng: Random, draft: Draft) -> Solved:
    a, b = draft.state
    prompt = f"{a}+{b}"
    draw = rng.random
    total = str(a + b)
    width = max(len(str(a)), len(str(b)))
    carry = 0
    steps, sums, search = [], [], []
    for i in range(width):
        x, y = a % 10, b % 10
        a //= 10
        b //= 10
        column = x + y + carry
        left = f"{x}+{y}+{carry}="
        carry = column // 10
        done = total if i == width - 1 else total[-i - 1 :]
        if draw() < SLIP:
            search.append(f"{left}{column + (1 if column == 0 or draw() < 0.5 else -1)}x")
        step = f"{left}{column}:{done}"
        steps.append(step)
        search.append(step)
        sums.append(str(column))
    sums.append(total)
    thoughts = {"steps": " ".join(steps), "terse": " ".join(sums), "search": " ".join(search)}
    return Solved(prompt, total, thoughts, {})


FAMILY = Family(
    name="addition",
    description="sum of two numbers, by columns with carry; difficulty: digits of the longer",
    default=(3, 5),
    ood=(6, 8),
    allowed=(1, 64),
    styles=("steps", "terse", "search"),
    generate=generate,
    finish=finish,
)
