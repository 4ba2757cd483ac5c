"""Optimizer, schedule and saved state against plain references."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebase.errors import UserError
from onebase.model import checkpoint
from onebase.recipe import Optim
from onebase.train import state
from onebase.train.optim import Optimizer, is_muon_matrix, orthogonalise
from onebase.train.schedule import wsd


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Toy(nn.Module):
    """One parameter of every kind that the optimizer tells apart."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        shapes = {
            "embed_tokens": (7, 4), "proj": (6, 4), "tall": (4, 6), "experts_gate_up_proj": (3, 8, 4),
            "experts_down_proj": (3, 4, 4), "norm": (4,), "lm_head": (7, 4),
        }  # fmt: skip
        for seed, (name, shape) in enumerate(shapes.items()):
            self.register_parameter(name, nn.Parameter(normal(seed, *shape).to(dtype)))

    def give_gradients(self, seed: int, scale: float = 0.02) -> dict[str, Tensor]:
        """Small enough that clipping at 1 changes nothing."""
        grads = {}
        for i, (name, p) in enumerate(self.named_parameters()):
            p.grad = (normal(100 * seed + i, *p.shape) * scale).to(p.dtype)
            grads[name] = p.grad.float().clone()
        return grads


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


# -- orthogonalisation


@pytest.mark.parametrize("shape", [(8, 8), (16, 64), (64, 16), (5, 3, 24, 40), (1, 9)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_singular_values_land_near_one(shape: tuple[int, ...], scale: float) -> None:
    x = normal(1, *shape) * scale
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    kept = s > 0.02 * s[..., :1]  # five steps lift those; the smallest ones less
    out = orthogonalise(x)
    values = torch.linalg.svdvals(out)
    assert values.max() < 1.25
    along = torch.einsum("...ri,...rc,...ic->...i", u, out, v)  # the singular directions stay
    assert along[kept].min() > 0.6 and along[kept].max() < 1.25
    off = out - torch.einsum("...ri,...i,...ic->...rc", u, along, v)
    assert off.abs().max() < 1e-3
    stacked = orthogonalise(torch.stack([x, 3 * x]))
    torch.testing.assert_close(stacked[0], out, rtol=1e-4, atol=1e-5)
    if scale >= 1:
        torch.testing.assert_close(stacked[1], out, rtol=1e-3, atol=1e-3)  # the scale does not matter


def test_a_zero_gradient_stays_zero() -> None:
    out = orthogonalise(torch.zeros(2, 4, 6))
    assert torch.equal(out, torch.zeros(2, 4, 6))


# -- Muon and AdamW


def muon_reference(w: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    """One matrix, step by step in float64: Nesterov momentum as an average, quintic Newton-Schulz, the scale
    0.2 sqrt(max(rows, cols)), decoupled decay."""
    w, m = w.double(), torch.zeros_like(w).double()
    for g in grads:
        g = g.double()
        m = 0.95 * m + 0.05 * g
        x = 0.05 * g + 0.95 * m
        wide = x if x.shape[0] <= x.shape[1] else x.T
        wide = wide / (wide.norm() + 1e-7)
        for _ in range(5):
            gram = wide @ wide.T
            wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
        o = wide if x.shape[0] <= x.shape[1] else wide.T
        w = w * (1 - lr * decay) - lr * 0.2 * math.sqrt(max(w.shape)) * o
    return w.float()


def adamw_reference(
    w: Tensor, grads: list[Tensor], lr: float, decay: float, betas: tuple[float, float], eps: float
) -> Tensor:
    w, m, v = w.double(), torch.zeros_like(w).double(), torch.zeros_like(w).double()
    for t, g in enumerate(grads, 1):
        g = g.double()
        w = w * (1 - lr * decay)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        w = w - lr * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
    return w.float()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_three_steps_equal_a_plain_reference(name: str) -> None:
    """2-D matrices, stacks of experts one by one, `gate_up_proj` as two matrices, all else by AdamW; no decay
    on norms."""
    config = Optim(name=name, lr=0.02, weight_decay=0.3, clip=100.0)
    model = Toy()
    before = copy_of(model)
    optimizer = Optimizer(model.named_parameters(), config)
    history: dict[str, list[Tensor]] = {n: [] for n in before}
    for step in range(3):
        for n, g in model.give_gradients(step).items():
            history[n].append(g)
        optimizer.step(0.5)
        assert all(p.grad is None for p in model.parameters())
    for n, p in model.named_parameters():
        w, grads = before[n], history[n]
        if name == "muon" and n in ("proj", "tall"):
            expected = muon_reference(w, grads, 0.01, 0.3)
        elif name == "muon" and n.startswith("experts"):
            cuts = 2 if n.endswith("gate_up_proj") else 1
            rows = w.shape[1] // cuts
            expected = torch.stack(
                [
                    torch.cat(
                        [
                            muon_reference(w[e, s : s + rows], [g[e, s : s + rows] for g in grads], 0.01, 0.3)
                            for s in range(0, w.shape[1], rows)
                        ]
                    )
                    for e in range(len(w))
                ]
            )
        else:
            decay = 0.3 if w.dim() > 1 else 0.0
            expected = adamw_reference(w, grads, 0.01, decay, config.betas, config.eps)
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=n: f"{n}: {m}")


def test_muon_takes_matrices_only(make_config: Any, make_model: Any) -> None:
    model = make_model(make_config(q_lora_rank=9, attention_bias=True))
    muon = {n for n, p in model.named_parameters() if is_muon_matrix(n, p)}
    adamw = {n for n, _ in model.named_parameters()} - muon
    assert {n for n in adamw if not n.endswith(("norm.weight", ".bias"))} == {
        "embed_tokens.weight", "lm_head.weight", "layers.1.mlp.gate.weight", "layers.2.mlp.gate.weight",
        "mtp.enorm.weight", "mtp.hnorm.weight", "mtp.mlp.gate.weight",
    } - {n for n in adamw if n.endswith("norm.weight")}  # fmt: skip
    assert "mtp.eh_proj.weight" in muon and "layers.1.mlp.experts.down_proj" in muon
    Optimizer(model.named_parameters(), Optim(name="muon"))


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_clipping_is_by_the_norm_of_all_gradients(clip: float) -> None:
    config = Optim(lr=0.1, weight_decay=0.0, clip=clip, betas=(0.0, 0.0), eps=1.0)
    model = Toy()
    before = copy_of(model)
    optimizer = Optimizer(model.named_parameters(), config)
    grads = model.give_gradients(1, scale=1.0)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
    assert optimizer.step(1.0) == pytest.approx(norm, rel=1e-5)
    for n, p in model.named_parameters():
        g = grads[n] * min(1.0, clip / norm)
        torch.testing.assert_close(p, before[n] - 0.1 * g / (g.abs() + 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_tiny_updates_are_not_lost_in_bfloat16(name: str) -> None:
    """Each step moves a weight of about 1 by 2e-5 to 5e-5, far below bf16's spacing of 4e-3; three hundred
    of them must arrive."""
    model = Toy(torch.bfloat16)
    wide = Toy()
    for p, q in zip(model.parameters(), wide.parameters(), strict=True):
        q.data = p.data.float()
    before = copy_of(model)
    config = Optim(name=name, lr=5e-5 if name == "adamw" else 1e-4, weight_decay=0.0)
    both = [(m, Optimizer(m.named_parameters(), config)) for m in (model, wide)]
    grads = model.give_gradients(1)
    for _ in range(300):
        for m, optimizer in both:
            for n, p in m.named_parameters():
                p.grad = grads[n].to(p.dtype)
            optimizer.step(1.0)
    moved = {n: (p.float() - before[n].float()).abs().max() for n, p in model.named_parameters()}
    assert all(m > 4e-3 for m in moved.values()), moved
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for p, q in zip(model.parameters(), wide.parameters(), strict=True):
        assert torch.equal(p, q.detach().to(torch.bfloat16))


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str, bad: float, dtype: torch.dtype) -> None:
    """Neither weights nor any state: the next good step is as if the bad one had not been."""
    models = [Toy(dtype), Toy(dtype)]
    optimizers = [Optimizer(m.named_parameters(), Optim(name=name, lr=0.01)) for m in models]
    for seed in (1, 2, 3):
        for model, optimizer in zip(models, optimizers, strict=True):
            model.give_gradients(seed)
            if seed == 2:
                if model is models[0]:
                    continue
                before = copy_of(model)
                model.proj.grad[1, 2] = bad
                assert not math.isfinite(optimizer.step(1.0))
                assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
                assert all(p.grad is None for p in model.parameters())
                continue
            optimizer.step(1.0)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_parameters_without_gradient_are_left_alone() -> None:
    """A frozen one, and one that this step's loss did not reach."""
    model = Toy()
    model.tall.requires_grad_(False)
    before = copy_of(model)
    optimizer = Optimizer(model.named_parameters(), Optim(name="muon", lr=0.01))
    model.give_gradients(1)
    model.tall.grad = None
    model.proj.grad = None
    optimizer.step(1.0)
    assert torch.equal(model.tall, before["tall"]) and torch.equal(model.proj, before["proj"])
    assert not torch.equal(model.norm, before["norm"])


def test_the_loss_of_a_real_model_falls_with_both(make_config: Any, make_model: Any) -> None:
    ids = torch.randint(0, 280, (4, 16), generator=torch.Generator().manual_seed(1))
    for name, lr in (("adamw", 3e-3), ("muon", 1e-2)):
        model = make_model(make_config(), 1)
        optimizer = Optimizer(model.named_parameters(), Optim(name=name, lr=lr))
        losses = []
        for _ in range(25):
            logits = model(ids).hidden_BTD[:, :-1] @ model.head_weight.T
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step(1.0)
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.6 * losses[0], f"{name}: {losses}"


# -- saved state


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_takes_identical_steps(
    name: str, dtype: str, make_config: Any, make_model: Any, tmp_path: Path
) -> None:
    """Through the file: weights, masters, moments, selection biases; bit for bit."""

    def train(model: Any, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            ids = torch.randint(0, 280, (2, 12), generator=torch.Generator().manual_seed(step))
            out = model(ids, with_mtp=True)
            (out.hidden_BTD.float().square().mean() + out.mtp_hidden_BTD.float().abs().mean()).backward()
            optimizer.step(1 / (1 + step))
            for layer in model.moe_layers():
                layer.gate.e_score_correction_bias += 1e-3 * (step + 1)

    def fresh(seed: int) -> tuple[Any, Optimizer]:
        model = checkpoint.to_dtype(make_model(make_config(), seed), checkpoint.DTYPES[dtype])
        return model, Optimizer(model.named_parameters(), Optim(name=name, lr=0.01))

    model, optimizer = fresh(1)
    train(model, optimizer, range(3))
    state.save(tmp_path, 3, model, optimizer, {"loss": 1.5})
    resumed, its_optimizer = fresh(2)
    assert state.load(tmp_path, resumed, its_optimizer, "cpu") == (3, {"loss": 1.5})
    for m, o in ((model, optimizer), (resumed, its_optimizer)):
        train(m, o, range(3, 6))
    for key, tensor in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], tensor), key


def test_the_newest_whole_state_is_read_and_older_ones_go(tmp_path: Path) -> None:
    model = Toy()
    optimizer = Optimizer(model.named_parameters(), Optim())
    assert state.load(tmp_path, model, optimizer, "cpu") == (0, {})
    for step in (5, 20, 100):
        with torch.no_grad():
            model.norm.fill_(step)
        state.save(tmp_path, step, model, optimizer, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000100"]
    (tmp_path / "step_00000200").mkdir()  # no file in it: not whole
    other = Toy()
    assert state.load(tmp_path, other, Optimizer(other.named_parameters(), Optim()), "cpu")[0] == 100
    assert other.norm.tolist() == [100.0] * 4


@pytest.mark.parametrize(
    "fault", ["cut short", "garbage", "empty", "another model", "another optimizer", "not a state"]
)
def test_a_state_that_does_not_fit_is_told_with_its_file(fault: str, tmp_path: Path) -> None:
    model = Toy()
    state.save(tmp_path, 7, model, Optimizer(model.named_parameters(), Optim()), {})
    file = tmp_path / "step_00000007" / "state.pt"
    config = Optim()
    if fault == "cut short":
        file.write_bytes(file.read_bytes()[:-200])
    elif fault == "garbage":
        file.write_bytes(b"\x13garbage\n" * 50)
    elif fault == "empty":
        file.write_bytes(b"")
    elif fault == "another model":
        model.register_parameter("more", nn.Parameter(torch.zeros(2, 2)))
    elif fault == "another optimizer":
        config = Optim(name="muon")
    else:
        torch.save({"step": 3}, file)
    with pytest.raises(UserError, match="state.pt"):
        state.load(tmp_path, model, Optimizer(model.named_parameters(), config), "cpu")


# -- schedule


def test_warm_up_stable_decay() -> None:
    """Ten steps of warm-up, then one, then linear to a tenth over the last quarter of a hundred steps."""
    factors = [wsd(step, 100, 10, 0.25, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10:75] == [1.0] * 65
    assert factors[75:] == pytest.approx([1 - 0.9 * (i + 1) / 25 for i in range(25)])
    assert factors[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("total", [1, 2, 7, 40, 1000])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_the_schedules_shape_for_any_length(total: int, decay: float, warmup: int) -> None:
    factors = [wsd(step, total, warmup, decay, 0.2) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    if warmup:
        assert factors[0] == pytest.approx(min(1, 1 / warmup)) or total <= warmup or decay
    down = factors[warmup:]
    assert down == sorted(down, reverse=True)
    if decay == 0:
        assert down == [1.0] * len(down)
    elif total * decay >= 1 and total > warmup:
        assert factors[-1] == pytest.approx(0.2)
    assert wsd(total + 50, total, 0, decay, 0.2) == pytest.approx(0.2 if decay else 1.0)


def test_bf16_micro_batches_add_up_in_float32() -> None:
    """A bf16 sum of 1 and 512 times 2^-9 stays 1; the masters' sum is 2, within the rounding of each part."""
    p = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    optimizer = Optimizer([("norm", p)], Optim(lr=1e-3, clip=1e9))
    for part in [1.0, *[2.0**-9] * 512]:
        (p * part).sum().backward()
    assert p.grad is None
    assert optimizer.step(1.0) == pytest.approx(2.0 * 2.0)  # the norm of four twos
