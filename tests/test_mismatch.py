"""Mismatch metrics, corrections and routing replay against plain formulas and a planted disagreement."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onebase.grpo.batch import Sample, logp_of, micro_batches
from onebase.grpo.correction import correction_weight
from onebase.grpo.loss import policy_loss, token_weights
from onebase.grpo.mismatch import Mismatch
from onebase.recipe import Correction, Loss
from onebase.rollout.engine import Request
from onebase.rollout.torch_engine import TorchEngine


def case(seed: int, scale: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    rollout = -torch.rand(5, 7, generator=g) * 3
    train = (rollout + scale * torch.randn(5, 7, generator=g)).clamp(max=-1e-3)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5, 0])[:, None]
    return train, rollout, mask


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 2), min_size=5, max_size=5), st.integers(1, 4))
def test_metrics_against_plain_sums(seed: int, ages: list[int], cut: int) -> None:
    train, rollout, mask = case(seed)
    age = torch.tensor(ages)
    whole, parts = Mismatch(), Mismatch()
    whole.add(train, rollout, mask, age)
    for rows in (slice(0, cut), slice(cut, 5)):
        parts.add(train[rows], rollout[rows], mask[rows], age[rows])
    assert parts.metrics() == pytest.approx(whole.metrics())
    got = whole.metrics()
    for suffix, rows in [("", range(5))] + [
        (f"_at_{a}", [i for i in range(5) if ages[i] == a])
        for a in sorted({ages[i] for i in range(4)})
        if len({ages[i] for i in range(4)}) > 1
    ]:
        x = [
            (float(train[i, t].double()), float(rollout[i, t].double()))
            for i in rows
            for t in range(7)
            if mask[i, t]
        ]
        d = [p - q for p, q in x]
        r = [math.exp(v) for v in d]
        n = len(x)
        expected = {
            "dlogp_mean": sum(map(abs, d)) / n,
            "dlogp_max": max(map(abs, d)),
            "kl_k1": -sum(d) / n,
            "kl_k3": sum(math.exp(v) - 1 - v for v in d) / n,
            "beyond_2": sum(v > 2 or v < 0.5 for v in r) / n,
            "prob_gap": sum(abs(math.exp(p) - math.exp(q)) for p, q in x) / n,
            "ess": sum(r) ** 2 / (n * sum(v * v for v in r)),
        }
        for name, value in expected.items():
            assert got[name + suffix] == pytest.approx(value, rel=1e-9), name + suffix


def test_equal_policies_have_no_mismatch_and_a_whole_sample() -> None:
    train, _, mask = case(0)
    m = Mismatch()
    m.add(train, train, mask, torch.zeros(5))
    got = m.metrics()
    assert got["ess"] == 1 and all(v == 0 for k, v in got.items() if k != "ess")
    assert Mismatch().metrics() == {}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["truncate", "mask"]),
    st.sampled_from(["token", "sequence", "geometric"]),
    st.floats(0.3, 1.0),
    st.floats(1.0, 2.0),
)
def test_weights_against_plain_loops(seed: int, kind: Any, level: Any, low: float, high: float) -> None:
    old, rollout, mask = case(seed)
    how = Correction(method=kind, level=level, low=low, high=high)
    got = correction_weight(old, rollout, old, torch.ones(5), mask, how).expand(5, 7)
    for i in range(5):
        x = (old - rollout)[i][mask[i]].tolist()
        for t in range(len(x)):
            log = x[t] if level == "token" else sum(x) / (len(x) if level == "geometric" else 1)
            rho = math.exp(log)
            if min(abs(rho - low), abs(rho - high)) < 1e-5:
                continue  # float32 may fall on the other side
            expected = min(rho, high) if kind == "truncate" else rho if low <= rho <= high else 0.0
            assert float(got[i, t]) == pytest.approx(expected, rel=1e-4)


def test_stale_negatives_go_whole_and_positives_stay() -> None:
    mask = torch.ones(3, 4, dtype=torch.bool)
    rollout = torch.full((3, 4), -1.0)
    train = rollout - torch.tensor([[0.5], [0.5], [0.01]])
    weight = correction_weight(
        rollout, rollout, train, torch.tensor([-1.0, 1.0, -1.0]), mask, Correction(stale_negatives=0.1)
    )
    assert weight.expand(3, 4).sum(1).tolist() == [0, 4, 4]


def test_a_correction_multiplies_the_gradient_and_not_the_weights() -> None:
    """grpo with a truncated weight: -w A on policy, w against the engine, though the ratio is 1."""
    old, rollout, mask = case(3)
    train = old.clone().requires_grad_()
    advantage = torch.tensor([1.0, -1, 2, 0.5, 1])
    weight = token_weights(mask, torch.zeros(5, dtype=torch.long), "token")
    factor = correction_weight(old, rollout, old, advantage, mask, Correction(method="truncate", high=1.3))
    value, metrics = policy_loss(
        train, rollout, advantage, mask, weight, Loss(name="grpo"), None, old, factor
    )
    value.backward()
    expected = -(old - rollout).exp().clamp(max=1.3) * advantage[:, None] * weight
    torch.testing.assert_close(train.grad, torch.where(mask, expected, 0.0))
    assert metrics["clipped"] == 0 and metrics["ratio_max"] == 1
    assert metrics["correction_mean"] == pytest.approx(float((factor * weight).sum()))


# -- routes


def sample_of(rollout: Any, routes: Tensor | None) -> Sample:
    return Sample(rollout.prompt_ids, rollout.completion_ids, rollout.logp_rollout, 1.0, 0, 0, routes)


def requests(n: int, tokens: int = 24) -> list[Request]:
    return [Request([5 + i % 3, 9, 40, 3 + i], seed=i, max_tokens=tokens - i % 5) for i in range(n)]


@pytest.mark.parametrize("packed", [True, False])
def test_the_engine_records_the_forwards_experts(packed: bool, make_config: Any, make_model: Any) -> None:
    """More requests than slots, so that rows move; both decoders; every position but the last."""
    extra = {} if packed else {"q_lora_rank": 8}
    model = make_model(make_config(**extra), 4).eval()
    engine = TorchEngine(model, 2, slots=3, max_length=40, record_routes=True)
    assert type(engine.decoder).__name__ == ("PackedDecoder" if packed else "NativeDecoder")
    for rollout in engine.generate(requests(8)):
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids[:-1]])
        own = torch.stack([r.own_NK for r in model(ids).routing], 1)
        assert rollout.routes is not None and rollout.routes.shape == own.shape
        assert torch.equal(rollout.routes.long().sort(-1).values, own.sort(-1).values)


def test_replay_of_the_own_choice_changes_nothing_and_padding_is_ignored(
    make_config: Any, make_model: Any
) -> None:
    model = make_model(make_config(), 5).eval()
    rollouts = TorchEngine(model, 2, 8, 40, record_routes=True).generate(requests(5))
    (batch,) = micro_batches([sample_of(r, r.routes) for r in rollouts], 10_000, 2, "cpu")
    with torch.no_grad():
        plain, replayed = (logp_of(model, batch, 1.0, replay)[0] for replay in (False, True))
    torch.testing.assert_close(plain, replayed, rtol=1e-5, atol=1e-5)
    m = Mismatch()
    m.add(plain, batch.logp_rollout_NT, batch.mask_NT, batch.staleness_N)
    assert batch.route_NTLK is not None
    m.add_routes(batch.route_NTLK, [r.own_NK for r in logp_of(model, batch, 1.0)[2]])
    got = m.metrics()
    assert got["router_agreement"] == got["router_agreement_0"] == 1 and got["rerouted"] == 0
    assert m.routed == sum(len(r.prompt_ids) + len(r.completion_ids) - 1 for r in rollouts)


def test_replay_cuts_the_mismatch_of_a_bf16_engine(make_config: Any, make_model: Any) -> None:
    """A real disagreement: the engine holds the trainer's weights in bf16, so that routers near a tie choose
    otherwise.  With the engine's experts the trainer comes at least twice as near."""
    shape = {"n_routed_experts": 32, "num_experts_per_tok": 2, "n_group": 1, "num_hidden_layers": 5}
    trainer = make_model(make_config(**shape), 6, 0.05).eval()
    engine_model = copy.deepcopy(trainer).bfloat16()
    for ours, theirs in zip(engine_model.moe_layers(), trainer.moe_layers(), strict=True):
        ours.gate.e_score_correction_bias = theirs.gate.e_score_correction_bias.clone()  # float32 always
    rollouts = TorchEngine(engine_model, 2, 32, 64, record_routes=True).generate(requests(32, 48))
    (batch,) = micro_batches([sample_of(r, r.routes) for r in rollouts], 100_000, 2, "cpu")
    gaps = {}
    for replay in (False, True):
        with torch.no_grad():
            logp_NT, _, routing = logp_of(trainer, batch, 1.0, replay)
        m = Mismatch()
        m.add(logp_NT, batch.logp_rollout_NT, batch.mask_NT, batch.staleness_N)
        m.add_routes(batch.route_NTLK, [r.own_NK for r in routing])  # type: ignore[arg-type]
        gaps[replay] = m.metrics()
    print({k: (gaps[False][k], gaps[True][k]) for k in gaps[True]})
    assert gaps[False]["rerouted"] > 0.02
    assert gaps[True]["dlogp_mean"] < 0.5 * gaps[False]["dlogp_mean"]
    assert gaps[True]["kl_k3"] < 0.5 * gaps[False]["kl_k3"]
