"""Completion lengths for the simulation: from a distribution with stated parameters, or from a run.

    lognormal:MEDIAN:SIGMA   e^(ln MEDIAN + SIGMA z); half of the variance of the logarithm is the prompt's
                             own, so that completions of one prompt resemble each other (BETWEEN)
    pareto:LEAST:ALPHA       LEAST u^(-1/ALPHA), each by itself: P(length > x) = (LEAST / x)^ALPHA
    a folder of a run        groups of its rollouts/step_*.jsonl.zst, drawn with replacement

A length is a function of (seed, step, prompt, sample), whatever engines there are; it is at least 1 and cut
at max_tokens.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

from onebase.errors import UserError
from onebase.simulate_parts import Lengths

BETWEEN = 0.5
"""Share of the logarithm's variance that lies between prompts."""
SHAPES = "lognormal:MEDIAN:SIGMA, pareto:LEAST:ALPHA, or the folder of a run with rollouts"


def lengths_of(told: str, prompts: int, group_size: int, max_tokens: int, seed: int) -> Lengths:
    """What `--lengths` names.  UserError where it names nothing."""
    kind, _, rest = told.partition(":")
    if kind in ("lognormal", "pareto"):
        try:
            first, second = (float(x) for x in rest.split(":"))
        except ValueError:
            raise UserError(f"--lengths {told}: two numbers are needed; allowed: {SHAPES}") from None
        if not (0 < first < math.inf and 0 < second < math.inf):
            raise UserError(f"--lengths {told}: both numbers must be above 0 and finite")
        draw = _lognormal if kind == "lognormal" else _pareto
        return lambda step: [
            [max(1, min(max_tokens, round(x))) for x in draw(rng, first, second, group_size)]
            for rng in [random.Random(f"{seed} {step}")]
            for _ in range(prompts)
        ]
    groups = list(groups_of(told))
    return lambda step: [
        [max(1, min(max_tokens, n)) for n in _as_many(rng, rng.choice(groups), group_size)]
        for rng in [random.Random(f"{seed} {step}")]
        for _ in range(prompts)
    ]


def _lognormal(rng: random.Random, median: float, sigma: float, count: int) -> list[float]:
    own = math.sqrt(BETWEEN) * sigma * rng.gauss(0, 1)
    rest = math.sqrt(1 - BETWEEN) * sigma
    return [median * math.exp(min(700.0, own + rest * rng.gauss(0, 1))) for _ in range(count)]


def _pareto(rng: random.Random, least: float, alpha: float, count: int) -> list[float]:
    return [min(1e12, least * (1 - rng.random()) ** (-1 / alpha)) for _ in range(count)]


def _as_many(rng: random.Random, group: list[int], count: int) -> list[int]:
    """The group's own lengths where it has as many, else drawn from them."""
    return group if len(group) == count else [rng.choice(group) for _ in range(count)]


def groups_of(folder: str) -> Iterator[list[int]]:
    """Lengths in tokens of each group of a run's rollouts; a stage's folder or a run's."""
    import zstandard

    root = Path(folder).expanduser()
    files = sorted([*root.glob("rollouts/step_*.jsonl.zst"), *root.glob("*/rollouts/step_*.jsonl.zst")])
    if not files:
        raise UserError(
            f"--lengths {folder}: no such distribution, and no rollouts/step_*.jsonl.zst in or one below a "
            f"folder of that name\n  allowed: {SHAPES}"
        )
    for file in files:
        by_prompt: dict[str, list[int]] = {}
        try:
            text = zstandard.ZstdDecompressor().stream_reader(file.read_bytes()).read().decode()
            for line in text.splitlines():
                row = json.loads(line)
                by_prompt.setdefault(row["prompt"], []).append(int(row["tokens"]))
        except (zstandard.ZstdError, ValueError, KeyError) as e:
            raise UserError(f"{file}: not a run's rollouts: {type(e).__name__}: {e}") from e
        yield from by_prompt.values()
