"""Training on several processes: who holds what, and the few sums that make N processes train as one.

A process stands in three divisions at once (`Layout`):

    rows      process r of P works on rows (r // context) + n P / context of every step
    context   neighbours divide every row's tokens (context.py)
    experts   neighbours divide every layer's experts (expert_parallel.py)

and in mode `fsdp` every other weight, its gradient and its optimizer state are divided over all P, block by
block (FSDP2, `torch.distributed.fsdp.fully_shard`; ZeRO stage 3, arXiv 1910.02054), the experts over the P /
expert processes that hold the same ones.  In mode `data` they are copies, and gradients are added up in
buckets while the backward still runs.

Every loss here is a sum over targets divided by the number of targets of the whole step, over all processes
and micro-batches.  So gradients, losses and loads are *added* over processes and never averaged; what one
process would have computed comes out, whatever the division.

Deviation from the issue's wording: torch.distributed directly, not through accelerate, whose FSDP2 plug-in
wraps the model and optimizer as one and has no place for experts on a mesh of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onebase.data import Batch, Mixture, sent
from onebase.errors import UserError
from onebase.model.transformer import Transformer
from onebase.train.context import Context
from onebase.train.expert_parallel import ExpertParallel
from onebase.train.whole_matrices import on_whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from onebase.recipe import Parallel as Section

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
BUCKET_BYTES = 32 << 20  # of gradients that are added up together


@dataclass(frozen=True, slots=True)
class Layout:
    """Which rows, tokens and experts a process has; pure arithmetic."""

    processes: int = 1
    expert: int = 1
    context: int = 1
    rank: int = 0

    @property
    def row_groups(self) -> int:
        return self.processes // self.context

    @property
    def row_group(self) -> int:
        return self.rank // self.context

    def rows(self, rows: int) -> range:
        """Rows of a step of `rows` that this process works on; all processes' together are each row once."""
        return range(self.row_group, rows, self.row_groups)

    def experts(self, count: int) -> slice:
        own = count // self.expert
        return slice(self.rank % self.expert * own, (self.rank % self.expert + 1) * own)


