"""States of a stage that several processes write together and any number of processes reads.

    step_N/state.pt    step, and what the loop keeps
    step_N/shards/     masters and optimizer state by parameter (torch.distributed.checkpoint)

Every tensor is saved under its parameter's name and whole shape, each process writing its own part of it, so
that a run may go on with other numbers: of processes, of experts per process, sharded or not.

Saving copies this process's part to memory at once and writes it from a thread while training goes on; the
folder gets its name when every process has written.  A state that a kill leaves half written keeps its other
name and is removed at the next start."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from onebase.errors import UserError
from onebase.files import atomic_folder
from onebase.model import checkpoint
from onebase.model.moe import Router
from onebase.model.transformer import Transformer
from onebase.train.optim import Optimizer
from onebase.train.parallel import Place

M = TypeVar("M", bound=torch.nn.Module)
SHARDS, SMALL = "shards", "state.pt"
SLOTS = ("exp_avg", "exp_avg_sq")


def tensors(place: Place, model: torch.nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Everything that decides the future, by name; the tensors that training works on, not copies.  Those of
    a parameter are described as parts of the whole one."""
    out: dict[str, Tensor] = {}
    for part, master in zip(optimizer.parts, optimizer.masters, strict=True):
        out[f"master.{part.name}"] = place.as_part(master.detach(), part)
        if part.name in optimizer.momentum:
            out[f"momentum.{part.name}"] = place.as_part(optimizer.momentum[part.name], part)
        state = optimizer.adamw.state.get(master)
        if state:
            for slot in SLOTS:
                out[f"{slot}.{part.name}"] = place.as_part(state[slot], part)
            out[f"steps.{part.name}"] = state["step"]
    for name, module in model.named_modules():
        if isinstance(module, Router):
            out[f"bias.{name}"] = module.e_score_correction_bias
    return out


def save(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: Optimizer,
    extra: dict[str, Any],
    after: Callable[[], None],
) -> None:
    """Begin to write `folder/step_N`; the first process calls `after` when it is there.  Every process must
    call. An error of the save before is raised now."""
    import torch.distributed.checkpoint as dcp

    place = optimizer.place
    finish(place)
    target = folder / f"step_{step:08d}"
    aside = folder / f".shards_{step}.part"
    if place.first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True, exist_ok=True)
        torch.save({"step": step, "extra": extra}, aside / SMALL)
    copies = {name: _copy(t) for name, t in tensors(place, model, optimizer).items()}
    answer = dcp.async_save(copies, checkpoint_id=aside / SHARDS, process_group=place.files_group)
    assert isinstance(answer, Future)
    place.writing = [answer]
    if place.first:
        place.writing.append(_when_written(answer, aside, target, after))


def finish(place: Place) -> None:
    """Wait for the state that this process is writing."""
    pending, place.writing = place.writing, []
    for future in pending:
        future.result()


def _when_written(written: Future[Any], aside: Path, target: Path, after: Callable[[], None]) -> Future[None]:
    """Done when the folder has its name; failed where the writing was."""
    named: Future[None] = Future()

    def name(done: Future[Any]) -> None:
        try:
            done.result()
            with atomic_folder(target) as whole:
                for path in aside.iterdir():
                    path.rename(whole / path.name)
            aside.rmdir()
            after()
            named.set_result(None)
        except BaseException as error:
            named.set_exception(error)

    written.add_done_callback(name)
    return named


def _copy(t: Tensor) -> Tensor:
    return t.clone() if t.device.type == "cpu" else t  # from a GPU, async_save copies to the host itself


def load_shards(path: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Fill model and optimizer from `path`/shards.  Every process must call."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.api import CheckpointException

    place = optimizer.place
    where = path / SHARDS
    try:
        saved = set(FileSystemReader(where).read_metadata().state_dict_metadata)
        _prepare(optimizer, saved)
        wanted = tensors(place, model, optimizer)
        missing, extra = sorted(wanted.keys() - saved), sorted(saved - wanted.keys())
        if missing or extra:
            name = (missing or extra)[0]
            raise ValueError(f"{name} is {'missing' if missing else 'not part of this model'}")
        group = None if place.alone else place.files_group
        dcp.load(wanted, checkpoint_id=where, process_group=group, no_dist=place.alone)
    except (CheckpointException, RuntimeError, LookupError, EOFError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{where}: does not fit this stage or is damaged ({lines[-1]}). "
            "Run the stage again with --fresh to start over."
        ) from error
    with torch.no_grad():
        for part, master in zip(optimizer.parts, optimizer.masters, strict=True):
            if master is not part.local:
                part.local.copy_(master)
    place.forget_gathered(model)


@torch.no_grad()
def load_whole(saved: dict[str, Any], model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Fill model and optimizer, which are divided, from what one process saved for itself."""
    place, kept = optimizer.place, saved["optimizer"]
    optimizer.fused = None  # its tables point at the old state
    order = [id(m) for group in optimizer.adamw.param_groups for m in group["params"]]
    for part, master, whole in zip(optimizer.parts, optimizer.masters, kept["masters"], strict=True):
        master.copy_(place.take(whole, part))
        if master is not part.local:
            part.local.copy_(master)
        if part.name in optimizer.momentum:
            optimizer.momentum[part.name].copy_(place.take(kept["momentum"][part.name], part))
        elif (slots := kept["adamw"]["state"].get(order.index(id(master)))) is None:
            optimizer.adamw.state.pop(master, None)
        else:
            own = {slot: place.take(slots[slot], part).clone() for slot in SLOTS}
            optimizer.adamw.state[master] = {"step": slots["step"], **own}
    for name, module in model.named_modules():
        if isinstance(module, Router):
            module.e_score_correction_bias.copy_(saved["model"][f"{name}.e_score_correction_bias"])
    place.forget_gathered(model)


def _prepare(optimizer: Optimizer, saved: set[str]) -> None:
    """AdamW's state where the saved run had some, and only there: torch makes it at the first step."""
    optimizer.fused = None  # its tables point at the old state
    for part, master in zip(optimizer.parts, optimizer.masters, strict=True):
        if f"steps.{part.name}" not in saved:
            optimizer.adamw.state.pop(master, None)
        elif not optimizer.adamw.state.get(master):
            zeros = {slot: torch.zeros_like(master) for slot in SLOTS}
            optimizer.adamw.state[master] = {"step": torch.zeros((), device=master.device), **zeros}


@torch.no_grad()
def whole_model(model: M, optimizer: Optimizer) -> M | None:
    """The model in one piece, on the first process's host memory; None on the others.  Every process must
    call."""
    place = optimizer.place
    finish(place)
    if not place.divides_weights:
        return model if place.first else None
    assert isinstance(model, Transformer)
    config, buffers = model.config, dict(model.named_buffers())
    whole = checkpoint.to_dtype(Transformer(config), place.dtype) if place.first else None
    targets = {} if whole is None else dict(whole.named_parameters())
    for part, master in zip(optimizer.parts, optimizer.masters, strict=True):
        full = _full(place.as_part(master.detach(), part))
        if whole is not None:
            targets[part.name].copy_(full)
    if whole is not None:
        for name, buffer in whole.named_buffers():
            buffer.data = buffers[name].detach().cpu().clone()
    return cast("M | None", whole)


def _full(t: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    # experts are gathered in two steps, which torch tells at length
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    return t.full_tensor() if isinstance(t, DTensor) else t
