"""`onebase ls`: runs with the state of their stages; shipped recipes; worlds; verifiers."""

from __future__ import annotations

from pathlib import Path

from onebase.errors import UserError
from onebase.wording import hint


def main(what: str) -> int:
    from rich.console import Console
    from rich.table import Table

    if what == "recipes":
        columns: tuple[str, ...] = ("recipe", "what it is")
        rows = recipes()
    elif what == "worlds":
        columns, rows = ("world", "what it asks", "styles"), worlds()
    elif what == "verifiers":
        columns, rows = ("verifier", "what it judges"), verifiers()
    else:
        folder = Path(what).expanduser()
        if not folder.is_dir() and what == "runs":
            print(f"no runs yet in {Path.cwd()}; `onebase run laptop` makes one")
            return 0
        if not folder.is_dir():
            words = ["runs", "recipes", "worlds", "verifiers"]
            raise UserError(
                f"ls {what}: no such folder\n  allowed: {', '.join(words)} or a folder" + hint(what, words)
            )
        columns, rows = ("run", "stage", "kind", "state", "numbers"), runs(folder)
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)
    return 0


def first_line(text: str | None) -> str:
    """The first sentence or line of a docstring or comment block."""
    return (text or "").strip().split("\n")[0].strip()


def recipes() -> list[tuple[str, ...]]:
    """Shipped recipes with the first comment line of their file."""
    from onebase.recipe_loader import shipped

    rows: list[tuple[str, ...]] = []
    for name, path in shipped().items():
        head = path.read_text(encoding="utf-8").split("\n")[0]
        rows.append((name, head.removeprefix("#").strip() if head.startswith("#") else ""))
    return rows


def worlds() -> list[tuple[str, ...]]:
    from onebase.worlds import FAMILIES

    return [
        (
            name,
            f"{family.description} (default {family.default[0]} to {family.default[1]})",
            ", ".join(family.styles),
        )
        for name, family in sorted(FAMILIES.items())
    ]


def verifiers() -> list[tuple[str, ...]]:
    """Built-ins (their module's first line, read without importing it) and plug-ins."""
    import ast

    from onebase.verifiers import registry

    folder = Path(registry.__file__).parent
    rows: list[tuple[str, ...]] = []
    for name in registry.builtin_names():
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        rows.append((name, first_line(ast.get_docstring(tree))))
    rows += [(name, f"plug-in {point.value}") for name, point in sorted(registry.plugins().items())]
    return rows


def runs(folder: Path) -> list[tuple[str, ...]]:
    """Every run below the folder, its stages in the order of its recipe."""
    from onebase import yaml_places

    rows: list[tuple[str, ...]] = []
    found = sorted(folder.glob("*/recipe.resolved.yaml")) or sorted(folder.glob("recipe.resolved.yaml"))
    for path in found:
        stages = yaml_places.read(path).data.get("stages", {})
        for n, (name, stage) in enumerate(stages.items()):
            state, numbers = stage_line(path.parent / name)
            rows.append(
                (path.parent.name if n == 0 else "", name, str(stage.get("kind", "")), state, numbers)
            )
    return rows


def stage_line(own: Path) -> tuple[str, str]:
    """(state, summary numbers) of one stage's folder."""
    from onebase.files import read_jsonl
    from onebase.stage_state import read_json

    done = read_json(own / "done.json")
    if done:
        numbers = done.get("summary", {})
        told = "  ".join(
            f"{key} {value:.4g}" for key, value in list(numbers.items())[:4] if isinstance(value, float | int)
        )
        return "finished", told
    if not (own / "made.json").is_file():
        return "not begun", ""
    rows = read_jsonl(own / "metrics.jsonl")
    return (f"at step {rows[-1].get('step')}" if rows else "begun"), ""
