"""Drawing the next token: one uniform number per (request seed, token index), so that a request's completion
does not depend on which others run beside it.

The uniform number is a hash (SplitMix64, Steele et al. 2014) and the token is found on the cumulative
distribution; both run on the device without a generator's state.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _i64(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


GOLDEN, MIX1, MIX2 = (_i64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift_right(x: Tensor, n: int) -> Tensor:
    """Logical shift of int64."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _splitmix(x: Tensor) -> Tensor:
    x = x + GOLDEN
    x = (x ^ _shift_right(x, 30)) * MIX1
    x = (x ^ _shift_right(x, 27)) * MIX2
    return x ^ _shift_right(x, 31)


def uniform(seed_N: Tensor, count_N: Tensor) -> Tensor:
    """Float32 in [0, 1) from int64 seed and index."""
    bits = _shift_right(_splitmix(_splitmix(seed_N) ^ count_N), 40)  # 24 bits: exact in float32
    return bits.float() * 2.0**-24


def draw(
    logits_NV: Tensor,
    temperature_N: Tensor,
    seed_N: Tensor,
    count_N: Tensor,
    top_k_N: Tensor | None = None,
    top_p_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(token_N, logp_N): the next tokens and their log-probabilities in softmax(logits / T), before top-k and
    top-p.

    Temperature 0 is greedy, with the log-probability at T = 1.  `logits_NV` is float32 and is changed in
    place.
    """
    greedy_N = temperature_N == 0
    logits_NV.div_(torch.where(greedy_N, 1.0, temperature_N)[:, None])
    norm_N = logits_NV.logsumexp(-1)
    p_NV = torch.exp(logits_NV - norm_N[:, None])
    kept_NV = p_NV if top_k_N is None or top_p_N is None else _cut(p_NV, top_k_N, top_p_N)
    cumulative = kept_NV.cumsum(-1)
    threshold = (uniform(seed_N, count_N) * cumulative[:, -1])[:, None]
    drawn = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    # rounding at the end of the sum can point behind the last token that has any probability
    last = kept_NV.shape[1] - 1 - (kept_NV.flip(-1) > 0).to(torch.uint8).argmax(-1)
    token_N = torch.where(greedy_N, logits_NV.argmax(-1), torch.minimum(drawn, last))
    return token_N, logits_NV.gather(1, token_N[:, None])[:, 0] - norm_N


def _cut(p_NV: Tensor, top_k_N: Tensor, top_p_N: Tensor) -> Tensor:
    """Probabilities with all but the top-k and the top-p set to zero (the token that crosses p stays)."""
    ordered, index = p_NV.sort(-1, descending=True)
    rank = torch.arange(p_NV.shape[1], device=p_NV.device)
    keep = ordered.cumsum(-1) - ordered < top_p_N[:, None]
    keep &= (rank < top_k_N[:, None]) | (top_k_N[:, None] == 0)
    return torch.zeros_like(p_NV).scatter_(1, index, ordered * keep)
