"""Weights from the trainer to an engine, with proof that they arrived.

`push` sends every tensor under its checkpoint name, then compares the engine's log-probabilities of a fixed
probe batch with the trainer's own forward, and the version the engine reports.  A name-by-name checksum would
not do: engines fuse, pack and absorb weights, and it is just those derived copies that go stale (MLA's
absorbed `kv_b_proj`, expert stacks, the prefix cache).  Log-probabilities see what generation sees.

Beyond the tolerance the guilty layer is found by sending one layer at a time again until the gap closes, and
the run stops with its name (or warns, where the recipe says so).

The tolerance is on the mean |log-probability difference| of the probe: absolute by dtype, and at most four
times the gap that engine and trainer had when both held the checkpoint that the engine was started from.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onebase.errors import UserError
from onebase.model.hf import HFCausalLM
from onebase.model.transformer import Transformer
from onebase.rollout.engine import Engine
from onebase.rollout.named_weights import logprobs_of, named_weights

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Nats per token.  Two correct engines differ by 1e-6 in float32 and by up to 2e-2 in bf16 (measured here;
TRL reports 0.016 to 0.022)."""
GROWTH = 4.0
FLOOR = 1e-5  # gaps below are rounding, whatever the first one was


class SyncError(UserError):
    """The engine does not hold the trainer's weights."""


def probe_batch(model: Transformer | HFCausalLM, seed: int = 0) -> list[list[int]]:
    """Rows of uniformly drawn tokens, enough for every expert to be chosen about eight times in every
    layer."""
    vocab = model.head_weight.shape[0]
    tokens = 128
    if isinstance(model, Transformer):
        c = model.config
        vocab = min(vocab, c.vocab_size)
        tokens = max(tokens, 8 * c.n_routed_experts // c.num_experts_per_tok)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (-(-tokens // 32), 32), generator=generator).tolist()


@dataclass(slots=True)
class WeightSync:
    """The link from one model in training to one engine that holds a copy."""

    model: Any
    engine: Engine
    warn: bool = False
    probe: list[list[int]] = field(init=False)
    first_gap: float = field(init=False)
    """Mean |difference| when both hold the same checkpoint."""
    furthest: str = field(init=False, default="the engine")
    """The replica that the last comparison found furthest off."""

    def __post_init__(self) -> None:
        self.probe = probe_batch(self.model)
        self.first_gap = self.gap()
        if self.first_gap > self._absolute():
            self._fail(self.first_gap, self._absolute(), "before any update: their kernels or configs differ")

    def push(self, version: int) -> dict[str, float]:
        """Send all weights as `version`; metrics of the sync.  SyncError where the engine then disagrees."""
        start = time.perf_counter()
        self.engine.load_weights(version, named_weights(self.model))
        sent = time.perf_counter()
        if self.engine.version != version:
            self._fail(float("nan"), 0.0, f"it reports version {self.engine.version}, {version} was sent")
        gap = self.gap()
        tolerance = min(self._absolute(), max(FLOOR, GROWTH * self.first_gap))
        if not gap <= tolerance:  # a NaN fails, too
            self._fail(gap, tolerance, self._guilty(tolerance))
        proven = time.perf_counter()
        return {"sync_gap": gap, "seconds_sync": sent - start, "seconds_proof": proven - sent}

    def gap(self) -> float:
        """Mean |log-probability difference| over the probe, of the replica that is furthest off."""
        ours = logprobs_of(self.model, self.probe)
        answers = self.engine.logprobs(self.probe)
        gaps = [float((ours - torch.tensor(theirs)).abs().mean()) for theirs in answers]
        worst = max(range(len(gaps)), key=lambda i: (gaps[i] != gaps[i], gaps[i]))
        names = getattr(self.engine, "replicas", [])
        self.furthest = names[worst] if names else "the engine"
        return gaps[worst]

    def _absolute(self) -> float:
        return TOLERANCE[self.model.head_weight.dtype]

    def _guilty(self, tolerance: float) -> str:
        """Send one group of weights at a time again; whose resending closes the gap was the one that
        differed."""
        before = self.gap()
        self.engine.reset_cache()
        if self.gap() <= tolerance:
            return "its prompt cache held entries of older weights (dropping it closed the gap)"
        groups: dict[str, list[tuple[str, Tensor]]] = {}
        for name, tensor in named_weights(self.model):
            groups.setdefault(_group(name), []).append((name, tensor))
        for group, tensors in groups.items():
            self.engine.load_weights(self.engine.version, tensors)
            after = self.gap()
            if after <= tolerance:
                return f"{group} differed (sending it again closed the gap)"
            if after < 0.7 * before:
                return (
                    f"{group} differed first (sending it again took the gap from {before:.3g} to {after:.3g})"
                )
        return "no layer's resending closes the gap"

    def _fail(self, gap: float, tolerance: float, why: str) -> None:
        text = (
            f"{self.furthest} does not hold the trainer's weights: mean |log-probability difference| "
            f"{gap:.3g} on the probe, allowed {tolerance:.3g}; {why}"
        )
        if not self.warn:
            raise SyncError(text)
        print(f"warning: {text}", flush=True)


def _group(name: str) -> str:
    """`model.layers.3.` of a name, or the name itself outside the layers."""
    parts = name.split(".")
    at = parts.index("layers") + 2 if "layers" in parts else len(parts)
    return ".".join(parts[:at])
