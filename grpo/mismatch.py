"""How far the trainer's log-probabilities lie from the engine's, measured before a step's first update.

The engine drew tokens from mu, the trainer says pi.  With x = log pi - log mu of the drawn tokens, r = e^x:

    dlogp_mean, dlogp_max   of |x|
    kl_k1, kl_k3            mean of -x and of r - 1 - x: two estimates of KL(mu || pi); the second is never
                            negative (Schulman, "Approximating KL divergence")
    beyond_2                share of tokens with r outside [1/2, 2]   (F(2) of arXiv 2510.11370, section 2)
    prob_gap                mean |pi - mu| of the drawn tokens' probabilities
    ess                     (sum r)^2 / (n sum r^2): effective share of the tokens as a sample of pi (Kish)
    router_agreement        of a mixture of experts: share of equal experts, engine against trainer
    rerouted                share of tokens with another expert in at least one layer

At staleness 0 all of it is the engines' disagreement; at staleness k (trainer's weight version less the
sampler's) the policy's own movement is in it too, so the numbers are kept apart by staleness.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

NAMES = ("tokens", "abs", "k1", "k3", "beyond", "gap", "r", "rr")


@dataclass(slots=True)
class Mismatch:
    """Sums over the micro-batches of a step; float64 on the host."""

    sums: dict[int, dict[str, float]] = field(default_factory=dict)
    """By staleness: one number for each of NAMES."""
    largest: dict[int, float] = field(default_factory=dict)
    """By staleness: max |x|."""
    routed: int = 0
    """Tokens whose experts are known from both sides."""
    rerouted: int = 0
    """Of these, tokens with another choice in at least one layer."""
    agreement: list[float] = field(default_factory=list)
    """By MoE layer: sum over the tokens of the share of experts in common."""

    @torch.no_grad()
    def add(
        self, logp_train_NT: Tensor, logp_rollout_NT: Tensor, mask_NT: Tensor, staleness_N: Tensor
    ) -> None:
        train, rollout = logp_train_NT.double(), logp_rollout_NT.double()
        for age in staleness_N.unique().tolist():
            at = mask_NT & (staleness_N == age)[:, None]
            p, q = train[at], rollout[at]
            if not len(p):
                continue
            x = p - q
            r = x.exp()
            values = torch.stack([
                torch.ones_like(x), x.abs(), -x, r - 1 - x, ((r > 2) | (r < 0.5)).double(),
                (p.exp() - q.exp()).abs(), r, r * r,
            ]).sum(1)  # fmt: skip
            mine = self.sums.setdefault(age, dict.fromkeys(NAMES, 0.0))
            for name, value in zip(NAMES, values.tolist(), strict=True):
                mine[name] += value
            self.largest[age] = max(self.largest.get(age, 0.0), float(x.abs().max()))

    def add_routes(self, engine_NTLK: Tensor, own: list[Tensor]) -> None:
        """The engine's experts (-1 where unknown) and per layer the trainer's own [N T, K]; their order
        within K plays no part."""
        engine_MLK = engine_NTLK.flatten(0, 1)
        known_M = engine_MLK[:, 0, 0] >= 0
        engine_MLK, own_MLK = engine_MLK[known_M], torch.stack(own, 1)[known_M]
        same_MLK = (engine_MLK[..., :, None] == own_MLK[..., None, :]).any(-1)
        self.routed += len(same_MLK)
        self.rerouted += int((~same_MLK.flatten(1).all(1)).sum())
        share = same_MLK.double().mean(-1).sum(0).tolist()
        self.agreement = [a + b for a, b in zip(self.agreement or [0.0] * len(share), share, strict=True)]

    def metrics(self) -> dict[str, float]:
        """Over all tokens, and with the suffix `_at_K` by staleness where there is more than one; of routers
        the mean share of equal experts (over layers, and by layer) and the share of rerouted tokens."""
        if not self.sums:
            return {}
        total = {name: sum(s[name] for s in self.sums.values()) for name in NAMES}
        out = _metrics(total, max(self.largest.values()), "")
        if len(self.sums) > 1:
            for age, s in sorted(self.sums.items()):
                out |= _metrics(s, self.largest[age], f"_at_{age}")
        if self.routed:
            share = [a / self.routed for a in self.agreement]
            out |= {f"router_agreement_{i}": a for i, a in enumerate(share)}
            out["router_agreement"] = sum(share) / len(share)
            out["rerouted"] = self.rerouted / self.routed
        return out


def _metrics(s: dict[str, float], largest: float, suffix: str) -> dict[str, float]:
    n = s["tokens"]
    values = {
        "dlogp_mean": s["abs"] / n,
        "dlogp_max": largest,
        "kl_k1": s["k1"] / n,
        "kl_k3": s["k3"] / n,
        "beyond_2": s["beyond"] / n,
        "prob_gap": s["gap"] / n,
        "ess": s["r"] ** 2 / (n * s["rr"]),
    }
    return {name + suffix: value for name, value in values.items()}
