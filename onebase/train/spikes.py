"""Spikes in the loss and in the gradient's norm: what is one, where it began, and which data to leave out.

All scores are robust: (x - median) / max(1.4826 MAD, a floor), over a window of earlier steps, one-sided (a
falling loss is no spike).  The norm is scored by its logarithm, for its tail is long.

fast spike   one step's loss or norm is far above the window: its update is skipped (`FastGuard`).  As
             OLMo-core's SkipStepOptimizer (window 128, 6 sigma, on the device), with two deviations: median
             and MAD in place of mean and standard deviation, so that a spike does not hide the next one; and
             after MOST_SKIPS spikes in a row updates go on, so that a lasting change of level cannot stop
             training for good.
slow spike   the loss has risen and stays: the lower quartile of the last `patience` losses is above the best
             level of the recent past by `threshold` scales (`slow_spike`). Training then returns to an
             earlier state and leaves the bad window's data out, as PaLM's authors did by hand (arXiv
             2204.02311, section 5.1: back by about 100 steps, 200 to 500 batches left out). Deviation: good
             data between the state and the spike are trained again; left out is from `margin` steps before
             the onset to `margin` steps behind the step that told it.

Data order stays a function of (seed, step, skipped windows): `position` maps a step to the place in the
order of a run that never skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

LOSS_FLOOR = 0.01
"""Least scale of the loss, as a share of its median: a quieter curve is scored as if it were so noisy."""
NORM_FLOOR = 0.1
"""Least scale of the log norm."""
MOST_SKIPS = 8
"""Spikes in a row whose updates are skipped."""
NOT_FINITE = 5
"""Steps in a row whose loss or norm is not finite that count as a slow spike at once."""
Window = tuple[int, int]


def scale(values: Sequence[float], relative: float, absolute: float = 0.0) -> tuple[float, float]:
    """(median, robust standard deviation) of finite values, the latter not below
    max(relative * |median|, absolute)."""
    middle = median(values)
    spread = 1.4826 * median(abs(v - middle) for v in values)
    return middle, max(spread, relative * abs(middle), absolute, 1e-12)


def score(value: float, history: Sequence[float], relative: float, absolute: float = 0.0) -> float:
    """Robust z-score of a value against earlier ones: what `FastGuard` computes on the device."""
    middle, spread = scale(history, relative, absolute)
    return (value - middle) / spread


class FastGuard:
    """Decides on the device whether a step's update may happen; the host reads the answer when it likes.

    A call is some twenty small operations of fixed shape on [2, window] numbers, without a synchronisation.
    `loss` and `norm` must be those of the whole step (all micro-batches, all processes), so that every
    process decides the same.  Finite values always enter the window, also those of skipped steps: the median
    does not mind a few, and a lasting change of level becomes the new level."""

    def __init__(self, window: int, threshold: float, device: str | torch.device = "cpu") -> None:
        """`threshold` 0 skips only what is not finite; scores are computed all the same."""
        assert window >= 4, f"{window=}"
        self.threshold = threshold if threshold > 0 else math.inf
        self.least = max(4, window // 4)
        self.past_2W = torch.full((2, window), math.inf, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.spikes = torch.zeros((), dtype=torch.int64, device=device)
        self.z_2 = torch.zeros(2, device=device)
        """Scores of the last call: loss, log norm; 0 while the window holds too few steps."""
        self.ok = torch.ones((), dtype=torch.bool, device=device)
        """Answer of the last call."""
        self._place_W = torch.arange(window, device=device)
        self._floor_22 = torch.tensor([[LOSS_FLOOR, 0.0], [0.0, NORM_FLOOR]], device=device)

    @torch.no_grad()
    def __call__(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Bool scalar: whether the update may happen.  `norm` is the gradient's before clipping."""
        new_2 = torch.stack([loss.detach().float(), norm.detach().float().clamp(min=1e-30).log()])
        finite = new_2.isfinite().all()
        W = self.past_2W.shape[1]
        known = self.count.clamp(max=W)
        middle_2 = _median(self.past_2W, known)
        away_2W = (self.past_2W - middle_2[:, None]).abs()
        floor_2 = self._floor_22[:, 0] * middle_2.abs() + self._floor_22[:, 1]
        spread_2 = torch.maximum(1.4826 * _median(away_2W, known), floor_2).clamp(min=1e-12)
        told = (known >= self.least) & finite
        self.z_2.copy_(torch.where(told, (new_2 - middle_2) / spread_2, 0.0))
        spike = (self.z_2 > self.threshold).any()
        self.ok.copy_(finite & (~spike | (self.spikes >= MOST_SKIPS)))
        self.spikes.copy_(torch.where(spike, self.spikes + 1, 0))
        here_W = (self._place_W == self.count % W) & finite
        self.past_2W.copy_(torch.where(here_W, new_2[:, None], self.past_2W))
        self.count += finite
        return self.ok

    def answer(self) -> tuple[Tensor, Tensor, Tensor]:
        """ok and the scores of loss and log norm, of the last call, to be fetched with a step's other
        numbers."""
        return self.ok, self.z_2[0], self.z_2[1]

    def state_dict(self) -> dict[str, Tensor]:
        return {"past": self.past_2W.clone(), "count": self.count.clone(), "spikes": self.spikes.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["past"].shape == self.past_2W.shape:  # of another window: starts anew
            self.past_2W.copy_(state["past"])
            self.count.copy_(state["count"])
            self.spikes.copy_(state["spikes"])


def _median(past_2W: Tensor, known: Tensor) -> Tensor:
    """Median of the `known` finite numbers of each row; the others are inf and sort behind them."""
    order_2W = past_2W.sort(1).values
    low, high = ((known - 1).clamp(min=0) // 2), known.clamp(max=past_2W.shape[1]) // 2
    pair = torch.stack([low, torch.minimum(high, (known - 1).clamp(min=0))]).expand(2, 2)
    return order_2W.gather(1, pair).mean(1).nan_to_num(posinf=0.0)


@dataclass(frozen=True, slots=True)
class Slow:
    """A loss that rose and stays up.  Indices are those of the history that was looked at."""

    onset: int
    """First of the raised losses."""
    level: float
    """Median of the last losses."""
    reference: float
    """Median of the best window before."""
    spread: float


def horizon(window: int, patience: int) -> int:
    """Losses that `slow_spike` looks at: two windows and the last steps."""
    return 2 * window + patience


def margin(patience: int) -> int:
    """Steps before a spike's onset, and behind its detection, that are not trusted either."""
    return max(1, patience // 4)


def reach(window: int, patience: int) -> int:
    """Most steps that may lie between a detection and the state to return to."""
    return horizon(window, patience) - window + margin(patience) + 1


def slow_spike(losses: Sequence[float], window: int, patience: int, threshold: float) -> Slow | None:
    """Whether the loss has risen and stays up, from its last `horizon(window, patience)` values.

    The reference is the window with the lowest median among those that end `patience` steps ago or earlier,
    so that a loss that creeps up within two windows is found too. Values that are not finite count as
    infinitely high."""
    seen = [v if math.isfinite(v) else math.inf for v in losses[-horizon(window, patience) :]]
    skipped = len(losses) - len(seen)
    if len(seen) < window + patience or threshold <= 0:
        return None
    best: tuple[float, float, int] | None = None
    last = len(seen) - patience
    for end in range(last, window - 1, -max(1, patience // 2)):
        block = [v for v in seen[end - window : end] if v < math.inf]
        if 2 * len(block) >= window:
            middle, spread = _level(block)
            if best is None or middle < best[0]:
                best = (middle, spread, end)
    if best is None:
        return None
    middle, spread, end = best
    recent = sorted(seen[-patience:])
    if not recent[patience // 4] > middle + threshold * spread:
        return None
    raised = [v > middle + threshold / 2 * spread for v in seen]
    onset, high = last, 0
    for i in range(len(seen) - 1, end - 1, -1):
        high += raised[i]
        if raised[i] and 4 * high >= 3 * (len(seen) - i):
            onset = i
    return Slow(skipped + onset, recent[patience // 2], middle, spread)


def _level(block: Sequence[float]) -> tuple[float, float]:
    """(median, robust deviation from the block's own straight line): a loss that falls steadily is not noise.
    The slope is that between the medians of the two halves."""
    half = len(block) // 2
    slope = (median(block[half:]) - median(block[:half])) / (len(block) - half)
    middle = median(block)
    _, spread = scale([v - slope * i for i, v in enumerate(block)], 0.0)
    return middle, max(spread, LOSS_FLOOR * abs(middle))


def position(step: int, windows: Iterable[Window]) -> int:
    """The place in the data's order of the step-th batch that is in none of the windows [start, stop)."""
    for start, stop in merged(windows):
        if step < start:
            break
        step += stop - start
    return step


def merged(windows: Iterable[Window]) -> list[Window]:
    """The same places as rising, disjoint windows that do not touch."""
    out: list[Window] = []
    for start, stop in sorted(w for w in windows if w[0] < w[1]):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], stop))
        else:
            out.append((start, stop))
    return out


def kept_states(steps: Iterable[int], back: int) -> list[int]:
    """Which saved states to keep so that one at least `back` steps older than the newest stays at hand: the
    two newest, the newest that is old enough (else the oldest), and the one after it, which takes its place
    later. At most four."""
    have = sorted(set(steps))
    if not have:
        return []
    old = [s for s in have if s <= have[-1] - back] if back else have
    anchor = old[-1] if old else have[0]
    return sorted({*have[-2 if back else -1 :], anchor, *[s for s in have if s > anchor][:1]})
