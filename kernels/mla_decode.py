"""One new token per row against the cached latents of multi-head latent attention, absorbed (DeepSeek-V2,
arXiv 2405.04434, section 2.1).

    enter:   the token's latent, normalised, and its rotated key go to the cache; the query's rotated part
             goes to its place beside the absorbed one
    attend:  out_BHC = softmax(scale * q_BHK . cache_BSK) cache_BSC over the row's own positions

`*_ref` are the specification.  The Triton kernel reads each row's own positions only, and each once: scores
and mixture come from the same load.  Where few rows run, a row is split over several programs
(Flash-Decoding) and merged.  Letters as in model/mla.py: K = C + R.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

if find_spec("triton") is not None:
    from onebase.kernels import mla_decode_triton as triton_kernels

PROGRAMS = 264  # two per multiprocessor of an H100 or H200
SPLIT = 256  # fewest positions of a split


def fits(cache: Tensor, C: int) -> bool:
    """Whether the Triton kernels take this cache: widths are powers of two from 16 up."""
    R = cache.shape[-1] - C
    whole = all(n >= 16 and n & (n - 1) == 0 for n in (C, R))
    return cache.is_cuda and cache.dtype in (torch.bfloat16, torch.float16) and whole


def attend_ref(q_BHK: Tensor, cache_BSK: Tensor, position_B: Tensor, C: int, scale: float) -> Tensor:
    score = torch.einsum("bhk,bsk->bhs", q_BHK.float(), cache_BSK.float()) * scale
    closed = torch.arange(cache_BSK.shape[1], device=score.device) > position_B[:, None]
    p = score.masked_fill(closed[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhs,bsc->bhc", p, cache_BSK[..., :C].float()).to(q_BHK.dtype)


def enter(
    q_BHK: Tensor,
    made_BK: Tensor,
    rotation: Tensor,
    gain_C: Tensor,
    eps: float,
    cache_BSK: Tensor,
    position_B: Tensor,
    out_BHK: Tensor,
) -> None:
    """`q_BHK` [B, H, N + R] and `made_BK` [B, C + R] come from the projections; `rotation` [B, R / 2, 2]
    holds cosine and sine.  Writes the cache at `position_B` and the last R of `out_BHK` [B, H, C + R]."""
    triton_kernels.enter(q_BHK, made_BK, rotation, gain_C, eps, cache_BSK, position_B, out_BHK)


def attend(q_BHK: Tensor, cache_BSK: Tensor, position_B: Tensor, C: int, scale: float) -> Tensor:
    """[B, H, C].  Row b looks at positions 0 to `position_B[b]` (int64)."""
    B, S = cache_BSK.shape[:2]
    splits = 1
    while splits < 32 and B * splits * 2 <= PROGRAMS and S // (splits * 2) >= SPLIT:
        splits *= 2
    return triton_kernels.attend(q_BHK, cache_BSK, position_B, C, scale, splits)
