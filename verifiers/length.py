"""Soft overlong punishment: DAPO (arXiv 2503.14476), Eq. 13, shifted from [-1, 0] to [0, 1].

1 up to `max_tokens - cache_tokens`, then falling in a straight line to 0 at `max_tokens`, 0 beyond.  The
paper adds a value in [-1, 0] to the reward; here the verdict is that value plus one, so give the term a
weight and subtract nothing.  `n_tokens`, the completion's length in tokens, comes with the row: text alone
does not tell it.
"""

from __future__ import annotations

from typing import Any

from onebase.verifiers.base import Verdict, failed

INLINE = True


def verify(
    completion: str,
    answer: str = "",
    *,
    n_tokens: int | None = None,
    max_tokens: int = 4096,
    cache_tokens: int = 1024,
    **row: Any,
) -> Verdict:
    if n_tokens is None:
        return failed("the row carries no n_tokens (the completion's length in tokens)")
    if not 0 < cache_tokens <= max_tokens:
        return failed(f"cache_tokens must be in 1..max_tokens: {cache_tokens=} {max_tokens=}")
    free = max_tokens - cache_tokens
    reward = 1.0 + min(0.0, max(-1.0, (free - n_tokens) / cache_tokens))
    return Verdict(reward, f"{n_tokens} tokens; free up to {free}, nothing from {max_tokens}")
