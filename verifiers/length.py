"""What a completion's length costs, as a reward in [0, 1]; lengths are in tokens and come with the row, for
text alone does not tell them: `n_tokens` is the completion's own.

`cost` picks the formula:

overlong  soft overlong punishment, DAPO (arXiv 2503.14476), Eq. 13, shifted from [-1, 0] to [0, 1]: 1 up to
          `max_tokens - cache_tokens`, then a straight line to 0 at `max_tokens`.
range     Kimi k1.5 (arXiv 2501.12599, section 2.3.3): the shortest of `group_tokens` gets 1, the longest 0,
          in a straight line between; one half where all are equal.  The paper's lambda is this less 0.5.
sigmoid   Arora and Zanette (arXiv 2502.04463, Eq. 2): 1 - sigmoid((n - mean) / std) over `group_tokens`.

Cost among correct answers only: give the term `gate: math_answer` (or whatever judges the answer), so that it
counts for correct completions alone, and let `group_tokens` hold the lengths of the group's correct
completions.  Deviation from Kimi: a wrong answer costs nothing for its length here, there min(0, lambda).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from onebase.verifiers.base import Verdict, failed

INLINE = True
gold_problem = None  # a length is known of completions only
COSTS = ("overlong", "range", "sigmoid")


def verify(
    completion: str,
    answer: str = "",
    *,
    n_tokens: int | None = None,
    max_tokens: int = 4096,
    cache_tokens: int = 1024,
    cost: str = "overlong",
    group_tokens: Sequence[int] | None = None,
    **row: Any,
) -> Verdict:
    if n_tokens is None:
        return failed("row: it carries no n_tokens (the completion's length in tokens)")
    if n_tokens < 0:
        return failed(f"row: n_tokens must be at least 0: {n_tokens}")
    if cost not in COSTS:
        return failed(f"row: cost {cost!r} is unknown; allowed: {', '.join(COSTS)}")
    if cost == "overlong":
        return _overlong(n_tokens, max_tokens, cache_tokens)
    if group_tokens is None:
        return failed(f"row: cost {cost!r} needs group_tokens in the row: the lengths it is compared with")
    lengths = [int(n) for n in group_tokens]
    if not lengths or min(lengths) < 0:
        return failed(f"row: group_tokens must hold lengths in tokens: {lengths[:8]}")
    return _in_range(n_tokens, lengths) if cost == "range" else _by_spread(n_tokens, lengths)


def _overlong(n: int, max_tokens: int, cache_tokens: int) -> Verdict:
    if not 0 < cache_tokens <= max_tokens:
        return failed(f"row: cache_tokens must be in 1..max_tokens: {cache_tokens=} {max_tokens=}")
    free = max_tokens - cache_tokens
    reward = 1.0 + min(0.0, max(-1.0, (free - n) / cache_tokens))
    return Verdict(reward, f"{n} tokens; free up to {free}, nothing from {max_tokens}")


def _in_range(n: int, lengths: list[int]) -> Verdict:
    low, high = min(lengths), max(lengths)
    if low == high:
        return Verdict(0.5, f"{n} tokens; all it is compared with have {low}")
    share = min(1.0, max(0.0, (n - low) / (high - low)))
    return Verdict(1.0 - share, f"{n} tokens among {low} to {high}")


def _by_spread(n: int, lengths: list[int]) -> Verdict:
    mean, spread = statistics.fmean(lengths), statistics.pstdev(lengths)
    if spread == 0:
        return Verdict(0.5, f"{n} tokens; all it is compared with have {mean:g}")
    z = (n - mean) / spread
    # The form that cannot overflow: 1 - sigmoid(z) = sigmoid(-z).
    reward = 0.5 * (1.0 - math.tanh(z / 2))
    return Verdict(reward, f"{n} tokens; mean {mean:.4g}, standard deviation {spread:.4g}")
