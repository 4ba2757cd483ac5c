"""Drawing the next token: one uniform number per (request seed, token index), so that a request's completion
does not depend on which others run beside it.

The uniform number is a hash (SplitMix64, Steele et al. 2014) and the token is found on the cumulative
distribution; both run on the device without a generator's state.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

if find_spec("triton") is not None:
    from onebase.kernels import draw_triton as triton_kernels


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


def uniform(seed: Tensor, count: Tensor) -> Tensor:
    """Float32 in [0, 1 - 2^-22] from int64 seed and token index, which broadcast against each other.

    The distance to 1 is more than a rounding of the product with a sum of probabilities, so that a draw on
    the cumulative distribution never falls behind its last token."""
    bits = _shift_right(_splitmix(_splitmix(seed) ^ count), 40)  # 24 bits: exact in float32
    return bits.float() * (2.0**-24 * (1 - 2.0**-22))


@dataclass(slots=True)
class Kinds:
    """What the running requests ask for, known to the host: parts that nobody needs are not computed."""

    greedy: Literal["none", "some", "all"] = "some"
    scaled: bool = True
    """Some temperature is neither 0 nor 1."""
    cut: bool = True
    """Some request has top-k or top-p."""


def draw(
    logits_NV: Tensor,
    uniform_N: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor,
    top_p_N: Tensor,
    kinds: Kinds,
) -> tuple[Tensor, Tensor]:
    """(token_N, logp_N): the next tokens and their log-probabilities in softmax(logits / T), before top-k and
    top-p.

    Temperature 0 is greedy, with the log-probability at T = 1.  `logits_NV` is float32 and may be changed in
    place."""
    if logits_NV.is_cuda and not kinds.cut:
        return triton_kernels.draw(logits_NV, uniform_N, temperature_N)
    if kinds.scaled:
        logits_NV.div_(torch.where(temperature_N == 0, 1.0, temperature_N)[:, None])
    p_NV = logits_NV.softmax(-1)
    if kinds.greedy == "all":
        best_N, token_N = p_NV.max(-1)
        return token_N, best_N.log()
    kept_NV = _cut(p_NV, top_k_N, top_p_N) if kinds.cut else p_NV
    # In float64: a GPU's float32 scan need not be monotone, and a step down could pick a token that was cut.
    cumulative = kept_NV.double().cumsum(-1) if kept_NV.is_cuda else kept_NV.cumsum(-1)
    threshold = uniform_N[:, None] * cumulative[:, -1:]
    token_N = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    if kinds.greedy == "some":
        token_N = torch.where(temperature_N == 0, p_NV.argmax(-1), token_N)
    return token_N, p_NV.gather(1, token_N[:, None])[:, 0].log()


def _cut(p_NV: Tensor, top_k_N: Tensor, top_p_N: Tensor) -> Tensor:
    """Probabilities with all but the top-k set to zero, and of what is left all but the top-p (the token that
    crosses p stays), in this order as transformers and vLLM do.  0 and 1 turn them off, whatever the sum
    rounds to."""
    ordered, index = p_NV.sort(-1, descending=True)
    rank = torch.arange(p_NV.shape[1], device=p_NV.device)
    ordered = ordered * ((rank < top_k_N[:, None]) | (top_k_N[:, None] == 0))
    reached = ordered.cumsum(-1)
    keep = (reached - ordered < top_p_N[:, None] * reached[:, -1:]) | (top_p_N[:, None] >= 1)
    return torch.zeros_like(p_NV).scatter_(1, index, ordered * keep)
