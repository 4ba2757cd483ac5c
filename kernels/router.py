"""The router's choice: K experts per token from its scores (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).

    chosen = top-k of score + bias, within the groups whose two best sum highest
    gate   = score of the chosen, over their sum, times a factor

`choose_ref` is the specification.  The Triton kernel does all of it in one pass over the scores; torch's topk
alone takes longer.  Of equal scores the lower expert is chosen (torch's topk promises no order).
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

if find_spec("triton") is not None:
    from onebase.kernels import router_triton as triton_kernels


def choose_ref(score_NE: Tensor, bias_E: Tensor, K: int, groups: int, open_groups: int) -> Tensor:
    """index_NK int64.  Experts outside the open groups are masked with -inf: zero would win against negative
    biases."""
    biased = score_NE + bias_E
    if groups > 1:
        grouped = biased.unflatten(-1, (groups, -1))
        best = grouped.topk(2, -1).values.sum(-1).topk(open_groups, -1).indices
        closed = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, best, False)
        biased = grouped.masked_fill(closed[..., None], float("-inf")).flatten(-2)
    return biased.topk(K, -1, sorted=False).indices


def gates_ref(score_NE: Tensor, index_NK: Tensor, normalise: bool, factor: float) -> Tensor:
    """gate_NK in the scores' dtype; differentiable."""
    gate_NK = score_NE.gather(1, index_NK)
    if normalise:
        gate_NK = gate_NK / (gate_NK.sum(-1, keepdim=True) + 1e-20)
    return gate_NK * factor


def choose(
    score_NE: Tensor, bias_E: Tensor, K: int, groups: int, open_groups: int, normalise: bool, factor: float
) -> tuple[Tensor, Tensor]:
    """(index_NK int64, gate_NK float32) from float32 scores.  No gradient: for training take `gates_ref` of
    the chosen."""
    if score_NE.is_cuda:
        return triton_kernels.choose(score_NE, bias_E, K, groups, open_groups, normalise, factor)
    index_NK = choose_ref(score_NE, bias_E, K, groups, open_groups)
    return index_NK, gates_ref(score_NE, index_NK, normalise, factor)
