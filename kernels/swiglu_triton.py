"""Triton kernels of kernels/swiglu.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # numbers of one program's tile


@triton.jit
def _forward(both, weight, out, M, F, ROWS: tl.constexpr, WIDE: tl.constexpr):
    m = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    w = tl.load(weight + m, mask=m < M, other=0.0).to(tl.float32)
    for start in range(0, F, WIDE):
        f = start + tl.arange(0, WIDE)
        inside = (m[:, None] < M) & (f[None, :] < F)
        at = both + m[:, None] * (2 * F) + f[None, :]
        g = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        u = tl.load(at + F, mask=inside, other=0.0).to(tl.float32)
        y = g * tl.sigmoid(g) * u * w[:, None]
        tl.store(out + m[:, None] * F + f[None, :], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(both, weight, grad, grad_both, grad_weight, M, F, ROWS: tl.constexpr, WIDE: tl.constexpr):
    m = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    w = tl.load(weight + m, mask=m < M, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, F, WIDE):
        f = start + tl.arange(0, WIDE)
        inside = (m[:, None] < M) & (f[None, :] < F)
        at = m[:, None] * (2 * F) + f[None, :]
        g = tl.load(both + at, mask=inside, other=0.0).to(tl.float32)
        u = tl.load(both + at + F, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(grad + m[:, None] * F + f[None, :], mask=inside, other=0.0).to(tl.float32)
        half = tl.sigmoid(g)
        silu = g * half
        total += tl.sum(dy * silu * u, 1)
        dy = dy * w[:, None]
        dg = dy * u * (half + silu * (1.0 - half))
        tl.store(grad_both + at, dg.to(grad_both.dtype.element_ty), mask=inside)
        tl.store(grad_both + at + F, (dy * silu).to(grad_both.dtype.element_ty), mask=inside)
    tl.store(grad_weight + m, total, mask=m < M)


def _shape(M: int, F: int) -> tuple[tuple[int], int, int]:
    wide = min(TILE, triton.next_power_of_2(F))
    rows = max(1, TILE // wide)
    return (triton.cdiv(M, rows),), rows, wide


def forward(both_M2F: Tensor, weight_M: Tensor) -> Tensor:
    M, F = both_M2F.shape[0], both_M2F.shape[1] // 2
    out_MF = torch.empty(M, F, dtype=both_M2F.dtype, device=both_M2F.device)
    grid, rows, wide = _shape(M, F)
    _forward[grid](both_M2F, weight_M, out_MF, M, F, ROWS=rows, WIDE=wide, num_warps=8)
    return out_MF


def backward(both_M2F: Tensor, weight_M: Tensor, grad_MF: Tensor) -> tuple[Tensor, Tensor]:
    M, F = both_M2F.shape[0], both_M2F.shape[1] // 2
    grad_both = torch.empty_like(both_M2F)
    grad_weight = torch.empty(M, dtype=torch.float32, device=both_M2F.device)
    grid, rows, wide = _shape(M, F)
    _backward[grid](
        both_M2F, weight_M, grad_MF, grad_both, grad_weight, M, F, ROWS=rows, WIDE=wide, num_warps=8
    )
    return grad_both, grad_weight
