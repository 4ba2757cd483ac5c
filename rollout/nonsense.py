"""What no sound engine answers: the first thing that is wrong with a rollout.

For engines in other processes, which are not trusted: a broken GPU, a wrong build, damaged memory."""

from __future__ import annotations

import math
from collections.abc import Collection

from onebase.rollout.engine import Request, Rollout

ROUNDING = 1e-3
"""Log-probabilities may be above 0 by this."""


def nonsense(rollout: Rollout, request: Request, vocab_size: int, versions: Collection[int]) -> str | None:
    """Why it cannot be the answer to the request, or None.  `versions`: those the engine has held."""
    ids, logp = rollout.completion_ids, rollout.logp_rollout
    if rollout.seed != request.seed:
        return f"seed {rollout.seed} where {request.seed} was asked for"
    if not 1 <= len(ids) <= request.max_tokens:
        return f"{len(ids)} tokens where 1 to {request.max_tokens} were asked for"
    if len(logp) != len(ids):
        return f"{len(logp)} log-probabilities for {len(ids)} tokens"
    bad = next((t for t in ids if not 0 <= t < vocab_size), None)
    if bad is not None:
        return f"token id {bad} outside the vocabulary of {vocab_size}"
    wrong = next((x for x in logp if not (math.isfinite(x) and x <= ROUNDING)), None)
    if wrong is not None:
        return f"a log-probability of {wrong}"
    stopped = ids[-1] in request.stop_ids
    if stopped != (rollout.finish_reason == "stop") or (not stopped and len(ids) < request.max_tokens):
        return f"finish reason {rollout.finish_reason!r} for {len(ids)} tokens, the last one {ids[-1]}"
    if request.stop_ids and not set(request.stop_ids).isdisjoint(ids[:-1]):
        return "it goes on behind a stop token"
    starts = [at for at, _ in rollout.versions]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= len(ids):
        return f"versions {rollout.versions} for {len(ids)} tokens"
    unknown = [v for _, v in rollout.versions if v not in versions]
    if unknown:
        return f"weight version {unknown[0]}, which it never got"
    if rollout.routes is not None and len(rollout.routes) != len(request.prompt_ids) + len(ids) - 1:
        return f"routes of {len(rollout.routes)} positions for {len(request.prompt_ids)} + {len(ids)} tokens"
    return None
