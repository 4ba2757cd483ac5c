"""What a language model's loss does to float32 logits [N, V], row by row: statistics, and the gradient.

    norm    = logsumexp(logits / T)
    logp    = logits[target] / T - norm
    entropy = norm - sum softmax(logits / T) * logits / T
    gradient of sum_n factor_n * T * logp_n:   factor * (onehot(target) - softmax(logits / T))

`*_ref` is the specification.  The Triton kernels read a row once (statistics: the running maximum of the
online softmax, arXiv 1805.02867) or once and write it once (gradient, straight in the dtype that the products
after it take); plain torch passes over the chunk about eight times.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

if find_spec("triton") is not None:
    from onebase.kernels import logit_rows_triton as triton_kernels


def logit_stats_ref(logits_NV: Tensor, target_N: Tensor, temperature: float) -> Tensor:
    """[3, N] float32: logp, entropy, norm."""
    logits = logits_NV / temperature
    norm = logits.logsumexp(-1)
    picked = logits.gather(1, target_N[:, None])[:, 0]
    entropy = norm - (torch.exp(logits - norm[:, None]) * logits).sum(-1)
    return torch.stack([picked - norm, entropy, norm])


def logit_gradient_ref(
    logits_NV: Tensor, target_N: Tensor, norm_N: Tensor, factor_N: Tensor, temperature: float
) -> Tensor:
    """[N, V] in the logits' dtype."""
    g = torch.exp(logits_NV / temperature - norm_N[:, None]).neg_()
    g.scatter_add_(1, target_N[:, None], torch.ones_like(g[:, :1]))
    return g.mul_(factor_N[:, None])


def logit_stats(logits_NV: Tensor, target_N: Tensor, temperature: float, out_3N: Tensor) -> None:
    """Writes logp, entropy and norm of each row to `out_3N`."""
    if logits_NV.is_cuda:
        triton_kernels.stats(logits_NV, target_N, temperature, out_3N)
    else:
        out_3N.copy_(logit_stats_ref(logits_NV, target_N, temperature))


def logit_gradient(
    logits_NV: Tensor,
    target_N: Tensor,
    norm_N: Tensor,
    factor_N: Tensor,
    temperature: float,
    dtype: torch.dtype,
) -> Tensor:
    """[N, V] in `dtype`."""
    if logits_NV.is_cuda:
        out = torch.empty(logits_NV.shape, dtype=dtype, device=logits_NV.device)
        triton_kernels.gradient(logits_NV, target_N, norm_N, factor_N, temperature, out)
        return out
    return logit_gradient_ref(logits_NV, target_N, norm_N, factor_N, temperature).to(dtype)
