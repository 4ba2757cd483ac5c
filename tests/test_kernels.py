"""Kernels against their specifications in float64: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onebase.kernels import expert_rows, mla_decode, router, swiglu
from onebase.kernels import linear_logprob as linear_logprob_file
from onebase.kernels.adamw import CHUNK, FusedAdamW, Hyper, adamw_ref
from onebase.kernels.grouped_linear import grouped_linear, grouped_linear_ref
from onebase.kernels.linear_logprob import linear_logprob, linear_logprob_ref, linear_nll
from onebase.kernels.logit_rows import logit_gradient_ref, logit_stats_ref
from onebase.model.mla import rotate

if find_spec("triton") is not None:
    from onebase.kernels import (
        draw_triton,
        expert_rows_triton,
        mla_decode_triton,
        router_triton,
        swiglu_triton,
    )

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-4, 1e-5), torch.bfloat16: (3e-2, 3e-2)}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numeric_gradient(f: Callable[[Tensor], Tensor], x: Tensor, step: float) -> Tensor:
    """Central differences of a scalar function, entry by entry."""
    grad = torch.zeros_like(x)
    for i in range(x.numel()):
        ends = []
        for sign in (1, -1):
            moved = x.detach().clone()
            moved.view(-1)[i] += sign * step
            ends.append(f(moved))
        grad.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return grad


# -- grouped linear


def ends(*counts: int) -> Tensor:
    return torch.tensor(counts).cumsum(0).int()


def values_and_gradients(f: Callable[..., Tensor], x: Tensor, w: Tensor, counts: Tensor) -> list[Tensor]:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    out = f(x, w, counts)
    probe = normal(9, *out.shape).to(out.dtype)
    return [out, *torch.autograd.grad((out * probe).sum(), (x, w))]


@QUICK
@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    shape=st.sampled_from([(1, 1), (4, 9), (16, 8)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_grouped_linear(counts: list[int], shape: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    """Empty groups in any place, and no rows at all."""
    D, out = shape
    end_E = ends(*counts)
    x, w = normal(seed, sum(counts), D).to(dtype), normal(seed + 1, len(counts), out, D).to(dtype)
    ours = values_and_gradients(grouped_linear, x, w, end_E)
    theirs = values_and_gradients(grouped_linear_ref, x.double(), w.double(), end_E)
    rtol, atol = TOLERANCE[dtype]
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol * (1 + D) ** 0.5)


def test_grouped_linear_takes_transposed_views_and_strided_gradients() -> None:
    counts = ends(3, 0, 2)
    x, w = normal(1, 4, 5).T, normal(2, 3, 4, 6).transpose(1, 2)
    assert not x.is_contiguous() and not w.is_contiguous()
    for a, b in zip(
        values_and_gradients(lambda *v: grouped_linear(*v).T.contiguous().T, x, w, counts),
        values_and_gradients(grouped_linear_ref, x, w, counts),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    # a gradient that is an expanded scalar
    leaf = w.detach().requires_grad_()
    grouped_linear(x, leaf, counts).sum().backward()
    other = w.detach().requires_grad_()
    grouped_linear_ref(x, other, counts).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_grouped_linear_against_finite_differences_and_with_one_frozen_side() -> None:
    counts = ends(2, 0, 1, 3)
    x, w = normal(3, 6, 3).requires_grad_(), normal(4, 4, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: grouped_linear(a, b, counts), (x, w))
    both = torch.autograd.grad(grouped_linear(x, w, counts).square().sum(), (x, w))
    (only_x,) = torch.autograd.grad(grouped_linear(x, w.detach(), counts).square().sum(), (x,))
    (only_w,) = torch.autograd.grad(grouped_linear(x.detach(), w, counts).square().sum(), (w,))
    assert torch.equal(both[0], only_x) and torch.equal(both[1], only_w)


@pytest.mark.parametrize("counts", [[2, 2], [2, 4]])
def test_grouped_linear_refuses_counts_that_do_not_fit_the_rows(counts: list[int]) -> None:
    """Rows outside every group would come back as uninitialised memory."""
    with pytest.raises((AssertionError, RuntimeError)):
        grouped_linear(normal(1, 5, 3), normal(2, 2, 4, 3), ends(*counts))


# -- log-probabilities of a linear head


def logprob_float64(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> list[Tensor]:
    logp = (hidden @ weight.T / temperature).log_softmax(-1)
    return [logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)]


@pytest.mark.parametrize("chunk", ["one chunk", "many chunks"])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [0, 1, 64, 150])
def test_linear_logprob(
    chunk: str, temperature: float, dtype: torch.dtype, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, with chunks that divide the rows, that do not, and that are larger."""
    if chunk == "many chunks":
        monkeypatch.setattr(linear_logprob_file, "CHUNK_BYTES", 1)  # chunks of the least size, 64 rows
    hidden = normal(1, n, 12).to(dtype).requires_grad_()
    weight = (normal(2, 37, 12) * 0.7).to(dtype).requires_grad_()
    target = torch.randint(0, 37, (n,), generator=torch.Generator().manual_seed(3))
    logp, entropy = linear_logprob(hidden, weight, target, temperature)
    assert logp.dtype == entropy.dtype == torch.float32 and not entropy.requires_grad
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    exact, exact_entropy = logprob_float64(*wide, target, temperature)
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(logp.double(), exact, rtol=rtol, atol=atol / temperature)
    torch.testing.assert_close(entropy.double(), exact_entropy, rtol=rtol, atol=atol / temperature)
    factor = normal(4, n)
    ours = torch.autograd.grad((logp * factor.float()).sum(), (hidden, weight))
    theirs = torch.autograd.grad((exact * factor).sum(), wide)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        scale = 5 if dtype == torch.bfloat16 else 1  # the weight's gradient sums n rounded rows
        torch.testing.assert_close(a.double(), b, rtol=rtol * scale, atol=atol * scale / temperature)
    reference = linear_logprob_ref(hidden, weight, target, temperature)
    for a, b in zip((logp, entropy), reference, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_linear_logprob_against_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_logprob_file, "CHUNK_BYTES", 1)
    hidden, weight = normal(5, 70, 3).float(), normal(6, 5, 3).float()
    target = torch.arange(70) % 5
    factor = normal(7, 70).float()

    def f(h: Tensor, w: Tensor) -> Tensor:
        return (linear_logprob(h, w, target, 0.8)[0] * factor).double().sum()

    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    ours = torch.autograd.grad(f(h, w), (h, w))
    numeric = numeric_gradient(lambda m: f(hidden, m), weight, 1e-2)
    torch.testing.assert_close(ours[1], numeric, rtol=1e-2, atol=5e-3)
    numeric = numeric_gradient(lambda m: f(m, weight), hidden, 1e-2)
    torch.testing.assert_close(ours[0], numeric, rtol=1e-2, atol=5e-3)


