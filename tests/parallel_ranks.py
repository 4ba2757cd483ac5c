"""What the processes of tests/test_parallel*.py run: tiny models, so that 50 steps of every division take
seconds.

As a script (JOBS.json OUT.json) it runs jobs [processes, function of this file, arguments] one after the
other, so that torch is imported once for all of them, and writes their results."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onebase.data import Batch, Mixture, pack
from onebase.errors import UserError
from onebase.model import checkpoint
from onebase.model.config import ModelConfig
from onebase.model.transformer import Transformer, init_weights
from onebase.recipe import Optim, Parallel
from onebase.train import parallel_state, state
from onebase.train.optim import Optimizer, orthogonalise_all
from onebase.train.parallel import Place
from onebase.train.step import balance_routers, forward_backward, heldout_loss, numbers
from onebase.train.whole_matrices import on_whole, run_of

ROWS, LENGTH = 4, 16
SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "kv_lora_rank": 12,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "intermediate_size": 24,
    "moe_intermediate_size": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "initializer_range": 0.2,
}  # fmt: skip


class Rows:
    """Packed rows with unequal numbers of targets, a function of the number of the row."""

    def row(self, n: int) -> Any:
        g = torch.Generator().manual_seed(n)
        documents, room = [], LENGTH - n % 4 * 3
        while room > 1:
            length = min(room, int(torch.randint(2, 9, (), generator=g)))
            start = int(torch.randint(0, 64, (), generator=g))
            ids = [(start + 3 * i) % 64 for i in range(length)]
            documents.append((ids, [int(i > n % 3) for i in range(length)]))
            room -= length
        return pack(documents, LENGTH, 0)

    def batch(self, step: int, rows: int, chosen: Any = None) -> Batch:
        return Mixture([self], [1.0], 0).batch(step, rows, chosen)


def plant(fault: str | None, place: Any, optimizer: Any) -> None:
    """Mistakes that others have made."""
    size, add_up = place.layout.processes, place.sum
    if fault == "own targets":  # each process divides by its own targets: a mean of means

        def means(*tensors: torch.Tensor) -> None:
            for t in tensors:
                t.mul_(size) if t.dtype == torch.int64 and t.shape == (3,) else add_up(t)

        place.sum = means
    elif fault == "own loads":  # the selection bias follows the loads of one process
        place.sum = lambda *tensors: add_up(*(t for t in tensors if t.dim() < 2))
    elif fault == "experts as copies":  # the norm takes every expert shard for a copy
        for part in optimizer.parts:
            part.replicas = size if part.expert else part.replicas
    elif fault == "rows as matrices":  # Muon works on rows of matrices
        place.on_whole = lambda parts, rows, function: function(parts)
    else:
        assert fault is None


def train(case: dict[str, Any]) -> list[list[float]]:
    """[loss, MTP loss, balance loss, gradient norm] of every step.

    `folder`: goes on from the newest state there, saves after the steps in `save`.  `export`: where the whole
    model's weights are written at the end.  `heldout`: the last row is the held-out loss."""
    torch.set_num_threads(1)
    place = Place(Parallel(**case.get("parallel", {})))
    model = Transformer(ModelConfig(**(SHAPE | case.get("shape", {}))))
    init_weights(model, 1)
    model = place.shard(checkpoint.to_dtype(model, getattr(torch, case.get("dtype", "float32"))).train())
    accumulate = case.get("accumulate", 1)
    optim = Optim(name=case.get("optim", "adamw"), lr=3e-3, clip=case.get("clip", 0.5))
    optimizer = Optimizer(model.named_parameters(), optim, accumulate, place)
    plant(case.get("fault"), place, optimizer)
    folder, done = Path(case.get("folder", "")), 0
    model.recompute = case.get("recompute", False)
    if "folder" in case:
        done, extra = state.load(folder, model, optimizer, "cpu")
        assert extra == ({"seen": done} if done else {}), extra
    if case.get("there and back"):  # to the state of before the first step, as after a slow spike
        state.save(folder, 0, model, optimizer, {})
        train_on(model, optimizer, accumulate, case, range(2), [])
        parallel_state.finish(place)
        assert place.as_first(state.saved(folder)) == [0]
        state.load(folder, model, optimizer, "cpu", at=0)
    told = train_on(
        model, optimizer, accumulate, case, range(done, case.get("steps", 50)), case.get("save", [])
    )
    if case.get("heldout"):
        data: Any = Rows()
        held = [place.batch(data, 100 + i, ROWS) for i in range(2)]
        told.append([heldout_loss(model, held, True, place)])
    parallel_state.finish(place)
    if "export" in case:
        whole = parallel_state.whole_model(model, optimizer)
        if whole is not None:
            torch.save({n: t.detach().clone() for n, t in checkpoint.to_format(whole)}, case["export"])
    return told


