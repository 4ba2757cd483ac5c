"""Rollouts as padded training batches, and the trainer's log-probabilities of them.

`logp_of` is the one place where completions are shifted: position t of its result belongs to completion token
t. Sequences are sorted by length into micro-batches of a bounded number of padded tokens; right padding needs
no mask under causal attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onebase.kernels.linear_logprob import linear_logprob
from onebase.model.moe import Routing


@dataclass(slots=True)
class Sample:
    """One rollout on its way into training."""

    prompt_ids: list[int]
    completion_ids: list[int]
    logp_rollout: list[float]
    advantage: float
    prompt: int
    """Number of its prompt in the step."""
    staleness: int = 0
    """The trainer's weight version less the sampler's."""
    routes: Tensor | None = None
    """[positions, L, K] int16, the engine's experts, where they are replayed or compared."""


@dataclass(slots=True)
class MicroBatch:
    ids_NL: Tensor
    """Prompt, completion, padding; L is the longest of the micro-batch."""
    start_N: Tensor
    """Length of the prompt: index of the first completion token."""
    logp_rollout_NT: Tensor
    mask_NT: Tensor
    """True on completion tokens; T is the longest completion of the micro-batch."""
    advantage_N: Tensor
    prompt_N: Tensor
    staleness_N: Tensor
    route_NTLK: Tensor | None
    """Of all positions, prompt included (T is here the length L of ids_NL); -1 where none is known."""
    index: list[int]
    """Which samples these are."""


def micro_batches(samples: Sequence[Sample], max_tokens: int, pad_id: int, device: str) -> list[MicroBatch]:
    """Samples by length, as many together as `max_tokens` padded tokens allow (at least one)."""
    order = sorted(
        range(len(samples)), key=lambda i: len(samples[i].prompt_ids) + len(samples[i].completion_ids)
    )
    parts: list[list[int]] = []
    for i in order:
        length = len(samples[i].prompt_ids) + len(samples[i].completion_ids)
        if not parts or length * (len(parts[-1]) + 1) > max_tokens:
            parts.append([])
        parts[-1].append(i)
    return [_padded([samples[i] for i in part], part, pad_id, device) for part in parts]


def _padded(samples: list[Sample], index: list[int], pad_id: int, device: str) -> MicroBatch:
    L = max(len(s.prompt_ids) + len(s.completion_ids) for s in samples)
    T = max(len(s.completion_ids) for s in samples)
    ids = torch.full((len(samples), L), pad_id, dtype=torch.int64)
    logp = torch.zeros(len(samples), T)
    mask = torch.zeros(len(samples), T, dtype=torch.bool)
    for n, s in enumerate(samples):
        whole = s.prompt_ids + s.completion_ids
        ids[n, : len(whole)] = torch.tensor(whole)
        logp[n, : len(s.completion_ids)] = torch.tensor(s.logp_rollout)
        mask[n, : len(s.completion_ids)] = True
    return MicroBatch(
        ids_NL=ids.to(device),
        start_N=torch.tensor([len(s.prompt_ids) for s in samples], device=device),
        logp_rollout_NT=logp.to(device),
        mask_NT=mask.to(device),
        advantage_N=torch.tensor([s.advantage for s in samples], device=device),
        prompt_N=torch.tensor([s.prompt for s in samples], device=device),
        staleness_N=torch.tensor([s.staleness for s in samples], device=device),
        route_NTLK=_routes(samples, L, device),
        index=index,
    )


def _routes(samples: list[Sample], positions: int, device: str) -> Tensor | None:
    known = [s.routes for s in samples if s.routes is not None]
    if not known:
        return None
    out = torch.full((len(samples), positions, *known[0].shape[1:]), -1, dtype=torch.int64)
    for n, s in enumerate(samples):
        if s.routes is not None:
            inputs = len(s.prompt_ids) + len(s.completion_ids) - 1
            assert len(s.routes) == inputs, f"{len(s.routes)} routes for {inputs} positions"
            out[n, :inputs] = s.routes
    return out.to(device)


def logp_of(
    model: Any, batch: MicroBatch, temperature: float, replay: bool = False
) -> tuple[Tensor, Tensor, list[Routing]]:
    """(logp_train_NT, entropy_NT, routing per MoE layer) of the completion tokens at the sampling
    temperature; `replay` sends every position to the experts that the engine chose."""
    real_NL = torch.arange(batch.ids_NL.shape[1], device=batch.ids_NL.device) < (
        batch.start_N + batch.mask_NT.sum(1)
    ).unsqueeze(1)
    if replay and batch.route_NTLK is not None:
        out = model(batch.ids_NL, None, None, real_NL, route_BTLK=batch.route_NTLK)
    else:
        out = model(batch.ids_NL, None, None, real_NL)
    # the hidden state before a completion token predicts it
    T = batch.mask_NT.shape[1]
    before_NT = batch.start_N[:, None] - 1 + torch.arange(T, device=batch.ids_NL.device)
    before_NT = before_NT.clamp(max=batch.ids_NL.shape[1] - 2)
    rows = torch.arange(len(before_NT), device=before_NT.device)[:, None].expand_as(before_NT)[batch.mask_NT]
    at = before_NT[batch.mask_NT]
    logp_M, entropy_M = linear_logprob(
        out.hidden_BTD[rows, at], model.head_weight, batch.ids_NL[rows, at + 1], temperature
    )
    logp_NT = logp_M.new_zeros(batch.mask_NT.shape).masked_scatter(batch.mask_NT, logp_M)
    entropy_NT = entropy_M.new_zeros(batch.mask_NT.shape).masked_scatter(batch.mask_NT, entropy_M)
    return logp_NT, entropy_NT, out.routing