def test_linear_logprob_with_one_frozen_side() -> None:
    hidden, weight = normal(1, 6, 4).float(), normal(2, 9, 4).float()
    target = torch.arange(6)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    both = torch.autograd.grad(linear_logprob(h, w, target)[0].sum(), (h, w))
    (only_h,) = torch.autograd.grad(linear_logprob(h, weight, target)[0].sum(), (h,))
    (only_w,) = torch.autograd.grad(linear_logprob(hidden, w, target)[0].sum(), (w,))
    assert torch.equal(both[0], only_h) and torch.equal(both[1], only_w)


def test_linear_logprob_survives_huge_logits() -> None:
    """A certain token: logp 0 and entropy 0, not a NaN; the gradient is finite."""
    hidden = torch.tensor([[300.0], [-300.0]]).requires_grad_()
    weight = torch.tensor([[1.0], [0.0], [-1.0]]).requires_grad_()
    logp, entropy = linear_logprob(hidden, weight, torch.tensor([0, 0]))
    assert logp.tolist() == [0.0, -600.0]
    assert entropy.tolist() == pytest.approx([0.0, 0.0], abs=1e-4)
    logp.sum().backward()
    assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_entropy_of_an_even_distribution_is_log_v(temperature: float) -> None:
    _, entropy = linear_logprob(
        torch.zeros(3, 4), normal(1, 50, 4).float(), torch.zeros(3).long(), temperature
    )
    torch.testing.assert_close(entropy, torch.full((3,), 50.0).log())


