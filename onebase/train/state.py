"""What a stage needs to go on after any interruption: weights, optimizer, step.  Data needs nothing: it is a
function of the step.  A state appears whole or not at all, and an older one stays until the newer one is
whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from onebase.errors import UserError
from onebase.files import atomic_folder
from onebase.train.optim import Optimizer


def save(
    folder: Path, step: int, model: torch.nn.Module, optimizer: Optimizer, extra: dict[str, Any]
) -> None:
    """Write `folder/step_N`; earlier states are removed afterwards."""
    target = folder / f"step_{step:08d}"
    with atomic_folder(target) as aside:
        state = {"step": step, "optimizer": optimizer.state_dict(), "extra": extra}
        state["model"] = {n: t for n, t in model.state_dict().items()}
        torch.save(state, aside / "state.pt")
    for old in folder.glob("step_*"):
        if old.name < target.name:
            shutil.rmtree(old, ignore_errors=True)


def load(
    folder: Path, model: torch.nn.Module, optimizer: Optimizer, device: str
) -> tuple[int, dict[str, Any]]:
    """Put the newest whole state into model and optimizer; (steps done, extra), or (0, {}) where there is
    none."""
    for path in sorted(folder.glob("step_*"), reverse=True):
        file = path / "state.pt"
        if not file.is_file():
            continue
        try:
            state = torch.load(file, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            return int(state["step"]), state["extra"]
        except (RuntimeError, LookupError, EOFError, OSError, ValueError, TypeError, UnpicklingError) as e:
            lines = str(e).strip().splitlines() or [type(e).__name__]
            raise UserError(
                f"{file}: does not fit this stage or is damaged ({lines[0]}). "
                "Run the stage again with --fresh to start over."
            ) from e
    return 0, {}
