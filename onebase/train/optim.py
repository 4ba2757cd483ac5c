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
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from onebase.kernels.adamw import FusedAdamW, Hyper
from onebase.recipe import Optim
from onebase.train.parallel import ALONE, Place

MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch's AdamW calls them
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


def orthogonalise_all(matrices: list[Tensor]) -> list[Tensor]:
    """Each [..., rows, cols] orthogonalised; all of one shape in one batched product."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i, u in enumerate(matrices):
        by_shape.setdefault(u.shape[-2:], []).append(i)
    out = list(matrices)
    for (rows, cols), chosen in by_shape.items():
        flat = [matrices[i].reshape(-1, rows, cols) for i in chosen]
        whole = orthogonalise(torch.cat(flat))
        for i, piece in zip(chosen, whole.split([len(f) for f in flat]), strict=True):
            out[i] = piece.view_as(matrices[i])
    return out


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
    """One step over a model's parameters, with clipping by the global norm and float32 masters.

    With one micro-batch per step a bf16 model's gradients are used as they are; with more they are summed in
    float32, since a bf16 sum drops what is 256 times smaller."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: Optim,
        micro_batches: int | None = None,
        place: Place = ALONE,
    ) -> None:
        """`micro_batches` per step; None: any number.  On several processes it works on what this one
        holds."""
        self.config, self.place = config, place
        self.parts = place.parts((n, p) for n, p in named if p.requires_grad)
        self.params = [(part.name, part.local) for part in self.parts]
        self.masters = [p if p.dtype == torch.float32 else p.detach().float().clone() for _, p in self.params]
        self.sums = micro_batches != 1 or not place.alone
        for (_, p), master in zip(self.params, self.masters, strict=True):
            if master is not p and self.sums:
                p.register_post_accumulate_grad_hook(partial(_into_master, master))
        place.reduce_as_they_come(self.parts, self.masters, micro_batches)
        muon = {n for n, p in self.params if config.name == "muon" and is_muon_matrix(n, p)}
        each = list(zip(self.params, self.masters, strict=True))
        self.muon = [(n, m) for (n, _), m in each if n in muon]
        self.rows_in_all = {p.name: p.whole[0] for p in self.parts if p.divided_rows}
        self.momentum = {n: torch.zeros_like(m) for n, m in self.muon}
        self.rest = [(p, m) for (n, p), m in each if n not in muon]
        groups = [
            {"params": [m for _, m in self.rest if m.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [m for _, m in self.rest if m.dim() < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )
        self.fused: FusedAdamW | None = None

    @torch.no_grad()
    def step(self, factor: float, allow: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Update with the learning rate times `factor`; returns the gradient's norm before clipping, a
        float32 scalar on the device: nothing here waits for a GPU.

        A gradient that is not finite changes nothing (the caller counts it), nor does one whose norm `allow`
        maps to a false scalar; gradients are dropped either way."""
        self.place.finish_gradients(self.parts)
        grads = [self._grad(p, m) for (_, p), m in zip(self.params, self.masters, strict=True)]
        norm = self.place.gradient_norm(self.parts, grads)
        ok = norm.isfinite()
        if allow is not None:
            ok = ok & allow(norm)
        scale = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
        lr = self.config.lr * factor
        if norm.is_cuda:
            grad_of = {id(m): g for m, g in zip(self.masters, grads, strict=True)}
            self._muon_step(lr, scale, ok, grad_of)
            self._adamw_on_gpu(lr, scale, ok, grad_of)
        elif ok:
            for m, g in zip(self.masters, grads, strict=True):
                m.grad = None if g is None else g.float()
            if scale < 1:
                torch._foreach_mul_([m.grad for m in self.masters if m.grad is not None], scale)
            self._muon_step(lr, None, None, {id(m): m.grad for m in self.masters})
            self._adamw_on_cpu(lr)
        for (_, p), master in zip(self.params, self.masters, strict=True):
            p.grad = master.grad = None
        return norm

    def _grad(self, p: nn.Parameter, master: Tensor) -> Tensor | None:
        """Of the step: float32, or in the parameter's dtype where nothing had to be summed."""
        if master is not p and self.sums and p.grad is not None:  # set by hand, not by a backward
            _into_master(master, p)
        return p.grad if master.grad is None else master.grad

    def _adamw_on_cpu(self, lr: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        for p, master in self.rest:
            if master is not p:
                p.copy_(master)

    def _adamw_on_gpu(self, lr: float, scale: Tensor, ok: Tensor, grad_of: dict[int, Tensor | None]) -> None:
        """The same update in one launch; the state stays in torch's AdamW, so that either can go on."""
        if not self.rest:
            return
        state = self.adamw.state
        if self.fused is None:
            count = None
            for _, m in self.rest:
                if m not in state:
                    state[m] = {"step": torch.zeros((), device=m.device)}
                    state[m] |= {k: torch.zeros_like(m) for k in MOMENTS}
                count = state[m]["step"] = state[m]["step"] if count is None else count
            decays = [self.config.weight_decay if m.dim() >= 2 else 0.0 for _, m in self.rest]
            means, squares = ([state[m][k] for _, m in self.rest] for k in MOMENTS)
            masters = [m.detach() for _, m in self.rest]
            copies = [None if m is p else p.detach() for p, m in self.rest]
            self.fused = FusedAdamW(masters, means, squares, copies, decays)
        count = state[self.rest[0][1]]["step"]  # one tensor that all share
        count += ok
        hyper = Hyper(lr, *self.config.betas, self.config.eps)
        self.fused.step([grad_of[id(m)] for _, m in self.rest], scale, ok, count, hyper)

    def _muon_step(
        self,
        lr: float,
        scale: Tensor | None,
        ok: Tensor | None,
        grad_of: dict[int, Tensor | None],
        beta: float = 0.95,
    ) -> None:
        """`scale` clips (None: done already); with a false `ok` every product is by one and every sum with
        zero."""
        live: Any = 1.0 if ok is None else ok.float()
        whole: list[tuple[Tensor, Tensor]] = []
        divided: list[tuple[Tensor, Tensor]] = []  # this process's rows of matrices
        rows: list[int] = []  # and how many there are in all
        for name, master in self.muon:
            grad = grad_of[id(master)]
            if grad is None:
                continue
            if ok is not None and scale is not None:
                grad = torch.where(ok, grad.float() * scale, 0.0)
            momentum = self.momentum[name].lerp_(grad, (1 - beta) * live)
            update = grad.lerp(momentum, beta)
            master.mul_(1 - lr * self.config.weight_decay * live)
            if name in self.rows_in_all:
                divided.append((master, update))
                rows.append(self.rows_in_all[name])
                continue
            halves = 2 if name.endswith("gate_up_proj") else 1
            whole += zip(master.chunk(halves, -2), update.chunk(halves, -2), strict=True)
        done = orthogonalise_all([u for _, u in whole])
        if divided:
            done += self.place.on_whole([u for _, u in divided], rows, orthogonalise_all)
        rows = [w.shape[-2] for w, _ in whole] + rows
        for (w, _), u, n in zip([*whole, *divided], done, rows, strict=True):
            w.sub_(u.mul_(live), alpha=lr * (0.2 * math.sqrt(max(n, w.shape[-1]))))
        for (name, p), master in zip(self.params, self.masters, strict=True):
            if master is not p and name in self.momentum:
                p.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        return {
            "adamw": self.adamw.state_dict(),
            "momentum": self.momentum,
            "masters": [m.detach() for m in self.masters],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        self.fused = None  # its tables point at the old state
        for name, m in self.momentum.items():
            m.copy_(state["momentum"][name])
        for (_, p), ours, theirs in zip(self.params, self.masters, state["masters"], strict=True):
            ours.copy_(theirs)
            if ours is not p:
                p.copy_(ours)
