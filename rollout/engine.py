"""What a rollout engine takes and gives (the contract between sampling, rewards and training).

The data's way: a prompt becomes token ids once, here; the completion's ids are the ones that were sampled and
are never re-tokenised; each has the log-probability under the distribution it was drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch


@dataclass(slots=True)
class Request:
    """One completion to draw."""

    prompt_ids: list[int]
    seed: int
    """Seed of this request alone: the same request gives the same completion in any batch (up to
    rounding)."""
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()
    """The completion ends with the first of these, which is part of it."""


@dataclass(slots=True)
class Rollout:
    """One completion, as the engine drew it."""

    prompt_ids: list[int]
    completion_ids: list[int]
    logp_rollout: list[float]
    """Log-probability of each completion token under the engine's model at temperature T (`logp_rollout_T`),
    before top-k and top-p cut the distribution.  T = 1 where the request was greedy."""
    finish_reason: Literal["stop", "length"]
    weight_version: int
    seed: int
    routes: torch.Tensor | None = None
    """[positions, L, K] int16: the experts of the trunk's MoE layers at every position that was an input (all
    but the last token), where the engine records them."""


class Engine(Protocol):
    """A generator of rollouts; results come in the order of the requests."""

    def generate(
        self, requests: list[Request], on_done: Callable[[int, Rollout], None] | None = None
    ) -> list[Rollout]: ...

    def load_weights(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None: ...

    def fingerprint(self) -> dict[str, float]: ...
