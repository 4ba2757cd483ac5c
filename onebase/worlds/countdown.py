"""Countdown: reach a target with all the given numbers, each used once, by + - * /: `make 24 from 3,7,8,2`.

Difficulty n is how many numbers there are (1 to 40 each); targets run from 10 to 99.  Values on the canonical
way are whole, positive and at most 200, but any expression with the right value and numbers is accepted.
The numbers' order does not make another problem when splits are made.  Of 40,000 draws 1,400 are distinct
at 2, 25,600 at 3, 39,000 at 4.

    steps    a way without detours: operation, colon, numbers left; the expression at the end:
                 7-3=4:8,2,4 8-2=6:4,6 4*6=24 (7-3)*(8-2)
    terse    the same without the numbers left
    search   as steps, with dead ends (`11+14=25x`) after which an earlier state is taken up
             again (`back:2,7,11`)
"""

from __future__ import annotations

from random import Random

from onebase.worlds.base import Draft, Family, Solved
from onebase.worlds.expression import Tree, show

HIGHEST = 40  # of the given numbers
LARGEST = 200  # of the values on the way
DETOURS = 3
Item = tuple[int, Tree]
Step = tuple[int, str, int, int]  # left, operation, right, result


def combine(rng: Random, pool: list[Item]) -> tuple[Step, list[Item]]:
    """One random allowed operation on two items of the pool; the result goes to the end.  There is
    always one: a-b for different numbers, a/a or 1+1 for equal ones."""
    draw = rng.random
    while True:
        i = int(draw() * len(pool))
        j = int(draw() * (len(pool) - 1))
        j += j >= i
        (a, left), (b, right) = pool[i], pool[j]
        op = "+-*/"[int(draw() * 4)]
        value = 0
        if op == "+":
            value = a + b
        elif op == "-":
            value = a - b
        elif b > 1 and (a > 1 if op == "*" else a % b == 0):
            value = a * b if op == "*" else a // b
        if 0 < value <= LARGEST:
            rest = [item for k, item in enumerate(pool) if k != i and k != j]
            return (a, op, b, value), [*rest, (value, (op, left, right))]


def to_the_end(rng: Random, pool: list[Item]) -> tuple[list[Step], list[list[Item]]]:
    """Random operations until one item is left: the steps and the states after them."""
    steps, states = [], []
    while len(pool) > 1:
        step, pool = combine(rng, pool)
        steps.append(step)
        states.append(pool)
    return steps, states


def generate(rng: Random, difficulty: int) -> Draft:
    while True:
        numbers = [1 + int(rng.random() * HIGHEST) for _ in range(difficulty)]
        steps, states = to_the_end(rng, [(n, n) for n in numbers])
        target = states[-1][0][0]
        if 10 <= target <= 99:
            break
    return Draft(f"{target}:{sorted(numbers)}", (numbers, target, steps, states))


def _numbers(pool: list[Item]) -> str:
    return ",".join([str(value) for value, _ in pool])


def _write(steps: list[Step], states: list[list[Item]]) -> list[str]:
    """A way to the last item; the numbers left are written after every step but the last."""
    return [
        f"{a}{op}{b}={c}" + (f":{_numbers(pool)}" if len(pool) > 1 else "")
        for (a, op, b, c), pool in zip(steps, states, strict=True)
    ]


def finish(rng: Random, draft: Draft) -> Solved:
    numbers, target, steps, states = draft.state
    answer = show(states[-1][0][1])
    way = _write(steps, states)
    search: list[str] = []
    starts: list[list[Item]] = [[(n, n) for n in numbers], *states[:-1]]
    detours = int(rng.random() * (DETOURS + 1))
    for start, step in zip(starts, way, strict=True):
        while detours and rng.random() < 0.6:
            detours -= 1
            tried, reached = to_the_end(rng, start)
            if reached[-1][0][0] != target:
                search += [*_write(tried, reached)]
                search[-1] += f"x back:{_numbers(start)}"
        search.append(step)
    thoughts = {
        "steps": " ".join([*way, answer]),
        "terse": " ".join([*(f"{a}{op}{b}={c}" for a, op, b, c in steps), answer]),
        "search": " ".join([*search, answer]),
    }
    prompt = f"make {target} from {','.join(map(str, numbers))}"
    return Solved(prompt, answer, thoughts, {"numbers": numbers, "target": target})


FAMILY = Family(
    name="countdown",
    description="reach a target with every given number once; difficulty: how many numbers",
    default=(3, 4),
    ood=(5, 6),
    allowed=(2, 8),
    styles=("steps", "terse", "search"),
    generate=generate,
    finish=finish,
)
