"""Problems to scored rollouts: what GRPO and rejection sampling share.

row (problem, answer, ...) -> prompt ids -> group of requests -> rollouts -> text -> verdicts -> reward
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onebase.recipe import Sampling, Term
from onebase.rewards import Scored, score
from onebase.rollout.engine import Engine, Request, Rollout
from onebase.rollout.torch_engine import request_seed
from onebase.tokenizer import THINK, ChatTokenizer


@dataclass(slots=True)
class ScoredRollout:
    row: dict[str, Any]
    prompt: int
    """Number of the prompt in the step."""
    rollout: Rollout
    text: str
    """What verifiers saw: the completion, behind <think> where the prompt had opened it."""
    scored: Scored


def prompt_ids(tokenizer: ChatTokenizer, row: dict[str, Any], sampling: Sampling) -> list[int]:
    messages = row.get("messages") or [{"role": "user", "content": row["problem"]}]
    return tokenizer.prompt_ids(messages, sampling.think)


def completion_text(tokenizer: ChatTokenizer, rollout: Rollout, sampling: Sampling) -> str:
    text = tokenizer.text(rollout.completion_ids)
    return THINK + text if sampling.think == "open" else text


def facts(tokenizer: ChatTokenizer, rollout: Rollout, sampling: Sampling) -> dict[str, Any]:
    """What verifiers are told of a completion beside its text: its length, and how many thoughts it opens and
    closes by token ids, which its text cannot show (a spelled-out tag reads the same)."""
    ids = rollout.completion_ids
    out: dict[str, Any] = {"n_tokens": len(ids)}
    if tokenizer.think_id is not None and tokenizer.end_think_id is not None:
        opened = ids.count(tokenizer.think_id) + (sampling.think == "open")
        out["tag_counts"] = [opened, ids.count(tokenizer.end_think_id)]
    return out


def requests_of(
    tokenizer: ChatTokenizer,
    rows: Sequence[dict[str, Any]],
    group_size: int,
    sampling: Sampling,
    seed: int,
    step: int,
    first: int = 0,
) -> list[Request]:
    """`group_size` requests of each row, group by group; each seeded by (seed, step, prompt, sample), prompts
    being numbered from `first`."""
    return [
        Request(
            prompt_ids=ids,
            seed=request_seed(seed, step, first + p, g),
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_ids=tokenizer.stop_ids,
        )
        for p, ids in enumerate(prompt_ids(tokenizer, row, sampling) for row in rows)
        for g in range(group_size)
    ]


def judged(
    tokenizer: ChatTokenizer,
    rows: Sequence[dict[str, Any]],
    rollouts: Sequence[Rollout],
    sampling: Sampling,
    terms: Sequence[Term],
    step: int,
    first: int = 0,
) -> list[ScoredRollout]:
    """Verdicts on the rollouts of the rows' groups, which are numbered from `first`."""
    group_size = len(rollouts) // len(rows)
    assert len(rollouts) == group_size * len(rows), f"{len(rollouts)=} {len(rows)=}"
    texts = [completion_text(tokenizer, r, sampling) for r in rollouts]
    owners = [rows[i // group_size] for i in range(len(rollouts))]
    asked = [
        row | facts(tokenizer, r, sampling) | {"group": first + i // group_size}
        for i, (row, r) in enumerate(zip(owners, rollouts, strict=True))
    ]
    scored = score(asked, texts, terms, step)
    return [
        ScoredRollout(row, first + i // group_size, rollout, text, s)
        for i, (row, rollout, text, s) in enumerate(zip(owners, rollouts, texts, scored, strict=True))
    ]


def sample_groups(
    engine: Engine,
    tokenizer: ChatTokenizer,
    rows: Sequence[dict[str, Any]],
    group_size: int,
    sampling: Sampling,
    terms: Sequence[Term],
    seed: int,
    step: int,
    first: int = 0,
) -> tuple[list[ScoredRollout], dict[str, float]]:
    """`group_size` scored rollouts of each row, group by group, and the seconds of the two phases."""
    start = time.perf_counter()
    rollouts = engine.generate(requests_of(tokenizer, rows, group_size, sampling, seed, step, first))
    generated = time.perf_counter()
    out = judged(tokenizer, rows, rollouts, sampling, terms, step, first) if rows else []
    verified = time.perf_counter()
    return out, {"seconds_generate": generated - start, "seconds_verify": verified - generated}
