"""Shortest path in a small undirected graph given by its edges: `A to D: B-A C-B E-B C-D`.

Difficulty n is the length of the shortest path in edges; there are n+3 to n+5 nodes, named by capital
letters.  Every shortest path is a right answer; the canonical one is the one that breadth-first search finds
when it takes neighbours in alphabetical order.  The order of edges, of an edge's ends and of the two ends of
the path do not make another problem when splits are made.

    steps    breadth-first search: each node taken and the nodes new to it, until the goal is seen; the path:
                 A:B B:C,E C:D A-B-C-D
    terse    only the levels of that search: A B C,E D A-B-C-D
    search   walks along edges that end nowhere or come to the goal by a detour (`A-B-Ex`); the path
"""

from __future__ import annotations

from random import Random
from string import ascii_uppercase

from onebase.worlds.base import Draft, Family, Solved

Graph = dict[str, list[str]]


def graph_of(edges: list[str]) -> Graph:
    """Neighbours in alphabetical order."""
    graph: Graph = {}
    for edge in edges:
        a, b = edge.split("-")
        graph.setdefault(a, []).append(b)
        graph.setdefault(b, []).append(a)
    return {node: sorted(neighbours) for node, neighbours in sorted(graph.items())}


def breadth_first(graph: Graph, start: str, goal: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The shortest path ([] if none), and the nodes taken with what was new at each, up to the goal."""
    parent = {start: ""}
    queue, log = [start], []
    for node in queue:
        new = [n for n in graph.get(node, []) if n not in parent]
        parent.update(dict.fromkeys(new, node))
        queue += new
        log.append((node, new))
        if goal in parent:
            path = [goal]
            while parent[path[-1]]:
                path.append(parent[path[-1]])
            return path[::-1], log
    return [], log


def generate(rng: Random, difficulty: int) -> Draft:
    """Nodes get levels, 0 at the start and n at the goal, and edges join only levels at most 1 apart: so no
    path is shorter than n, and the planted one has n edges."""
    draw = rng.random
    size = difficulty + 3 + int(draw() * 3)
    nodes = rng.sample(ascii_uppercase, size)
    level = list(range(difficulty + 1))
    edges = {(i, i + 1) for i in range(difficulty)}
    for i in range(difficulty + 1, size):
        other = int(draw() * i)
        edges.add((other, i))
        level.append(min(difficulty, max(0, level[other] - 1 + int(draw() * 3))))
    for _ in range(size // 2):
        i, j = sorted((int(draw() * size), int(draw() * size)))
        if i != j and abs(level[i] - level[j]) <= 1:
            edges.add((i, j))
    pairs = [(nodes[i], nodes[j]) for i, j in sorted(edges)]
    start, goal = nodes[0], nodes[difficulty]
    named = sorted([f"{a}-{b}" if a < b else f"{b}-{a}" for a, b in pairs])
    return Draft(f"{min(start, goal)}{max(start, goal)} {' '.join(named)}", (start, goal, pairs))


def _walk(rng: Random, graph: Graph, start: str, goal: str) -> list[str]:
    """A walk without repeats, to the goal or until there is no way on."""
    walk = [start]
    while walk[-1] != goal:
        onward = [n for n in graph[walk[-1]] if n not in walk]
        if not onward:
            break
        walk.append(onward[int(rng.random() * len(onward))])
    return walk


def finish(rng: Random, draft: Draft) -> Solved:
    start, goal, pairs = draft.state
    rng.shuffle(pairs)
    edges = [f"{a}-{b}" if rng.random() < 0.5 else f"{b}-{a}" for a, b in pairs]
    graph = graph_of(edges)
    found, log = breadth_first(graph, start, goal)
    answer = "-".join(found)
    steps = [f"{node}:{','.join(new)}" for node, new in log]
    depth = {start: 0}
    levels: list[list[str]] = [[] for _ in found]
    for node, new in log:
        for n in new:
            depth[n] = depth[node] + 1
            levels[depth[n]].append(n)
    levels[0] = [start]
    tries = []
    for _ in range(int(rng.random() * 4)):
        walk = _walk(rng, graph, start, goal)
        if walk[-1] != goal or len(walk) > len(found):
            tries.append("-".join(walk) + "x")
    thoughts = {
        "steps": " ".join([*steps, answer]),
        "terse": " ".join([*(",".join(level) for level in levels), answer]),
        "search": " ".join([*dict.fromkeys(tries), answer]),
    }
    prompt = f"{start} to {goal}: {' '.join(edges)}"
    return Solved(prompt, answer, thoughts, {"edges": edges, "start": start, "goal": goal})


FAMILY = Family(
    name="path",
    description="shortest path in a small graph; difficulty: edges on the path",
    default=(2, 4),
    ood=(5, 7),
    allowed=(1, 20),
    styles=("steps", "terse", "search"),
    generate=generate,
    finish=finish,
)
