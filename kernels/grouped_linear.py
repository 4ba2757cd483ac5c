"""Grouped linear: rows sorted by group, each group multiplied by its own matrix (the experts of a MoE layer).

    out_MO[r] = x_MD[r] @ weight_EOD[e].T     for every row r of group e

`grouped_linear_ref` is the specification.  `grouped_linear` picks: `torch._grouped_mm` for bf16 on a GPU (no
host synchronisation: the offsets stay on the device); elsewhere one `mm` per group into a preallocated
output, with a hand-written backward so that autograd records one node and not three per expert.  A group may
be empty. Pitfall: `torch._grouped_mm` leaves rows behind the last offset undefined (pytorch #154557); here
every row is in a group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def grouped_linear_ref(x_MD: Tensor, weight_EOD: Tensor, end_E: Tensor) -> Tensor:
    """Plain torch, differentiable.  `end_E` says where each group's rows end; the last is M."""
    parts = x_MD.tensor_split(end_E[:-1].long().cpu())
    return torch.cat([x @ w.T for x, w in zip(parts, weight_EOD, strict=True)])


class _PerGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, weight_EOD: Tensor, ends: list[int]) -> Tensor:
        out_MO = x_MD.new_empty(x_MD.shape[0], weight_EOD.shape[1])
        for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if end > start:
                torch.mm(x_MD[start:end], weight_EOD[e].t(), out=out_MO[start:end])
        ctx.save_for_backward(x_MD, weight_EOD)
        ctx.ends = ends
        return out_MO

    @staticmethod
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_MD, weight_EOD = ctx.saved_tensors
        grad_MO = grad_MO.contiguous()
        grad_x = torch.empty_like(x_MD) if ctx.needs_input_grad[0] else None
        grad_w = torch.zeros_like(weight_EOD) if ctx.needs_input_grad[1] else None
        for e, (start, end) in enumerate(zip([0, *ctx.ends], ctx.ends, strict=False)):
            if end > start:
                rows = slice(start, end)
                if grad_x is not None:
                    torch.mm(grad_MO[rows], weight_EOD[e], out=grad_x[rows])
                if grad_w is not None:
                    torch.mm(grad_MO[rows].t(), x_MD[rows], out=grad_w[e])
        return grad_x, grad_w, None


def grouped_linear(x_MD: Tensor, weight_EOD: Tensor, end_E: Tensor) -> Tensor:
    """Rows of `x_MD` in group order; `end_E` (int32, on x's device) says where each group ends; the last is
    M."""
    assert x_MD.shape[1] == weight_EOD.shape[2], f"{tuple(x_MD.shape)=} {tuple(weight_EOD.shape)=}"
    if (
        x_MD.is_cuda
        and x_MD.dtype == torch.bfloat16
        and x_MD.shape[1] % 8 == 0
        and weight_EOD.shape[1] % 8 == 0
    ):
        return torch._grouped_mm(x_MD, weight_EOD.transpose(1, 2), offs=end_E)
    ends = end_E.tolist()
    assert ends[-1] == len(x_MD), f"{ends[-1]=} {len(x_MD)=}: rows outside every group"
    return _PerGroup.apply(x_MD, weight_EOD, ends)
