"""How often the spike detector is wrong on healthy curves, and how soon it tells a planted rise.

    python benchmarks/spikes.py [--steps N]

Curves fall from 1 to 0.5 of their level with noise of 3 % of it (the rises: over 2,000 steps, at step 600);
norms are log-normal (0.3).  Settings are the recipe's defaults.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable

import torch

from onebase.recipe import Stability
from onebase.train.spikes import FastGuard, slow_spike

DRAWS: dict[str, Callable[[random.Random], float]] = {
    "gauss": lambda r: r.gauss(0, 1),
    "laplace": lambda r: r.choice((-1, 1)) * r.expovariate(math.sqrt(2)),
    "student t, 4 degrees": lambda r: r.gauss(0, 1) / math.sqrt(r.gammavariate(2, 0.5)) / math.sqrt(2),
}


def curve(kind: str, steps: int, seed: int) -> list[float]:
    rng = random.Random(seed)
    base = (0.5 + 0.5 * math.exp(-3 * t / steps) for t in range(steps))
    return [b * (1 + 0.03 * DRAWS[kind](rng)) for b in base]


def skips(losses: list[float], section: Stability) -> int:
    guard, rng = FastGuard(section.window, section.skip), random.Random(0)
    norms = [math.exp(rng.gauss(0, 0.3)) for _ in losses]
    allowed = [guard(torch.tensor(a), torch.tensor(b)) for a, b in zip(losses, norms, strict=True)]
    return len(losses) - int(sum(int(ok) for ok in allowed))


def first_slow(losses: list[float], section: Stability, start: int) -> int | None:
    s = section
    for n in range(start, len(losses) + 1):
        if slow_spike(losses[:n], s.window, s.patience, s.rollback) is not None:
            return n
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    section = Stability()
    print(f"{'noise':24}{'updates skipped':>18}{'slow spikes':>14}{'told after a rise by':>24}")
    for kind in DRAWS:
        losses = curve(kind, steps, 0)
        recent = section.window * 2 + section.patience
        slow = sum(
            slow_spike(losses[max(0, n - recent) : n], section.window, section.patience, section.rollback)
            is not None
            for n in range(section.window, steps + 1)
        )
        delays = []
        for rise in (0.15, 0.3, 1.0):
            told = []
            for seed in range(5):
                high = curve(kind, 2000, seed)[:700]
                high[600:] = [x * (1 + rise) for x in high[600:]]
                found = first_slow(high, section, 600)
                told.append("never" if found is None else str(found - 600))
            delays.append(f"{rise:.0%}: {max(told, key=lambda x: (x == 'never', len(x), x))}")
        print(f"{kind:24}{skips(losses, section):>12} of {steps:,}{slow:>8}   {', '.join(delays)} steps")


if __name__ == "__main__":
    main()
