"""What a rollout engine takes and gives (the contract between sampling, rewards and training).

The data's way: a prompt becomes token ids once, here; the completion's ids are the ones that were sampled and
are never re-tokenised; each has the log-probability under the distribution it was drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from onebase.errors import UserError


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
    versions: list[tuple[int, int]]
    """(first completion token, weight version) of each stretch that was drawn from one version: one entry,
    and more where weights changed while the completion was under way."""
    seed: int
    routes: torch.Tensor | None = None
    """[positions, L, K] int16: the experts of the trunk's MoE layers at every position that was an input (all
    but the last token), where the engine records them."""

    @property
    def weight_version(self) -> int:
        """Of the first token: the oldest."""
        return self.versions[0][1]

    def plain(self) -> dict[str, Any]:
        """The fields, as they are stored in a state."""
        return {name: getattr(self, name) for name in self.__slots__}


class Engine(Protocol):
    """A generator of rollouts.  Requests may be added and weights may be loaded between steps."""

    version: int
    """Of the weights it holds."""

    def generate(
        self, requests: list[Request], on_done: Callable[[int, Rollout], None] | None = None
    ) -> list[Rollout]:
        """A whole batch, in the order of the requests."""

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Queue requests under numbers of the caller's."""

    @property
    def busy(self) -> bool: ...

    def step(self) -> list[tuple[int, Rollout]]:
        """Go on for a moment; what has ended."""

    def clear(self) -> None:
        """Forget every request."""

    def load_weights(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Named as in a checkpoint's files, some or all."""

    def logprobs(self, ids: Sequence[list[int]]) -> list[list[list[float]]]:
        """[replica][row][token but the first], at temperature 1, past every cache: what a weight sync is
        proven by."""

    def reset_cache(self) -> None: ...

    def fingerprint(self) -> dict[str, float]: ...


def generate(
    engine: Engine, requests: list[Request], on_done: Callable[[int, Rollout], None] | None = None
) -> list[Rollout]:
    """A whole batch on an idle engine.  Whatever breaks it off, no request of it is left behind."""
    assert not engine.busy, "the engine is busy with requests that were added"
    results: dict[int, Rollout] = {}
    try:
        engine.add(list(enumerate(requests)))
        while engine.busy:
            for i, rollout in engine.step():
                results[i] = rollout
                if on_done is not None:
                    on_done(i, rollout)
    except BaseException:
        engine.clear()
        raise
    return [results[i] for i in range(len(requests))]


def check_requests(requests: Sequence[Request], max_length: int, vocab_size: int) -> None:
    """UserError naming the first request that no engine could serve, before any of the batch is started."""
    for i, r in enumerate(requests):
        if not r.prompt_ids:
            raise UserError(f"request {i}: the prompt is empty")
        if len(r.prompt_ids) + r.max_tokens > max_length:
            raise UserError(
                f"request {i}: {len(r.prompt_ids)} prompt tokens and max_tokens={r.max_tokens} exceed the "
                f"engine's length of {max_length}"
            )
        for name, given, fine in (
            ("max_tokens", r.max_tokens, r.max_tokens >= 1),
            ("temperature", r.temperature, 0 <= r.temperature < float("inf")),
            ("top_p", r.top_p, 0 < r.top_p <= 1),
            ("top_k", r.top_k, r.top_k >= 0),
        ):
            if not fine:
                raise UserError(f"request {i}: {name}={given} is out of range")
        bad = [t for t in r.prompt_ids if not 0 <= t < vocab_size]
        if bad:
            raise UserError(f"request {i}: token id {bad[0]} is outside the vocabulary of {vocab_size}")