class Place:
    """This process's place among the others; alone, everything here is the identity."""

    def __init__(self, section: Section | None = None, device: str = "cpu") -> None:
        """Inside a process group of the section's size, or alone."""
        self.layout = Layout()
        self.sharded = False
        self.device = device
        self.context: Context | None = None
        self.world: DeviceMesh | None = None
        self.writing: list[Future[Any]] = []
        """What waits for the state that is being written (parallel_state.py)."""
        self._reductions: list[Reduction] = []
        self._by_expert: DeviceMesh | None = None
        self.dtype = torch.float32
        if section is None or section.processes == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh

        P = dist.get_world_size()
        assert section.processes == P, f"{section.processes=}, but the process group has {P}"
        self.layout = Layout(P, section.expert, section.context, dist.get_rank())
        self.sharded = section.mode == "fsdp"
        # for files: waits are long there, and a thread may use it while training goes on
        self.files_group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        kind = device.partition(":")[0]
        self.world = init_device_mesh(kind, (P,), mesh_dim_names=("world",))
        self.experts = init_device_mesh(
            kind, (P // section.expert, section.expert), mesh_dim_names=("replica", "expert")
        )
        if section.context > 1:
            split = init_device_mesh(
                kind, (P // section.context, section.context), mesh_dim_names=("rows", "context")
            )
            C = split["context"]
            self.context = Context(C.get_group(), section.context, C.get_local_rank())

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.layout.rank == 0

    @property
    def alone(self) -> bool:
        return self.layout.processes == 1

    @property
    def whole_blocks(self) -> bool:
        """Whether blocks are what they are on one process (and may be compiled)."""
        return not self.divides_weights and self.context is None

    @property
    def divides_weights(self) -> bool:
        return self.sharded or self.layout.expert > 1

    # -- sums

    def sum(self, *tensors: Tensor) -> None:
        """Add up over all processes, in place."""
        if not self.alone:
            for t in tensors:
                dist.all_reduce(t)

    def max(self, t: Tensor) -> Tensor:
        """Largest over all processes, in place."""
        if not self.alone:
            dist.all_reduce(t, dist.ReduceOp.MAX)
        return t

    def any(self, here: bool) -> bool:
        """Whether it is so on any process; the same answer on all."""
        return here if self.alone else bool(self.max(torch.tensor(int(here))))

    def as_first(self, value: T) -> T:
        """The first process's value, on all."""
        box = [value]
        if not self.alone:
            dist.broadcast_object_list(box, src=0, group=self.files_group)
        return box[0]

    @contextmanager
    def first_then_others(self) -> Iterator[None]:
        """What writes files is done by the first process; the others then find it done."""
        if not self.first:
            dist.barrier(self.files_group)
        yield
        if self.first and not self.alone:
            dist.barrier(self.files_group)

    def own(self, x_BT: Tensor) -> Tensor:
        """This process's positions of whole rows."""
        return x_BT if self.context is None else self.context.own(x_BT)

    # -- data

    def batch(self, data: Mixture, step: int, rows: int) -> Batch:
        """This process's rows of a step.  Under context parallelism they are whole: the model divides
        them."""
        return data.batch(step, rows) if self.alone else data.batch(step, rows, self.layout.rows(rows))

    # -- model

    def shard(self, model: M) -> M:
        """Divide the model's weights; every process holds the same whole model before, its part
        afterwards."""
        self.dtype = next(model.parameters()).dtype
        if self.alone:
            return model
        if isinstance(model, Transformer):
            if self.layout.expert > 1:
                self._divide_experts(model)
            if self.context is not None:
                model.divide_context(self.context)
            if self.sharded:
                self._fully_shard(model)
        elif self.divides_weights or self.context is not None:
            raise UserError(
                "parallel: mode fsdp, expert and context divide deepseek_v3 models only; `init` is another\n"
                "  allowed: mode data with expert=1 and context=1, or a deepseek_v3 folder as init"
            )
        return model

    def _divide_experts(self, model: Transformer) -> None:
        E, size = model.config.n_routed_experts, self.layout.expert
        if E % size:
            raise UserError(
                f"parallel.expert: given {size}, but a layer's {E} experts (model.n_routed_experts) are not "
                "divisible by it"
            )
        own = self.layout.experts(E)
        dispatch = ExpertParallel(self.experts["expert"].get_group(), size)
        for layer in model.moe_layers():
            layer.dispatch = dispatch
            for name, p in layer.experts.named_parameters():
                setattr(layer.experts, name, nn.Parameter(p.detach()[own].clone()))

    def _fully_shard(self, model: Transformer) -> None:
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        for p in model.parameters():  # the shards are the masters
            p.data = p.data.float()
        # nothing here changes a block's output in place, which is what torch warns of
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        policy = MixedPrecisionPolicy(
            param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        assert self.world is not None
        if self.layout.expert > 1:
            for layer in model.moe_layers():
                fully_shard(layer.experts, mesh=self.experts["replica"], mp_policy=policy)
        # the prediction block is entered by `predict`, not by a call: its two halves are
        halves = [] if model.mtp is None else [model.mtp.self_attn, model.mtp.mlp]
        for block in [*model.blocks(), *halves]:
            fully_shard(block, mesh=self.world, mp_policy=policy)
        fully_shard(model, mesh=self.world, mp_policy=policy)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # losses are divided by the step's targets already
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum

    def forget_gathered(self, model: nn.Module) -> None:
        """After the weights were changed from outside: what FSDP2 has gathered of them is old."""
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules() if self.sharded else ():
            if isinstance(module, FSDPModule):
                module.reshard()

    def parts(self, named: Iterable[tuple[str, nn.Parameter]]) -> list[Part]:
        """Every parameter with where it lives; to be asked once, after `shard`."""
        out = []
        for name, p in named:
            expert = self.layout.expert > 1 and ".experts." in name
            replicas = 1
            if not self.sharded:
                replicas = self.layout.processes // (self.layout.expert if expert else 1)
            local = nn.Parameter(_local(p.detach())) if self.sharded else p
            out.append(Part(name, p, local, expert, replicas, self._whole_shape(p, expert)))
        return out

    def _whole_shape(self, p: Tensor, expert: bool) -> torch.Size:
        return torch.Size([p.shape[0] * self.layout.expert, *p.shape[1:]]) if expert else p.shape

    def take(self, whole: Tensor, part: Part) -> Tensor:
        """This process's part of a whole parameter's tensor."""
        if part.expert:
            whole = whole[self.layout.experts(len(whole))]
        if not self.sharded:
            return whole
        assert self.world is not None
        mesh = self.experts["replica"] if part.expert else self.world
        run = -(-len(whole) // mesh.size())  # as FSDP2 divides: the last ones may have fewer or none
        return whole[mesh.get_local_rank() * run : (mesh.get_local_rank() + 1) * run]

    def as_part(self, t: Tensor, part: Part) -> Tensor:
        """A tensor that belongs to a parameter, described as this process's part of the whole (a DTensor)."""
        if not (self.sharded or part.expert):
            return t
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Replicate, Shard

        assert self.world is not None
        mesh = self.world
        placements: list[Any] = [Shard(0)]
        if part.expert:  # first over processes with different experts, then over those with the same
            ranks = self.experts.mesh.t().contiguous()
            mesh = self._by_expert = self._by_expert or DeviceMesh(self.world.device_type, ranks)
            placements = [Shard(0), Shard(0) if self.sharded else Replicate()]
        stride = torch.empty(part.whole, device="meta").stride()
        return DTensor.from_local(t, mesh, placements, run_check=False, shape=part.whole, stride=stride)

    # -- gradients

    def reduce_as_they_come(
        self, parts: list[Part], masters: list[Tensor], micro_batches: int | None
    ) -> None:
        """Mode `data`: add up the masters' gradients over their replicas, while the step's last backward
        runs (`micro_batches` None: after it)."""
        if self.alone or self.sharded:
            return
        for expert in (False, True):
            group = self.experts["replica"].get_group() if expert else dist.group.WORLD
            chosen = [(p.param, m) for p, m in zip(parts, masters, strict=True) if p.expert == expert]
            if chosen and dist.get_world_size(group) > 1:
                self._reductions.append(Reduction(chosen, group, micro_batches))

    def on_whole(
        self, parts: list[Tensor], rows: list[int], function: Callable[[list[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """`function` of whole matrices whose rows are divided over all processes (whole_matrices.py)."""
        return on_whole(parts, rows, dist.group.WORLD, function)

    def finish_gradients(self, parts: list[Part]) -> None:
        """After a step's last backward: every gradient is the sum over all processes, in the optimizer's
        hands."""
        for reduction in self._reductions:
            reduction.finish()
        if self.sharded:
            for part in parts:
                grad, part.param.grad = part.param.grad, None
                part.local.grad = None if grad is None else _aligned(_local(grad))

    def gradient_norm(self, parts: list[Part], grads: list[Tensor | None]) -> Tensor:
        """Of the whole gradient, float32: each number counts once, however many processes hold a copy of
        it."""
        pairs = [(g, p.replicas) for p, g in zip(parts, grads, strict=True) if g is not None]
        norm_N = torch.stack(torch._foreach_norm([g for g, _ in pairs], 2, dtype=torch.float32))
        if self.alone:
            return torch.linalg.vector_norm(norm_N)
        share_N = torch.tensor([1 / replicas for _, replicas in pairs])
        square = (norm_N.square() * sent(share_N, norm_N.device)).sum()
        self.sum(square)
        return square.sqrt()


def _local(t: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    assert isinstance(t, DTensor)
    return t.to_local()


def _aligned(t: Tensor) -> Tensor:
    """FSDP2 hands out gradients as pieces of one buffer; our AdamW kernel reads 16 bytes at a time."""
    return t if t.data_ptr() % 16 == 0 else t.clone()


@dataclass(slots=True)
class Part:
    """One parameter as this process has it."""

    name: str
    param: nn.Parameter
    """The model's; under FSDP2 a DTensor."""
    local: nn.Parameter
    """What this process holds of it, on the same memory; what the optimizer is given."""
    expert: bool
    """Whether it is a stack of experts that is divided over processes."""
    replicas: int
    """How many processes hold the same numbers."""
    whole: torch.Size
    """Shape of the whole parameter."""

    @property
    def divided_rows(self) -> bool:
        """Whether this process holds some rows of one matrix (and not some matrices of a stack)."""
        return self.param is not self.local and len(self.whole) == 2


class Reduction:
    """Gradients added up over a group in buckets, in the order in which a backward makes them.

    A bucket is sent as soon as all its gradients have had their `micro_batches` additions and all buckets
    before it are sent, so that every process sends in the same order.  What never got a gradient is left out:
    the same on every process, because the graph does not depend on the data."""

    def __init__(
        self, pairs: list[tuple[nn.Parameter, Tensor]], group: Any, micro_batches: int | None
    ) -> None:
        self.group, self.micro_batches = group, micro_batches or 1 << 30
        self.buckets: list[list[Tensor]] = [[]]
        size = 0
        for p, master in reversed(pairs):
            if size > BUCKET_BYTES:
                self.buckets.append([])
                size = 0
            size += master.numel() * 4
            self.buckets[-1].append(master)
            p.register_post_accumulate_grad_hook(self._counter(len(self.buckets) - 1))
        self.left: list[int] = []
        self._begin()

    def _begin(self) -> None:
        self.left = [len(b) * self.micro_batches for b in self.buckets]
        self.sent: list[tuple[list[Tensor], Tensor, Any]] = []

    def _counter(self, bucket: int) -> Callable[[Tensor], None]:
        def count(_: Tensor) -> None:
            self.left[bucket] -= 1
            while len(self.sent) < len(self.buckets) and self.left[len(self.sent)] == 0:
                self._send()

        return count

    def _send(self) -> None:
        grads = [m.grad for m in self.buckets[len(self.sent)] if m.grad is not None]
        flat = torch.cat([g.flatten() for g in grads]) if grads else torch.empty(0)
        work = dist.all_reduce(flat, group=self.group, async_op=True) if grads else None
        self.sent.append((grads, flat, work))

    @torch.no_grad()
    def finish(self) -> None:
        while len(self.sent) < len(self.buckets):
            self._send()
        for grads, flat, work in self.sent:
            if work is not None:
                work.wait()
                for g, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                    g.copy_(piece.view_as(g))
        self._begin()


ALONE = Place()


def here(section: Section, device: str) -> Place:
    """This process's place: in the process group that was made for the stage, or alone."""
    return Place(section, device) if dist.is_initialized() else ALONE
