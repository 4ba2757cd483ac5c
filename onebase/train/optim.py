"""The optimizer of every stage: AdamW (arXiv 1711.05101), or Muon for matrices and AdamW for all else.

Muon (Jordan et al. 2024, as scaled by Moonlight, arXiv 2502.16982): momentum with Nesterov, orthogonalised by
five Newton-Schulz steps, times 0.2 sqrt(max(rows, cols)), so that AdamW's learning rate and weight decay
carry over. Expert stacks [E, rows, cols] are orthogonalised in one batched product each; `gate_up_proj`,
which holds two matrices, as two.  Router, embedding, head, norms and biases go to AdamW; weight decay is
decoupled and on matrices only (deviation from Moonlight, which decays norm gains too: ours are few and near
1). Master weights and all state are float32; where the model's weights are bf16 they are copies of the
masters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from onebase.recipe import Optim

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic that lifts small singular values fastest (Jordan et al.)


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix of each [..., rows, cols], roughly: singular values land in about [0.7,
    1.2]."""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


def is_muon_matrix(name: str, p: nn.Parameter) -> bool:
    outside = ("embed_tokens", "lm_head", "wte", "wpe", ".gate.weight")
    return p.dim() >= 2 and not any(part in name for part in outside)


@torch.no_grad()
def _into_master(master: Tensor, p: Tensor) -> None:
    assert p.grad is not None
    if master.grad is None:
        master.grad = p.grad.float()
    else:
        master.grad.add_(p.grad)
    p.grad = None


class Optimizer:
    """One step over a model's parameters, with clipping by the global norm and float32 masters."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: Optim) -> None:
        self.config = config
        self.params = [(n, p) for n, p in named if p.requires_grad]
        self.masters = [p if p.dtype == torch.float32 else p.detach().float().clone() for _, p in self.params]
        for (_, p), master in zip(self.params, self.masters, strict=True):
            if master is not p:  # micro-batches add up in float32: a bf16 sum drops what is 256 times smaller
                p.register_post_accumulate_grad_hook(partial(_into_master, master))
        muon = {n for n, p in self.params if config.name == "muon" and is_muon_matrix(n, p)}
        self.muon = [(n, m) for (n, _), m in zip(self.params, self.masters, strict=True) if n in muon]
        self.momentum = {n: torch.zeros_like(m) for n, m in self.muon}
        rest = [(n, m) for (n, _), m in zip(self.params, self.masters, strict=True) if n not in muon]
        groups = [
            {"params": [m for _, m in rest if m.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [m for _, m in rest if m.dim() < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )

    @torch.no_grad()
    def step(self, factor: float) -> float:
        """Update with the learning rate times `factor`; returns the gradient's norm before clipping.

        A gradient that is not finite changes nothing (the caller counts it); gradients are dropped either
        way."""
        for (_, p), master in zip(self.params, self.masters, strict=True):
            if master is not p and p.grad is not None:  # set by hand, not by a backward
                _into_master(master, p)
        norm = float(nn.utils.clip_grad_norm_(self.masters, self.config.clip))
        if math.isfinite(norm):
            lr = self.config.lr * factor
            self._muon_step(lr)
            for group in self.adamw.param_groups:
                group["lr"] = lr
            self.adamw.step()
            for (_, p), master in zip(self.params, self.masters, strict=True):
                if master is not p:
                    p.copy_(master)
        for master in self.masters:
            master.grad = None
        return norm

    def _muon_step(self, lr: float, beta: float = 0.95) -> None:
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for name, master in self.muon:
            if master.grad is None:
                continue
            momentum = self.momentum[name].lerp_(master.grad, 1 - beta)
            update = master.grad.lerp(momentum, beta)
            master.mul_(1 - lr * self.config.weight_decay)
            halves = 2 if name.endswith("gate_up_proj") else 1
            for w, u in zip(master.chunk(halves, -2), update.chunk(halves, -2), strict=True):
                flat = (
                    w.reshape(-1, *w.shape[-2:]) if w.dim() > 2 else w[None],
                    u.reshape(-1, *u.shape[-2:]),
                )
                by_shape.setdefault((w.shape[-2], w.shape[-1]), []).append((w, flat[1]))
        for (rows, cols), pairs in by_shape.items():
            whole = orthogonalise(torch.cat([u for _, u in pairs]))
            scale = 0.2 * math.sqrt(max(rows, cols))
            for (w, _), piece in zip(pairs, whole.split([len(u) for _, u in pairs]), strict=True):
                w.sub_(piece.view_as(w), alpha=lr * scale)

    def state_dict(self) -> dict[str, Any]:
        return {
            "adamw": self.adamw.state_dict(),
            "momentum": self.momentum,
            "masters": [m.detach() for m in self.masters],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        for name, m in self.momentum.items():
            m.copy_(state["momentum"][name])
        for (_, p), ours, theirs in zip(self.params, self.masters, state["masters"], strict=True):
            ours.copy_(theirs)
            if ours is not p:
                p.copy_(ours)
