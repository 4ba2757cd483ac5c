"""Routing, dispatch and balance of the expert layers against plain references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase.model.moe import MoE, sequence_balance, update_bias

QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def layer(make_config: Any, seed: int = 0, **shape: Any) -> MoE:
    moe = MoE(make_config(**shape))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in moe.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
    return moe


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chosen_by_numpy(score: np.ndarray, bias: np.ndarray, groups: int, topk_group: int, k: int) -> set[int]:
    """Group-limited choice of one token, in the paper's words: the groups with the largest sums of their two
    best biased scores, then the best biased scores within them."""
    biased = (score + bias).astype(np.float32)
    if groups == 1:
        allowed = np.arange(len(score))
    else:
        by_group = biased.reshape(groups, -1)
        worth = np.sort(by_group, 1)[:, -2:].sum(1)
        best = np.argsort(-worth)[:topk_group]
        n = by_group.shape[1]
        allowed = np.concatenate([np.arange(g * n, (g + 1) * n) for g in best])
    return set(allowed[np.argsort(-biased[allowed])[:k]].tolist())


@QUICK
@given(
    groups=st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 3), (4, 4)]),
    k=st.integers(1, 4),
    normalise=st.booleans(),
    shift=st.sampled_from([0.0, -3.0, -100.0, 50.0]),
    seed=st.integers(0, 999),
)
def test_the_choice_equals_a_plain_reference(
    groups: tuple[int, int], k: int, normalise: bool, shift: float, seed: int, make_config: Any
) -> None:
    """Also where every biased score is far below zero: closed groups must not win with a zero."""
    G, limit = groups
    moe = layer(
        make_config, seed, n_routed_experts=16, n_group=G, topk_group=limit, num_experts_per_tok=k,
        norm_topk_prob=normalise, routed_scaling_factor=2.5,
    )  # fmt: skip
    moe.gate.e_score_correction_bias.copy_(rows(seed + 1, 16) + shift)
    x = rows(seed + 2, 23, 32)
    gate, index, score, _ = moe.gate(x)
    expected_score = 1 / (1 + np.exp(-(x.double() @ moe.gate.weight.double().T).detach().numpy()))
    np.testing.assert_allclose(score.detach().numpy(), expected_score, rtol=1e-5)
    for n in range(len(x)):
        chosen = index[n].tolist()
        assert len(set(chosen)) == k
        bias = moe.gate.e_score_correction_bias.numpy()
        assert set(chosen) == chosen_by_numpy(score[n].detach().numpy(), bias, G, limit, k)
        raw = expected_score[n, chosen]  # gates come from the scores without the bias
        expected = 2.5 * raw / (raw.sum() if normalise else 1)
        np.testing.assert_allclose(gate[n].detach().numpy(), expected, rtol=1e-5)


def plain_moe(moe: MoE, x_ND: torch.Tensor, index_NK: torch.Tensor | None = None) -> torch.Tensor:
    """Every token through its experts one by one, by autograd alone."""
    gate, index, *_ = moe.gate(x_ND, index_NK)
    out = []
    for n, x in enumerate(x_ND):
        y = moe.shared_experts(x)
        for g, e in zip(gate[n], index[n].tolist(), strict=True):
            a, b = (moe.experts.gate_up_proj[e] @ x).chunk(2)
            y = y + g * (moe.experts.down_proj[e] @ (F.silu(a) * b))
        out.append(y)
    return torch.stack(out)


@pytest.mark.parametrize("bias", ["none", "one expert starves", "all go to two"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_no_token_is_dropped_and_gradients_are_exact(bias: str, k: int, make_config: Any) -> None:
    moe = layer(make_config, 3, num_experts_per_tok=k, n_group=1, topk_group=1, n_shared_experts=2)
    if bias == "one expert starves":
        moe.gate.e_score_correction_bias[5] = -50.0
    if bias == "all go to two":
        moe.gate.e_score_correction_bias[:k] = 50.0
    x = rows(4, 2, 15, 32).requires_grad_()
    out, routing = moe(x)
    assert routing.load_E.dtype == torch.int64 and int(routing.load_E.sum()) == 30 * k
    if bias == "one expert starves":
        assert routing.load_E[5] == 0
    if bias == "all go to two":
        assert routing.load_E.tolist() == [30] * k + [0] * (8 - k)
    plain = plain_moe(moe, x.flatten(0, 1)).view_as(out)
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-5)
    weights = dict(moe.named_parameters()) | {"x": x}
    probe = rows(5, *out.shape)
    ours = torch.autograd.grad((out * probe).sum(), list(weights.values()))
    theirs = torch.autograd.grad((plain * probe).sum(), list(weights.values()))
    for name, a, b in zip(weights, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_decoding_one_token_equals_the_forward(make_config: Any) -> None:
    moe = layer(make_config, 6).eval()
    moe.gate.e_score_correction_bias.copy_(rows(7, 8) - 2)
    x = rows(8, 9, 1, 32)
    torch.testing.assert_close(moe.decode(x[:, 0])[0], moe(x)[0][:, 0], rtol=1e-5, atol=1e-6)


def test_a_given_choice_is_replayed(make_config: Any) -> None:
    moe = layer(make_config, 9)
    x = rows(10, 7, 32)
    replayed = rows(11, 7, 8).argsort(-1)[:, :2]
    replayed[3] = -1  # unknown: the router's own
    gate, index, score, own = moe.gate(x, replayed)
    known = torch.arange(7) != 3
    assert torch.equal(index[known], replayed[known]) and torch.equal(index[3], own[3])
    assert torch.equal(own, moe.gate(x)[1])
    raw = score.gather(1, index)
    torch.testing.assert_close(gate, 1.7 * raw / raw.sum(1, keepdim=True))
    assert gate.requires_grad  # the router learns through the replayed choice


# -- balance


def balance_by_the_paper(score_TE: np.ndarray, k: int) -> float:
    """Equations 17 to 20 of arXiv 2412.19437 for one sequence, in float64 loops."""
    T, E = score_TE.shape
    total = 0.0
    for i in range(E):
        chosen = sum(i in np.argsort(-score_TE[t])[:k] for t in range(T))
        f = E / (k * T) * chosen
        P = sum(score_TE[t, i] / score_TE[t].sum() for t in range(T)) / T
        total += f * P
    return float(total)


def balance_and_formula(moe: MoE, seed: int, k: int) -> tuple[float, float]:
    """Of rows of different length: padding counts neither in f nor in P nor in T."""
    x = rows(seed + 1, 3, 11, 32)
    lengths = [11, 4, 7]
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        _, routing = moe(x, mask)
        score = moe.gate(x.flatten(0, 1))[2].view(3, 11, 8).double().numpy()
    assert routing.balance.dtype == torch.float32
    paper = [balance_by_the_paper(score[b, :n], k) for b, n in enumerate(lengths)]
    return float(routing.balance), float(np.mean(paper))


@QUICK
@given(seed=st.integers(0, 999), k=st.integers(1, 3))
def test_the_balance_loss_equals_the_papers_formula(seed: int, k: int, make_config: Any) -> None:
    moe = layer(make_config, seed, n_group=1, topk_group=1, num_experts_per_tok=k)
    given_, paper = balance_and_formula(moe, seed, k)
    assert given_ == pytest.approx(paper, rel=1e-5)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_balance_loss_counts_the_best_scores_without_bias_and_groups(
    k: int, groups: int, make_config: Any
) -> None:
    """Equation 18 takes the top k of s, not of s + b: the loss is to even out the affinities themselves."""
    moe = layer(make_config, 5, n_group=groups, topk_group=1, num_experts_per_tok=k)
    moe.gate.e_score_correction_bias.copy_(rows(6, 8))
    given_, paper = balance_and_formula(moe, 7, k)
    assert given_ == pytest.approx(paper, rel=1e-5)


def test_padding_does_not_count_for_the_load(make_config: Any) -> None:
    moe = layer(make_config, 1)
    x = rows(2, 3, 11, 32)
    mask = torch.arange(11) < torch.tensor([11, 0, 7])[:, None]
    _, routing = moe(x, mask)
    index = moe.gate(x[mask])[1]
    assert routing.load_E.tolist() == torch.bincount(index.flatten(), minlength=8).tolist()
    assert torch.isfinite(routing.balance)
    routing.balance.backward()
    assert torch.isfinite(moe.gate.weight.grad).all()


def test_the_balance_loss_is_one_where_all_is_even_and_larger_where_one_expert_takes_all() -> None:
    E, K, T = 8, 2, 16
    even = torch.full((1, T, E), 0.3)
    assert float(sequence_balance(even, K, None)) == pytest.approx(1.0, rel=1e-6)
    hot = torch.full((1, T, E), 1e-6)
    hot[..., :K] = 1.0
    assert float(sequence_balance(hot, K, None)) == pytest.approx(E / K, rel=1e-4)


def test_the_balance_gradient_lowers_the_crowded_expert(make_config: Any) -> None:
    best = torch.tensor([[0, 0, 0, 0, 0, 1, 2, 3]])
    score = (0.5 + 1e-3 * torch.nn.functional.one_hot(best, 4)).requires_grad_()
    sequence_balance(score, 1, None).backward()
    assert (score.grad[..., 0] > 0).all() and (score.grad[..., 1:] < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bias_moves_by_sign_without_drift_and_in_float32(dtype: torch.dtype, make_config: Any) -> None:
    moe = layer(make_config)
    for p in moe.parameters():
        p.data = p.data.to(dtype)
    bias = moe.gate.e_score_correction_bias
    bias.copy_(torch.full((8,), 1.0))
    load = torch.tensor([0, 4, 4, 4, 4, 4, 4, 8])
    for _ in range(3):
        update_bias(moe.gate, load, 1e-3)
    assert moe.gate.e_score_correction_bias.dtype == torch.float32
    expected = torch.tensor([1.003, *[1.0] * 6, 0.997])
    torch.testing.assert_close(bias, expected, rtol=0, atol=1e-6)  # 1e-3 on 1.0 would vanish in bf16

    bias.zero_()
    update_bias(moe.gate, torch.tensor([100, 1, 1, 1, 1, 1, 1, 1]), 1e-3)
    assert bias[0] < 0 and (bias[1:] > 0).all()
    assert abs(float(bias.sum())) < 1e-8
    before = bias.clone()
    update_bias(moe.gate, torch.full((8,), 5), 1e-3)
    assert torch.equal(bias, before)


def test_the_bias_update_evens_out_a_skewed_router(make_config: Any) -> None:
    """What it is for: a router that prefers one expert ends with a load near the mean."""
    moe = layer(make_config, 4, n_group=1, topk_group=1)
    with torch.no_grad():
        moe.gate.weight[0] += 0.5
    x = rows(5, 4, 128, 32) + 0.5
    mean = 4 * 128 * 2 / 8
    with torch.no_grad():
        first = moe(x)[1].load_E.max().item() / mean
        for _ in range(300):
            update_bias(moe.gate, moe(x)[1].load_E, 3e-3)
        last = moe(x)[1].load_E.max().item() / mean
    assert first > 2 and last < 1.15, f"{first=} {last=}"
