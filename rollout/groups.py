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


def sample_groups(
    engine: Engine,
    tokenizer: ChatTokenizer,
    rows: Sequence[dict[str, Any]],
    group_size: int,
    sampling: Sampling,
    terms: Sequence[Term],
    seed: int,
    step: int,
) -> tuple[list[ScoredRollout], dict[str, float]]:
    """`group_size` scored rollouts of each row, group by group, and the seconds of the two phases."""
    start = time.perf_counter()
    requests = [
        Request(
            prompt_ids=ids,
            seed=request_seed(seed, step, p, g),
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_ids=tokenizer.stop_ids,
        )
        for p, ids in enumerate(prompt_ids(tokenizer, row, sampling) for row in rows)
        for g in range(group_size)
    ]
    rollouts = engine.generate(requests)
    generated = time.perf_counter()
    texts = [completion_text(tokenizer, r, sampling) for r in rollouts]
    owners = [rows[i // group_size] for i in range(len(rollouts))]
    asked = [o | {"n_tokens": len(r.completion_ids)} for o, r in zip(owners, rollouts, strict=True)]
    scored = score(asked, texts, terms, step)
    verified = time.perf_counter()
    out = [
        ScoredRollout(row, i // group_size, rollout, text, s)
        for i, (row, rollout, text, s) in enumerate(zip(owners, rollouts, texts, scored, strict=True))
    ]
    return out, {"seconds_generate": generated - start, "seconds_verify": verified - generated}
