"""One optimisation step's forward and backward on a packed batch: what pretraining and SFT share and must be
equal.

`shift` is the one place where targets are shifted and masked: position t of a row predicts token t + depth,
and only where both stand in the same document and the target is trained.  Losses are sums over targets
divided by the number of targets in the *whole* step, so that accumulation over micro-batches gives exactly
the step's gradient.  Which positions are targets is worked out where the batch was made, on the host; nothing
in a step waits for the device until its results are read (`Later`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onebase.data import Batch, sent
from onebase.kernels.linear_logprob import linear_nll
from onebase.model.moe import update_bias
from onebase.train.parallel import ALONE, Place


def shift(ids_BT: Tensor, trained_BT: Tensor, document_BT: Tensor, depth: int = 1) -> tuple[Tensor, Tensor]:
    """(target_BT, mask_BT): the token `depth` further on, and whether it is a target of position t."""
    target_BT = ids_BT.roll(-depth, 1)
    mask_BT = trained_BT.roll(-depth, 1) & (document_BT.roll(-depth, 1) == document_BT) & (document_BT >= 0)
    mask_BT[:, -depth:] = False
    return target_BT, mask_BT


@dataclass(slots=True)
class Sums:
    """Sums of a step, over its micro-batches; the tensors are float32 scalars on the device."""

    loss: Tensor
    mtp: Tensor
    balance: Tensor
    entropy: Tensor
    targets: int
    tokens: int
    load_LE: list[Tensor] = field(default_factory=list)


class Later:
    """Scalars on their way from the device.  Read after the next step has been launched, they make no one
    wait."""

    def __init__(self, *values: Tensor) -> None:
        stacked = torch.stack([v.detach().double() for v in values])
        self.there: torch.cuda.Event | None = None
        if stacked.is_cuda:
            self.numbers = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self.numbers.copy_(stacked, non_blocking=True)
            self.there = torch.cuda.Event()
            self.there.record()
        else:
            self.numbers = stacked
        self.at = time.perf_counter()
        """When they were there: of a GPU, when `read` found them."""

    def read(self) -> list[float]:
        if self.there is not None:
            self.there.synchronize()
            self.at = time.perf_counter()
        return self.numbers.tolist()


def numbers(*values: Tensor) -> list[float]:
    """Scalars from the device, all in one transfer, at once."""
    return Later(*values).read()


def forward_backward(
    model: Any,
    batch: Batch,
    micro_batches: int,
    *,
    document_mask: bool,
    balance_alpha: float,
    mtp_weight: float,
    place: Place = ALONE,
) -> Sums:
    """Accumulate the gradient of  mean nll + mtp_weight * mean mtp nll + balance_alpha * balance.

    The balance loss is the mean over rows and layers of `sequence_balance`; the MTP loss is averaged over its
    targets as V3's equation 25 for depth 1.  `batch` is best left on the host: its parts are sent from here.
    On several processes it is this one's rows; targets, rows and the returned sums are the whole step's."""
    masks = [shift(batch.ids_BT, batch.trained_BT, batch.document_BT, d)[1] for d in (1, 2)]
    counts = torch.stack([place.own(m).sum() for m in (*masks, batch.document_BT >= 0)]).cpu()
    place.sum(counts)
    total, total_mtp, tokens = (max(1, n) for n in counts.tolist())
    here = batch.ids_BT.shape[0]
    B = here * place.layout.row_groups
    assert micro_batches <= here, f"accumulate={micro_batches} > rows={here}"
    device = model.head_weight.device
    zero = torch.zeros((), device=device)
    sums = Sums(zero, zero, zero, zero, total, tokens)
    for rows in torch.arange(here).tensor_split(micro_batches):
        part = Batch(*(getattr(batch, f)[rows[0] : rows[-1] + 1] for f in Batch.__slots__))
        there = part.to(device)
        document = there.document_BT if document_mask else None
        position = there.position_BT if document_mask else None
        out = model(there.ids_BT, position, document, there.document_BT >= 0, mtp_weight > 0)
        nll, entropy = _nll(model, out.hidden_BTD, part, 1, place)
        loss = nll / total
        if out.mtp_hidden_BTD is not None:
            nll_mtp, _ = _nll(model, out.mtp_hidden_BTD, part, 2, place)
            loss = loss + mtp_weight * nll_mtp / total_mtp
            sums.mtp = sums.mtp + nll_mtp.detach() / total_mtp
        if out.routing:
            balance = torch.stack([r.balance for r in out.routing]).mean() * (len(rows) / B)
            loss = loss + balance_alpha * balance
            sums.balance = sums.balance + balance.detach()
            sums.load_LE.append(torch.stack([r.load_E for r in out.routing]))
        loss.backward()
        sums.loss = sums.loss + nll.detach() / total
        sums.entropy = sums.entropy + entropy / total
    if not place.alone:
        sums.load_LE = [torch.stack(sums.load_LE).sum(0)] if sums.load_LE else []
        whole = torch.stack([sums.loss, sums.mtp, sums.balance, sums.entropy])
        place.sum(whole, *sums.load_LE)
        sums.loss, sums.mtp, sums.balance, sums.entropy = whole.unbind()
    return sums


def _nll(
    model: Any, hidden_BTD: Tensor, part: Batch, depth: int, place: Place = ALONE
) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood (and entropy) of the part's targets; the head runs on target positions
    only."""
    target_BT, mask_BT = map(place.own, shift(part.ids_BT, part.trained_BT, part.document_BT, depth))
    at_N, device = mask_BT.flatten().nonzero()[:, 0], hidden_BTD.device
    target_N = target_BT.flatten()[at_N]
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, sent(at_N, device))
    return linear_nll(hidden_ND, model.head_weight, sent(target_N, device))


def balance_routers(
    model: Any, load_LE: list[Tensor], speed: float, ok: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Move every router's selection bias by the step's load (not where `ok` is false); returns the largest
    load over the mean, averaged over layers, and the largest absolute bias (its drift), as scalars on the
    device."""
    if not load_LE:
        device = model.head_weight.device
        return torch.ones((), device=device), torch.zeros((), device=device)
    load = torch.stack(load_LE).sum(0)
    layers = model.moe_layers()[: len(load)]
    if speed:
        for layer, load_E in zip(layers, load, strict=True):
            update_bias(layer.gate, load_E, speed if ok is None else ok * speed)
    worst = (load.max(1).values / load.float().mean(1).clamp(min=1)).mean()
    return worst, torch.stack([layer.gate.e_score_correction_bias for layer in layers]).abs().max()


@torch.no_grad()
def heldout_loss(model: Any, batches: list[Batch], document_mask: bool, place: Place = ALONE) -> float:
    """Mean negative log-likelihood per target, in nats."""
    model.eval()
    device = model.head_weight.device
    total, targets = torch.zeros((), device=device), 0
    for batch in batches:
        there = batch.to(device)
        document = there.document_BT if document_mask else None
        out = model(there.ids_BT, there.position_BT if document_mask else None, document, None, False)
        total = total + _nll(model, out.hidden_BTD, batch, 1, place)[0]
        targets += int(place.own(shift(batch.ids_BT, batch.trained_BT, batch.document_BT)[1]).sum())
    model.train()
    sums = torch.tensor([float(total), targets], dtype=torch.float64)
    place.sum(sums)
    return float(sums[0]) / max(1, int(sums[1]))
