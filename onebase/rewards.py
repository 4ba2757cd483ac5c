"""Verdicts to one reward per completion: the sum of a recipe's reward terms, which are data.

`combine` is the whole rule, a pure function of terms, verdicts and the step:

    reward = sum over terms of  weight * schedule(step) * min(verdict, cap)   where the term's gate is open

    gate NAME         open where term NAME counts itself and its verdict is more than 0
    gate NAME.DETAIL  open where term NAME counts itself and that detail of its verdict is true

A verdict is needed where its term counts with a weight other than 0, or where such a term's gate looks at
it.  A needed verdict that is an error leaves the completion without a reward (None).  What is not needed
cannot do that: an error behind a closed gate, or of a term that weighs nothing.  The sum is what the weights
make it and may leave [0, 1].

A term behind a closed gate is not even judged, which spares the judge that costs money.  The first term
always is: it says what is correct (`Scored.correct`), in training and in evaluation.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from onebase.errors import UserError
from onebase.recipe import Term
from onebase.verifiers.base import Verdict, error_class, judge
from onebase.verifiers.pool import VerifierPool
from onebase.verifiers.registry import is_inline, limits, load, load_batch, load_gold
from onebase.wording import hint, listed


@dataclass(slots=True)
class Scored:
    """One completion's reward and where it came from."""

    reward: float | None
    """None where a verdict that it needs is an error."""
    verdicts: dict[str, Verdict]
    """By the term's name, in the recipe's order; without those behind a closed gate."""

    @property
    def first(self) -> Verdict:
        return next(iter(self.verdicts.values()))

    @property
    def correct(self) -> bool:
        """The first term's reward is 1; False, too, where it gave an error."""
        return self.first.reward is not None and self.first.reward >= 1.0

    @property
    def judged(self) -> bool:
        """The first term gave no error."""
        return self.first.reward is not None


# What terms are called, and what can be wrong with a list of them.


def term_names(terms: Sequence[Term]) -> list[str]:
    """What gates, records and metrics call each term: its `name`, else its verifier, numbered from the second
    on."""
    names: list[str] = []
    for term in terms:
        before = sum(t.name is None and t.verifier == term.verifier for t in terms[: len(names)])
        names.append(term.name or (term.verifier if not before else f"{term.verifier}#{before + 1}"))
    return names


def term_faults(terms: Sequence[Term]) -> Iterator[tuple[int, str, str]]:
    """(term, field, what is wrong with it)."""
    names = term_names(terms)
    for n, term in enumerate(terms):
        if names[n] in names[:n]:
            text = f"given {names[n]!r}: term {names.index(names[n])} has that name; give another `name`"
            yield n, "name", text
        if term.gate is not None:
            text = _gate_fault(term.gate, n, names, terms)
            if text:
                yield n, "gate", f"given {term.gate!r}: {text}"


def _gate_fault(gate: str, n: int, names: Sequence[str], terms: Sequence[Term]) -> str:
    others = [name for i, name in enumerate(names) if i != n]
    found = split_gate(gate, names)
    if found is None or found[0] == names[n]:
        text = f"not another of this stage's rewards\n  allowed: {listed(others)}, each also as NAME.DETAIL"
        return text + hint(gate, others)
    chain = [names[n]]
    while found is not None:
        chain.append(found[0])
        if found[0] == chain[0]:
            return f"the gates go in a circle: {' -> '.join(chain)}"
        if found[0] in chain[:-1]:
            return ""  # a circle of others, told there
        after = terms[names.index(found[0])].gate
        found = None if after is None else split_gate(after, names)
    return ""


def split_gate(gate: str, names: Sequence[str]) -> tuple[str, str] | None:
    """(NAME, DETAIL or nothing) of a gate; None where it names no term.  Names may have dots themselves."""
    if gate in names:
        return gate, ""
    name, dot, detail = gate.rpartition(".")
    return (name, detail) if dot and detail and name in names else None


