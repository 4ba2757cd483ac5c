"""`onebase cp`: a shipped recipe to edit, or a stage's checkpoint to give away."""

from __future__ import annotations

import shutil
from pathlib import Path

from onebase import files
from onebase.errors import UserError
from onebase.pipeline import checkpoint_folder
from onebase.recipe_loader import shipped
from onebase.wording import hint, listed


def main(name: str, dest: str) -> int:
    target = Path(dest).expanduser()
    source = find(name)
    if source.is_file():
        if target.is_dir():
            target = target / source.name
        _refuse_existing(target)
        files.atomic_write(target, source.read_bytes())
    else:
        if target.is_dir():
            target = target / Path(name).name
        _refuse_existing(target)
        with files.atomic_folder(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    print(target)
    return 0


def find(name: str) -> Path:
    """The recipe file or the checkpoint folder behind a name.  `laptop/r1` is looked for under runs/ too."""
    recipes = shipped()
    if name in recipes:
        return recipes[name]
    for folder in (Path(name).expanduser(), Path("runs") / name):
        if folder.is_file() and folder.suffix in (".yaml", ".yml"):
            return folder
        found = checkpoint_folder(folder)
        if found is not None:
            return found
    stages = [str(p.parent.relative_to("runs")) for p in sorted(Path("runs").glob("*/*/checkpoint"))]
    allowed = [*recipes, *stages]
    raise UserError(
        f"cp {name}: neither a shipped recipe nor a stage with a checkpoint\n  allowed: {listed(allowed)}"
        + hint(name, allowed)
    )


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise UserError(f"{target}: exists already; onebase cp overwrites nothing. Name another place.")
