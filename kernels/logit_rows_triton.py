"""Triton kernels of kernels/logit_rows.py.  One program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _stats(logits, target, out, V, N, stride, inverse_t, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    # every lane keeps its own maximum, sum and weighted sum; they meet once at the end
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mean = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        inside = start + at < V
        x = tl.load(logits + row * stride + start + at, mask=inside, other=-float("inf")) * inverse_t
        new = tl.maximum(top, x)
        shrink = tl.where(top == new, 1.0, tl.exp(top - new))
        p = tl.where(x == -float("inf"), 0.0, tl.exp(x - new))
        total = total * shrink + p
        mean = mean * shrink + tl.where(p > 0, p * x, 0.0)
        top = new
    best = tl.max(top, 0)
    shrink = tl.where(top == -float("inf"), 0.0, tl.exp(top - best))
    z = tl.sum(total * shrink, 0)
    norm = best + tl.log(z)
    picked = tl.load(logits + row * stride + tl.load(target + row)) * inverse_t
    tl.store(out + row, picked - norm)
    tl.store(out + N + row, norm - tl.sum(mean * shrink, 0) / z)
    tl.store(out + 2 * N + row, norm)


@triton.jit
def _gradient(logits, target, norm, factor, out, V, stride, inverse_t, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < V
    x = tl.load(logits + row * stride + at, mask=inside, other=0.0) * inverse_t
    g = tl.where(at == tl.load(target + row), 1.0, 0.0) - tl.exp(x - tl.load(norm + row))
    tl.store(out + row * V + at, (g * tl.load(factor + row)).to(out.dtype.element_ty), mask=inside)


def _block(V: int, most: int) -> int:
    return min(most, max(16, triton.next_power_of_2(V)))


def stats(logits_NV: Tensor, target_N: Tensor, temperature: float, out_3N: Tensor) -> None:
    N, V = logits_NV.shape
    assert logits_NV.stride(1) == 1 and out_3N.stride(1) == 1, f"{logits_NV.stride()=} {out_3N.stride()=}"
    if N:
        block = _block(V, 4096)
        args = (V, out_3N.stride(0), logits_NV.stride(0), 1 / temperature)
        _stats[(N,)](logits_NV, target_N, out_3N, *args, BLOCK=block, num_warps=8)


def gradient(
    logits_NV: Tensor, target_N: Tensor, norm_N: Tensor, factor_N: Tensor, temperature: float, out_NV: Tensor
) -> None:
    N, V = logits_NV.shape
    assert logits_NV.stride(1) == 1 and out_NV.is_contiguous() and norm_N.is_contiguous()
    factor_N = factor_N.to(torch.float32).contiguous()
    if N:
        block = _block(V, 4096)
        grid = (N, triton.cdiv(V, block))
        _gradient[grid](
            logits_NV, target_N, norm_N, factor_N, out_NV, V, logits_NV.stride(0), 1 / temperature,
            BLOCK=block, num_warps=8,
        )  # fmt: skip
