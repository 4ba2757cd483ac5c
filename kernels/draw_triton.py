"""The Triton kernel of rollout/sampling.py's draw."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def _draw(logits, uniform, temperature, token, logp, V, stride, TILES: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    row = logits + n * stride
    at = tl.arange(0, BLOCK)
    t = tl.load(temperature + n)
    inverse = tl.where(t == 0.0, 1.0, 1.0 / tl.where(t == 0.0, 1.0, t))
    top = -float("inf")
    best = 0
    for start in range(0, V, BLOCK):
        x = tl.load(row + start + at, mask=start + at < V, other=-float("inf"))
        here = tl.max(x, 0)
        best = tl.where(here > top, start + tl.argmax(x, 0), best)
        top = tl.maximum(top, here)
    tile = tl.arange(0, TILES)
    sums = tl.zeros([TILES], tl.float32)
    for start in range(0, V, BLOCK):
        x = tl.load(row + start + at, mask=start + at < V, other=-float("inf"))
        sums = tl.where(tile == start // BLOCK, tl.sum(tl.exp((x - top) * inverse), 0), sums)
    ends = tl.cumsum(sums, 0)
    z = tl.max(ends, 0)
    target = tl.load(uniform + n) * z
    # the first tile that ends behind the target and holds something
    which = tl.min(tl.where((ends > target) & (sums > 0.0), tile, TILES - 1), 0)
    base = tl.sum(tl.where(tile < which, sums, 0.0), 0)
    start = which * BLOCK
    x = tl.load(row + start + at, mask=start + at < V, other=-float("inf"))
    p = tl.exp((x - top) * inverse)
    behind = (base + tl.cumsum(p, 0) > target) & (p > 0.0)
    first = tl.min(tl.where(behind, at, BLOCK), 0)
    last = tl.max(tl.where(p > 0.0, at, -1), 0)  # rounding may leave the target behind the tile's end
    drawn = start + tl.where(first < BLOCK, first, last)
    drawn = tl.where((t == 0.0) | (drawn < start), best, drawn)
    tl.store(token + n, drawn.to(tl.int64))
    tl.store(logp + n, (tl.load(row + drawn) - top) * inverse - tl.log(z))


def draw(logits_NV: Tensor, uniform_N: Tensor, temperature_N: Tensor) -> tuple[Tensor, Tensor]:
    N, V = logits_NV.shape
    assert logits_NV.stride(1) == 1 and uniform_N.is_contiguous() and temperature_N.is_contiguous()
    token_N = torch.empty(N, dtype=torch.int64, device=logits_NV.device)
    logp_N = torch.empty(N, dtype=torch.float32, device=logits_NV.device)
    tiles = triton.next_power_of_2(triton.cdiv(V, BLOCK))
    _draw[(N,)](
        logits_NV, uniform_N, temperature_N, token_N, logp_N, V, logits_NV.stride(0), TILES=max(2, tiles),
        BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return token_N, logp_N
