"""The Triton kernel of kernels/router.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # tokens per program


@triton.jit
def _choose(
    score, bias, index, gate, N, E, K, factor,
    GROUPS: tl.constexpr, OPEN: tl.constexpr, NORMALISE: tl.constexpr, E_PAD: tl.constexpr,
    G_PAD: tl.constexpr, K_PAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, E_PAD)
    real = (n[:, None] < N) & (e[None, :] < E)
    s = tl.load(score + n[:, None] * E + e[None, :], mask=real, other=0.0)
    biased = s + tl.load(bias + e, mask=e < E, other=0.0)[None, :]
    biased = tl.where(real, biased, -float("inf"))
    if GROUPS > 1:  # a group's score is the sum of its two best
        group = e // (E // GROUPS)
        g = tl.arange(0, G_PAD)
        of_group = tl.full([ROWS, G_PAD], -float("inf"), tl.float32)
        for i in tl.static_range(GROUPS):
            members = tl.where((group == i)[None, :], biased, -float("inf"))
            first = tl.max(members, 1)
            leader = tl.argmax(members, 1)
            second = tl.max(tl.where(e[None, :] == leader[:, None], -float("inf"), members), 1)
            of_group = tl.where((g == i)[None, :], (first + second)[:, None], of_group)
        allowed = tl.zeros([ROWS, E_PAD], tl.int32)
        for _ in tl.static_range(OPEN):
            best = tl.argmax(of_group, 1)
            allowed = tl.where(group[None, :] == best[:, None], 1, allowed)
            of_group = tl.where(g[None, :] == best[:, None], -float("inf"), of_group)
        biased = tl.where(allowed > 0, biased, -float("inf"))
    k = tl.arange(0, K_PAD)
    chosen = tl.zeros([ROWS, K_PAD], tl.int64)
    gates = tl.zeros([ROWS, K_PAD], tl.float32)
    for i in range(K):
        at = tl.argmax(biased, 1)
        mine = e[None, :] == at[:, None]
        value = tl.sum(tl.where(mine, s, 0.0), 1)
        chosen = tl.where((k == i)[None, :], at[:, None].to(tl.int64), chosen)
        gates = tl.where((k == i)[None, :], value[:, None], gates)
        biased = tl.where(mine, -float("inf"), biased)
    if NORMALISE:
        gates = gates / (tl.sum(gates, 1) + 1e-20)[:, None]
    there = (n[:, None] < N) & (k[None, :] < K)
    tl.store(index + n[:, None] * K + k[None, :], chosen, mask=there)
    tl.store(gate + n[:, None] * K + k[None, :], gates * factor, mask=there)


def choose(
    score_NE: Tensor, bias_E: Tensor, K: int, groups: int, open_groups: int, normalise: bool, factor: float
) -> tuple[Tensor, Tensor]:
    N, E = score_NE.shape
    index_NK = torch.empty(N, K, dtype=torch.int64, device=score_NE.device)
    gate_NK = torch.empty(N, K, dtype=torch.float32, device=score_NE.device)
    _choose[(triton.cdiv(N, ROWS),)](
        score_NE, bias_E, index_NK, gate_NK, N, E, K, factor, GROUPS=groups, OPEN=open_groups,
        NORMALISE=normalise, E_PAD=max(2, triton.next_power_of_2(E)),
        G_PAD=max(2, triton.next_power_of_2(groups)), K_PAD=max(2, triton.next_power_of_2(K)), ROWS=ROWS,
    )  # fmt: skip
    return index_NK, gate_NK