@pytest.mark.parametrize("n", [0, 1, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_nll_is_the_sum_of_the_log_probabilities(
    n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value, entropy and gradient, also with one frozen side; nothing is computed where no gradient is
    wanted."""
    monkeypatch.setattr(linear_logprob_file, "CHUNK_BYTES", 1)
    hidden, weight = normal(1, n, 12).to(dtype).requires_grad_(), normal(2, 37, 12).to(dtype).requires_grad_()
    target = torch.randint(0, 37, (n,), generator=torch.Generator().manual_seed(3))
    nll, entropy = linear_nll(hidden, weight, target)
    logp, entropy_N = linear_logprob(hidden, weight, target)
    torch.testing.assert_close(nll, -logp.sum())
    torch.testing.assert_close(entropy, entropy_N.sum())
    assert not entropy.requires_grad
    ours = torch.autograd.grad(nll * 0.25, (hidden, weight))
    theirs = torch.autograd.grad(-logp.sum() * 0.25, (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)
    frozen = linear_nll(hidden.detach(), weight, target)[0]
    torch.testing.assert_close(torch.autograd.grad(frozen * 0.25, weight)[0], ours[1])
    with torch.no_grad():
        assert not linear_nll(hidden, weight, target)[0].requires_grad


# -- what happens to the logits, and the optimizer's update: Triton, in its interpreter


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("shape", [(1, 5), (7, 37), (3, 4096), (2, 9001)])
def test_logit_rows(shape: tuple[int, int], temperature: float) -> None:
    kernels = pytest.importorskip("onebase.kernels.logit_rows_triton")
    n, V = shape
    logits = (normal(1, n, V) * 5).float()
    logits[0, -1], logits[-1, 0] = 60.0, -float("inf")  # far above the others; a token that cannot be
    target = torch.randint(1, V, (n,), generator=torch.Generator().manual_seed(2))
    out = torch.full((3, n), float("nan"))
    kernels.stats(logits, target, temperature, out)
    wide = logits.double()
    expected = logit_stats_ref(wide.clamp(min=-1e9), target, temperature)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for dtype in (torch.float32, torch.bfloat16):
        g = torch.full((n, V), float("nan"), dtype=dtype)
        factor = normal(4, n).float()
        kernels.gradient(logits, target, out[2], factor, temperature, g)
        exact = logit_gradient_ref(wide, target, expected[2], factor.double(), temperature)
        torch.testing.assert_close(
            g.double(), exact, rtol=2**-7 if dtype != torch.float32 else 1e-4, atol=1e-6
        )


@pytest.mark.parametrize("grads", ["float32", "bfloat16", "both", "some"])
def test_fused_adamw(grads: str) -> None:
    """Three steps over tensors of all sizes against the plain formula in float64; one without a gradient is
    left alone, and so is everything where `ok` is false."""
    pytest.importorskip("triton")
    shapes = [(3, 5), (CHUNK + 1,), (70, 130), (1,), (2, CHUNK)]
    p, m, v = ([normal(10 * k + i, *s).float() for i, s in enumerate(shapes)] for k in range(3))
    v = [t.square() for t in v]
    copies = [t.bfloat16() for t in p]
    decays = [0.1, 0.0, 0.1, 0.0, 0.2]
    exact = [[t.double() for t in row] for row in zip(p, m, v, strict=True)]
    kinds = {"both": [torch.float32, torch.bfloat16]}.get(grads, [getattr(torch, grads, torch.bfloat16)])
    hyper, scale = Hyper(1e-2, 0.9, 0.999, 1e-8), torch.tensor(0.5)
    fused = FusedAdamW(p, m, v, copies, decays)
    for step in (1, 2, 3):
        given = [normal(step * 100 + i, *s).to(kinds[i % len(kinds)]) for i, s in enumerate(shapes)]
        held = [None if grads == "some" and i == 2 else g for i, g in enumerate(given)]
        fused.step(held, scale, torch.tensor(True), torch.tensor(float(step)), hyper)
        for row, g, decay in zip(exact, held, decays, strict=True):
            if g is not None:
                adamw_ref(*row[:1], g.double() * 0.5, *row[1:], None, decay, step, hyper)
    for ours, theirs, copy in zip(zip(p, m, v, strict=True), exact, copies, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(copy.float(), ours[0], rtol=2**-7, atol=0)  # the interpreter cuts off
    before = [t.clone() for t in (*p, *m, *v)]
    fused.step(given, scale, torch.tensor(False), torch.tensor(4.0), hyper)
    assert all(torch.equal(a, b) for a, b in zip(before, (*p, *m, *v), strict=True))


# -- experts: routing, order, SwiGLU; decoding and drawing


@pytest.mark.parametrize(
    "shape",
    [
        (37, 8, 2, 1, 1),
        (5, 32, 4, 1, 1),
        (16, 12, 3, 4, 2),
        (33, 256, 8, 8, 4),
        (1, 2, 1, 1, 1),
        (130, 4, 4, 1, 1),
    ],
)
def test_routing_and_the_order_of_rows(shape: tuple[int, int, int, int, int]) -> None:
    pytest.importorskip("triton")
    N, E, K, groups, opened = shape
    score, bias = normal(1, N, E).sigmoid().float(), (normal(2, E) * 0.3).float()
    index, gate = router_triton.choose(score, bias, K, groups, opened, True, 2.5)
    ref = router.choose_ref(score, bias, K, groups, opened)
    assert torch.equal(index.sort(1).values, ref.sort(1).values)
    torch.testing.assert_close(gate, router.gates_ref(score, index, True, 2.5))
    bare = router_triton.choose(score, bias, K, groups, opened, False, 1.0)[1]
    torch.testing.assert_close(bare, score.gather(1, index))
    rows = expert_rows.by_expert_ref(index, E)
    order, back, end, _ = expert_rows_triton.place(index.view(-1), E, 1, None)
    for a, b in zip((order, back, end), rows[:3], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(
        expert_rows_triton.place(index.view(-1), E, K, gate.view(-1)),
        expert_rows.place(index, gate, E),
        strict=True,
    ):
        assert torch.equal(a, b)
    out, added, residual = normal(3, N * K, 24).float(), normal(4, N, 24).float(), normal(5, N, 24).float()
    torch.testing.assert_close(
        expert_rows_triton.combine(out, back, K, added, residual),
        expert_rows.combine(out, back, K, added, residual),
    )


@QUICK
@given(n=st.integers(1, 40), E=st.integers(1, 9), seed=st.integers(0, 99))
def test_rows_come_in_the_order_of_experts_and_tokens(n: int, E: int, seed: int) -> None:
    index = torch.randint(0, E, (n, 2), generator=torch.Generator().manual_seed(seed))
    order, back, end, count = expert_rows.by_expert(index, E)
    flat = index.flatten()
    keys = [(int(flat[i]), i) for i in order.tolist()]
    assert keys == sorted(keys) and torch.equal(order[back], torch.arange(2 * n))
    assert count.tolist() == [int((flat == e).sum()) for e in range(E)]
    assert end.tolist() == count.cumsum(0).tolist()


@pytest.mark.parametrize("shape", [(5, 8), (33, 512), (3, 5000), (7, 96), (0, 16)])
def test_swiglu(shape: tuple[int, int]) -> None:
    pytest.importorskip("triton")
    M, F = shape
    both, w, g = normal(1, M, 2 * F).requires_grad_(), normal(2, M).requires_grad_(), normal(3, M, F)
    exact = swiglu.swiglu_ref(both, w)
    grads = torch.autograd.grad(exact, (both, w), g)
    if M:
        narrow = both.detach().float(), w.detach().float()
        torch.testing.assert_close(swiglu_triton.forward(*narrow).double(), exact, rtol=1e-5, atol=1e-5)
        for a, b in zip(swiglu_triton.backward(*narrow, g.float()), grads, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    silu = both[:, :F] / (1 + (-both[:, :F]).exp())
    torch.testing.assert_close(swiglu.swiglu(both, w), silu * both[:, F:] * w[:, None])


@pytest.mark.parametrize("shape", [(3, 4, 32, 16, 70, 1), (2, 3, 64, 16, 300, 4), (1, 8, 128, 32, 90, 2)])
def test_mla_decode(shape: tuple[int, int, int, int, int, int]) -> None:
    """Positions 0 and the last; rows that a split leaves empty; what the cache holds elsewhere stays."""
    pytest.importorskip("triton")
    B, H, C, R, S, splits = shape
    cache, position = normal(1, B + 1, S + 5, C + R).half(), torch.tensor([0, S - 1, 17][:B])
    q = normal(2, B, H, C + R).half()
    got = mla_decode_triton.attend(q, cache[:B, :S], position, C, 0.1, splits)
    exact = mla_decode.attend_ref(q.double(), cache[:B, :S].double(), position, C, 0.1)
    torch.testing.assert_close(got.double(), exact, rtol=2e-3, atol=2e-3)
    wide, made, gain = normal(3, B, H, 24 + R).half(), normal(4, B, C + R).half(), normal(5, C).half()
    angle = normal(6, B, R // 2).float()
    rotation = torch.stack([angle.cos(), angle.sin()], -1)
    out, before = torch.full((B, H, C + R), 7.0).half(), cache.clone()
    mla_decode_triton.enter(wide, made, rotation, gain, 1e-6, cache[:B, :S], position, out)
    latent = torch.nn.functional.rms_norm(made[:, :C].float(), (C,), gain.float(), 1e-6)
    entry = torch.cat([latent, rotate(made[:, C:].float(), rotation)], -1)
    rows = torch.arange(B)
    torch.testing.assert_close(cache[rows, position].float(), entry, rtol=2e-3, atol=2e-3)
    turned = rotate(wide[..., 24:].float(), rotation[:, None])
    torch.testing.assert_close(out[..., C:].float(), turned, rtol=2e-3, atol=2e-3)
    assert (out[..., :C] == 7).all()
    cache[rows, position] = before[rows, position]
    assert torch.equal(cache, before)


@pytest.mark.parametrize("V", [37, 4096, 9001])
def test_drawing(V: int) -> None:
    """The token whose stretch of the cumulative distribution holds the number; closed tokens never; greedy
    rows; numbers at the very end."""
    pytest.importorskip("triton")
    n = 60
    logits = (normal(1, n, V) * 3).float()
    logits[:, 3] = -float("inf")
    logits[:, -1] = -float("inf")
    g = torch.Generator().manual_seed(2)
    uniform, temperature = torch.rand(n, generator=g), torch.rand(n, generator=g) + 0.3
    uniform[:2], temperature[::4] = torch.tensor([0.0, 1 - 2**-22]), 0.0
    token, logp = draw_triton.draw(logits, uniform, temperature)
    t = torch.where(temperature == 0, 1.0, temperature).double()
    p = (logits.double() / t[:, None]).softmax(-1)
    rows = torch.arange(n)
    torch.testing.assert_close(logp.double(), p[rows, token].log(), rtol=1e-5, atol=1e-5)
    greedy = temperature == 0
    assert torch.equal(token[greedy], logits[greedy].argmax(-1))
    end = p.cumsum(-1)[rows, token]
    held = (end > uniform - 1e-6) & (end - p[rows, token] < uniform + 1e-6)
    assert held[~greedy].all() and (p[rows, token] > 0).all()
