"""The largest attention logit of each layer and head, and QK-clip (Kimi K2, arXiv 2507.20534, section 2.1).

    S_h = max over queries i and the keys j they may look at of  scale * q_i . k_j       per layer and head
    gamma_h = tau / S_h   where S_h > tau, else 1
    W_q, W_k rows without position *= sqrt(gamma_h);  W_q rotated rows *= gamma_h;  the rotated key, which
    all heads share, stays as it is

Deviations from K2, which takes the maximum of every token of every step inside its attention kernel: here q
and k are computed a second time, for one row of the batch, every so many steps (`stability.logits_every`), so
that the attention kernel stays as it is and the cost is a forward pass of one row.  The maxima are those of
a sample, and a head may exceed tau by what the sample missed and what the steps in between added.  The clip
runs on the device without a synchronisation; the optimizer's moments stay, as in K2.  Letters: L attention
layers, the prediction block's last; H heads; N nope, R rope, V value, C latent.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from onebase.data import Batch
from onebase.model.mla import MLA
from onebase.model.transformer import Transformer, attention_mask

CHUNK = 1 << 24
"""Most logits held at once."""


def attentions(model: Transformer) -> list[MLA]:
    """In the order of `logit_maxima`."""
    blocks = [*model.blocks(), *([model.mtp] if model.mtp is not None else [])]
    return [b.self_attn for b in blocks]


@torch.no_grad()
def logit_maxima(model: Transformer, batch: Batch, document_mask: bool, row: int = 0) -> Tensor:
    """S_LH, float32, of one row of a batch; padding does not count."""
    part = Batch(*(getattr(batch, f)[row : row + 1] for f in Batch.__slots__)).to(model.head_weight.device)
    position_BT, document_BT, mask = part.position_BT, part.document_BT, None
    if document_mask:
        mask = attention_mask(document_BT)
    else:
        position_BT = torch.arange(part.ids_BT.shape[1], device=part.ids_BT.device)[None]
        document_BT = document_BT.clamp(max=0)
    rotation = model.rope(position_BT)
    found = []
    x = model.embed_tokens(part.ids_BT)
    for layer in model.blocks():
        found.append(_maxima(layer.self_attn, layer.input_layernorm(x), rotation, document_BT[0]))
        x = layer.forward(x, rotation, mask, None)[0]  # not the compiled form: one row is another shape
    if model.mtp is not None:
        mtp, following = model.mtp, model.embed_tokens(part.ids_BT.roll(-1, 1))
        x = mtp.eh_proj(torch.cat([mtp.enorm(following), mtp.hnorm(model.norm(x))], -1))
        found.append(_maxima(mtp.self_attn, mtp.input_layernorm(x), rotation, document_BT[0]))
    return torch.stack(found)


def _maxima(attention: MLA, x_1TD: Tensor, rotation: Tensor, document_T: Tensor) -> Tensor:
    q_nope, q_rope, latent, k_rope = attention._project(x_1TD, rotation)
    k_nope = attention.kv_b_proj(latent).unflatten(-1, (attention.H, attention.N + attention.V))
    k_nope = k_nope[..., : attention.N]
    k_rope = k_rope.unsqueeze(-2).expand(*k_nope.shape[:-1], attention.R)
    q_HTK = torch.cat([q_nope, q_rope], -1)[0].transpose(0, 1).float() * attention.scale
    k_HKT = torch.cat([k_nope, k_rope], -1)[0].permute(1, 2, 0).float()
    H, T, _ = q_HTK.shape
    place_T = torch.arange(T, device=x_1TD.device)
    best_H = torch.full((H,), -torch.inf, device=x_1TD.device)
    for rows in place_T.split(max(1, CHUNK // (H * T))):
        may = (place_T <= rows[:, None]) & (document_T == document_T[rows][:, None]) & (document_T >= 0)
        logits = (q_HTK[:, rows] @ k_HKT).masked_fill_(~may, -torch.inf)
        best_H = torch.maximum(best_H, logits.amax((1, 2)))
    return best_H


@torch.no_grad()
def qk_clip(
    model: Transformer, maxima_LH: Tensor, tau: float, masters: Iterable[tuple[Tensor, Tensor]]
) -> Tensor:
    """Scale the query and key weights of heads beyond tau; returns how many there were (a tensor).

    `masters` are pairs (the model's parameter, the optimizer's float32 master of it), which are the same
    tensor where the model is float32."""
    master_of = {id(p): m for p, m in masters}
    gamma_LH = torch.where(maxima_LH > tau, tau / maxima_LH, 1.0)
    for attention, gamma_H in zip(attentions(model), gamma_LH, strict=True):
        a, root_H = attention, gamma_H.sqrt()
        query = a.q_proj if a.q_lora_rank is None else a.q_b_proj
        one_H = torch.ones_like(gamma_H)
        _scale_rows(query.weight, master_of, ((root_H, a.N), (gamma_H, a.R)))
        _scale_rows(a.kv_b_proj.weight, master_of, ((root_H, a.N), (one_H, a.V)))
    return (gamma_LH < 1).sum()


def _scale_rows(p: Tensor, master_of: dict[int, Tensor], parts: tuple[tuple[Tensor, int], ...]) -> None:
    """`parts`: factor per head, and for how many of the head's rows."""
    factor = torch.cat([f[:, None].expand(-1, n) for f, n in parts], 1).reshape(-1, 1)
    master = master_of.get(id(p), p)
    master.mul_(factor)
    if master is not p:
        p.copy_(master)
