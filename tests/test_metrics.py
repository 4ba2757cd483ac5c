"""The estimators against enumeration of every subset, and the interval against what it promises."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase.metrics import avg_at_k, interval, ks, maj_at_k, pass_at_k


@settings(deadline=None)
@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(ncK: tuple[int, int, int]) -> None:
    n, c, k = ncK
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets), abs=1e-12)


@settings(deadline=None)
@given(st.integers(200, 3000), st.data())
def test_pass_at_k_is_stable_where_binomials_overflow(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(1 - comb(n - c, k) / comb(n, k), abs=1e-9)


def test_pass_at_1_is_the_mean() -> None:
    assert pass_at_k(8, 3, 1) == pytest.approx(avg_at_k([True] * 3 + [False] * 5))


def test_pass_at_k_refuses_more_than_there_are() -> None:
    with pytest.raises(AssertionError, match="n=4"):
        pass_at_k(4, 1, 8)


@pytest.mark.parametrize(("n", "told"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (6, [1, 2, 4, 6])])
def test_ks_are_powers_of_two_and_all(n: int, told: list[int]) -> None:
    assert ks(n) == told


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), min_size=1, max_size=7))
def test_majority_is_the_mean_over_all_ways_to_break_the_tie(votes: list[tuple[str | None, bool]]) -> None:
    """Drawing one voter among those of the tied answers is the same as drawing one of the answers."""
    answers, correct = [a for a, _ in votes], [c for _, c in votes]
    counts = Counter(a for a in answers if a is not None)
    best = max(counts.values(), default=0)
    drawn = [c for a, c in votes if a is not None and counts[a] == best]
    expected = sum(drawn) / len(drawn) if drawn else 0.0
    assert maj_at_k(answers, correct) == pytest.approx(expected)


def test_majority_by_hand() -> None:
    assert maj_at_k(["7", "7", "8"], [True, True, False]) == 1.0
    assert maj_at_k(["7", "8", "8"], [True, False, False]) == 0.0
    assert maj_at_k(["7", "8"], [True, False]) == 0.5
    assert maj_at_k([None, None, "7"], [False, False, True]) == 1.0
    assert maj_at_k([None, None], [False, False]) == 0.0


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        low, high = interval(list((rng.random(100) < 0.7).astype(float)), seed=trial) or (0, 0)
        hits += low <= 0.7 <= high
    assert 178 <= hits <= 199, hits


def test_interval_is_seeded_and_ordered() -> None:
    values = [0.0, 1.0, 0.5, 1.0, 0.25]
    first = interval(values, seed=3)
    assert first == interval(values, seed=3)
    assert first is not None and 0 <= first[0] < np.mean(values) < first[1] <= 1
    assert interval([]) is None


@pytest.mark.parametrize("n", [1, 10, 256])
def test_unanimous_problems_still_have_a_width(n: int) -> None:
    """A true rate p gives n right ones with chance p**n: the bound is where that is 2.5 %."""
    low, high = interval([1.0] * n) or (0, 0)
    assert high == 1.0 and low**n == pytest.approx(0.025)
    assert interval([0.0] * n) == pytest.approx((0.0, 1 - low))
