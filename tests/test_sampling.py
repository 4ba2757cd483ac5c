"""Drawing tokens: the hash's statistics and the drawn distribution against the exact one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from onebase.rollout.sampling import Kinds, draw, uniform
from onebase.rollout.torch_engine import request_seed

N = 40_000


def chi_square_is_plausible(counts: Tensor, p: Tensor) -> None:
    """Counts of N draws against exact probabilities, within five standard deviations of the statistic's mean.
    Entries of probability zero must not be drawn at all."""
    assert counts[p == 0].sum() == 0, "a token that was cut away has been drawn"
    expected = p * counts.sum()
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]]).double()
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * max(freedom, 1)), f"{statistic=} {freedom=}"


def exact(logits_V: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The distribution to draw from, in float64: the k best, and of these, renormalised, the fewest that
    reach p."""
    p = (logits_V.double() / temperature).softmax(0)
    order = p.argsort(descending=True)
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    before = 0.0
    for v in order.tolist():
        if before >= top_p:
            p[v] = 0
        before += float(p[v])
    return p / p.sum()


def drawn_at(
    logits_NV: Tensor, u_N: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Every row with the same settings."""
    n = len(logits_NV)
    settings = (torch.full((n,), temperature), torch.full((n,), top_k), torch.full((n,), top_p))
    return draw(logits_NV.clone(), u_N, *settings, Kinds())


def drawn(logits_V: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, n: int = N) -> Tensor:
    """Counts of n draws, with one seed per draw."""
    u = uniform(torch.arange(n) * 7919 + 13, torch.tensor(3))
    token, _ = drawn_at(logits_V.expand(n, -1), u, temperature, top_k, top_p)
    return torch.bincount(token, minlength=len(logits_V))


def some_logits(size: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


# -- the hash


@pytest.mark.parametrize("over", ["seeds", "indices", "far seeds"])
def test_uniform_numbers_look_uniform_and_independent(over: str) -> None:
    i = torch.arange(200_000)
    seed, count = {
        "seeds": (i, torch.zeros_like(i)),
        "indices": (torch.full_like(i, 123_456_789), i),
        "far seeds": (i * (1 << 44), torch.full_like(i, 5)),
    }[over]
    u = uniform(seed, count).double()
    n = len(u)
    assert u.min() >= 0 and u.max() < 1
    assert abs(float(u.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(float(u.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    steps = (u.sort().values - (torch.arange(n) + 0.5) / n).abs().max()
    assert steps < 2 / math.sqrt(n)  # Kolmogorov
    for lag in (1, 2, 64):
        correlation = float(((u[lag:] - 0.5) * (u[:-lag] - 0.5)).mean()) * 12
        assert abs(correlation) < 5 / math.sqrt(n), f"{lag=}"
    pairs = torch.bincount((u[0::2] * 16).long() * 16 + (u[1::2] * 16).long(), minlength=256)
    chi_square_is_plausible(pairs, torch.full((256,), 1 / 256))


def test_uniform_avalanche_on_every_bit() -> None:
    """Flipping one bit of the seed or of the index moves the number as a new draw would."""
    base = torch.arange(4000) * 1_000_003
    count = torch.full_like(base, 9)
    u = uniform(base, count)
    for bit in range(63):
        for v in (uniform(base ^ (1 << bit), count), uniform(base, count ^ (1 << bit))):
            assert abs(float((u - v).abs().mean()) - 1 / 3) < 0.03, f"{bit=}"


def test_uniform_depends_on_nothing_else() -> None:
    seed, count = torch.tensor([5, -1, 2**62]), torch.tensor([0, 7, 100])
    whole = uniform(seed, count)
    alone = [float(uniform(seed[i : i + 1], count[i : i + 1])) for i in range(3)]
    assert whole.tolist() == alone
    assert whole.dtype == torch.float32


def test_request_seeds_differ_in_every_part() -> None:
    seeds = {
        request_seed(run, step, prompt, sample)
        for run in range(3)
        for step in range(5)
        for prompt in range(12)
        for sample in range(12)
    }
    assert len(seeds) == 3 * 5 * 12 * 12
    assert all(0 <= s < 1 << 63 for s in seeds)
    assert request_seed(1, 11, 1, 1) != request_seed(11, 1, 1, 1) != request_seed(1, 1, 11, 1)
    assert request_seed(1, 2, 3, 4) == request_seed(1, 2, 3, 4)
    assert sum(s >> 62 for s in seeds) == pytest.approx(len(seeds) / 2, rel=0.1)


# -- the draw


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (1, 1.0), (0, 0.7), (0, 0.05), (100, 1.0)])
def test_draws_follow_the_exact_distribution(temperature: float, top_k: int, top_p: float) -> None:
    logits = some_logits(40)
    chi_square_is_plausible(
        drawn(logits, temperature, top_k, top_p), exact(logits, temperature, top_k, top_p)
    )


def test_top_p_looks_at_what_top_k_has_left() -> None:
    """As transformers and vLLM do it: of (0.5, 0.2, 0.15, 0.15), k = 2 leaves (0.71, 0.29), of which the
    first alone reaches p = 0.6."""
    logits = torch.tensor([0.5, 0.2, 0.15, 0.15]).log()
    assert exact(logits, 1.0, 2, 0.6).tolist() == [1, 0, 0, 0]
    chi_square_is_plausible(drawn(logits, 1.0, 2, 0.6), exact(logits, 1.0, 2, 0.6))


def test_tokens_of_no_probability_are_never_drawn() -> None:
    logits = some_logits(33)
    logits[[0, 7, 8, 31, 32]] = float("-inf")
    counts = drawn(logits, 1.0)
    assert counts[[0, 7, 8, 31, 32]].sum() == 0
    chi_square_is_plausible(counts, exact(logits, 1.0, 0, 1.0))


def test_a_large_vocabulary_keeps_its_tail() -> None:
    """One token of 100 thousand has half of all probability: the float32 sum must not favour an end."""
    V, n = 99_000, 480
    logits = torch.zeros(V)
    logits[V // 2] = math.log(V - 1)
    parts = [
        drawn_at(logits.expand(40, -1), uniform(torch.arange(40) + at, torch.tensor(0)))[0]
        for at in range(0, n, 40)
    ]
    token = torch.cat(parts)
    assert abs(int((token == V // 2).sum()) - n / 2) < 5 * math.sqrt(n / 4)
    rest = token[token != V // 2]
    chi_square_is_plausible(torch.bincount(rest * 3 // V, minlength=3), torch.full((3,), 1 / 3))


@pytest.mark.parametrize("size", [1000, 50_000])
def test_a_cut_of_nothing_keeps_every_token(size: int) -> None:
    """top_p = 1 and top_k = 0 are off, whatever the probabilities' float32 sum rounds to: otherwise a
    request's draw would depend on whether a neighbour in the batch asks for a cut."""
    from onebase.rollout.sampling import _cut

    for seed in range(4):
        p = some_logits(size, seed, 1.0).softmax(0)[None]
        kept = _cut(p, torch.zeros(1).long(), torch.ones(1))
        assert torch.equal(kept, p), f"{int((kept == 0).sum())} of {size} tokens were cut"


def test_greedy_and_sampled_rows_mix() -> None:
    logits = torch.stack([some_logits(40, i) for i in range(64)])
    temperature = torch.where(torch.arange(64) % 2 == 0, 0.0, 0.8)
    u = uniform(torch.arange(64), torch.tensor(0))
    off = (torch.zeros(64).long(), torch.ones(64))
    token, logp = draw(logits.clone(), u, temperature, *off, Kinds())
    greedy = temperature == 0
    assert torch.equal(token[greedy], logits[greedy].argmax(-1))
    t = torch.where(greedy, 1.0, temperature)[:, None]
    expected = (logits / t).log_softmax(-1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(logp, expected, rtol=1e-5, atol=1e-5)
    sampled, _ = drawn_at(logits, u, 0.8)
    assert torch.equal(token[~greedy], sampled[~greedy])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "kinds"),
    [
        (1.0, 0, 1.0, Kinds("none", False, False)),
        (0.7, 0, 1.0, Kinds("none", True, False)),
        (1.0, 3, 0.9, Kinds("none", False, True)),
        (0.0, 0, 1.0, Kinds("all", False, False)),
        (0.0, 4, 0.5, Kinds("all", False, True)),
    ],
)
def test_parts_that_nobody_needs_change_nothing(
    temperature: float, top_k: int, top_p: float, kinds: Kinds
) -> None:
    """A request draws the same token whatever its neighbours ask for."""
    logits = torch.stack([some_logits(50, i) for i in range(300)])
    u = uniform(torch.arange(300), torch.tensor(2))
    general, logp = drawn_at(logits, u, temperature, top_k, top_p)
    settings = (torch.full((300,), temperature), torch.full((300,), top_k), torch.full((300,), top_p))
    token, logp_short = draw(logits.clone(), u, *settings, kinds)
    assert torch.equal(token, general)
    torch.testing.assert_close(logp_short, logp, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-22])
def test_the_ends_of_the_unit_interval_hit_tokens_that_have_probability(u: float) -> None:
    """Also where the first and the last entries have none."""
    logits = torch.stack([some_logits(1000, i) for i in range(200)])
    logits[:, :3] = logits[:, -3:] = float("-inf")
    token, logp = drawn_at(logits, torch.full((200,), u))
    assert ((token >= 3) & (token < 997)).all() and torch.isfinite(logp).all()


def test_the_log_probability_is_the_one_before_the_cuts() -> None:
    logits = some_logits(40).expand(500, -1)
    token, logp = drawn_at(logits, uniform(torch.arange(500), torch.tensor(1)), 0.7, 4, 0.8)
    expected = (logits / 0.7).log_softmax(-1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(logp, expected, rtol=1e-5, atol=1e-5)
