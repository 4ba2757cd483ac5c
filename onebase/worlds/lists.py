"""Short programs on a list of digits: `3141 reverse,tail,add2`.

The list is written as its digits.  Operations: reverse; sort (rising); tail (without the first); init
(without the last); rotate (first to the end); swap (first and last); addK (each +K modulo 10); dropK (without
the digit K, which occurs).  Difficulty is the number of operations; lists start with 4 to 6 digits (more for
long programs) and keep at least 2.  Neighbours of one kind that amount to one or none (reverse,reverse;
sort,sort; add2,add3) are not drawn.  Over 10^7 problems at 1 operation already.

    steps    reverse:1413 tail:413 add2:635
    terse    1413 413 635
    search   as steps, with wrong lists that are noticed (`tail:141x`) and redone
"""

from __future__ import annotations

from random import Random

from onebase.worlds.base import Draft, Family, Solved

PLAIN = ("reverse", "sort", "tail", "init", "rotate", "swap")
SLIP = 0.2


def apply(digits: str, operation: str) -> str:
    match operation[:3]:
        case "rev":
            return digits[::-1]
        case "sor":
            return "".join(sorted(digits))
        case "tai":
            return digits[1:]
        case "ini":
            return digits[:-1]
        case "rot":
            return digits[1:] + digits[:1]
        case "swa":
            return digits if len(digits) < 2 else digits[-1] + digits[1:-1] + digits[0]
        case "add":
            k = int(operation[3:])
            return "".join([str((int(d) + k) % 10) for d in digits])
        case "dro":
            return digits.replace(operation[4:], "")
    raise ValueError(f"no list operation {operation!r}")


def generate(rng: Random, difficulty: int) -> Draft:
    draw = rng.random
    shortened = difficulty // 2  # room for tail and init in long programs
    length = 4 + int(draw() * 3) + max(0, shortened - 2)
    digits = now = "".join([str(int(draw() * 10)) for _ in range(length)])
    operations: list[str] = []
    last = ""
    while len(operations) < difficulty:
        pick = int(draw() * 9)
        if pick < 6:
            operation = PLAIN[pick]
        elif pick < 8:
            operation = f"add{1 + int(draw() * 9)}"
        else:
            operation = f"drop{now[int(draw() * len(now))]}"
        kind = operation[:3]
        if kind == last and kind not in ("tai", "ini", "rot"):
            continue
        result = apply(now, operation)
        if len(result) < 2:
            continue
        operations.append(operation)
        now, last = result, kind
    prompt = f"{digits} {','.join(operations)}"
    return Draft(prompt, (digits, operations))


def finish(rng: Random, draft: Draft) -> Solved:
    digits, operations = draft.state
    draw = rng.random
    steps, values, search = [], [], []
    for operation in operations:
        digits = apply(digits, operation)
        if draw() < SLIP:
            at = int(draw() * len(digits))
            wrong = (int(digits[at]) + 1 + int(draw() * 9)) % 10
            search.append(f"{operation}:{digits[:at]}{wrong}{digits[at + 1 :]}x")
        step = f"{operation}:{digits}"
        steps.append(step)
        search.append(step)
        values.append(digits)
    thoughts = {"steps": " ".join(steps), "terse": " ".join(values), "search": " ".join(search)}
    return Solved(draft.key, digits, thoughts, {})


FAMILY = Family(
    name="lists",
    description="pipelines of list operations on digits; difficulty: operations",
    default=(2, 4),
    ood=(5, 7),
    allowed=(1, 32),
    styles=("steps", "terse", "search"),
    generate=generate,
    finish=finish,
)
