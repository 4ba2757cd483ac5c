"""Policy losses, advantages and batches against direct formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase.grpo.advantage import advantages
from onebase.grpo.batch import Sample, logp_of, micro_batches
from onebase.grpo.loss import kl_estimate, policy_loss, token_weights
from onebase.model.config import ModelConfig
from onebase.model.transformer import Transformer, init_weights
from onebase.recipe import Loss

REWARDS = st.lists(st.lists(st.floats(0, 1, width=16), min_size=4, max_size=4), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(REWARDS, st.sampled_from(["batch", "group", "none"]))
def test_advantages_are_centred_and_dead_groups_are_zero(rewards: list[list[float]], scale: str) -> None:
    reward = torch.tensor(rewards)
    advantage, live = advantages(reward, torch.ones_like(reward, dtype=torch.bool), scale)  # type: ignore[arg-type]
    assert torch.allclose(advantage.sum(1), torch.zeros(len(rewards)), atol=1e-3)
    for row, alive, got in zip(rewards, live.tolist(), advantage, strict=True):
        assert alive == (max(row) - min(row) > 1e-6)
        assert alive or not got.any()
        order = sorted(range(4), key=lambda i: row[i])
        assert all(got[a] <= got[b] + 1e-6 for a, b in zip(order, order[1:], strict=False))


def test_advantage_scales_against_the_formula() -> None:
    reward = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    valid = torch.ones_like(reward, dtype=torch.bool)
    plain, live = advantages(reward, valid, "none")
    assert live.tolist() == [True, True, False]
    assert torch.allclose(plain[0], torch.tensor([0.75, -0.25, -0.25, -0.25]))
    group, _ = advantages(reward, valid, "group")
    assert torch.allclose(group[1], torch.tensor([1.0, 1, -1, -1]))
    batch, _ = advantages(reward, valid, "batch")
    assert torch.allclose(batch[:2], plain[:2] / plain[:2].pow(2).mean().sqrt())


def test_a_failed_verifier_leaves_its_groups_statistics() -> None:
    reward = torch.tensor([[1.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, False]])
    advantage, _ = advantages(reward, valid, "none")
    assert torch.allclose(advantage, torch.tensor([[0.5, -0.5, 0.0]]))
    _, live = advantages(torch.tensor([[1.0, 1.0, 0.0]]), valid, "none")
    assert not live.any()  # the third reward is no reward


LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 3), st.sampled_from(["token", "prompt", "sequence"]))
def test_token_weights_are_the_aggregation(lengths: list[int], per_prompt: int, how: str) -> None:
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    prompt = torch.arange(len(lengths)) // per_prompt
    x = torch.randn(mask.shape)
    got = float((x * token_weights(mask, prompt, how)).sum())
    rows = [x[i][mask[i]] for i in range(len(lengths))]
    if how == "token":
        groups = [torch.cat(rows)]
    elif how == "sequence":
        groups = rows
    else:
        groups = [
            torch.cat([r for r, p in zip(rows, prompt, strict=True) if p == q]) for q in prompt.unique()
        ]
    means = [float(g.mean()) for g in groups if len(g)]
    assert got == pytest.approx(sum(means) / len(means) if means else 0.0, abs=1e-5)


def _case() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    new = (torch.rand(4, 5, generator=generator) * -2).requires_grad_()
    old = new.detach() + torch.randn(4, 5, generator=generator) * 0.4
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4])[:, None]
    advantage = torch.tensor([1.0, -0.5, 2.0, -1.0])
    return new, old, advantage, mask, token_weights(mask, torch.tensor([0, 0, 1, 1]), "token")


def test_cispo_keeps_the_gradient_of_capped_tokens() -> None:
    new, old, advantage, mask, weight = _case()
    loss = Loss(cap=1.2)
    value, metrics = policy_loss(new, old, advantage, mask, weight, loss)
    value.backward()
    ratio = (new.detach() - old).exp()
    expected = -(ratio.clamp(max=1.2) * advantage[:, None] * weight)
    assert torch.allclose(new.grad, torch.where(mask, expected, 0.0), atol=1e-6)  # type: ignore[arg-type]
    assert (ratio[mask] > 1.2).any() and metrics["clipped"] > 0


def test_grpo_is_the_clipped_minimum_and_stops_clipped_gradients() -> None:
    new, old, advantage, mask, weight = _case()
    loss = Loss(name="grpo", eps_low=0.2, eps_high=0.28)
    value, _ = policy_loss(new, old, advantage, mask, weight, loss)
    value.backward()
    expected = 0.0
    for i in range(4):
        for t in range(5):
            if mask[i, t]:
                r, a = math.exp(float(new.detach()[i, t] - old[i, t])), float(advantage[i])
                expected -= min(r * a, min(max(r, 0.8), 1.28) * a) * float(weight[i, t])
                stopped = (a > 0 and r > 1.28) or (a < 0 and r < 0.8)
                assert bool(new.grad[i, t] == 0) == stopped  # type: ignore[index]
    assert float(value) == pytest.approx(expected, abs=1e-6)


def test_gspo_uses_the_sequences_mean_ratio() -> None:
    new, old, advantage, mask, weight = _case()
    value, _ = policy_loss(new, old, advantage, mask, weight, Loss(name="gspo", eps_low=0.9, eps_high=9.0))
    expected = 0.0
    for i in range(4):
        n = int(mask[i].sum())
        s = math.exp(float((new.detach() - old)[i, :n].mean()))
        expected -= s * float(advantage[i]) * float(weight[i].sum())
    assert float(value.detach()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["cispo", "grpo", "gspo"])
def test_on_policy_every_loss_has_the_policy_gradient(name: str) -> None:
    new, _, advantage, mask, weight = _case()
    value, metrics = policy_loss(new, new.detach(), advantage, mask, weight, Loss(name=name))  # type: ignore[arg-type]
    value.backward()
    assert torch.allclose(new.grad, torch.where(mask, -advantage[:, None] * weight, 0.0), atol=1e-6)  # type: ignore[arg-type]
    assert metrics["ratio_max"] == pytest.approx(1) and metrics["ratio_mean"] == pytest.approx(1)


@given(st.floats(-3, 3))
def test_kl_estimates(x: float) -> None:
    logp, ref = torch.tensor(x - 1.0), torch.tensor(-1.0)
    assert float(kl_estimate(logp, ref, "k1")) == pytest.approx(x, abs=1e-5)
    assert float(kl_estimate(logp, ref, "k2")) == pytest.approx(x * x / 2, abs=1e-5)
    assert float(kl_estimate(logp, ref, "k3")) == pytest.approx(math.exp(-x) - 1 + x, abs=1e-4)
    assert float(kl_estimate(logp, ref, "k3")) >= -1e-6


SHAPE = ModelConfig(
    vocab_size=24,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    kv_lora_rank=8,
    qk_nope_head_dim=4,
    qk_rope_head_dim=4,
    v_head_dim=4,
    intermediate_size=16,
    moe_intermediate_size=8,
    n_routed_experts=4,
)
SAMPLES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=9)


@given(SAMPLES, st.integers(8, 60))
@settings(max_examples=10, deadline=None)
def test_logp_of_is_the_plain_log_softmax_at_each_completion_token(
    sizes: list[tuple[int, int]], budget: int
) -> None:
    model = Transformer(SHAPE)
    init_weights(model, 0, 1.0)
    model.eval()
    generator = torch.Generator().manual_seed(len(sizes))
    samples = []
    for n, (p, c) in enumerate(sizes):
        ids = torch.randint(0, 24, (p + c,), generator=generator).tolist()
        samples.append(Sample(ids[:p], ids[p:], [float(-i) for i in range(c)], float(n), n))
    parts = micro_batches(samples, budget, 0, "cpu")
    assert sorted(i for part in parts for i in part.index) == list(range(len(samples)))
    for part in parts:
        assert part.ids_NL.numel() <= budget or len(part.index) == 1
        logp, entropy, _ = logp_of(model, part, 0.7)
        for row, i in enumerate(part.index):
            s = samples[i]
            ids = torch.tensor([s.prompt_ids + s.completion_ids])
            logits = model.lm_head(model(ids).hidden_BTD)[0].double() / 0.7
            whole = logits.log_softmax(-1)
            n, c = len(s.prompt_ids), len(s.completion_ids)
            for t in range(c):
                assert float(logp[row, t]) == pytest.approx(
                    float(whole[n + t - 1, s.completion_ids[t]]), abs=1e-4
                )
                h = float(-(whole[n + t - 1].exp() * whole[n + t - 1]).sum())
                assert float(entropy[row, t]) == pytest.approx(h, abs=1e-4)
            assert part.mask_NT[row].tolist() == [True] * c + [False] * (part.mask_NT.shape[1] - c)
            assert part.logp_rollout_NT[row, :c].tolist() == s.logp_rollout
            assert float(part.advantage_N[row]) == s.advantage and int(part.prompt_N[row]) == s.prompt
