"""What a stage's `main(run)` is handed.  The recipe object reaches `main` only; below it functions take plain
values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onebase.log import RunLog
    from onebase.recipe import Recipe


class Preempted(KeyboardInterrupt):
    """The process was told to end (SIGTERM), and the stage has saved its state first."""

    code = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again


@dataclass(slots=True)
class Preemption:
    """SIGTERM as a wish: a stage that sets `heeded` looks at `wanted` after every step, saves and raises
    Preempted. A second SIGTERM ends it at once, as the first one does in all other stages."""

    heeded: bool = False
    wanted: bool = False


@dataclass(slots=True)
class StageRun:
    recipe: Recipe
    name: str
    """The stage's name in the recipe."""
    stage: Any
    """Its section: Pretrain, Sft, Grpo, RejectSample or Eval."""
    folder: Path
    """runs/<recipe>/<stage>: `checkpoint/` or `rows.jsonl` or `eval.json` is the output, `state/` serves a
    resume."""
    init: str | None
    """Resolved checkpoint folder (of a stage or of the user) or hub id."""
    folders: dict[str, Path]
    """Every stage's folder by name."""
    log: RunLog
    device: str
    """cpu or cuda."""
    preemption: Preemption = field(default_factory=Preemption)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.recipe.seed + int(self.stage.seed)
