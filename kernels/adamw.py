"""AdamW (arXiv 1711.05101) over many tensors at once: float32 masters, and beside them the copies in another
dtype that the model computes with.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      g = gradient * scale
    p <- p (1 - lr wd) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

`adamw_ref` is the specification.  The Triton kernel does a whole model in one launch and reads each number
once: gradients in their own dtype, clipping as a factor, the copy written on the way.  torch's fused AdamW
needs float32 gradients, so a bf16 model pays for three further passes (widening, clipping, copying back).
Whether the step counts (`ok`) and the clipping factor live on the device: nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

if find_spec("triton") is not None:
    from onebase.kernels import adamw_triton as triton_kernels

CHUNK = 8192  # numbers per program


@dataclass(slots=True)
class Hyper:
    lr: float
    beta1: float
    beta2: float
    eps: float


def adamw_ref(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, copy: Tensor | None, decay: float, step: float, hyper: Hyper
) -> None:
    """One tensor's update in place; `g` is scaled already, `step` counts from 1."""
    m.lerp_(g.to(m.dtype), 1 - hyper.beta1)
    v.mul_(hyper.beta2).addcmul_(g.to(v.dtype), g.to(v.dtype), value=1 - hyper.beta2)
    p.mul_(1 - hyper.lr * decay)
    mean, square = m / (1 - hyper.beta1**step), v / (1 - hyper.beta2**step)
    p.sub_(hyper.lr * mean / (square.sqrt() + hyper.eps))
    if copy is not None:
        copy.copy_(p)


class FusedAdamW:
    """The tables of a set of tensors, made once; `step` updates all of them in one launch (one per gradient
    dtype)."""

    def __init__(
        self,
        masters: Sequence[Tensor],
        means: Sequence[Tensor],
        squares: Sequence[Tensor],
        copies: Sequence[Tensor | None],
        decays: Sequence[float],
    ) -> None:
        self.kept = [masters, means, squares, copies]  # their addresses are in the tables
        self.device = masters[0].device
        self.copy_dtype = next((c.dtype for c in copies if c is not None), None)
        rows = [[p, m, v, c] for p, m, v, c in zip(masters, means, squares, copies, strict=True)]
        for p, *others in rows:
            for t in (p, *others):
                if t is not None:
                    assert p is not None and t.is_contiguous() and t.numel() == p.numel(), "not one layout"
                    assert t.data_ptr() % 16 == 0, "tensors stand on 16 bytes, as an allocation does"
            assert others[2] is None or others[2].dtype == self.copy_dtype, "copies in two dtypes"
        self.sizes = [p.numel() for p in masters]
        self.pointer_4N = torch.tensor(
            [[t.data_ptr() if t is not None else 0 for t in row] for row in rows], device=self.device
        ).T.contiguous()
        self.decay_N = torch.tensor(decays, dtype=torch.float32, device=self.device)
        self.size_N = torch.tensor(self.sizes, device=self.device)
        self.chunks: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def step(
        self, grads: Sequence[Tensor | None], scale: Tensor, ok: Tensor, step: Tensor, hyper: Hyper
    ) -> None:
        """`scale`, `ok` and `step` are scalars on the device (float32, bool, float32); `step` counts from 1.
        Tensors without a gradient are left alone."""
        by_dtype: dict[torch.dtype, list[int]] = {}
        held: list[Tensor | None] = [None if g is None else g.contiguous() for g in grads]
        for i, g in enumerate(held):
            if g is not None:
                assert g.numel() == self.sizes[i], f"{g.numel()=} {self.sizes[i]=}"
                assert g.data_ptr() % 16 == 0, "gradients stand on 16 bytes, as an allocation does"
                by_dtype.setdefault(g.dtype, []).append(i)
        count = step.double()  # 1 - 0.999^t of a small t needs more than float32
        biases = [1 / (1 - beta**count) for beta in (hyper.beta1, hyper.beta2)]
        corrections = torch.stack(biases).float()
        for dtype, members in by_dtype.items():
            pointers = torch.tensor([0 if g is None else g.data_ptr() for g in held])
            if self.device.type == "cuda":
                pointers = pointers.pin_memory().to(self.device, non_blocking=True)
            tensor_C, start_C = self._chunks(tuple(members))
            triton_kernels.launch(
                self, pointers, dtype, tensor_C, start_C, scale, ok, corrections, hyper, CHUNK
            )

    def _chunks(self, members: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if members not in self.chunks:
            places = [(i, start) for i in members for start in range(0, self.sizes[i], CHUNK)]
            table: Any = torch.tensor(places, device=self.device).T.contiguous()
            self.chunks[members] = (table[0], table[1])
        return self.chunks[members]
