"""One training step: shift and masks, accumulation, the losses against direct formulas, router balancing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onebase.data import Batch, pack
from onebase.model.hf import HFCausalLM
from onebase.train.step import Sums, balance_routers, forward_backward, heldout_loss, numbers, shift

QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def packed_batch(rows: list[list[int]], length: int, seed: int = 0, sft: bool = False) -> Batch:
    """Rows of documents of the given lengths; in SFT the first half of each is not trained."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for lengths in rows:
        documents = []
        for n in lengths:
            ids = torch.randint(3, 280, (n,), generator=g).tolist()
            documents.append((ids, [int(not sft or i >= n // 2) for i in range(n)]))
        made.append(pack(documents, length, pad_id=2))
    return Batch(*(torch.stack([torch.from_numpy(c) for c in column]) for column in zip(*made, strict=True)))


BATCH = [[9, 7], [16], [3, 1, 2, 8], [5], [2, 2, 2], [14]]


# -- shift


@QUICK
@given(
    rows=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3),
    depth=st.integers(1, 2),
    sft=st.booleans(),
    slack=st.integers(0, 3),
)
def test_targets_stand_depth_further_in_the_same_document(
    rows: list[list[int]], depth: int, sft: bool, slack: int
) -> None:
    length = max(sum(r) for r in rows) + slack
    batch = packed_batch(rows, length, sft=sft)
    target, mask = shift(batch.ids_BT, batch.trained_BT, batch.document_BT, depth)
    expected = set()
    for b, lengths in enumerate(rows):
        at = 0
        for n in lengths:
            for i in range(n - depth):
                if not sft or i + depth >= n // 2:
                    expected.add((b, at + i))
                    assert target[b, at + i] == batch.ids_BT[b, at + i + depth]
            at += n
    assert {tuple(p) for p in mask.nonzero().tolist()} == expected


def test_shift_leaves_its_inputs_alone() -> None:
    batch = packed_batch(BATCH, 18)
    before = [t.clone() for t in (batch.ids_BT, batch.trained_BT, batch.document_BT)]
    shift(*before, 2)
    assert torch.equal(before[0], batch.ids_BT) and torch.equal(before[1], batch.trained_BT)
    assert torch.equal(before[2], batch.document_BT)


# -- the step


def step(model: Any, batch: Batch, micro: int = 1, **options: Any) -> tuple[Sums, dict[str, Tensor]]:
    """Sums and gradients of one step from none."""
    model.zero_grad()
    defaults = {"document_mask": True, "balance_alpha": 0.01, "mtp_weight": 0.3}
    sums = forward_backward(model, batch, micro, **(defaults | options))
    named = ("loss", "mtp", "balance", "entropy")
    for name, value in zip(named, numbers(*(getattr(sums, n) for n in named)), strict=True):
        setattr(sums, name, value)
    return sums, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=1e-4, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("micro", [2, 3, 4, 6])
@pytest.mark.parametrize("sft", [False, True])
def test_accumulation_equals_one_batch(micro: int, sft: bool, make_config: Any, make_model: Any) -> None:
    """Micro-batches of unequal size with unequal numbers of targets, one of them with none at depth 2."""
    model = make_model(make_config(), 1).train()
    batch = packed_batch(BATCH, 18, sft=sft)
    whole, grads = step(model, batch)
    parts, grads_of_parts = step(model, batch, micro)
    close(grads, grads_of_parts)
    for field in ("loss", "mtp", "balance", "entropy", "targets", "tokens"):
        assert getattr(parts, field) == pytest.approx(getattr(whole, field), rel=1e-5), field
    assert torch.equal(torch.stack(parts.load_LE).sum(0), torch.stack(whole.load_LE).sum(0))


def test_the_loss_and_its_gradient_equal_a_direct_formula(make_config: Any, make_model: Any) -> None:
    """Cross entropy on full logits, document by document run alone, position by position; MTP averaged over
    its own targets; the balance over rows and layers."""
    model = make_model(make_config(), 2).train()
    batch = packed_batch(BATCH, 18, sft=True)
    sums, grads = step(model, batch)
    model.zero_grad()
    nll: dict[int, list[Tensor]] = {1: [], 2: []}
    for b, lengths in enumerate(BATCH):
        at = 0
        for n in lengths:
            ids = batch.ids_BT[b : b + 1, at : at + n]
            out = model(ids, with_mtp=True)
            for depth, hidden in ((1, out.hidden_BTD), (2, out.mtp_hidden_BTD)):
                logits = hidden[0] @ model.head_weight.T
                nll[depth] += [
                    F.cross_entropy(logits[t], ids[0, t + depth])
                    for t in range(n - depth)
                    if t + depth >= n // 2
                ]
            at += n
    loss, mtp = (torch.stack(nll[d]).mean() for d in (1, 2))
    routing = model(
        batch.ids_BT, batch.position_BT, batch.document_BT, batch.document_BT >= 0, with_mtp=True
    ).routing
    balance = torch.stack([r.balance for r in routing]).mean()
    (loss + 0.3 * mtp + 0.01 * balance).backward()
    assert sums.loss == pytest.approx(float(loss), rel=1e-5)
    assert sums.mtp == pytest.approx(float(mtp), rel=1e-5)
    assert sums.balance == pytest.approx(float(balance), rel=1e-5)
    assert sums.targets == len(nll[1]) and sums.tokens == sum(map(sum, BATCH))
    close(grads, {n: p.grad for n, p in model.named_parameters()}, 1e-5)


def test_the_prediction_block_routes_only_pairs_of_one_document(make_config: Any, make_model: Any) -> None:
    """Load and balance of its router, packed, are those of the documents run alone; the trunk's too."""
    model = make_model(make_config(), 3).train()
    batch = packed_batch(BATCH, 18)
    packed = model(
        batch.ids_BT, batch.position_BT, batch.document_BT, batch.document_BT >= 0, with_mtp=True
    ).routing
    load = torch.zeros_like(torch.stack([r.load_E for r in packed]))
    for b, lengths in enumerate(BATCH):
        at = 0
        for n in lengths:
            alone = model(batch.ids_BT[b : b + 1, at : at + n], with_mtp=True).routing
            load += torch.stack([r.load_E for r in alone])
            at += n
    assert torch.equal(load, torch.stack([r.load_E for r in packed]))
    pairs = sum(n - 1 for lengths in BATCH for n in lengths)
    assert int(load[-1].sum()) == pairs * model.config.num_experts_per_tok


def test_padding_and_its_amount_change_nothing(make_config: Any, make_model: Any) -> None:
    """Of the routers all but the prediction block's, which sees the token behind a document's last one."""
    model = make_model(make_config(), 3).train()
    tight, wide = packed_batch(BATCH, 16), packed_batch(BATCH, 31)
    wide.ids_BT[wide.document_BT < 0] = 77
    (a, grads), (b, grads_wide) = (step(model, t, balance_alpha=0.0) for t in (tight, wide))
    close(grads, grads_wide, 1e-5)
    assert (a.loss, a.mtp) == pytest.approx((b.loss, b.mtp), rel=1e-5)
    assert torch.equal(a.load_LE[0][:-1], b.load_LE[0][:-1])
    (a, grads), (b, grads_wide) = (step(model, t, balance_alpha=0.5, mtp_weight=0.0) for t in (tight, wide))
    close(grads, grads_wide, 1e-5)
    assert a.balance == pytest.approx(b.balance, rel=1e-5)


def test_without_the_document_mask_rows_are_read_through_but_targets_stay_in_documents(
    make_config: Any, make_model: Any
) -> None:
    model = make_model(make_config(), 4).train()
    batch = packed_batch([[6, 6]], 12)
    sums, _ = step(model, batch, document_mask=False)
    with torch.no_grad():
        logits = model(batch.ids_BT).hidden_BTD[0] @ model.head_weight.T
    at = [t for t in range(11) if t != 5]
    expected = F.cross_entropy(logits[at], batch.ids_BT[0, [t + 1 for t in at]])
    assert sums.loss == pytest.approx(float(expected), rel=1e-5)
    masked, _ = step(model, batch)
    assert masked.loss != pytest.approx(sums.loss, rel=1e-4)


def test_a_batch_without_targets_gives_zero_and_finite_gradients(make_config: Any, make_model: Any) -> None:
    model = make_model(make_config(), 5).train()
    sums, grads = step(model, packed_batch([[1, 1, 1], [1]], 4))
    assert sums.loss == 0 and sums.mtp == 0
    assert all(torch.isfinite(g).all() for g in grads.values())


def test_mtp_costs_nothing_where_its_weight_is_zero(make_config: Any, make_model: Any) -> None:
    model = make_model(make_config(), 6).train()
    sums, grads = step(model, packed_batch(BATCH, 18), mtp_weight=0.0)
    assert sums.mtp == 0 and not any(n.startswith("mtp") for n in grads)
    assert len(sums.load_LE[0]) == len(model.moe_layers()) - 1


def test_a_dense_model_and_a_transformers_model_train_alike(
    make_config: Any, make_model: Any, randomise_weights: Any
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 288, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    llama = LlamaForCausalLM(LlamaConfig(**shape))
    randomise_weights(llama, 1, 0.0)
    dense = make_model(make_config(first_k_dense_replace=3, num_nextn_predict_layers=0), 7)
    batch = packed_batch(BATCH, 18)
    for model in (HFCausalLM(llama).train(), dense.train()):
        whole, grads = step(model, batch)
        parts, grads_of_parts = step(model, batch, 3)
        close(grads, grads_of_parts)
        assert whole.loss == pytest.approx(parts.loss, rel=1e-5)
        assert whole.load_LE == [] and balance_routers(model, whole.load_LE, 0.1) == (1.0, 0.0)
        with torch.no_grad():  # the packed row's second document, alone
            alone = model(batch.ids_BT[:1, 9:16]).hidden_BTD
            out = model(batch.ids_BT, batch.position_BT, batch.document_BT).hidden_BTD
        torch.testing.assert_close(out[:1, 9:16], alone, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_near_float32(make_config: Any, make_model: Any) -> None:
    from onebase.model import checkpoint

    batch = packed_batch(BATCH, 18)
    exact, _ = step(make_model(make_config(), 8).train(), batch)
    low = checkpoint.to_dtype(make_model(make_config(), 8), torch.bfloat16).train()
    rounded, grads = step(low, batch, 2)
    assert rounded.loss == pytest.approx(exact.loss, rel=0.03)
    assert rounded.mtp == pytest.approx(exact.mtp, rel=0.03)
    assert all(g.dtype == torch.bfloat16 and torch.isfinite(g).all() for g in grads.values())
    balance_routers(low, rounded.load_LE, 1e-3)
    assert all(m.gate.e_score_correction_bias.dtype == torch.float32 for m in low.moe_layers())


# -- balancing and held-out loss


def test_every_router_moves_by_its_own_load(make_config: Any, make_model: Any) -> None:
    model = make_model(make_config(), 9).train()
    before = [m.gate.e_score_correction_bias.clone() for m in model.moe_layers()]
    sums, _ = step(model, packed_batch(BATCH, 18), 3)
    load = torch.stack(sums.load_LE).sum(0)
    pairs = sums.tokens - sum(map(len, BATCH))  # the prediction block reads pairs, one fewer per document
    assert load.sum(1).tolist() == [2 * sums.tokens] * 2 + [2 * pairs]  # K of each; padding not counted
    worst, drift = balance_routers(model, sums.load_LE, 0.01)
    for layer, old, load_E in zip(model.moe_layers(), before, load, strict=True):
        direction = torch.sign(load_E.float().mean() - load_E.float())
        expected = old + 0.01 * (direction - direction.mean())
        torch.testing.assert_close(layer.gate.e_score_correction_bias, expected)
    assert worst == pytest.approx(float((load.max(1).values / load.float().mean(1)).mean()))
    assert drift == pytest.approx(
        max(float(m.gate.e_score_correction_bias.abs().max()) for m in model.moe_layers())
    )
    again = [m.gate.e_score_correction_bias.clone() for m in model.moe_layers()]
    balance_routers(model, sums.load_LE, 0.0)
    assert all(
        torch.equal(m.gate.e_score_correction_bias, b) for m, b in zip(model.moe_layers(), again, strict=True)
    )


def test_the_held_out_loss_is_the_steps_loss_per_target(make_config: Any, make_model: Any) -> None:
    """Over batches of unequal numbers of targets: a mean over targets, not over batches."""
    model = make_model(make_config(), 10).train()
    batches = [packed_batch(BATCH, 18, 1, sft=True), packed_batch([[2], [4]], 18, 2, sft=True)]
    each = [step(model, b)[0] for b in batches]
    expected = sum(s.loss * s.targets for s in each) / sum(s.targets for s in each)
    assert heldout_loss(model, batches, document_mask=True) == pytest.approx(expected, rel=1e-5)
    assert model.training
