"""What only a GPU runs: the Triton kernels compiled, the optimizer's fused update, compiled blocks, the
engine's fused decoding.  Left out where there is none; the kernels also run in Triton's interpreter
(test_kernels.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.data import Batch
from onebase.kernels import draw_triton, expert_rows, expert_rows_triton, mla_decode, router, swiglu
from onebase.kernels.grouped_linear import grouped_linear, grouped_linear_ref
from onebase.kernels.linear_logprob import linear_logprob, linear_nll
from onebase.kernels.router_logits import router_logits
from onebase.model.checkpoint import to_dtype
from onebase.model.config import ModelConfig
from onebase.model.transformer import Transformer, init_weights
from onebase.recipe import Optim
from onebase.rollout.decoders import NativeDecoder
from onebase.rollout.engine import Request, Rollout
from onebase.rollout.fused_decoder import FusedDecoder
from onebase.rollout.torch_engine import TorchEngine
from onebase.train.compiled import compile_blocks
from onebase.train.optim import Optimizer
from onebase.train.step import forward_backward, numbers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).cuda().to(dtype)


def error(a: Tensor, b: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


@pytest.mark.parametrize("V,D,N", [(32768, 1024, 700), (129280, 256, 300), (1000, 64, 65)])
def test_head(V: int, D: int, N: int) -> None:
    h, w = normal(1, N, D) * 0.3, normal(2, V, D) * 0.1
    target = torch.randint(0, V, (N,), device="cuda")
    wide = [t.double().requires_grad_() for t in (h, w)]
    logp = (wide[0] @ wide[1].T / 0.8).log_softmax(-1)
    exact, entropy = logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    h, w = h.requires_grad_(), w.requires_grad_()
    got, got_entropy = linear_logprob(h, w, target, 0.8)
    assert error(got, exact) < 1e-4 and error(got_entropy, entropy) < 1e-4
    factor = normal(3, N, dtype=torch.float32)
    ours = torch.autograd.grad((got * factor).sum(), (h, w))
    theirs = torch.autograd.grad((exact * factor).sum(), wide)
    assert all(error(a, b) < 6e-3 for a, b in zip(ours, theirs, strict=True))
    nll, _ = linear_nll(h, w, target)
    exact_nll = -(wide[0] @ wide[1].T).log_softmax(-1).gather(1, target[:, None]).sum()
    assert error(nll, exact_nll) < 1e-5
    for a, b in zip(torch.autograd.grad(nll, (h, w)), torch.autograd.grad(exact_nll, wide), strict=True):
        assert error(a, b) < 6e-3


@pytest.mark.parametrize("N,E,K,groups,opened", [(5000, 32, 4, 1, 1), (333, 256, 8, 8, 4), (1, 8, 2, 1, 1)])
def test_routing(N: int, E: int, K: int, groups: int, opened: int) -> None:
    score, bias = torch.rand(N, E, device="cuda"), torch.randn(E, device="cuda") * 0.1
    index, gate = router.choose(score, bias, K, groups, opened, True, 2.5)
    ref = router.choose_ref(score, bias, K, groups, opened)
    assert torch.equal(index.sort(1).values, ref.sort(1).values)
    torch.testing.assert_close(gate, router.gates_ref(score, index, True, 2.5))
    rows, plain = expert_rows.by_expert(index, E), expert_rows.by_expert_ref(index, E)
    for a, b in zip(rows, plain, strict=True):
        assert torch.equal(a.long(), b.long())
    token, back, end, gate_M = expert_rows.place(index, gate, E)
    assert torch.equal(token, rows.order_M // K) and torch.equal(back, rows.back_M)
    assert torch.equal(end, rows.end_E) and torch.equal(gate_M, gate.flatten()[rows.order_M])
    x, y, z = normal(1, N * K, 96), normal(2, N, 96), normal(3, N, 96)
    exact = x.double()[rows.back_M].unflatten(0, (-1, K)).sum(1) + y.double() + z.double()
    assert error(expert_rows_triton.combine(x, rows.back_M, K, y, z), exact) < 3e-3


def test_router_logits() -> None:
    x, w = normal(1, 4000, 512), normal(2, 32, 512) * 0.05
    wide = [t.double().requires_grad_() for t in (x, w)]
    x, w = x.requires_grad_(), w.requires_grad_()
    got, exact = router_logits(x, w), wide[0] @ wide[1].T
    assert got.dtype == torch.float32 and error(got, exact) < 1e-6
    factor = normal(3, 4000, 32, dtype=torch.float32)
    for a, b in zip(
        torch.autograd.grad((got * factor).sum(), (x, w)),
        torch.autograd.grad((exact * factor).sum(), wide),
        strict=True,
    ):
        assert error(a, b) < 3e-3  # of the one rounding to bf16


@pytest.mark.parametrize("M,F", [(1, 8), (7000, 512), (130, 96), (64, 5000)])
def test_swiglu(M: int, F: int) -> None:
    both, w = normal(1, M, 2 * F), normal(2, M, dtype=torch.float32)
    wide = [t.double().requires_grad_() for t in (both, w)]
    both, w = both.requires_grad_(), w.requires_grad_()
    got, exact = swiglu.swiglu(both, w), swiglu.swiglu_ref(*wide)
    assert error(got, exact) < 3e-3
    g = normal(3, M, F)
    ours, theirs = torch.autograd.grad(got, (both, w), g), torch.autograd.grad(exact, wide, g.double())
    assert error(ours[0], theirs[0]) < 3e-3 and error(ours[1], theirs[1]) < 1e-5


def test_grouped_linear_and_its_gradients() -> None:
    end = torch.tensor([100, 100, 350, 1024], device="cuda", dtype=torch.int32)
    x, w = normal(1, 1024, 64).requires_grad_(), normal(2, 4, 48, 64).requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    got, exact = grouped_linear(x, w, end), grouped_linear_ref(*wide, end)
    assert error(got, exact) < 3e-3
    for a, b in zip(
        torch.autograd.grad(got.float().square().sum(), (x, w)),
        torch.autograd.grad(exact.square().sum(), wide),
        strict=True,
    ):
        assert error(a, b) < 1e-2


@pytest.mark.parametrize("B,H,C,R,S", [(3, 8, 512, 64, 1000), (300, 8, 512, 64, 130), (40, 4, 64, 16, 4096)])
def test_mla_decode(B: int, H: int, C: int, R: int, S: int) -> None:
    cache, q = normal(1, B + 2, S, C + R), normal(2, B, H, C + R)
    position = torch.randint(0, S, (B,), device="cuda")
    position[0], position[-1] = 0, S - 1
    got = mla_decode.attend(q, cache[:B], position, C, 0.07)
    assert error(got, mla_decode.attend_ref(q.double(), cache[:B].double(), position, C, 0.07)) < 6e-3


@pytest.mark.parametrize("V", [1000, 32768, 129280])
def test_draws_follow_the_distribution(V: int) -> None:
    n = 4096
    logits = torch.randn(1, V, device="cuda") * 2
    logits[0, 7] = logits.max() + 3
    logits[0, 9] = -float("inf")
    rows = logits.expand(n, V).contiguous()
    uniform = (torch.arange(n, device="cuda") + 0.5) / n
    token, logp = draw_triton.draw(rows, uniform, torch.ones(n, device="cuda"))
    p = logits[0].double().softmax(-1)
    assert (token == 9).sum() == 0 and (token.diff() >= 0).all()  # the inverse of the distribution rises
    assert abs(float((token == 7).double().mean() - p[7])) < 2 / n
    end = p.cumsum(-1)[token]  # the drawn token's stretch holds the number, to float32's rounding of the sums
    assert (end > uniform - 2e-6).all() and (end - p[token] < uniform + 2e-6).all()
    torch.testing.assert_close(logp.double(), p[token].log(), rtol=1e-5, atol=1e-5)
    greedy, best = draw_triton.draw(rows, uniform, torch.zeros(n, device="cuda"))
    assert (greedy == 7).all() and error(best, p[7].log().expand(n)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("micro", [1, None])
def test_the_optimizer_steps_as_on_the_cpu(name: str, dtype: torch.dtype, micro: int | None) -> None:
    shapes = {"a.weight": (33, 70), "mlp.experts.gate_up_proj": (3, 16, 24), "norm.weight": (40,)}

    def make(device: str) -> tuple[list[Any], Optimizer]:
        named = [
            (n, torch.nn.Parameter(normal(i, *s, dtype=dtype).to(device)))
            for i, (n, s) in enumerate(shapes.items())
        ]
        return named, Optimizer(named, Optim(name=name, lr=0.01), micro)

    both = [make("cuda"), make("cpu")]
    for step in range(5):
        norms = []
        for named, optimizer in both:
            for i, (_, p) in enumerate(named):
                p.grad = (normal(100 * step + i, *p.shape, dtype=dtype) * 0.3).to(p.device)
            if step == 2:
                named[0][1].grad[0, 0] = float("nan")
            norms.append(float(optimizer.step(1.0)))
        assert norms[0] == pytest.approx(norms[1], rel=1e-4, nan_ok=True)
    for (n, p), (_, q) in zip(both[0][0], both[1][0], strict=True):
        loose = 0.05 if name == "muon" and p.dim() > 1 else 3e-3  # Newton-Schulz runs in bf16 on a GPU
        torch.testing.assert_close(
            p.float().cpu(), q.float(), rtol=loose, atol=loose, msg=lambda m, n=n: f"{n}: {m}"
        )


def small(**changes: Any) -> Transformer:
    fields: dict[str, Any] = dict(
        vocab_size=512, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, kv_lora_rank=64,
        qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, intermediate_size=256,
        moe_intermediate_size=64, n_routed_experts=8, num_experts_per_tok=2, initializer_range=0.1,
    )  # fmt: skip
    model = Transformer(ModelConfig(**(fields | changes)))
    init_weights(model, 0)
    return to_dtype(model, torch.bfloat16).cuda()


def test_compiled_blocks_give_the_same_gradients() -> None:
    ids = torch.randint(0, 512, (4, 128), generator=torch.Generator().manual_seed(0))
    document = (torch.arange(128) // 50).expand_as(ids).contiguous()
    place = (torch.arange(128) % 50).expand_as(ids).contiguous()
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), place, document)
    found = []
    for kind in ("float32", "eager", "compiled"):
        model = small().train()
        if kind == "float32":
            model = model.float().cpu()
        if kind == "compiled":
            assert compile_blocks(model)
        sums = forward_backward(model, batch, 1, document_mask=True, balance_alpha=0.01, mtp_weight=0.3)
        grads = {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None}
        found.append((numbers(sums.loss, sums.mtp, sums.balance), grads))
    exact, eager, compiled = found
    assert eager[0] == pytest.approx(exact[0], rel=5e-3) and compiled[0] == pytest.approx(exact[0], rel=5e-3)
    assert exact[1].keys() == eager[1].keys() == compiled[1].keys()
    for name, g in exact[1].items():  # routers that differ by a rounding send some tokens elsewhere
        a, b = error(eager[1][name], g), error(compiled[1][name], g)
        assert b < max(0.1, 1.5 * a), f"{name}: eager {a:.3f}, compiled {b:.3f}"


@torch.no_grad()
def distance(model: Transformer, rollouts: list[Rollout]) -> tuple[float, float]:
    off: list[float] = []
    for r in rollouts:
        ids = torch.tensor([[*r.prompt_ids, *r.completion_ids]], device="cuda")
        logits = (model(ids).hidden_BTD[0] @ model.head_weight.T).log_softmax(-1)
        at = torch.arange(len(r.prompt_ids) - 1, ids.shape[1] - 1, device="cuda")
        off += (logits[at, ids[0, at + 1]].cpu() - torch.tensor(r.logp_rollout)).abs().tolist()
    return sum(off) / len(off), sorted(off)[int(0.99 * len(off))]


@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": 48}, {"n_group": 4, "topk_group": 2}])
def test_the_fused_engine_holds_the_models_log_probabilities(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of different lengths that come and go: as near to the float64 forward of the whole sequence as
    plain torch in bf16 comes."""
    model = small(**changes).eval()
    engine = TorchEngine(model, 0, 24, 200, record_routes=True)
    assert isinstance(engine.decoder, FusedDecoder)
    g = torch.Generator().manual_seed(1)
    requests = [
        Request(
            torch.randint(0, 512, (5 + i % 60,), generator=g).tolist(), i, 1 + (37 * i) % 130, stop_ids=(3,)
        )
        for i in range(70)
    ]
    once = engine.generate(requests)
    monkeypatch.setattr(FusedDecoder, "fits", lambda model: False)
    plain = TorchEngine(model, 0, 24, 200, record_routes=True)
    assert isinstance(plain.decoder, NativeDecoder)
    wide = small(**changes).eval().double()
    off = [distance(wide, rollouts) for rollouts in (once, plain.generate(requests))]
    print("mean and 99 % of |logp - exact|: fused", off[0], "plain", off[1])
    assert off[0][0] < 1.2 * off[1][0] + 1e-3 and off[0][1] < 1.5 * off[1][1] + 1e-2, off
    again = engine.generate(requests)
    same = sum(a.completion_ids == b.completion_ids for a, b in zip(once, again, strict=True))
    assert same >= 60  # other rows beside them change roundings, and those a draw now and then
