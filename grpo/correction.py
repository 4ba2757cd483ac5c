"""Weights that correct for an engine that is not the trainer: pure functions of log-probabilities.

rho_t = exp(logp_old - logp_rollout): the trainer's policy at the start of the step over the engine's, token
by token.  The policy's own movement since then stays in the loss's ratio (the split of arXiv 2512.01374).

    level   token      rho_t                              sequence   prod_t rho_t
            geometric  (prod_t rho_t)^(1/T), free of the length
    method  truncate   min(rho, high)                     TIS: Yao et al. 2025, "Your efficient RL framework
                                                          secretly brings you off-policy RL training"
            mask       rho where low <= rho <= high, else 0
                                                          token: IcePop (Ring-1T, arXiv 2510.18855);
                                                          sequence and geometric: masked importance sampling
                                                          (Liu, Li et al. 2025, "When speed kills stability")

`stale_negatives` leaves out whole sequences with a negative advantage that the trainer has moved away from:
mean_t(logp_rollout - logp_train) > delta (off-policy sequence masking of DeepSeek-V3.2, arXiv
2512.02556, with the engine's log-probabilities as the old policy's).
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebase.recipe import Correction


@torch.no_grad()
def correction_weight(
    logp_old_NT: Tensor,
    logp_rollout_NT: Tensor,
    logp_train_NT: Tensor,
    advantage_N: Tensor,
    mask_NT: Tensor,
    how: Correction,
) -> Tensor:
    """[N, T] or [N, 1] factor of each token's loss, 0 where it is left out; float32, no gradient."""
    x_NT = torch.where(mask_NT, (logp_old_NT - logp_rollout_NT).float(), 0.0)
    length_N1 = mask_NT.sum(1, keepdim=True).clamp(min=1)
    weight = torch.ones_like(x_NT)
    if how.method != "none":
        if how.level == "token":
            rho = x_NT.exp()
        else:
            total_N1 = x_NT.sum(1, keepdim=True)
            rho = (total_N1 if how.level == "sequence" else total_N1 / length_N1).exp()
        if how.method == "truncate":
            weight = rho.clamp(max=how.high)
        else:
            weight = torch.where((rho >= how.low) & (rho <= how.high), rho, 0.0)
    if how.stale_negatives is not None:
        drift_NT = torch.where(mask_NT, (logp_rollout_NT - logp_train_NT).float(), 0.0)
        moved_N1 = drift_NT.sum(1, keepdim=True) / length_N1 > how.stale_negatives
        weight = weight * ~(moved_N1 & (advantage_N < 0)[:, None])
    return weight
