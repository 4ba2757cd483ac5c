"""Long rows divided over processes, by gathering MLA's latent.

Each of the C processes of a group holds T / C tokens of every row.  All but attention works token by token;
for attention the keys and values of the whole row are wanted, and MLA has them in small: per layer the latent
and the rotated key (512 + 64 numbers a token in V3, against 128 x 320 of expanded keys and values) are
gathered from the group, and each process expands them for itself.  The backward adds up the gradients of the
processes and hands each its own part (reduce-scatter).

The division is the one of zigzag ring attention (as in Llama 3, arXiv 2407.21783, section 3.3.2): the row
falls into 2 C pieces and process c holds pieces c and 2 C - 1 - c, so that under a causal mask all have the
same work.

Deviation: no ring and no overlap; the whole latent is gathered at once, and its expansion is repeated on
every process, C times the work of `kv_b_proj`, which falls behind attention's own work as rows get long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def pieces(T: int, size: int, rank: int) -> Tensor:
    """Positions [T / size] of the row that process `rank` holds, ascending."""
    assert T % (2 * size) == 0, f"{T=} is no multiple of 2 x {size}"
    piece_PT = torch.arange(T).view(2 * size, -1)
    return torch.cat([piece_PT[rank], piece_PT[2 * size - 1 - rank]])


class _Gather(torch.autograd.Function):
    """[B, T / C, W] of each process -> [B, T, W] in the row's order."""

    @staticmethod
    def forward(ctx: Any, x_BtW: Tensor, context: Context) -> Tensor:
        ctx.context = context
        x = x_BtW.contiguous()
        every = [torch.empty_like(x) for _ in range(context.size)]
        dist.all_gather(every, x, group=context.group)
        whole_BTW = torch.cat(every, 1)
        return whole_BTW.index_select(1, context.order(whole_BTW.shape[1], x.device).argsort())

    @staticmethod
    def backward(ctx: Any, grad_BTW: Tensor) -> tuple[Tensor, None]:
        context: Context = ctx.context
        grad = grad_BTW.index_select(1, context.order(grad_BTW.shape[1], grad_BTW.device))
        parts = [part.contiguous() for part in grad.chunk(context.size, 1)]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts, group=context.group)
        return own, None


@dataclass(slots=True)
class Context:
    group: Any
    size: int
    rank: int

    def own(self, x_BT: Tensor, dim: int = 1) -> Tensor:
        """This process's positions of a whole row's tensor."""
        return x_BT.index_select(dim, pieces(x_BT.shape[dim], self.size, self.rank).to(x_BT.device))

    def order(self, T: int, device: torch.device) -> Tensor:
        """Positions of the row in the order in which the processes hold them."""
        return torch.cat([pieces(T, self.size, c) for c in range(self.size)]).to(device)

    def gather(self, x_BtW: Tensor) -> Tensor:
        return _Gather.apply(x_BtW, self)

    def sum(self, x: Tensor) -> Tensor:
        """Summed over the group, without a gradient."""
        out = x.detach().clone()
        dist.all_reduce(out, group=self.group)
        return out
