"""The router's affinities before the sigmoid: a float32 product of bf16 operands.

    logits_NE = x_ND @ weight_ED.T

A product of two bf16 numbers is exact in float32, so accumulating the bf16 operands in float32 loses nothing
against widening them first, and runs on the matrix units.  In the backward the float32 gradient is split into
two bf16 numbers, high and low part (about 16 bits of it), and both go through the same product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def split(x: Tensor, dim: int) -> Tensor:
    """[high | low] bf16 halves along `dim`; their sum is x to about 2^-17."""
    high = x.bfloat16()
    return torch.cat([high, (x - high.float()).bfloat16()], dim)


class _FromBf16(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_ED)
        return torch.mm(x_ND, weight_ED.t(), out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, Tensor]:
        x_ND, weight_ED = ctx.saved_tensors
        grad_N2E = split(grad_NE, 1)
        grad_x = grad_N2E @ torch.cat([weight_ED, weight_ED])
        both = torch.mm(grad_N2E.t(), x_ND, out_dtype=torch.float32)
        return grad_x, both.unflatten(0, (2, -1)).sum(0).to(weight_ED.dtype)


def router_logits(x_ND: Tensor, weight_ED: Tensor) -> Tensor:
    """Float32 [N, E]."""
    if x_ND.is_cuda and x_ND.dtype == weight_ED.dtype == torch.bfloat16:
        return _FromBf16.apply(x_ND, weight_ED)
    return F.linear(x_ND.float(), weight_ED.float())