def named(terms: Sequence[Term]) -> dict[str, Term]:
    """Terms by name.  Raises UserError for what `term_faults` finds."""
    if not terms:
        raise UserError("rewards: at least one term is needed; e.g. [{verifier: math_answer}]")
    for n, key, text in term_faults(terms):
        raise UserError(f"rewards.{n}.{key}: {text}")
    return dict(zip(term_names(terms), terms, strict=True))


# The rule.


def combine(terms: Mapping[str, Term], verdicts: Mapping[str, Verdict], step: int = 0) -> float | None:
    """The reward; None where a verdict that it needs is an error."""
    total = 0.0
    for name, term in terms.items():
        weight = weight_at(term, step)
        counts = opened(terms, name, verdicts) if weight else False
        if counts is None:
            return None
        if counts:
            reward = verdicts[name].reward
            if reward is None:
                return None
            total += weight * (reward if term.cap is None else min(reward, term.cap))
    return total


def opened(terms: Mapping[str, Term], name: str, verdicts: Mapping[str, Verdict]) -> bool | None:
    """Whether a term's gate, and that gate's own, are open; None where the verdict that decides it is an
    error."""
    gate = terms[name].gate
    if gate is None:
        return True
    found = split_gate(gate, list(terms))
    assert found is not None, f"{gate=} {list(terms)=}"
    other, detail = found
    before = opened(terms, other, verdicts)
    if not before:
        return before
    verdict = verdicts[other]
    if verdict.reward is None:
        return None
    return bool(verdict.details.get(detail)) if detail else verdict.reward > 0


def weight_at(term: Term, step: int) -> float:
    """The weight at a training step: times the share that the schedule's points give, in straight lines."""
    points = term.schedule
    if not points:
        return term.weight
    if step <= points[0][0]:
        return term.weight * points[0][1]
    for (start, low), (end, high) in zip(points, points[1:], strict=False):
        if step <= end:
            return term.weight * (low + (high - low) * (step - start) / (end - start))
    return term.weight * points[-1][1]


# Judging.


def score(
    rows: Sequence[dict[str, Any]], completions: Sequence[str], terms: Sequence[Term], step: int = 0
) -> list[Scored]:
    """Judge completion i as an answer to row i by every term that its gate lets count.

    A verifier is called with the row's fields, the term's options over them and `completion`.  Those that do
    not bound their own work run in worker processes, which are kept from call to call.
    """
    assert len(rows) == len(completions), f"{len(rows)=} {len(completions)=}"
    by_name = named(terms)
    first = next(iter(by_name))
    verdicts: list[dict[str, Verdict]] = [{} for _ in rows]
    for name in _gates_first(by_name):
        wanted = [i for i, of in enumerate(verdicts) if name == first or opened(by_name, name, of)]
        term = by_name[name]
        calls = [{**rows[i], **term.options, "completion": completions[i]} for i in wanted]
        if term.gate is not None:
            _tell_lengths(calls)
        for i, verdict in zip(wanted, verdicts_of(term, calls), strict=True):
            verdicts[i][name] = verdict
    ordered = [{name: of[name] for name in by_name if name in of} for of in verdicts]
    return [Scored(combine(by_name, of, step), of) for of in ordered]


def _tell_lengths(calls: list[dict[str, Any]]) -> None:
    """Of a gated term: the lengths of all completions of a row's group for which the gate is open, so that a
    cost can be relative to the correct ones."""
    lengths: dict[Any, list[int]] = {}
    for call in calls:
        if "group" in call and "n_tokens" in call:
            lengths.setdefault(call["group"], []).append(call["n_tokens"])
    for call in calls:
        if call.get("group") in lengths:
            call.setdefault("group_tokens", lengths[call["group"]])


