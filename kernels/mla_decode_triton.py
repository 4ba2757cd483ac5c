"""Triton kernels of kernels/mla_decode.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _enter(
    q, made, rotation, gain, cache, position, out, eps, row_stride, place_stride,
    H: tl.constexpr, NOPE: tl.constexpr, C: tl.constexpr, R: tl.constexpr, H_PAD: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    entry = cache + b * row_stride + tl.load(position + b) * place_stride
    c = tl.arange(0, C)
    latent = tl.load(made + b * (C + R) + c).to(tl.float32)
    latent = latent * tl.rsqrt(tl.sum(latent * latent, 0) / C + eps) * tl.load(gain + c).to(tl.float32)
    tl.store(entry + c, latent.to(cache.dtype.element_ty))
    pair = tl.arange(0, R // 2)
    cos = tl.load(rotation + b * R + 2 * pair)
    sin = tl.load(rotation + b * R + 2 * pair + 1)
    key = made + b * (C + R) + C + 2 * pair
    even, odd = tl.load(key).to(tl.float32), tl.load(key + 1).to(tl.float32)
    tl.store(entry + C + 2 * pair, (even * cos - odd * sin).to(cache.dtype.element_ty))
    tl.store(entry + C + 2 * pair + 1, (even * sin + odd * cos).to(cache.dtype.element_ty))
    h = tl.arange(0, H_PAD)
    there = (h[:, None] < H) & (pair[None, :] >= 0)
    source = q + (b * H + h[:, None]) * (NOPE + R) + NOPE + 2 * pair[None, :]
    even = tl.load(source, mask=there, other=0.0).to(tl.float32)
    odd = tl.load(source + 1, mask=there, other=0.0).to(tl.float32)
    target = out + (b * H + h[:, None]) * (C + R) + C + 2 * pair[None, :]
    tl.store(target, (even * cos[None, :] - odd * sin[None, :]).to(out.dtype.element_ty), mask=there)
    tl.store(target + 1, (even * sin[None, :] + odd * cos[None, :]).to(out.dtype.element_ty), mask=there)


def enter(
    q_BHK: Tensor, made_BK: Tensor, rotation: Tensor, gain_C: Tensor, eps: float, cache: Tensor,
    position_B: Tensor, out_BHK: Tensor,
) -> None:  # fmt: skip
    B, H, K = q_BHK.shape
    C = gain_C.shape[0]
    R = made_BK.shape[1] - C
    assert q_BHK.is_contiguous() and made_BK.is_contiguous() and out_BHK.is_contiguous()
    assert rotation.is_contiguous() and cache.stride(2) == 1, f"{rotation.stride()=} {cache.stride()=}"
    _enter[(B,)](
        q_BHK, made_BK, rotation, gain_C, cache, position_B, out_BHK, eps, cache.stride(0), cache.stride(1),
        H=H, NOPE=K - R, C=C, R=R, H_PAD=triton.next_power_of_2(H),
    )  # fmt: skip


@triton.jit
def _attend(
    q, cache, position, out, norm, scale, row_stride, place_stride,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr, SPLITS: tl.constexpr, H_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    seen = tl.load(position + b).to(tl.int32) + 1
    share = tl.cdiv(tl.cdiv(seen, SPLITS), BLOCK) * BLOCK
    first = split * share
    last = tl.minimum(seen, first + share)
    h = tl.arange(0, H_PAD)
    c = tl.arange(0, C)
    r = tl.arange(0, R)
    query = q + (b * H + h[:, None]) * (C + R)
    q_c = tl.load(query + c[None, :], mask=h[:, None] < H, other=0.0)
    q_r = tl.load(query + C + r[None, :], mask=h[:, None] < H, other=0.0)
    rows = cache + b * row_stride
    top = tl.full([H_PAD], -float("inf"), tl.float32)
    total = tl.zeros([H_PAD], tl.float32)
    acc = tl.zeros([H_PAD, C], tl.float32)
    for start in range(first, last, BLOCK):
        s = start + tl.arange(0, BLOCK)
        inside = s < last
        at = rows + s[:, None].to(tl.int64) * place_stride
        k_c = tl.load(at + c[None, :], mask=inside[:, None], other=0.0)
        k_r = tl.load(at + C + r[None, :], mask=inside[:, None], other=0.0)
        x = tl.dot(q_c, tl.trans(k_c)) + tl.dot(q_r, tl.trans(k_r))
        x = tl.where(inside[None, :], x * scale, -float("inf"))
        new = tl.maximum(top, tl.max(x, 1))
        p = tl.exp(x - new[:, None])
        shrink = tl.exp(top - new)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(k_c.dtype), k_c)
        top = new
    there = h[:, None] < H
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    place = (b * SPLITS + split) * H + h
    tl.store(out + place[:, None] * C + c[None, :], acc.to(out.dtype.element_ty), mask=there)
    if SPLITS > 1:
        lse = tl.where(empty, -float("inf"), top + tl.log(tl.where(empty, 1.0, total)))
        tl.store(norm + place, lse, mask=h < H)


@triton.jit
def _merge(parts, norm, out, H, C: tl.constexpr, SPLITS: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    s = tl.arange(0, SPLITS)
    c = tl.arange(0, C)
    place = (b * SPLITS + s) * H + h
    lse = tl.load(norm + place)
    w = tl.exp(lse - tl.max(lse, 0))
    part = tl.load(parts + place[:, None] * C + c[None, :])
    mixed = tl.sum(part * w[:, None], 0) / tl.sum(w, 0)
    tl.store(out + (b * H + h) * C + c, mixed.to(out.dtype.element_ty))


def attend(q_BHK: Tensor, cache_BSK: Tensor, position_B: Tensor, C: int, scale: float, splits: int) -> Tensor:
    B, H, K = q_BHK.shape
    R = K - C
    assert q_BHK.is_contiguous() and cache_BSK.stride(2) == 1, f"{q_BHK.stride()=} {cache_BSK.stride()=}"
    out_BHC = torch.empty(B, H, C, dtype=q_BHK.dtype, device=q_BHK.device)
    many = splits > 1
    parts = torch.empty(B, splits, H, C, dtype=torch.float32, device=q_BHK.device) if many else out_BHC
    norm = torch.empty(B, splits, H, dtype=torch.float32, device=q_BHK.device) if many else out_BHC
    _attend[(B, splits)](
        q_BHK, cache_BSK, position_B, parts, norm, scale, cache_BSK.stride(0), cache_BSK.stride(1),
        H=H, C=C, R=R, SPLITS=splits, H_PAD=max(16, triton.next_power_of_2(H)), BLOCK=32 if C > 256 else 64,
        num_warps=4 if C <= 256 else 8, num_stages=2,
    )  # fmt: skip
    if many:
        _merge[(B, H)](parts, norm, out_BHC, H, C=C, SPLITS=splits)
    return out_BHC
