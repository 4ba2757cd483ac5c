"""Advantages of grouped rollouts: the only place where group statistics are made.

P prompts, G samples per prompt.  A_i = r_i - mean of its group (GRPO, arXiv 2402.03300, section 4.1.2, and
Dr. GRPO, arXiv 2503.20783), divided by

    batch  the standard deviation of r - mean over all live groups (ScaleRL, arXiv 2510.13786)
    group  the group's own standard deviation (GRPO)
    none   nothing (Dr. GRPO)

A group whose rewards are all equal carries no signal and is dead.  A rollout whose verifier failed has no
reward: it is left out of its group's statistics and is not trained on.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def advantages(
    reward_PG: Tensor, valid_PG: Tensor, scale: Literal["batch", "group", "none"]
) -> tuple[Tensor, Tensor]:
    """(advantage_PG, live_P) in float32; advantages are 0 in dead groups and where `valid_PG` is False.

    Standard deviations are the population's (divided by n); a live group has at least two valid, different
    rewards."""
    reward_PG = torch.where(valid_PG, reward_PG.float(), 0.0)
    n_P1 = valid_PG.sum(1, keepdim=True).clamp(min=1)
    mean_P1 = reward_PG.sum(1, keepdim=True) / n_P1
    centred_PG = torch.where(valid_PG, reward_PG - mean_P1, 0.0)
    high_P = torch.where(valid_PG, reward_PG, -torch.inf).amax(1)
    low_P = torch.where(valid_PG, reward_PG, torch.inf).amin(1)
    live_P = high_P - low_P > 1e-6
    centred_PG = centred_PG * live_P[:, None]
    if scale == "group":
        centred_PG = centred_PG / ((centred_PG**2).sum(1, keepdim=True) / n_P1).sqrt().clamp(min=1e-6)
    elif scale == "batch" and live_P.any():
        count = (valid_PG & live_P[:, None]).sum()
        centred_PG = centred_PG / ((centred_PG**2).sum() / count).sqrt().clamp(min=1e-6)
    return centred_PG, live_P