def _gates_first(terms: Mapping[str, Term]) -> list[str]:
    order: list[str] = []
    while len(order) < len(terms):
        for name, term in terms.items():
            found = split_gate(term.gate, list(terms)) if term.gate is not None else None
            if name not in order and (found is None or found[0] in order):
                order.append(name)
    return order


def correctness(terms: Sequence[Term]) -> list[Term]:
    """The one term that evaluation needs: the first, whether or not a gate lets it count."""
    return [terms[0].model_copy(update={"gate": None})]


def verdicts_of(term: Term, calls: Sequence[dict[str, Any]], gold: bool = False) -> list[Verdict]:
    """One verdict for each call of the term's verifier; `gold`: of the rows' own answers."""
    if is_inline(term.verifier) and term.timeout is None:
        function = load_gold(term.verifier) if gold else load(term.verifier)
        assert function is not None, f"{term.verifier} has no gold to ask for"
        return [judge(function, call) for call in calls]
    if not calls:
        return []
    batch = None if gold or term.workers or term.timeout else load_batch(term.verifier)
    if batch is not None:
        return batch(calls)
    workers = term.workers or limits(term.verifier).workers
    return _pool(term.verifier, workers, on_ray()).run(term.verifier, calls, term.timeout, gold)


class Pool(Protocol):
    def run(
        self, name: str, rows: Sequence[dict[str, Any]], wall_seconds: float | None = None, gold: bool = False
    ) -> list[Verdict]: ...


@cache
def _pool(verifier: str, workers: int | None, ray: bool) -> Pool:
    """Workers for the whole process: starting an interpreter for every batch would cost more than judging.
    Each verifier has its own, so that one does not meet what another left, nor wait for it."""
    if ray:
        from onebase.verifiers.ray_pool import RayPool

        return RayPool(workers)
    return VerifierPool(workers)


def on_ray() -> bool:
    """Whether verifiers run on a Ray cluster: RAY_ADDRESS names it, or the process is connected to one that
    has more nodes than this."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and sum(node["Alive"] for node in ray.nodes()) > 1


# What came of it, for the metrics of a step.


def outcomes(scored: Sequence[Scored]) -> dict[str, float]:
    """Shares of a step's completions by verdict, for each term, as `verdict.NAME.*`.

    right (1), wrong (0), partial and error, and of the errors error.CLASS (verifiers.base); unasked: behind a
    closed gate; class.WORD: what the verifier itself tells in details["class"]; unlike_first: judged right
    where the first term says wrong, or the reverse, as a share of what both judged; seconds: mean of a call,
    seconds_max the slowest.
    """
    names = list(dict.fromkeys(name for s in scored for name in s.verdicts))
    out: dict[str, float] = {}
    for turn, name in enumerate(names):
        counts = Counter({"right": 0, "wrong": 0, "partial": 0, "error": 0})
        both = unlike = 0
        seconds: list[float] = []
        for s in scored:
            verdict = s.verdicts.get(name)
            counts.update(_outcome(verdict))
            if verdict is not None:
                seconds.append(verdict.seconds)
                if verdict.reward is not None and s.judged:
                    both += 1
                    unlike += (verdict.reward >= 1.0) != s.correct
        out |= {f"verdict.{name}.{key}": count / len(scored) for key, count in sorted(counts.items())}
        if turn and both:
            out[f"verdict.{name}.unlike_first"] = unlike / both
        out[f"verdict.{name}.seconds"] = sum(seconds) / len(seconds)
        out[f"verdict.{name}.seconds_max"] = max(seconds)
    return out


def _outcome(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return ["unasked"]
    if verdict.error is not None:
        return ["error", f"error.{error_class(verdict.error)}"]
    kinds = {1.0: "right", 0.0: "wrong"}
    counted = [kinds.get(verdict.reward, "partial")]  # type: ignore[arg-type]
    word = verdict.details.get("class")
    if isinstance(word, str) and word.isidentifier() and len(word) <= 30:
        counted.append(f"class.{word}")
    return counted
