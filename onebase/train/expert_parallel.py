"""Experts divided over processes: tokens travel to the owner of their expert and back, by all-to-all.

With S processes in a group and E experts, process s holds experts [s E/S, (s+1) E/S) (expert parallelism as
in GShard, arXiv 2006.16668, section 3; DeepSeek-V3, arXiv 2412.19437, section 3.2).  Rows leave sorted by
expert, hence by owner; nothing is dropped or padded:

    counts to all -> rows out (meanwhile: the shared expert) -> own experts -> rows back -> weighted sum

The exchange is two autograd nodes, `_Start` and `_Wait`.  Between them, in the forward, the shared expert
runs; the backward visits the nodes in reverse order of their making, so that the gradients' exchange is
begun, the shared expert's backward runs, and then it is waited for.  With NCCL the exchange is on NCCL's own
stream; with gloo on its threads.  Rows that come home are weighted here, so that the gate's gradient stays
with its router.

Deviations: DeepSeek sends a token once per node and fans out there, and keeps its counts on the device; here
K copies travel and the split sizes are read on the host, one synchronisation per layer and pass. Letters: N
tokens, K choices, M = N K rows sent, R rows received, D model, E experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from onebase.kernels.expert_rows import Rows, by_expert
from onebase.model.moe import _Rows


@dataclass(slots=True)
class Exchange:
    """One all-to-all under way.  `sent` and `received` are rows to and from each process of the group."""

    group: Any
    sent: list[int]
    received: list[int]
    work: Any = None
    kept: Any = None
    """Tensors that the transport still reads or writes."""


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        out_RD = x_MD.new_empty(sum(exchange.received), x_MD.shape[1])
        exchange.kept = x_MD.contiguous()
        exchange.work = dist.all_to_all_single(
            out_RD, exchange.kept, exchange.received, exchange.sent, group=exchange.group, async_op=True
        )
        return out_RD

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        exchange: Exchange = ctx.exchange
        exchange.work.wait()
        (grad_MD, _), exchange.kept = exchange.kept, None
        return grad_MD, None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.work.wait()
        exchange.kept = None
        return x_RD.view_as(x_RD)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None]:
        exchange: Exchange = ctx.exchange
        grad_RD = grad_RD.contiguous()
        grad_MD = grad_RD.new_empty(sum(exchange.sent), grad_RD.shape[1])
        exchange.kept = (grad_MD, grad_RD)
        exchange.work = dist.all_to_all_single(
            grad_MD, grad_RD, exchange.sent, exchange.received, group=exchange.group, async_op=True
        )
        return grad_RD, None  # not read: `_Start` hands out what arrived


@dataclass(slots=True)
class ExpertParallel:
    """The way to experts that stand in the processes of `group`; called in place of `Experts`."""

    group: Any
    size: int

    @torch.compiler.disable
    def __call__(
        self,
        experts: Callable[..., Tensor],
        shared: Callable[[Tensor], Tensor],
        x_ND: Tensor,
        gate_NK: Tensor,
        rows: Rows,
    ) -> Tensor:
        """shared(x) plus the gated sum over the chosen experts.  `experts` holds this process's E / size;
        `rows` is this process's own order by expert.  Every process of the group must call."""
        K, E = gate_NK.shape[1], rows.count_E.shape[0]
        assert E % self.size == 0, f"{E} experts, {self.size} processes"
        own = E // self.size
        theirs_SE = torch.empty_like(rows.count_E)  # rows that each process sends to each of mine
        dist.all_to_all_single(theirs_SE, rows.count_E.contiguous(), group=self.group)
        theirs_SE = theirs_SE.view(self.size, own)
        splits = torch.stack([rows.count_E.view(self.size, own).sum(1), theirs_SE.sum(1)])
        sent, received = splits.tolist()  # the one host synchronisation

        out = Exchange(self.group, sent, received)
        moving = _Start.apply(_Rows.apply(x_ND, rows.order_M, rows.back_M, K), out)
        shared_ND = shared(x_ND)
        x_RD = _Wait.apply(moving, out)

        R = sum(received)
        expert_R = torch.arange(own, device=x_RD.device).repeat(self.size)
        expert_R = expert_R.repeat_interleave(theirs_SE.flatten(), output_size=R)
        one_R1 = torch.ones(R, 1, dtype=gate_NK.dtype, device=x_RD.device)
        y_RD = experts(x_RD, one_R1, by_expert(expert_R[:, None], own))

        home = Exchange(self.group, received, sent)
        y_MD = _Wait.apply(_Start.apply(y_RD, home), home)
        y_NKD = _Rows.apply(y_MD, rows.back_M, rows.order_M, 1).unflatten(0, (-1, K))
        return torch.bmm(gate_NK.to(y_NKD.dtype).unsqueeze(1), y_NKD)[:, 0] + shared_ND
