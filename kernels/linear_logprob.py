"""Log-probability of the target under a linear head, and the distribution's entropy, without holding all
logits.

    logits = (hidden @ weight.T).float() / T
    logp = logits[target] - logsumexp(logits)
    entropy = -sum p log p

`linear_logprob_ref` is the specification.  `linear_logprob` walks over chunks of tokens; its backward
computes each chunk's logits again, so that memory is one chunk of logits and not N x V (the idea of Liger and
of Cut Cross-Entropy, arXiv 2411.09009, without their gradient filtering: the gradient here is exact).
`linear_nll` is the same for a loss that is a plain sum: there the gradient is known up to a factor in the
forward pass, and no logits are computed twice.  The products are the library's; what happens to a chunk's
logits is one Triton kernel each way on a GPU (kernels/logit_rows.py).  Logits are formed in the weights'
dtype and reduced in float32; the float32 head that RL wants is a matter of the weights' dtype.  The entropy
carries no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebase.kernels.logit_rows import logit_gradient, logit_stats

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


class _Gradients:
    """Sums the gradients of hidden and weight from those of the logits, chunk by chunk; the weight's in
    float32."""

    def __init__(self, hidden: Tensor, weight: Tensor, needs: tuple[bool, ...]) -> None:
        self.source, self.head = hidden, weight
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        shape, device = weight.shape, weight.device
        self.weight = torch.zeros(shape, dtype=torch.float32, device=device) if needs[1] else None

    def add(self, s: slice, g_NV: Tensor) -> None:
        if self.hidden is not None:
            torch.mm(g_NV, self.head, out=self.hidden[s])
        if self.weight is not None and g_NV.is_cuda and g_NV.dtype != torch.float32:
            torch.addmm(self.weight, g_NV.t(), self.source[s], out_dtype=torch.float32, out=self.weight)
        elif self.weight is not None:
            self.weight += (g_NV.t() @ self.source[s]).float()


class _Logprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, chunk: int
    ) -> Any:
        N = hidden.shape[0]
        out_3N = torch.empty(3, N, dtype=torch.float32, device=hidden.device)
        for start in range(0, N, chunk):
            s = slice(start, start + chunk)
            logit_stats(head_logits(hidden[s], weight), target[s], temperature, out_3N[:, s])
        logp_N, entropy_N, norm_N = out_3N
        ctx.save_for_backward(hidden, weight, target, norm_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(
        ctx: Any, grad_N: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, target, norm_N = ctx.saved_tensors
        sums = _Gradients(hidden, weight, ctx.needs_input_grad)
        factor_N = grad_N / ctx.temperature
        for start in range(0, hidden.shape[0], ctx.chunk):
            s = slice(start, start + ctx.chunk)
            logits = head_logits(hidden[s], weight)
            g = logit_gradient(logits, target[s], norm_N[s], factor_N[s], ctx.temperature, hidden.dtype)
            sums.add(s, g)
        grad_weight = None if sums.weight is None else sums.weight.to(weight.dtype)
        return sums.hidden, grad_weight, None, None, None


class _NegativeSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, chunk: int, trained: bool) -> Any:
        N = hidden.shape[0]
        out_3N = torch.empty(3, N, dtype=torch.float32, device=hidden.device)
        factor_N = torch.full((N,), -1.0, device=hidden.device)
        sums = _Gradients(hidden, weight, tuple(trained and n for n in ctx.needs_input_grad))
        for start in range(0, N, chunk):
            s = slice(start, start + chunk)
            logits = head_logits(hidden[s], weight)
            logit_stats(logits, target[s], 1.0, out_3N[:, s])
            if trained:
                sums.add(s, logit_gradient(logits, target[s], out_3N[2, s], factor_N[s], 1.0, hidden.dtype))
        ctx.save_for_backward(sums.hidden, sums.weight)
        ctx.dtype = weight.dtype
        entropy = out_3N[1].sum()
        ctx.mark_non_differentiable(entropy)
        return -out_3N[0].sum(), entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight = ctx.saved_tensors
        return (
            None if hidden is None else hidden * grad.to(hidden.dtype),
            None if weight is None else (weight * grad).to(ctx.dtype),
            None,
            None,
            None,
        )


def _chunk(weight_VD: Tensor) -> int:
    return max(64, CHUNK_BYTES // (4 * weight_VD.shape[0]))


def linear_logprob(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(logp_N, entropy_N) in float32; the gradient flows from logp_N to hidden and weight."""
    assert hidden_ND.shape[0] == target_N.shape[0], f"{tuple(hidden_ND.shape)=} {tuple(target_N.shape)=}"
    return _Logprob.apply(hidden_ND, weight_VD, target_N, temperature, _chunk(weight_VD))


def linear_nll(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """(-sum of logp_N, sum of entropy_N) at temperature 1, float32 scalars; only the first carries a
    gradient.

    Pitfall: the gradient is made in the forward pass, so where none is wanted call it under `no_grad`."""
    assert hidden_ND.shape[0] == target_N.shape[0], f"{tuple(hidden_ND.shape)=} {tuple(target_N.shape)=}"
    return _NegativeSum.apply(hidden_ND, weight_VD, target_N, _chunk(weight_VD), torch.is_grad_enabled())
