"""Scored rollouts of one model to the numbers of eval.json, over all problems and per family.

Verifier errors are left out of every rate and counted in `errors`; a problem none of whose completions was
judged is out of the mean and counted in `unjudged`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from onebase.metrics import avg_at_k, interval, ks, maj_at_k, pass_at_k
from onebase.rollout.groups import ScoredRollout
from onebase.tokenizer import END_THINK, THINK

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?")


def answer_part(text: str) -> str:
    """What stands behind the thought; empty where a thought was opened and not closed."""
    if END_THINK in text:
        return text.rpartition(END_THINK)[2].strip()
    return "" if THINK in text else text.strip()


def vote(scored: ScoredRollout) -> str | None:
    """The answer as majority voting compares it, or None where there is none.

    What the verifier says it extracted (`details["extracted"]`), else the last \\boxed{} behind the thought,
    else its last number where the problem's own answer is a number, else its last line.
    """
    details = scored.scored.first.details
    if "extracted" in details:
        return plain(details["extracted"] or "")
    text = answer_part(scored.text)
    boxed = text.rfind("\\boxed{")
    if boxed >= 0:
        return plain(braced(text[boxed + len("\\boxed{") :]))
    if NUMBER.fullmatch(str(scored.row.get("answer", "")).strip()):
        found = NUMBER.findall(text)
        return plain(found[-1]) if found else None
    lines = [line for line in text.splitlines() if line.strip()]
    return plain(lines[-1]) if lines else None


def plain(answer: str) -> str | None:
    """An answer without what never changes its value: blanks, commas inside of numbers, a leading plus."""
    text = "".join(str(answer).split()).removeprefix("+")
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) or None


def braced(text: str) -> str:
    """`text` up to the brace that closes the one opened before it."""
    depth = 1
    for i, c in enumerate(text):
        depth += (c == "{") - (c == "}")
        if depth == 0:
            return text[:i]
    return text


def numbers(greedy: Sequence[ScoredRollout], sampled: Sequence[ScoredRollout], seed: int) -> dict[str, Any]:
    """One row of the table: overall, and the same under `families` where there are several."""
    whole = _numbers(greedy, sampled, seed)
    families = list(dict.fromkeys(str(r.row.get("family")) for r in greedy))
    whole["families"] = {
        family: _numbers(
            [r for r in greedy if str(r.row.get("family")) == family],
            [r for r in sampled if str(r.row.get("family")) == family],
            seed,
        )
        for family in families
    }
    return whole


def _numbers(greedy: Sequence[ScoredRollout], sampled: Sequence[ScoredRollout], seed: int) -> dict[str, Any]:
    judged = [r for r in greedy if r.scored.judged]
    right = [float(r.scored.correct) for r in judged]
    out: dict[str, Any] = {
        "problems": len(greedy),
        "greedy": _mean(right),
        "ci95": interval(right, seed),
        "mean_tokens": _mean(len(r.rollout.completion_ids) for r in greedy),
        "truncated": _mean(r.rollout.finish_reason == "length" for r in greedy),
        "thoughts": _mean(END_THINK in r.text for r in greedy),
        "no_answer": sum(vote(r) is None for r in greedy),
        "errors": len(greedy) - len(judged),
        "intervals": {"greedy": interval(right, seed)},
    }
    return out | _several(sampled, out["intervals"], seed) if sampled else out


def _several(
    sampled: Sequence[ScoredRollout], intervals: dict[str, Any], seed: int
) -> dict[str, float | int | None]:
    """Numbers of the sampled completions; their intervals go into `intervals`."""
    groups: dict[int, list[ScoredRollout]] = defaultdict(list)
    for r in sampled:
        groups[r.prompt].append(r)
    k_all = max(len(g) for g in groups.values())
    judged = [[r for r in g if r.scored.judged] for g in groups.values()]
    judged = [g for g in judged if g]
    rates: dict[str, list[float]] = {
        f"avg@{k_all}": [avg_at_k([r.scored.correct for r in g]) for g in judged],
        f"maj@{k_all}": [maj_at_k([vote(r) for r in g], [r.scored.correct for r in g]) for g in judged],
    }
    for k in ks(k_all):
        # A problem that lost completions to verifier errors has no estimate for the largest k.
        rates[f"pass@{k}"] = [
            pass_at_k(len(g), sum(r.scored.correct for r in g), k) for g in judged if len(g) >= k
        ]
    out: dict[str, float | int | None] = {name: _mean(values) for name, values in rates.items()}
    intervals |= {name: interval(values, seed) for name, values in rates.items()}
    flat = [r for g in judged for r in g]
    return out | {
        "mean_tokens_sampled": _mean(len(r.rollout.completion_ids) for r in sampled),
        "truncated_sampled": _mean(r.rollout.finish_reason == "length" for r in sampled),
        "thoughts_sampled": _mean(END_THINK in r.text for r in sampled),
        "accuracy_with_thought": _rate(flat, lambda r: END_THINK in r.text),
        "accuracy_without_thought": _rate(flat, lambda r: END_THINK not in r.text),
        "no_answer_sampled": sum(vote(r) is None for r in sampled),
        "errors_sampled": len(sampled) - len(flat),
        "unjudged": len(groups) - len(judged),
    }


def _rate(rollouts: Sequence[ScoredRollout], chosen: Callable[[ScoredRollout], bool]) -> float | None:
    return _mean(r.scored.correct for r in rollouts if chosen(r))


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
