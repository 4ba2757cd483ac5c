"""Log-probability of the target under a linear head, and the distribution's entropy, without holding all
logits.

    logits = (hidden @ weight.T).float() / T
    logp = logits[target] - logsumexp(logits)
    entropy = -sum p log p

`linear_logprob_ref` is the specification.  `linear_logprob` walks over chunks of tokens; its backward
computes each chunk's logits again, so that memory is one chunk of logits and not N x V (the idea of Liger and
of Cut Cross-Entropy, arXiv 2411.09009, without their gradient filtering: the gradient here is exact).  Logits
are formed in the weights' dtype and reduced in float32; the float32 head that RL wants is a matter of the
weights' dtype. The entropy carries no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 256 << 20  # float32 logits of one chunk


def head_logits(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """Float32 logits.  For bf16 on a GPU the products are accumulated and kept in float32, without a rounding
    to bf16 that sampling and training would otherwise make differently; the same call serves both."""
    if hidden_ND.is_cuda and hidden_ND.dtype == torch.bfloat16:
        return torch.mm(hidden_ND, weight_VD.t(), out_dtype=torch.float32)
    return F.linear(hidden_ND, weight_VD).float()


def linear_logprob_ref(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(logp_N, entropy_N) in float32."""
    logp_NV = F.linear(hidden_ND, weight_VD).float().div(temperature).log_softmax(-1)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    return logp_NV.gather(1, target_N[:, None])[:, 0], entropy_N.detach()


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, chunk: int
    ) -> Any:
        N = hidden.shape[0]
        logp_N = torch.empty(N, dtype=torch.float32, device=hidden.device)
        entropy_N, norm_N = torch.empty_like(logp_N), torch.empty_like(logp_N)
        for start in range(0, N, chunk):
            s = slice(start, start + chunk)
            logits = head_logits(hidden[s], weight).div_(temperature)
            norm = logits.logsumexp(-1)
            picked = logits.gather(1, target[s, None])[:, 0]
            # H = log Z - E[logit]
            entropy_N[s] = norm - (torch.exp(logits - norm[:, None]) * logits).sum(-1)
            logp_N[s], norm_N[s] = picked - norm, norm
        ctx.save_for_backward(hidden, weight, target, norm_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(
        ctx: Any, grad_N: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, target, norm_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for start in range(0, hidden.shape[0], ctx.chunk):
            s = slice(start, start + ctx.chunk)
            logits = head_logits(hidden[s], weight).div_(ctx.temperature)
            # d logp / d logits = onehot(target) - softmax
            g = torch.exp(logits.sub_(norm_N[s, None])).neg_()
            g.scatter_add_(1, target[s, None], torch.ones_like(g[:, :1]))
            g.mul_((grad_N[s] / ctx.temperature)[:, None])
            g = g.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[s] = g @ weight
            if ctx.needs_input_grad[1]:
                grad_weight += (g.t() @ hidden[s]).float()
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def linear_logprob(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(logp_N, entropy_N) in float32; the gradient flows from logp_N to hidden and weight."""
    assert hidden_ND.shape[0] == target_N.shape[0], f"{tuple(hidden_ND.shape)=} {tuple(target_N.shape)=}"
    chunk = max(64, CHUNK_BYTES // (4 * weight_VD.shape[0]))
    return _Chunked.apply(hidden_ND, weight_VD, target_N, temperature, chunk)
