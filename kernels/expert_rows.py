"""The order in which a MoE layer's rows go through its experts: N tokens with K experts each make M = N K
rows, sorted by expert.

A stable sort, so that the rows of an expert keep the order of the tokens and every sum over them is
deterministic.  Everything has a fixed shape and stays on the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    order_M: Tensor
    """Row r of the sorted order is entry order_M[r] of the flattened index_NK."""
    back_M: Tensor
    """Its inverse: entry i stands in row back_M[i]."""
    end_E: Tensor
    """int32: where each expert's rows end."""
    count_E: Tensor
    """int64: each expert's number of rows, possibly 0."""


def by_expert(index_NK: Tensor, E: int) -> Rows:
    """`index_NK` int64 in [0, E)."""
    flat_M = index_NK.flatten()
    if flat_M.is_cuda:
        sorted_M, order_M = flat_M.short().sort(stable=True)  # few bits make few passes
        expert_E = torch.arange(E, device=flat_M.device, dtype=torch.int16)
        end_E = torch.searchsorted(sorted_M, expert_E, right=True, out_int32=True)
        count_E = end_E.long().diff(prepend=end_E.new_zeros(1, dtype=torch.int64))
    else:
        order_M = flat_M.argsort(stable=True)
        count_E = flat_M.bincount(minlength=E)
        end_E = count_E.cumsum(0).int()
    place_M = torch.arange(len(flat_M), device=flat_M.device)
    back_M = torch.empty_like(order_M).scatter_(0, order_M, place_M)
    return Rows(order_M, back_M, end_E, count_E)
