"""Triton kernels of kernels/expert_rows.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # entries per program


@triton.jit
def _histogram(index, hist, M, E, blocks, E_PAD: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    at = program * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, E_PAD)
    mine = tl.load(index + at, mask=at < M, other=E_PAD)
    count = tl.sum((mine[:, None] == e[None, :]).to(tl.int32), 0)
    tl.store(hist + e * blocks + program, count, mask=e < E)


@triton.jit
def _place(
    index, ends, order, back, end, gate, gate_rows, M, E, blocks, K: tl.constexpr, E_PAD: tl.constexpr,
    BLOCK: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """`ends` is the running sum of the histogram, expert by expert and block by block."""
    program = tl.program_id(0)
    at = program * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, E_PAD)
    mine = tl.load(index + at, mask=at < M, other=E_PAD)
    hit = (mine[:, None] == e[None, :]).to(tl.int32)
    start = tl.load(ends + e * blocks + program, mask=e < E, other=0) - tl.sum(hit, 0)
    rank = tl.cumsum(hit, 0) - 1
    row = tl.sum(tl.where(hit > 0, rank + start[None, :], 0), 1)
    tl.store(back + at, row.to(tl.int64), mask=at < M)
    tl.store(order + row, (at // K).to(tl.int64), mask=at < M)  # K = 1: the entry itself
    if GATES:
        tl.store(gate_rows + row, tl.load(gate + at, mask=at < M), mask=at < M)
    if program == 0:
        tl.store(end + e, tl.load(ends + e * blocks + blocks - 1, mask=e < E, other=0), mask=e < E)


def place(index_M: Tensor, E: int, K: int, gate_M: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(order_M // K, back_M, end_E, gate_M in the order of the rows): a counting sort, stable and
    deterministic."""
    M = index_M.shape[0]
    blocks = triton.cdiv(M, BLOCK)
    pad = triton.next_power_of_2(E)
    hist_EB = torch.empty(E, blocks, dtype=torch.int32, device=index_M.device)
    _histogram[(blocks,)](index_M, hist_EB, M, E, blocks, E_PAD=pad, BLOCK=BLOCK)
    ends = hist_EB.view(-1).cumsum(0, dtype=torch.int32)
    order_M, back_M = torch.empty_like(index_M), torch.empty_like(index_M)
    end_E = torch.empty(E, dtype=torch.int32, device=index_M.device)
    gated = gate_M is not None
    gate_rows = torch.empty_like(gate_M) if gate_M is not None else end_E
    _place[(blocks,)](
        index_M, ends, order_M, back_M, end_E, gate_M if gated else end_E, gate_rows, M, E, blocks, K=K,
        E_PAD=pad, BLOCK=BLOCK, GATES=gated,
    )  # fmt: skip
    return order_M, back_M, end_E, gate_rows


@triton.jit
def _combine(rows, back, added, residual, out, D, K: tl.constexpr, BLOCK_D: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < D
    total = tl.load(added + n * D + d, mask=inside).to(tl.float32)
    for k in tl.static_range(K):
        row = tl.load(back + n * K + k)
        total += tl.load(rows + row * D + d, mask=inside).to(tl.float32)
    total += tl.load(residual + n * D + d, mask=inside).to(tl.float32)
    tl.store(out + n * D + d, total.to(out.dtype.element_ty), mask=inside)


def combine(rows_MD: Tensor, back_M: Tensor, K: int, added_ND: Tensor, residual_ND: Tensor) -> Tensor:
    N, D = residual_ND.shape
    for t in (rows_MD, added_ND, residual_ND):
        assert t.is_contiguous(), f"{t.stride()=}"
    out_ND = torch.empty_like(residual_ND)
    block = min(1024, triton.next_power_of_2(D))
    _combine[(N, triton.cdiv(D, block))](
        rows_MD, back_M, added_ND, residual_ND, out_ND, D, K=K, BLOCK_D=block
    )
    return out_ND
