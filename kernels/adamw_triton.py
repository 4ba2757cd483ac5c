"""The Triton kernel of kernels/adamw.py."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _update(p_at, m_at, v_at, g_at, c_at, at, inside, factor, mean_scale, square_scale, shrink, lr, beta1,
            beta2, eps, HAS_COPY: tl.constexpr):  # fmt: skip
    """One block; `inside` None reads and writes all of it, 16 bytes at a time."""
    g = tl.load(g_at + at, mask=inside).to(tl.float32) * factor
    m = tl.load(m_at + at, mask=inside)
    v = tl.load(v_at + at, mask=inside)
    p = tl.load(p_at + at, mask=inside)
    m += (1.0 - beta1) * (g - m)
    v = beta2 * v + (1.0 - beta2) * g * g
    p = p * shrink - lr * (m * mean_scale) / (tl.sqrt(v * square_scale) + eps)
    tl.store(m_at + at, m, mask=inside)
    tl.store(v_at + at, v, mask=inside)
    tl.store(p_at + at, p, mask=inside)
    if HAS_COPY:
        tl.store(c_at + at, p.to(c_at.dtype.element_ty), mask=inside)


@triton.jit
def _adamw(
    pointers, gradients, sizes, decays, tensors, starts, scale, ok, corrections, N, lr, beta1, beta2, eps,
    G: tl.constexpr, C: tl.constexpr, HAS_COPY: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.load(ok) != 0:
        program = tl.program_id(0)
        which = tl.load(tensors + program)
        start = tl.load(starts + program)
        size = tl.load(sizes + which)
        p_at = tl.multiple_of(tl.load(pointers + which).to(tl.pointer_type(tl.float32)), 16)
        m_at = tl.multiple_of(tl.load(pointers + N + which).to(tl.pointer_type(tl.float32)), 16)
        v_at = tl.multiple_of(tl.load(pointers + 2 * N + which).to(tl.pointer_type(tl.float32)), 16)
        c_at = tl.multiple_of(tl.load(pointers + 3 * N + which).to(tl.pointer_type(C)), 16)
        g_at = tl.multiple_of(tl.load(gradients + which).to(tl.pointer_type(G)), 16)
        factor = tl.load(scale)
        mean_scale = tl.load(corrections)
        square_scale = tl.load(corrections + 1)
        shrink = 1.0 - lr * tl.load(decays + which)
        start = tl.multiple_of(start, CHUNK)
        if start + CHUNK <= size:
            for offset in range(0, CHUNK, BLOCK):
                at = start + offset + tl.arange(0, BLOCK)
                _update(p_at, m_at, v_at, g_at, c_at, at, None, factor, mean_scale, square_scale, shrink,
                        lr, beta1, beta2, eps, HAS_COPY)  # fmt: skip
        else:
            for offset in range(0, CHUNK, BLOCK):
                at = start + offset + tl.arange(0, BLOCK)
                _update(p_at, m_at, v_at, g_at, c_at, at, at < size, factor, mean_scale, square_scale, shrink,
                        lr, beta1, beta2, eps, HAS_COPY)  # fmt: skip


def launch(
    owner: Any,
    gradients: Tensor,
    dtype: torch.dtype,
    tensor_C: Tensor,
    start_C: Tensor,
    scale: Tensor,
    ok: Tensor,
    corrections: Tensor,
    hyper: Any,
    chunk: int,
) -> None:
    _adamw[(len(tensor_C),)](
        owner.pointer_4N, gradients, owner.size_N, owner.decay_N, tensor_C, start_C, scale,
        ok.to(torch.int32), corrections, len(owner.sizes), hyper.lr, hyper.beta1, hyper.beta2, hyper.eps,
        G=TYPES[dtype], C=TYPES[owner.copy_dtype or torch.float32], HAS_COPY=owner.copy_dtype is not None,
        CHUNK=chunk, BLOCK=1024, num_warps=4,
    )  # fmt: skip
