"""What a stage needs to go on after any interruption: weights, optimizer, step, and what its loop keeps. Data
need nothing: they are a function of the step and of the windows left out, which are among what the loop
keeps. A state appears whole or not at all, and an older one stays until the newer one is whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import torch

from onebase.errors import UserError
from onebase.files import atomic_folder, folder_bytes
from onebase.train import parallel_state
from onebase.train.optim import Optimizer
from onebase.train.spikes import kept_states


def save(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: Optimizer,
    extra: dict[str, Any],
    back: int = 0,
) -> None:
    """Write `folder/step_N`; afterwards earlier states are removed, but for those that a return by up to
    `back` steps may need (at most three; `kept_states`)."""
    if not optimizer.place.alone:
        parallel_state.save(folder, step, model, optimizer, extra, lambda: _thin(folder, step, back))
        return
    target = folder / f"step_{step:08d}"
    size = max((folder_bytes(folder / f"step_{s:08d}") for s in saved(folder)), default=0)
    with atomic_folder(target, size) as aside:
        state = {"step": step, "optimizer": optimizer.state_dict(), "extra": extra}
        state["model"] = {n: t for n, t in model.state_dict().items()}
        with open(aside / "state.pt", "wb") as f:
            writer = _Writer(f)
            try:
                torch.save(state, cast(IO[bytes], writer))
            except RuntimeError as error:  # torch tells that a write failed, but not why
                raise writer.error or error from error
    _thin(folder, step, back)


def _thin(folder: Path, step: int, back: int) -> None:
    older = [s for s in saved(folder) if s <= step]
    drop(folder, [s for s in older if s not in kept_states(older, back)])


class _Writer:
    """A file for torch.save that remembers what went wrong."""

    def __init__(self, f: IO[bytes]) -> None:
        self.f = f
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.f.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.f.flush()


def saved(folder: Path) -> list[int]:
    """Steps of the whole states, rising."""
    found = (p.name.removeprefix("step_") for p in folder.glob("step_*") if (p / "state.pt").is_file())
    return sorted(int(n) for n in found if n.isdigit())


def drop(folder: Path, steps: list[int]) -> None:
    """Remove states, the newest first: what is left at any moment is the beginning of what was there."""
    for step in sorted(steps, reverse=True):
        shutil.rmtree(folder / f"step_{step:08d}", ignore_errors=True)


def load(
    folder: Path, model: torch.nn.Module, optimizer: Optimizer, device: str, at: int | None = None
) -> tuple[int, dict[str, Any]]:
    """Put the newest whole state, or the one `at` a step, into model and optimizer; (steps done, extra), or
    (0, {}) where there is none.  It does not matter how many processes saved it."""
    steps = saved(folder)
    if at is None and not steps:
        return 0, {}
    file = folder / f"step_{steps[-1] if at is None else at:08d}" / "state.pt"
    try:
        state = torch.load(file, map_location=device, weights_only=True)
        if (file.parent / parallel_state.SHARDS).is_dir():
            parallel_state.load_shards(file.parent, model, optimizer)
        elif optimizer.place.alone:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        else:
            parallel_state.load_whole(state, model, optimizer)
        return int(state["step"]), state["extra"]
    except (RuntimeError, LookupError, EOFError, OSError, ValueError, TypeError, UnpicklingError) as e:
        lines = str(e).strip().splitlines() or [type(e).__name__]
        raise UserError(
            f"{file}: does not fit this stage or is damaged ({lines[0]}). "
            "Run the stage again with --fresh to start over."
        ) from e
