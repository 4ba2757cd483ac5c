"""The detector of spikes: pure functions, and the guard on the device beside its plain specification."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onebase.train import spikes
from onebase.train.spikes import FastGuard, kept_states, merged, position, slow_spike

SKIP, ROLLBACK, WINDOW, PATIENCE = 8.0, 3.0, 128, 32  # the recipe's defaults

STATED = 1e-3
"""Share of steps that may be skipped on a healthy curve (docs/stability.md)."""


def curve(seed: int, steps: int, level: float, noise: float, fall: float, tail: str) -> list[float]:
    """A loss that starts at `level`, falls by the share `fall` in exponential decay, with noise relative to
    its level."""
    rng = random.Random(seed)
    draw = {
        "gauss": lambda: rng.gauss(0, 1),
        "uniform": lambda: rng.uniform(-1.7, 1.7),
        "laplace": lambda: rng.choice((-1, 1)) * rng.expovariate(math.sqrt(2)),
    }[tail]
    base = [level * (1 - fall * (1 - math.exp(-3 * t / steps))) for t in range(steps)]
    return [b * (1 + noise * draw()) for b in base]


curves = st.builds(
    curve,
    seed=st.integers(0, 10**6),
    steps=st.just(600),
    level=st.floats(0.05, 12),
    noise=st.floats(0, 0.1),
    fall=st.floats(0, 0.9),
    tail=st.sampled_from(["gauss", "uniform", "laplace"]),
)


def skipped(losses: list[float], norms: list[float], window: int = WINDOW, skip: float = SKIP) -> list[int]:
    guard = FastGuard(window, skip)
    allowed = [bool(guard(torch.tensor(a), torch.tensor(b))) for a, b in zip(losses, norms, strict=True)]
    return [i for i, ok in enumerate(allowed) if not ok]


def first_slow(losses: list[float], start: int = 0, every: int = 1) -> tuple[int, int] | None:
    """(step that told it, onset) of the first slow spike, looked for at every `every`-th step."""
    for n in range(start + 1, len(losses) + 1, every):
        found = slow_spike(losses[:n], WINDOW, PATIENCE, ROLLBACK)
        if found is not None:
            return n - 1, found.onset
    return None


@given(curves)
@settings(max_examples=10, deadline=None)
def test_a_healthy_curve_is_no_slow_spike(losses: list[float]) -> None:
    assert first_slow(losses, WINDOW, every=7) is None


def test_a_constant_is_no_spike() -> None:
    flat = [2.0] * 400
    assert skipped(flat[:200], flat[:200]) == [] and first_slow(flat, every=5) is None


@pytest.mark.parametrize("tail", ["gauss", "laplace"])
def test_a_healthy_curve_is_hardly_ever_skipped(tail: str) -> None:
    """Two curves of 500 steps with log-normal norms: at most the stated share."""
    wrong = 0
    for seed in range(2):
        losses = curve(seed, 500, 4.0, 0.03, 0.5, tail)
        rng = random.Random(seed)
        norms = [math.exp(rng.gauss(0, 0.3)) for _ in losses]
        wrong += len(skipped(losses, norms))
    assert wrong <= STATED * 1000


@given(curves, st.integers(200, 560), st.booleans())
@settings(max_examples=10, deadline=None)
def test_a_planted_jump_is_always_skipped(losses: list[float], at: int, in_norm: bool) -> None:
    """A loss or a norm beyond any healthy one by far."""
    norms = [1.0 + 0.1 * math.sin(t) for t in range(len(losses))]
    if in_norm:
        norms[at] *= 100
    else:
        losses = [*losses[:at], 3 * max(losses[at - WINDOW : at]), *losses[at + 1 :]]
    start = at - 40
    assert at - start in skipped(losses[start : at + 1], norms[start : at + 1])


@given(curves, st.integers(200, 400), st.floats(1.6, 20))
@settings(max_examples=8, deadline=None)
@example([2.0] * 600, 300, 1.6)
def test_a_loss_that_stays_up_is_always_told(losses: list[float], at: int, times: float) -> None:
    high = [*losses[:at], *(times * max(losses[at - WINDOW : at]) for _ in range(60))]
    found = first_slow(high, at)
    assert found is not None
    told, onset = found
    assert told - at < PATIENCE and at - PATIENCE / 3 <= onset <= at + 1, (found, at)


def test_a_loss_that_creeps_up_is_told() -> None:
    losses = [2 + 0.02 * math.sin(7 * t) for t in range(200)]
    losses += [2 + 0.003 * t + 0.02 * math.sin(7 * t) for t in range(160)]
    found = first_slow(losses, 200)
    assert found is not None and 200 <= found[1] < found[0] < 300


def test_a_bump_that_recovers_is_left_alone() -> None:
    losses = [2 + 0.02 * math.sin(7 * t) for t in range(200)]
    for k in range(20):
        losses[150 + k] += 3 * math.exp(-k / 5)
    assert first_slow(losses, WINDOW) is None


def test_values_that_are_not_finite_count_as_high() -> None:
    losses = [2 + 0.02 * math.sin(7 * t) for t in range(200)] + [math.nan, math.inf] * 20
    found = first_slow(losses, 195)
    assert found is not None and found[1] == 200


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 1e4)), min_size=1, max_size=60),
    st.sampled_from([4, 7, 16]),
)
@settings(max_examples=60, deadline=None)
@example([(1.0, 1.0)] * 9 + [(math.nan, 1.0), (1.0, math.inf), (9.0, 1.0)] + [(9.0, 1.0)] * 12, 8)
def test_the_guard_is_its_specification(rows: list[tuple[float, float]], window: int) -> None:
    guard = FastGuard(window, 6.0)
    past: list[tuple[float, float]] = []
    run = 0
    for loss, norm in rows:
        ok = bool(guard(torch.tensor(loss), torch.tensor(norm)))
        new = [float(torch.tensor(loss)), float(torch.tensor(norm).clamp(min=1e-30).log())]
        finite = all(map(math.isfinite, new))
        want = [0.0, 0.0]
        if finite and len(past) >= guard.least:
            columns = list(zip(*past[-window:], strict=True))
            want[0] = spikes.score(new[0], columns[0], spikes.LOSS_FLOOR)
            want[1] = spikes.score(new[1], columns[1], 0.0, spikes.NORM_FLOOR)
        assert guard.z_2.tolist() == pytest.approx(want, rel=1e-3, abs=1e-3)
        if all(abs(z - 6.0) > 0.05 for z in want):
            spike = max(want) > 6.0
            assert ok == (finite and (not spike or run >= spikes.MOST_SKIPS))
        run = int(guard.spikes)
        if finite:
            past.append((new[0], new[1]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_guard_on_a_gpu_makes_no_one_wait() -> None:
    rng = random.Random(0)
    rows = [(rng.gauss(2, 0.1), math.exp(rng.gauss(0, 0.3))) for _ in range(60)] + [
        (9.0, 1.0),
        (math.nan, 1.0),
    ]
    there = [tuple(torch.tensor(x, device="cuda") for x in row) for row in rows]
    here, guard = FastGuard(32, SKIP), FastGuard(32, SKIP, "cuda")
    answers = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss, norm in there:
            answers.append((guard(loss, norm).clone(), guard.z_2.clone()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for row, (ok, z) in zip(rows, answers, strict=True):
        assert bool(here(torch.tensor(row[0]), torch.tensor(row[1]))) == bool(ok)
        assert z.tolist() == pytest.approx(here.z_2.tolist(), rel=1e-3, abs=1e-3)


def test_a_lasting_change_of_level_cannot_stop_training() -> None:
    losses = [(2 if t < 100 else 4) + 0.02 * math.sin(7 * t) for t in range(140)]
    assert skipped(losses, [1.0] * 140, window=64) == list(range(100, 100 + spikes.MOST_SKIPS))


def test_the_guard_goes_on_from_its_state() -> None:
    rng = random.Random(0)
    rows = [(torch.tensor(rng.gauss(2, 0.1)), torch.tensor(rng.gauss(1, 0.1))) for _ in range(40)]
    whole, first, second = (FastGuard(16, 3.0) for _ in range(3))
    for row in rows[:23]:
        whole(*row), first(*row)
    second.load_state_dict(first.state_dict())
    for row in rows[23:]:
        assert whole(*row).equal(second(*row)) and whole.z_2.equal(second.z_2)


windows = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6)


@given(windows)
def test_positions_are_all_places_outside_of_the_windows(left_out: list[tuple[int, int]]) -> None:
    want = [n for n in range(500) if not any(a <= n < b for a, b in left_out)][:100]
    assert [position(step, left_out) for step in range(100)] == want
    whole = merged(left_out)
    assert all(a < b for a, b in whole) and all(x[1] < y[0] for x, y in zip(whole, whole[1:], strict=False))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(0, 80))
def test_an_old_enough_state_is_always_kept(gaps: list[int], back: int) -> None:
    """Few states stay, and among them one for a return by `back` steps, and the newest."""
    have, now = [0], 0
    for gap in gaps:
        now += gap
        have = kept_states([*have, now], back)
        assert have[-1] == now and len(have) <= 4
        if back:
            assert have[0] <= max(0, now - back) and have[0] >= now - 2 * back - 2 * max(gaps)
        else:
            assert have == [now]


def test_a_return_finds_its_state() -> None:
    """The latest onset that can be told is within `reach` of the state that is kept for it."""
    losses = [2 + 0.02 * math.sin(7 * t) for t in range(200)] + [2.2] * 200
    told, onset = first_slow(losses, 200) or (0, 0)
    assert told - onset + spikes.margin(PATIENCE) < spikes.reach(WINDOW, PATIENCE)
