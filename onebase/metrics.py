"""What k completions of a problem say about a model: pass@k, maj@k, avg@k, and how sure the mean is.

pass@k is the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, equation 1).  maj@k votes over the
answers of all k completions as they stand (no subsets are drawn).  Intervals resample problems, not
completions: completions of one problem are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
CELLS = 1 << 22  # most random indices held at once


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n completions, drawn without putting back, hold a correct one; c of the n are correct.

    1 - C(n-c, k) / C(n, k), as the product of 1 - k/i over i in (n-c, n]: no large binomials.
    """
    assert 0 <= c <= n and 1 <= k <= n, f"{n=} {c=} {k=}"
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def ks(n: int) -> list[int]:
    """The k that are told for n completions: powers of two, and n."""
    return [k for k in (1 << i for i in range(n.bit_length())) if k < n] + [n]


def avg_at_k(correct: Sequence[bool]) -> float:
    """Share of correct completions: pass@1 estimated from k."""
    assert len(correct) > 0, "no completions"
    return sum(correct) / len(correct)


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """Chance that the most frequent answer is correct.

    A completion without an answer (None) has no vote; no votes at all count 0.  Answers tied for the first
    place are drawn from evenly, so the value is the mean of their correctness.  Equal answers that were
    judged differently (a verifier that also looks at the way there) count with their mean.
    """
    assert len(answers) == len(correct), f"{len(answers)=} {len(correct)=}"
    votes = Counter(a for a in answers if a is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    right = Counter(a for a, c in zip(answers, correct, strict=True) if c)
    return float(np.mean([right[a] / most for a, v in votes.items() if v == most]))


def interval(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile bootstrap of the mean over problems; None without problems.

    Deviation: where every value is 0, or every value 1, the bootstrap would have no width; there the exact
    binomial bound (Clopper and Pearson, 1934) is given.
    """
    n = len(values)
    if n == 0:
        return None
    x = np.asarray(values, dtype=np.float64)
    tail = (1.0 - level) / 2
    if (x == x[0]).all() and x[0] in (0.0, 1.0):
        width = 1.0 - tail ** (1.0 / n)
        return (0.0, width) if x[0] == 0.0 else (1.0 - width, 1.0)
    rng = np.random.default_rng(seed)
    means = []
    left = RESAMPLES
    while left > 0:
        size = min(left, max(1, CELLS // n))
        means.append(x[rng.integers(0, n, (size, n))].mean(1))
        left -= size
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail])
    return float(low), float(high)
