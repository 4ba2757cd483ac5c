"""Strict checker of the generated worlds (`onebase.worlds`): the answer after the thought, exactly.

- countdown: an expression with each given number exactly once and exactly the target (own parser, no eval).
- path: any shortest path between the two ends along the given edges.
- code: not judged here, the tests have to be run: an error names the verifier that does.
- all others: the canonical answer, nothing else beside it but white space.

With the option `trace=True` the thought must be sound as well, every step of it (families of
`onebase.worlds.traces`): answer-only checking flatters a model that guesses.
"""

from __future__ import annotations

from typing import Any

from onebase.verifiers.base import Verdict, failed
from onebase.worlds import FAMILIES, Problem
from onebase.worlds.expression import parse
from onebase.worlds.path import breadth_first, graph_of
from onebase.worlds.traces import TRACES, trace_fault

INLINE = True
OPEN, CLOSE = "<think>", "</think>"
BOX = "\\boxed{"
SHOWN = 60  # characters of a completion that a reason quotes


def verify(completion: str, answer: str, *, trace: bool = False, **row: Any) -> Verdict:
    """Reward 1 or 0.  `row` has the problem's `family` and its `check` fields, and for trace=True its prompt
    as `problem`."""
    family = row.get("family")
    if family not in FAMILIES:
        return failed(f"no world family {family!r}; the row field `family` is one of: {', '.join(FAMILIES)}")
    if family == "code":
        return failed("family 'code' needs the code_tests verifier: its answers have to be run")
    thought, given, fault = split(completion)
    if fault:
        return Verdict(0.0, fault)
    try:
        fault = answer_fault(family, given, answer, row)
    except KeyError as error:
        return failed(f"family {family!r}: the row has no field {error}")
    except (TypeError, ValueError, AttributeError) as error:
        return failed(f"family {family!r}: the row's fields cannot be read: {error}")
    if fault:
        return Verdict(0.0, fault)
    if trace:
        if family not in TRACES:
            return failed(f"family {family!r} has no trace check; families that have: {', '.join(TRACES)}")
        if "problem" not in row:
            return failed("trace=True needs the row field `problem` (the prompt)")
        try:
            fault = trace_fault(family, row["problem"], thought)
        except ValueError as error:
            return failed(f"the row field `problem` cannot be read: {error}")
        if fault:
            return Verdict(0.0, f"right answer, but the trace is not sound: {fault}")
    return Verdict(1.0, f"{family}: {_quote(given)} is right" + (", and so is the trace" if trace else ""))


def check_trace(problem: Problem, thought: str) -> Verdict:
    """Reward 1 if every step of the thought (without tags) is sound and it ends at a right answer."""
    if problem.family not in TRACES:
        return failed(
            f"family {problem.family!r} has no trace check; families that have: {', '.join(TRACES)}"
        )
    fault = trace_fault(problem.family, problem.prompt, thought)
    return Verdict(0.0, fault) if fault else Verdict(1.0, "every step is sound")


def split(completion: str) -> tuple[str, str, str]:
    """(thought, answer, fault).  Without tags all is answer; a prefilled prompt may have opened it."""
    opened, closed = completion.count(OPEN), completion.count(CLOSE)
    if not opened and not closed:
        return "", unboxed(completion), ""
    if not closed:
        return "", "", "thought not closed"
    if opened > 1 or closed > 1:
        return "", "", f"{opened} times {OPEN}, {closed} times {CLOSE}"
    thought, _, given = completion.partition(CLOSE)
    if OPEN in given:
        return "", "", f"{CLOSE} comes before {OPEN}"
    before, found, inside = thought.partition(OPEN)
    if found and before.strip():
        return "", "", f"text before the thought: {_quote(before.strip())}"
    return (inside if found else thought), unboxed(given), ""


def unboxed(answer: str) -> str:
    r"""What is inside `\boxed{...}` where that is the whole answer, else the answer itself."""
    answer = answer.strip()
    whole = answer.startswith(BOX) and answer.endswith("}") and answer.count(BOX) == 1
    return answer[len(BOX) : -1].strip() if whole else answer


def answer_fault(family: str, given: str, answer: str, row: dict[str, Any]) -> str:
    """Why the answer is wrong; empty if it is right.  KeyError if the row lacks a field."""
    if not given:
        return "no answer"
    if family == "countdown":
        return _countdown_fault(given, row["numbers"], row["target"])
    if family == "path":
        return _path_fault(given, row["edges"], row["start"], row["goal"])
    return "" if given == answer.strip() else f"{_quote(given)} is not {_quote(answer.strip())}"


def _countdown_fault(given: str, numbers: list[int], target: int) -> str:
    try:
        value, used = parse(given)
    except ValueError as error:
        return f"{_quote(given)} is no expression: {error}"
    if sorted(used) != sorted(numbers):
        return f"{_quote(given)} uses {sorted(used)}, not each of {sorted(numbers)} once"
    return "" if value == target else f"{_quote(given)} is {value}, not {target}"


def _path_fault(given: str, edges: list[str], start: str, goal: str) -> str:
    graph = graph_of(edges)
    nodes = given.split("-")
    if nodes[0] != start or nodes[-1] != goal:
        return f"{_quote(given)} does not lead from {start} to {goal}"
    for a, b in zip(nodes, nodes[1:], strict=False):
        if b not in graph.get(a, ()):
            return f"{_quote(given)}: there is no edge {_quote(f'{a}-{b}')}"
    shortest, _ = breadth_first(graph, start, goal)
    return "" if len(nodes) == len(shortest) else f"{_quote(given)} is longer than {'-'.join(shortest)}"


def _quote(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")
