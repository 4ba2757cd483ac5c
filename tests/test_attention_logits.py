"""Attention logits' maxima beside a plain computation, and QK-clip's effect on them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.data import Batch
from onebase.model.mla import MLA
from onebase.model.transformer import Transformer
from onebase.recipe import Optim
from onebase.train import attention_logits
from onebase.train.attention_logits import attentions, logit_maxima, qk_clip
from onebase.train.optim import Optimizer


def make_batch(seed: int = 0, rows: int = 2, length: int = 24) -> Batch:
    """Two documents and padding in every row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 280, (rows, length), generator=generator)
    document = torch.tensor([[0] * 9 + [1] * (length - 13) + [-1] * 4]).expand(rows, -1).clone()
    position = torch.tensor([[*range(9), *range(length - 13), *range(4)]]).expand(rows, -1).clone()
    return Batch(ids, document >= 0, position, document)


def plain_maxima(model: Transformer, batch: Batch, document_mask: bool, row: int) -> list[list[float]]:
    """From the inputs that a real forward pass gives to every attention, pair by pair."""
    seen: list[tuple[MLA, Tensor, Tensor]] = []

    def note(module: Any, args: tuple[Any, ...]) -> None:
        seen.append((module, args[0].detach(), args[1]))

    handles = [a.register_forward_pre_hook(note) for a in attentions(model)]
    document = batch.document_BT if document_mask else None
    model(batch.ids_BT, batch.position_BT if document_mask else None, document, None, True)
    for handle in handles:
        handle.remove()
    out = []
    number = batch.document_BT[row]
    with torch.no_grad():
        for attention, x, rotation in seen:
            q_nope, q_rope, latent, k_rope = attention._project(
                x, rotation.expand(len(x), *rotation.shape[1:])
            )
            k_nope = attention.kv_b_proj(latent).unflatten(-1, (attention.H, -1))[..., : attention.N]
            heads = []
            for h in range(attention.H):
                best = -float("inf")
                for i in range(len(number)):
                    for j in range(i + 1):
                        same = number[i] == number[j] or not document_mask
                        if same and number[i] >= 0 and number[j] >= 0:
                            nope = q_nope[row, i, h].double() @ k_nope[row, j, h].double()
                            rope = q_rope[row, i, h].double() @ k_rope[row, j].double()
                            best = max(best, float(nope + rope) * attention.scale)
                heads.append(best)
            out.append(heads)
    return out


@pytest.mark.parametrize("document_mask", [True, False])
@pytest.mark.parametrize("q_lora_rank", [None, 16])
def test_maxima_are_those_of_the_model(
    make_config: Any, make_model: Any, monkeypatch: pytest.MonkeyPatch, document_mask: bool, q_lora_rank: Any
) -> None:
    monkeypatch.setattr(attention_logits, "CHUNK", 5 * 2 * 24)  # several pieces of query rows
    model = make_model(make_config(q_lora_rank=q_lora_rank, num_nextn_predict_layers=1))
    batch = make_batch()
    found = logit_maxima(model, batch, document_mask, row=1)
    want = plain_maxima(model, batch, document_mask, row=1)
    assert found.shape == (4, 2) and len({round(x, 3) for row in want for x in row}) > 4
    assert found.tolist() == [pytest.approx(row, rel=1e-4, abs=1e-4) for row in want]


@pytest.mark.parametrize("q_lora_rank", [None, 16])
def test_a_clip_brings_the_first_layer_to_tau(make_config: Any, make_model: Any, q_lora_rank: Any) -> None:
    """Of the first layer the input does not change, so that the clipped maximum is exactly tau there; heads
    below tau keep their weights bit for bit."""
    model = make_model(make_config(q_lora_rank=q_lora_rank, num_nextn_predict_layers=1))
    batch, before = make_batch(), copy.deepcopy(model)
    old = logit_maxima(model, batch, True)
    tau = float(old[0].mean())
    over, under = int(old[0].argmax()), int(old[0].argmin())
    assert old[0, over] > tau > old[0, under]
    number = qk_clip(model, old, tau, [])
    new = logit_maxima(model, batch, True)
    assert int(number) == int((old > tau).sum())
    assert float(new[0, over]) == pytest.approx(tau, rel=1e-4)
    assert float(new[0, under]) == pytest.approx(float(old[0, under]), rel=1e-5)
    a, b = attentions(model)[0], attentions(before)[0]
    for x, y in ((a.q_proj, b.q_proj) if q_lora_rank is None else (a.q_b_proj, b.q_b_proj),):
        mine, theirs = (w.weight.unflatten(0, (a.H, a.N + a.R)) for w in (x, y))
        gamma = tau / old[0, over]
        assert torch.allclose(mine[over, : a.N], theirs[over, : a.N] * gamma.sqrt())
        assert torch.allclose(mine[over, a.N :], theirs[over, a.N :] * gamma)
        assert mine[under].equal(theirs[under])
    mine, theirs = (m.kv_b_proj.weight.unflatten(0, (a.H, a.N + a.V)) for m in (a, b))
    assert torch.allclose(mine[over, : a.N], theirs[over, : a.N] * gamma.sqrt())
    assert mine[over, a.N :].equal(theirs[over, a.N :]) and mine[under].equal(theirs[under])
    assert a.kv_a_proj_with_mqa.weight.equal(b.kv_a_proj_with_mqa.weight), (
        "the shared rotated key is untouched"
    )


def test_masters_of_a_bf16_model_are_clipped_too(make_config: Any, make_model: Any) -> None:
    model = make_model(make_config()).bfloat16()
    optimizer = Optimizer(model.named_parameters(), Optim(lr=1e-3))
    pairs = [(p, m) for (_, p), m in zip(optimizer.params, optimizer.masters, strict=True)]
    of = {id(p): m for p, m in pairs}
    old = logit_maxima(model, make_batch(), True)
    weight = attentions(model)[0].kv_b_proj.weight
    master = of[id(weight)].clone()
    qk_clip(model, old, float(old.min()) / 2, pairs)
    assert not of[id(weight)].equal(master) and weight.equal(of[id(weight)].bfloat16())
