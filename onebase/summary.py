"""The end of a run on the screen: the table of the eval stage, one problem answered by every model, the
report's path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebase.recipe import Recipe
from onebase.stage_state import read_json

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

OPEN, CLOSE = "<think>", "</think>"


def show(recipe: Recipe, folder: Path, stages: list[str], report: Path) -> None:
    """Print every eval stage among `stages`, and where the report lies."""
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    for name in stages:
        found = read_json(folder / name / "eval.json") if recipe.stages[name].kind == "eval" else None
        if not found:
            continue
        console.print()
        console.print(table(found["models"]))
        sample = found.get("sample")
        if sample:
            console.print("\none of the problems", style="bold")
            console.print(Padding(str(sample["problem"]), (0, 0, 0, 2)), markup=False)
            for label, text in sample["outputs"].items():
                console.print(f"{label}", style="bold", markup=False)
                console.print(Padding(apart(text), (0, 0, 0, 2)))
    console.print(f"\nreport: {report}", soft_wrap=True, markup=False)


def table(models: dict[str, dict[str, Any]]) -> Table:
    """Model, greedy accuracy with its interval, pass@k of the largest k, mean tokens, truncated share."""
    from rich.table import Table

    keys = [key for key in next(iter(models.values()), {}) if key.startswith("pass@")]
    several = sorted(keys, key=lambda key: int(key[5:]))[-1:]
    result = Table(box=None, pad_edge=False)
    result.add_column("model")
    for column in ("greedy", "95 % interval", *several, "mean tokens", "truncated"):
        result.add_column(column, justify="right")
    for label, row in models.items():
        low, high = row.get("ci95") or (None, None)
        cells = [_percent(row.get("greedy")), "" if low is None else f"{_percent(low)} - {_percent(high)}"]
        cells += [_percent(row.get(key)) for key in several]
        tokens = row.get("mean_tokens")
        cells += ["" if tokens is None else f"{tokens:.0f}", _percent(row.get("truncated"))]
        result.add_row(label, *cells)
    return result


def apart(text: str) -> Text:
    """A completion with its thought dim and italic, so that it stands apart from the answer."""
    from rich.text import Text

    result = Text()
    thought, closed, answer = text.partition(CLOSE)
    if not closed and OPEN not in text:
        return result.append(text.strip())
    before, _, inner = thought.rpartition(OPEN)
    if before.strip():
        result.append(before.strip() + "\n")
    result.append(inner.strip() or "(no thought)", style="dim italic")
    if closed:
        return result.append("\n" + answer.strip())
    return result.append("\n(cut off while thinking)", style="dim")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
