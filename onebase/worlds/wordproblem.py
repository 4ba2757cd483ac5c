"""Word problems over a graph of named quantities: `Ann has 5 pens. Bob has 3 more cups than Ann has pens. How
many cups does Bob have?`

After the idea of iGSM (Ye et al., 2407.20311): quantities depend on others, sentences come in any order, and
some are not needed.  Deviations: exact small numbers (0 to 99) in place of arithmetic modulo 23, and no
categories.  Difficulty n is the number of operations that the asked quantity needs; 1 to 3 more quantities
are not needed.  When splits are made, problems with the same calculation are one, whatever the names and the
order of sentences: a held-out problem asks for a calculation that was never trained.  Of 40,000 draws 350
calculations are distinct at 1, 8,500 at 2, 34,600 at 3.

    steps    needed quantities, each after those it needs:  Ann pens=5 / Bob cups=5+3=8   (one a line)
    terse    their values: 5 8
    search   from the question backwards: a quantity is opened with `?` until its parts are known; now and
             then one that is not needed is worked out and put away (`Kim maps=9x`)
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from onebase.worlds.base import Draft, Family, Solved

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Joe", "Kim", "Leo")
THINGS = ("pens", "cups", "hats", "keys", "nuts", "eggs", "maps", "bags")
PLACES = range(len(NAMES) * len(THINGS))
LARGEST = 99


class Quantity(NamedTuple):
    op: str
    """`=` given; `+`, `-`, `*` with a number; `&` the sum of two quantities."""
    number: int
    parents: tuple[int, ...]
    value: int


def _derive(rng: Random, quantities: list[Quantity], parents: tuple[int, ...]) -> Quantity | None:
    """A quantity over one parent or two; None if its value would leave 0 to 99."""
    value = quantities[parents[0]].value
    if len(parents) == 2:
        quantity = Quantity("&", 0, parents, value + quantities[parents[1]].value)
    else:
        op = "+-*"[int(rng.random() * 3)]
        number = 2 + int(rng.random() * (2 if op == "*" else 8))
        result = value + number if op == "+" else value - number if op == "-" else value * number
        quantity = Quantity(op, number, parents, result)
    return quantity if 0 <= quantity.value <= LARGEST else None


def _given(rng: Random) -> Quantity:
    number = 2 + int(rng.random() * 18)
    return Quantity("=", number, (), number)


def _needed(rng: Random, operations: int) -> list[Quantity] | None:
    """A graph in which the last quantity needs all others, through so many operations.  Open ends (nobody's
    parent yet) are never more than the operations left can join.  None if a value left its bounds."""
    quantities = [_given(rng)]
    ends = {0}
    for left in range(operations - 1, -1, -1):
        pick = rng.random()
        if len(ends) > left + 1 or (len(ends) > 1 and pick < 0.25):
            parents = tuple(rng.sample(sorted(ends), 2))
        elif pick < 0.45:
            quantities.append(_given(rng))
            parents = (max(ends), len(quantities) - 1)
        elif pick < 0.6 and len(ends) <= left:
            parents = (int(rng.random() * len(quantities)),)  # perhaps a second use: the graph is no tree
        else:
            parents = (max(ends),)
        quantity = _derive(rng, quantities, parents)
        if quantity is None:
            return None
        ends = (ends - set(parents)) | {len(quantities)}
        quantities.append(quantity)
    return quantities if len(ends) == 1 else None


def calculation(quantities: list[Quantity], asked: int) -> str:
    """The asked quantity as one expression over given numbers; sums sorted, so that it names the problem."""
    q = quantities[asked]
    if q.op == "=":
        return str(q.number)
    inner = sorted(calculation(quantities, p) for p in q.parents)
    return f"({'+'.join(inner)})" if q.op == "&" else f"({inner[0]}{q.op}{q.number})"


def _sentence(q: Quantity, name: tuple[str, str], parents: list[tuple[str, str]]) -> str:
    who, what = name
    if q.op == "=":
        return f"{who} has {q.number} {what}."
    has = [f"{w} has {t}" for w, t in parents]
    if q.op == "&":
        return f"{who} has as many {what} as {has[0]} and {has[1]} together."
    if q.op == "*":
        return f"{who} has {q.number} times as many {what} as {has[0]}."
    return f"{who} has {q.number} {'more' if q.op == '+' else 'fewer'} {what} than {has[0]}."


def generate(rng: Random, difficulty: int) -> Draft:
    while True:
        quantities = _needed(rng, difficulty)
        if quantities is not None:
            break
    asked = len(quantities) - 1
    for _ in range(1 + int(rng.random() * 3)):
        extra = (
            _derive(rng, quantities, (int(rng.random() * len(quantities)),)) if rng.random() < 0.6 else None
        )
        quantities.append(extra or _given(rng))
    return Draft(calculation(quantities, asked), (quantities, asked))


def _worded(rng: Random, quantities: list[Quantity], asked: int) -> tuple[str, list[str]]:
    """The prompt, and the quantities' names as traces write them."""
    names = [(NAMES[n // len(THINGS)], THINGS[n % len(THINGS)]) for n in rng.sample(PLACES, len(quantities))]
    sentences = [
        _sentence(q, name, [names[p] for p in q.parents]) for q, name in zip(quantities, names, strict=True)
    ]
    rng.shuffle(sentences)
    who, what = names[asked]
    return f"{' '.join(sentences)} How many {what} does {who} have?", [f"{w} {t}" for w, t in names]


def finish(rng: Random, draft: Draft) -> Solved:
    quantities, asked = draft.state
    prompt, names = _worded(rng, quantities, asked)

    def line(i: int) -> str:
        q = quantities[i]
        values = "+".join([str(quantities[p].value) for p in q.parents])
        way = {"=": "", "&": f"{values}="}.get(q.op, f"{values}{q.op}{q.number}=")
        return f"{names[i]}={way}{q.value}"

    search: list[str] = []
    known: set[int] = set()
    spare = [i for i in range(asked + 1, len(quantities)) if all(p <= asked for p in quantities[i].parents)]

    def work_out(i: int) -> None:
        missing = [p for p in quantities[i].parents if p not in known]
        if missing:
            search.append(f"{names[i]}?")
        for p in missing:
            if p not in known:
                work_out(p)
        if spare and rng.random() < 0.15 and all(p in known for p in quantities[spare[-1]].parents):
            search.append(f"{line(spare.pop())}x")
        search.append(line(i))
        known.add(i)

    work_out(asked)
    thoughts = {
        "steps": "\n".join(line(i) for i in range(asked + 1)),
        "terse": " ".join(str(q.value) for q in quantities[: asked + 1]),
        "search": "\n".join(search),
    }
    return Solved(prompt, str(quantities[asked].value), thoughts, {})


FAMILY = Family(
    name="wordproblem",
    description="quantities that depend on others, in sentences; difficulty: operations",
    default=(3, 6),
    ood=(7, 10),
    allowed=(1, 24),
    styles=("steps", "terse", "search"),
    generate=generate,
    finish=finish,
)
