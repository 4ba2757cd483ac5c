"""Multiplication of natural numbers by partial products: `347*28`.

Difficulty n is the number of digits of both factors together; from 4 on each factor has at least two.  a*b
and b*a are one problem when splits are made.  Distinct products: 45 at 2, 810 at 3, 4,095 at 4, 81,000 at 5;
hence the default from 5.

    steps    a line for each digit of the second factor, from the lowest: columns `digit*digit+carry`, the
             partial product, and the sum so far:
                 8*7+0=56 8*4+5=37 8*3+3=27 347*8=2776
                 2*7+0=14 2*4+1=9 2*3+0=6 347*20=6940 2776+6940=9716
    terse    the same without columns
    search   as terse, with wrong partial products that are noticed (`347*8=2676x`) and redone
"""

from __future__ import annotations

from random import Random

from onebase.worlds.base import Draft, Family, Solved

SLIP = 0.25


def _number(rng: Random, digits: int) -> int:
    low = 10 ** (digits - 1)
    return low + int(rng.random() * 9 * low)


def generate(rng: Random, difficulty: int) -> Draft:
    fewest = 1 if difficulty < 4 else 2
    digits = fewest + int(rng.random() * (difficulty - 2 * fewest + 1))
    a, b = _number(rng, digits), _number(rng, difficulty - digits)
    return Draft(f"{max(a, b)}*{min(a, b)}", (a, b))


def finish(rng: Random, draft: Draft) -> Solved:
    a, b = draft.state
    steps, terse, search = [], [], []
    total, place = 0, 1
    for digit in map(int, reversed(str(b))):
        columns, carry = [], 0
        for other in map(int, reversed(str(a))):
            column = digit * other + carry
            columns.append(f"{digit}*{other}+{carry}={column}")
            carry = column // 10
        partial = a * digit * place
        left = f"{a}*{digit * place}="
        after = "" if place == 1 else f" {total}+{partial}={total + partial}"
        if rng.random() < SLIP:
            off = place * 10 ** int(rng.random() * len(str(a)))
            search.append(f"{left}{partial + off if partial < off or rng.random() < 0.5 else partial - off}x")
        total += partial
        place *= 10
        terse.append(f"{left}{partial}{after}")
        search.append(terse[-1])
        steps.append(f"{' '.join(columns)} {terse[-1]}")
    thoughts = {"steps": "\n".join(steps), "terse": "\n".join(terse), "search": "\n".join(search)}
    return Solved(f"{a}*{b}", str(total), thoughts, {})


FAMILY = Family(
    name="multiplication",
    description="product of two numbers by partial products; difficulty: digits of both together",
    default=(5, 7),
    ood=(8, 9),
    allowed=(2, 32),
    styles=("steps", "terse", "search"),
    generate=generate,
    finish=finish,
)
