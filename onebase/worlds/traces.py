"""Strict checks of reasoning traces: every step must be sound and the last must give a right answer.

`trace_fault(family, prompt, thought)` reads the problem from its prompt and follows the thought in any of the
family's styles (see the families' modules for the notation).  A step marked `x` must really be wrong: an
attempt that is thrown away though it was right is a fault too.  For equations, soundness means that each line
has the same only solution; how far a line may jump is not limited.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from onebase.worlds import chain, lists
from onebase.worlds.expression import parse
from onebase.worlds.path import breadth_first, graph_of

CHAIN = re.compile(r"([0-9])([-+*])([0-9])=([0-9])(x?)")
COLUMN = re.compile(r"([0-9])\+([0-9])\+([01])=([0-9]{1,2})(?:(x)|:([0-9]{1,70}))")
TRY = re.compile(r"x=(-?[0-9]{1,9}):(-?[0-9]{1,9}),(-?[0-9]{1,9})")
TERM = re.compile(r"([-+]?)(?:([0-9]{1,9})?(x)|([0-9]{1,9})(?![0-9(])|([0-9]{1,9})?\(([^()]*)\))")
STEP = re.compile(r"([0-9]{1,9})([-+*/])([0-9]{1,9})=([0-9]{1,9})(?::([0-9,]+))?(x?)")
LIST = re.compile(r"([a-z]+[0-9]?):([0-9]*)(x?)")


def trace_fault(family: str, prompt: str, thought: str) -> str:
    """The first fault, or the empty string.  ValueError if the prompt is not one of the family."""
    if not thought.strip():
        return "the thought is empty"
    return TRACES[family](prompt, thought.strip())


def chain_fault(prompt: str, thought: str) -> str:
    match = re.fullmatch(r"([0-9])((?:[-+*][0-9])+) mod 10", prompt)
    if match is None:
        raise ValueError(f"not a chain problem: {prompt!r}")
    value, moves = int(match[1]), re.findall(r"([-+*])([0-9])", match[2])
    tokens = thought.split(" ")
    bare = all(re.fullmatch("[0-9]", token) for token in tokens)
    at = 0
    for token in tokens:
        if at == len(moves):
            return f"{token!r} after the last operation"
        op, n = moves[at][0], int(moves[at][1])
        result = chain.apply(value, op, n)
        match = CHAIN.fullmatch(f"{value}{op}{n}={token}" if bare else token)
        if match is None:
            return f"{token!r} is no step"
        if (int(match[1]), match[2], int(match[3])) != (value, op, n):
            return f"{token!r}: the step here is {value}{op}{n}"
        if (int(match[4]) == result) == bool(match[5]):
            return f"{token!r}: {value}{op}{n} is {result}"
        if not match[5]:
            value, at = result, at + 1
    return "" if at == len(moves) else f"{len(moves) - at} operations are missing"


def addition_fault(prompt: str, thought: str) -> str:
    match = re.fullmatch(r"([0-9]{1,70})\+([0-9]{1,70})", prompt)
    if match is None:
        raise ValueError(f"not an addition problem: {prompt!r}")
    width = max(len(match[1]), len(match[2]))
    total = str(int(match[1]) + int(match[2]))
    pairs = list(zip(match[1].zfill(width)[::-1], match[2].zfill(width)[::-1], strict=True))
    tokens = thought.split(" ")
    if all(re.fullmatch("[0-9]+", token) for token in tokens):
        carry, wanted = 0, []
        for x, y in pairs:
            wanted.append(str(int(x) + int(y) + carry))
            carry = int(wanted[-1]) // 10
        return "" if tokens == [*wanted, total] else f"the column sums are {' '.join([*wanted, total])}"
    at = carry = 0
    for token in tokens:
        if at == width:
            return f"{token!r} after the last column"
        match = COLUMN.fullmatch(token)
        if match is None:
            return f"{token!r} is no column"
        x, y = pairs[at]
        if match.group(1, 2, 3) != (x, y, str(carry)):
            return f"{token!r}: the column here is {x}+{y}+{carry}"
        column = int(x) + int(y) + carry
        if (match[4] == str(column)) == bool(match[5]):
            return f"{token!r}: the sum is {column}"
        if match[5]:
            continue
        done = total if at == width - 1 else total[-at - 1 :]
        if match[6] != done:
            return f"{token!r}: the result so far is {done}"
        carry, at = column // 10, at + 1
    return "" if at == width else f"{width - at} columns are missing"


def linear(side: str, nested: bool = False) -> tuple[int, int]:
    """(a, b) of a side ax+b; brackets one deep.  ValueError if it is none."""
    a = b = at = 0
    while at < len(side):
        match = TERM.match(side, at)
        if match is None or (at and not match[1]) or (match[6] is not None and nested):
            raise ValueError(f"not linear: {side!r}")
        sign = -1 if match[1] == "-" else 1
        if match[3]:
            a += sign * int(match[2] or 1)
        elif match[4]:
            b += sign * int(match[4])
        else:
            c, d = linear(match[6], nested=True)
            a, b = a + sign * int(match[5] or 1) * c, b + sign * int(match[5] or 1) * d
        at = match.end()
    if not side:
        raise ValueError("an empty side")
    return a, b


def solution(equation: str) -> Fraction | None:
    """The only solution, or None.  ValueError if the text is no linear equation."""
    left, equals, right = equation.partition("=")
    if not equals:
        raise ValueError(f"no equation: {equation!r}")
    (a, b), (c, d) = linear(left), linear(right)
    return None if a == c else Fraction(d - b, a - c)


def equation_fault(prompt: str, thought: str) -> str:
    wanted = solution(prompt)
    lines = thought.split("\n")
    if ":" in lines[0]:
        (a, b), (c, d) = map(linear, prompt.split("="))
        for line in lines:
            match = TRY.fullmatch(line)
            if match is None:
                return f"{line!r} is no trial"
            x, left, right = map(int, match.groups())
            if (left, right) != (a * x + b, c * x + d):
                return f"{line!r}: the sides are {a * x + b},{c * x + d}"
            if (x == wanted) != (line is lines[-1]):
                return (
                    "the last trial does not agree"
                    if line is lines[-1]
                    else f"{line!r} is already the solution"
                )
        return ""
    before = prompt
    for line in lines:
        try:
            found, follows = solution(line), _follows(before, line)
        except ValueError as error:
            return str(error)
        if found != wanted:
            return f"{line!r} has the solution {found}, the problem {wanted}"
        if not follows:
            return f"{line!r} does not follow from {before!r} by one rewriting"
        before = line
    return "" if lines[-1] == f"x={wanted}" else f"the last line {lines[-1]!r} is not x={wanted}"


def _follows(before: str, line: str) -> bool:
    """Whether one rewriting leads from an equation to the next: the same added to both sides (or nothing,
    with terms collected), both multiplied by one number, or the sides exchanged."""
    (a, b), (c, d) = map(linear, before.split("="))
    (p, q), (r, s) = map(linear, line.split("="))
    added = (p - r, q - s) == (a - c, b - d)
    old, new = (a, b, c, d), (p, q, r, s)
    scaled = all(x * v == y * u for x, u in zip(old, new, strict=True) for y, v in zip(old, new, strict=True))
    return added or scaled or (p, q, r, s) == (c, d, a, b)


def countdown_fault(prompt: str, thought: str) -> str:
    match = re.fullmatch(r"make ([0-9]+) from ([0-9]+(?:,[0-9]+)+)", prompt)
    if match is None:
        raise ValueError(f"not a countdown problem: {prompt!r}")
    target, numbers = int(match[1]), sorted(map(int, match[2].split(",")))
    *tokens, expression = thought.split(" ")
    states, dead = [numbers], False  # the way from the start; each state sorted
    for token in tokens:
        if dead or token.startswith("back:"):
            pool = _pool(token.removeprefix("back:")) if token.startswith("back:") else None
            if not dead or pool not in states[:-1]:
                return f"{token!r}: " + ("not an earlier state" if dead else "nothing to go back from")
            states = states[: states.index(pool) + 1]
            dead = False
            continue
        fault, rest = _combined(token, states[-1])
        if fault:
            return fault
        states.append(rest)
        dead = token.endswith("x")
        if dead != (len(rest) == 1 and rest[0] != target):
            return f"{token!r}: " + ("not a dead end" if dead else "a dead end that is not marked")
    if states[-1] != [target] or dead:
        return f"the steps end at {states[-1]}, not at {target}"
    try:
        value, used = parse(expression)
    except ValueError as error:
        return f"{expression!r} is no expression: {error}"
    right = value == target and sorted(used) == numbers
    return "" if right else f"{expression!r} does not make {target} from {numbers}"


def _pool(text: str) -> list[int]:
    return sorted(int(n) for n in text.split(",") if n)


def _combined(token: str, pool: list[int]) -> tuple[str, list[int]]:
    """(fault, numbers left) of one operation on the pool."""
    match = STEP.fullmatch(token)
    if match is None:
        return f"{token!r} is no step", pool
    a, op, b, c = int(match[1]), match[2], int(match[3]), int(match[4])
    rest = list(pool)
    for n in (a, b):
        if n not in rest:
            return f"{token!r}: {n} is not among {pool}", pool
        rest.remove(n)
    right = (
        a == b * c and b > 0 if op == "/" else c == (a + b if op == "+" else a - b if op == "-" else a * b)
    )
    if not right:
        return f"{token!r} is miscounted", pool
    rest = sorted([*rest, c])
    if match[5] is not None and _pool(match[5]) != rest:
        return f"{token!r}: the numbers left are {rest}", pool
    return "", rest


def path_fault(prompt: str, thought: str) -> str:
    match = re.fullmatch(r"([A-Z]) to ([A-Z]): ([A-Z]-[A-Z](?: [A-Z]-[A-Z])*)", prompt)
    if match is None:
        raise ValueError(f"not a path problem: {prompt!r}")
    start, goal, graph = match[1], match[2], graph_of(match[3].split(" "))
    shortest, _ = breadth_first(graph, start, goal)
    *tokens, last = thought.split(" ")
    nodes = last.split("-")
    joined = all(b in graph.get(a, ()) for a, b in zip(nodes, nodes[1:], strict=False))
    if not joined or (nodes[0], nodes[-1], len(nodes)) != (start, goal, len(shortest)):
        return f"{last!r} is no shortest path from {start} to {goal}"
    if any(":" in token for token in tokens):
        return _breadth_fault(tokens, graph, start, goal)
    if any("-" in token for token in tokens):
        return _walks_fault(tokens, graph, start, goal, len(shortest))
    return _levels_fault(tokens, graph, start, goal) if tokens else ""


Graph = dict[str, list[str]]


def _breadth_fault(tokens: list[str], graph: Graph, start: str, goal: str) -> str:
    queue = [start]
    for at, token in enumerate(tokens):
        node, _, rest = token.partition(":")
        new = rest.split(",") if rest else []
        if goal in queue:
            return f"{token!r} after the goal was seen"
        if at >= len(queue) or node != queue[at]:
            return f"{token!r}: the node to take is {queue[at] if at < len(queue) else 'none'}"
        unseen = [n for n in graph[node] if n not in queue]
        if sorted(new) != unseen:
            return f"{token!r}: new at {node} are {','.join(unseen) or 'none'}"
        queue += new
    return "" if goal in queue else "the search stops before the goal is seen"


def _walks_fault(tokens: list[str], graph: Graph, start: str, goal: str, least: int) -> str:
    for token in tokens:
        walk = token.removesuffix("x").split("-")
        if not token.endswith("x"):
            return f"{token!r}: a walk before the answer that is not thrown away"
        if walk[0] != start or len(set(walk)) < len(walk):
            return f"{token!r} does not start at {start} or visits a node twice"
        for a, b in zip(walk, walk[1:], strict=False):
            if b not in graph.get(a, ()):
                return f"{token!r}: there is no edge {a}-{b}"
        stuck = all(n in walk for n in graph[walk[-1]])
        if walk[-1] == goal and len(walk) == least:
            return f"{token!r} is a shortest path, but was thrown away"
        if walk[-1] != goal and not stuck:
            return f"{token!r}: there is a way on"
    return ""


def _levels_fault(tokens: list[str], graph: Graph, start: str, goal: str) -> str:
    seen: set[str] = set()
    level = {start}
    for token in tokens:
        given = token.split(",")
        last = token is tokens[-1]
        if last != (goal in level):
            return f"{token!r}: " + ("the goal is not in this level" if last else "the goal was already seen")
        # The last level is written as far as the search for the goal had to go.
        right = set(given) <= level and goal in given if last else set(given) == level
        if not right or len(set(given)) < len(given):
            return f"{token!r}: this level is {','.join(sorted(level))}"
        seen |= level
        level = {n for node in level for n in graph[node]} - seen
    return ""


def lists_fault(prompt: str, thought: str) -> str:
    match = re.fullmatch(r"([0-9]+) ([a-z]+[0-9]?(?:,[a-z]+[0-9]?)*)", prompt)
    if match is None:
        raise ValueError(f"not a lists problem: {prompt!r}")
    digits, operations = match[1], match[2].split(",")
    tokens = thought.split(" ")
    bare = all(re.fullmatch("[0-9]+", token) for token in tokens)
    at = 0
    for token in tokens:
        if at == len(operations):
            return f"{token!r} after the last operation"
        result = lists.apply(digits, operations[at])
        match = LIST.fullmatch(f"{operations[at]}:{token}" if bare else token)
        if match is None or match[1] != operations[at]:
            return f"{token!r}: the operation here is {operations[at]}"
        if (match[2] == result) == bool(match[3]):
            return f"{token!r}: the list is {result}"
        if not match[3]:
            digits, at = result, at + 1
    return "" if at == len(operations) else f"{len(operations) - at} operations are missing"


TRACES: dict[str, Callable[[str, str], str]] = {
    "chain": chain_fault,
    "addition": addition_fault,
    "equation": equation_fault,
    "countdown": countdown_fault,
    "path": path_fault,
    "lists": lists_fault,
}