def train_on(
    model: Any, optimizer: Optimizer, accumulate: int, case: dict[str, Any], steps: range, save: list[int]
) -> list[list[float]]:
    data: Any = Rows()
    place, told = optimizer.place, []
    for step in steps:
        sums = forward_backward(
            model, place.batch(data, step, ROWS), accumulate,
            document_mask=case.get("document_mask", True), balance_alpha=0.01, mtp_weight=0.3, place=place,
        )  # fmt: skip
        norm = optimizer.step(1.0)
        balance_routers(model, sums.load_LE, 0.01)
        told.append(numbers(sums.loss, sums.mtp, sums.balance, norm))
        if step + 1 in save:
            state.save(Path(case["folder"]), step + 1, model, optimizer, {"seen": step + 1})
    return told


def trained(cases: list[dict[str, Any]]) -> list[Any]:
    out = []
    for case in cases:
        start = time.perf_counter()
        out.append(train(case))
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(f"{time.perf_counter() - start:.1f} s  {case}", file=sys.stderr, flush=True)
    return out


def faults(which: str) -> str:
    """Run `fail` on two processes; what the parent is told, and after how many seconds."""
    from onebase.launch import on_processes

    start = time.perf_counter()
    try:
        on_processes(2, "cpu", fail, which)
    except Exception as error:
        return f"{time.perf_counter() - start:.0f} {type(error).__name__}: {error}"
    return "no error"


def fail(which: str) -> None:
    """The second process goes wrong while the first waits for it in a collective."""
    if dist.get_rank() == 1:
        if which == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if which == "user":
            raise UserError("rows.jsonl:3: not JSON")
        raise KeyError(which)
    dist.all_reduce(torch.ones(1))


def matrices_equal(seed: int) -> bool:
    """Whether Muon's updates of divided matrices are those of whole ones, for rows that divide badly too."""
    group, g = dist.group.WORLD, torch.Generator().manual_seed(seed)
    whole = [torch.randn(r, c, generator=g) for r, c in ((7, 5), (1, 4), (8, 8), (3, 9), (7, 5), (2, 2))]

    def own(m: torch.Tensor) -> torch.Tensor:
        size, rank = dist.get_world_size(), dist.get_rank()
        start = sum(run_of(len(m), size, r) for r in range(rank))
        return m[start : start + run_of(len(m), size, rank)]

    ours = on_whole([own(m) for m in whole], [len(m) for m in whole], group, orthogonalise_all)
    right = torch.tensor([all(
        torch.allclose(a, own(b), atol=1e-6) for a, b in zip(ours, orthogonalise_all(whole), strict=True)
    )]).int()  # fmt: skip
    dist.all_reduce(right)
    return int(right) == dist.get_world_size()


if __name__ == "__main__":
    from onebase.launch import on_processes

    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    results = []
    for count, name, *arguments in jobs:
        function = globals()[name]
        results.append(
            on_processes(count, "cpu", function, *arguments) if count > 1 else function(*arguments)
        )
    out.write_text(json.dumps(results))
