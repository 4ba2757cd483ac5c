"""Policy losses: pure functions of log-probabilities and advantages.

r_t = exp(logp_train - logp_rollout) is the importance ratio against the *sampling engine's*
log-probabilities, so that what the engine really drew from is what is corrected for.  With `logp_old` it is
taken against the trainer's policy at the start of the step instead, and the engine's disagreement is a
detached factor of its own (grpo/correction.py).

    cispo  -sg(min(r_t, cap)) A log pi_t                     (MiniMax-M1, arXiv 2506.13585, equation 4)
    grpo   -min(r_t A, clip(r_t, 1-eps_low, 1+eps_high) A)   (arXiv 2402.03300, equation 3; two epsilons:
                                                             DAPO, arXiv 2503.14476)
    gspo   as grpo, r_t replaced by the sequence's geometric mean ratio, its gradient through the tokens
                                                             (arXiv 2507.18071, equations 5 and 7)

The default is cispo with prompt aggregation and batch-normalised advantages: in ScaleRL's controlled study
(arXiv 2510.13786) it has the highest ceiling together with GSPO and is the least sensitive to its one
parameter, a clipped token keeps its gradient, and the cap is at the same time the truncated importance
sampling that a second engine needs.

Aggregation over trained tokens: `token` is the mean over all tokens of the batch (DAPO); `prompt` the mean
over a prompt's tokens, then over prompts (ScaleRL); `sequence` the mean over a sequence's tokens, then over
sequences (GRPO).  Dropped groups do not count.

KL to a reference, x = log pi - log ref:  k1 = x,  k2 = x^2 / 2,  k3 = e^-x - 1 + x.  As a *loss* k2 has the
gradient of the reverse KL on policy; k1 has none in expectation and k3 only approximates it (arXiv
2510.01555); each is multiplied by sg(min(r, cap)) to hold off policy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebase.recipe import Loss

Metrics = dict[str, float]


def token_weights(mask_NT: Tensor, prompt_N: Tensor, how: str) -> Tensor:
    """Weight of each token so that the weighted sum is the aggregation; the weights of all trained tokens sum
    to 1.

    `prompt_N` numbers the prompt of each sequence.  Sequences without a trained token count nowhere."""
    mask = mask_NT.float()
    length_N = mask.sum(1)
    if how == "token":
        return mask / mask.sum().clamp(min=1)
    if how == "sequence":
        return mask / length_N.clamp(min=1)[:, None] / (length_N > 0).sum().clamp(min=1)
    if how == "prompt":
        size = int(prompt_N.max()) + 1 if len(prompt_N) else 1
        tokens_P = torch.zeros(size, device=mask.device).index_add_(0, prompt_N, length_N)
        prompts = (tokens_P > 0).sum().clamp(min=1)
        return mask / tokens_P[prompt_N].clamp(min=1)[:, None] / prompts
    raise ValueError(f"aggregate={how!r}; allowed: token, prompt, sequence")


def policy_loss(
    logp_train_NT: Tensor,
    logp_rollout_NT: Tensor,
    advantage_N: Tensor,
    mask_NT: Tensor,
    weight_NT: Tensor,
    loss: Loss,
    logp_ref_NT: Tensor | None = None,
    logp_old_NT: Tensor | None = None,
    correction_NT: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """(loss, metrics) of sequences [N, T] in float32; `weight_NT` from `token_weights` over the *whole* step,
    so that micro-batches add up.  The metrics are weighted sums or maxima over this part, to be added up
    likewise.  `correction_NT` (or [N, 1]) multiplies each token's objective; what it leaves out still counts
    in the weights, so that masking makes a step smaller and never larger."""
    logp_train_NT = logp_train_NT.float()
    logp_old_NT = logp_rollout_NT if logp_old_NT is None else logp_old_NT
    log_ratio = torch.where(mask_NT, logp_train_NT - logp_old_NT, 0.0)
    ratio = log_ratio.exp()
    advantage = advantage_N[:, None]
    if loss.name == "cispo":
        importance = ratio.detach().clamp(max=loss.cap)
        objective = importance * advantage * logp_train_NT
        clipped = ratio > loss.cap
    else:
        if loss.name == "gspo":
            length = mask_NT.sum(1, keepdim=True).clamp(min=1)
            mean = (log_ratio.sum(1, keepdim=True) / length).detach()
            ratio = (mean + log_ratio - log_ratio.detach()).exp()
        low, high = 1 - loss.eps_low, 1 + loss.eps_high
        objective = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        clipped = ((ratio > high) & (advantage > 0)) | ((ratio < low) & (advantage < 0))
    if correction_NT is not None:
        objective = objective * correction_NT
    value = -(torch.where(mask_NT, objective, 0.0) * weight_NT).sum()
    with torch.no_grad():
        metrics = {
            "clipped": float((clipped * weight_NT).sum()),
            "ratio_mean": float((ratio * weight_NT).sum()),
            "ratio_max": float(torch.where(mask_NT, ratio, 0.0).max()) if ratio.numel() else 0.0,
        }
        if correction_NT is not None:
            metrics["correction_mean"] = float((correction_NT * weight_NT).sum())
            metrics["left_out"] = float(((correction_NT == 0) * weight_NT).sum())
    if logp_ref_NT is not None:
        kl = kl_estimate(logp_train_NT, logp_ref_NT, loss.kl_estimator)
        off_policy = torch.where(mask_NT, logp_train_NT - logp_rollout_NT, 0.0).detach()
        importance = off_policy.exp().clamp(max=loss.cap)
        kl = (torch.where(mask_NT, importance * kl, 0.0) * weight_NT).sum()
        value = value + loss.kl * kl
        metrics["kl"] = float(kl.detach())
    return value, metrics


def kl_estimate(logp: Tensor, logp_ref: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(pi || ref) from samples of pi."""
    x = logp - logp_ref
    if estimator == "k1":
        return x
    if estimator == "k2":
        return x**2 / 2
    if estimator == "k3":
        return torch.exp(-x) - 1 + x
    raise ValueError(f"kl_estimator={estimator!r}; allowed: k1, k2, k3")
