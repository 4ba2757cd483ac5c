"""Linear equations in x with an integer solution from -12 to 12: `3x+5-2x=4x-7`.

Difficulty n: n+2 terms on the two sides, each a multiple of x or a number; from 3 on a term may be a bracket,
`2(x-3)`.  About 16,000 problems at 1, 300,000 at 2, far more beyond; hence the default from 2.

    steps    one rewriting a line: brackets opened, sides collected, x moved left, numbers right, divided
    terse    the last two lines of steps
    search   values of x are tried in both sides (`x=2:11,1`) until they agree (`x=6:23,23`)
"""

from __future__ import annotations

from random import Random

from onebase.worlds.base import Draft, Family, Solved

Term = tuple[int, int, int]  # factor, x inside, number inside: factor*(x_inside*x + number)
Side = list[Term]


def show(a: int, b: int) -> str:
    """ax+b as text; `0` when both vanish."""
    x = "" if a == 0 else "x" if a == 1 else "-x" if a == -1 else f"{a}x"
    if b == 0:
        return x or "0"
    return f"{x}+{b}" if x and b > 0 else f"{x}{b}"


def show_side(side: Side) -> str:
    text = ""
    for factor, a, b in side:
        piece = f"{factor}({show(a, b)})" if a and b else show(factor * a, factor * b)
        text += piece if not text or piece[0] == "-" else f"+{piece}"
    return text or "0"


def collect(side: Side) -> tuple[int, int]:
    return sum(f * a for f, a, _ in side), sum(f * b for f, _, b in side)


def opened(side: Side) -> Side:
    out: Side = []
    for f, a, b in side:
        out += [(1, f * a, 0), (1, 0, f * b)] if a and b else [(f, a, b)]
    return out


def _nonzero(rng: Random, most: int) -> int:
    n = 1 + int(rng.random() * most)
    return n if rng.random() < 0.5 else -n


def generate(rng: Random, difficulty: int) -> Draft:
    while True:
        left: Side = [(1, _nonzero(rng, 9), 0)]
        right: Side = []
        for n in range(difficulty):
            side = left if n % 2 == 0 else right
            pick = rng.random()
            if n == 0:
                side.append((1, 0, _nonzero(rng, 20)))
            elif n == 1 or pick < 0.4:
                side.append((1, _nonzero(rng, 9), 0))
            elif pick < 0.7 and difficulty > 2:
                side.append((2 + int(rng.random() * 4), 1, _nonzero(rng, 9)))
            else:
                side.append((1, 0, _nonzero(rng, 20)))
        solution = int(rng.random() * 25) - 12
        (a, b), (c, d) = collect(left), collect(right)
        rest = (a - c) * solution + b - d
        if a != c and rest:
            right.append((1, 0, rest))
            break
    prompt = f"{show_side(left)}={show_side(right)}"
    return Draft(prompt, (left, right, solution))


def finish(rng: Random, draft: Draft) -> Solved:
    left, right, solution = draft.state
    (a, b), (c, d) = collect(left), collect(right)
    forms = [
        f"{show_side(opened(left))}={show_side(opened(right))}",
        f"{show(a, b)}={show(c, d)}",
        f"{show(a - c, b)}={d}",
        f"{show(a - c, 0)}={d - b}",
        f"x={solution}",
    ]
    lines, before = [], draft.key
    for form in forms:
        if form != before:
            lines.append(form)
            before = form
    tries = []
    wrong = [n for n in range(-12, 13) if n != solution]
    for n in [*rng.sample(wrong, int(rng.random() * 5)), solution]:
        tries.append(f"x={n}:{a * n + b},{c * n + d}")
    thoughts = {"steps": "\n".join(lines), "terse": "\n".join(lines[-2:]), "search": "\n".join(tries)}
    return Solved(draft.key, str(solution), thoughts, {})


FAMILY = Family(
    name="equation",
    description="linear equations with an integer solution; difficulty: terms beyond two",
    default=(2, 4),
    ood=(5, 7),
    allowed=(1, 32),
    styles=("steps", "terse", "search"),
    generate=generate,
    finish=finish,
)
