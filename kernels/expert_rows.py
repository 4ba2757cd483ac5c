"""The order in which a MoE layer's rows go through its experts: N tokens with K experts each make M = N K
rows, sorted by expert.

A stable sort, so that the rows of an expert keep the order of the tokens and every sum over them is
deterministic.  Everything has a fixed shape and stays on the device.  On a GPU it is a counting sort of three
small launches; the library's radix sort with what is needed around it takes seven.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

if find_spec("triton") is not None:
    from onebase.kernels import expert_rows_triton as triton_kernels


class Rows(NamedTuple):
    order_M: Tensor
    """Row r of the sorted order is entry order_M[r] of the flattened index_NK."""
    back_M: Tensor
    """Its inverse: entry i stands in row back_M[i]."""
    end_E: Tensor
    """int32: where each expert's rows end."""
    count_E: Tensor
    """int64: each expert's number of rows, possibly 0."""


def by_expert_ref(index_NK: Tensor, E: int) -> Rows:
    flat_M = index_NK.flatten()
    order_M = flat_M.argsort(stable=True)
    place_M = torch.arange(len(flat_M), device=flat_M.device)
    back_M = torch.empty_like(order_M).scatter_(0, order_M, place_M)
    count_E = flat_M.bincount(minlength=E)
    return Rows(order_M, back_M, count_E.cumsum(0).int(), count_E)


def by_expert(index_NK: Tensor, E: int) -> Rows:
    """`index_NK` int64 in [0, E), contiguous."""
    if index_NK.is_cuda:
        order_M, back_M, end_E, _ = triton_kernels.place(index_NK.view(-1), E, 1, None)
        return Rows(order_M, back_M, end_E, end_E.long().diff(prepend=torch.zeros_like(end_E[:1]).long()))
    return by_expert_ref(index_NK, E)


def place(index_NK: Tensor, gate_NK: Tensor, E: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(token_M, back_M, end_E, gate_M): of each row its token and its gate, and as in `Rows`.  For decoding:
    no gradient."""
    K = index_NK.shape[1]
    if index_NK.is_cuda:
        return triton_kernels.place(index_NK.view(-1), E, K, gate_NK.view(-1))
    rows = by_expert_ref(index_NK, E)
    return rows.order_M // K, rows.back_M, rows.end_E, gate_NK.flatten()[rows.order_M]


def combine(rows_MD: Tensor, back_M: Tensor, K: int, added_ND: Tensor, residual_ND: Tensor) -> Tensor:
    """Each token's sum over its K rows, plus two more terms; summed in float32.  For decoding: no
    gradient."""
    if rows_MD.is_cuda:
        return triton_kernels.combine(rows_MD, back_M, K, added_ND, residual_ND)
    return rows_MD[back_M].unflatten(0, (-1, K)).sum(1) + added_ND + residual_ND
