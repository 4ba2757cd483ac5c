"""What a stage was made from, and whether that is still what the recipe says.

`made.json` is written when a stage starts and holds everything that decides its result: its section, the
parts of the recipe that reach it, and the same of the stages it needs.
`done.json` is written when it is finished, with its summary numbers.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onebase import files, graph
from onebase.errors import UserError
from onebase.recipe import Recipe
from onebase.wording import given

# Fields that change cost, memory or how often something is written, not the result: a stage goes on under
# another value.
NEUTRAL = {"checkpoint_every", "eval_every", "slots", "micro_tokens", "accumulate", "recompute", "workers"}


def inputs(recipe: Recipe, name: str, only_set: bool = False) -> dict[str, Any]:
    """Everything in the recipe that decides the result of a stage, but for its parents' own inputs.

    `only_set` leaves out what stands at its default.
    """
    stage = recipe.stages[name]
    data: dict[str, Any] = {"seed": recipe.seed, "dtype": recipe.dtype}
    if stage.kind == "pretrain" and stage.init is None:
        data["tokenizer"] = recipe.tokenizer.model_dump(mode="json", exclude_defaults=only_set)
        data["model"] = recipe.model.model_dump(mode="json", exclude_defaults=only_set)
    data["stages"] = {name: stage.model_dump(mode="json", exclude_defaults=only_set)}
    return data


def lineage(recipe: Recipe, name: str) -> dict[str, Any]:
    """A stage's inputs and those of everything it needs."""
    parents = {parent: lineage(recipe, parent) for parent in graph.parents(recipe.stages, name)}
    return {"inputs": inputs(recipe, name), "parents": parents}


def _flat(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key; neutral fields are left out."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from _flat(child, (*keys, str(key)))
    elif not keys or keys[-1] not in NEUTRAL:
        yield ".".join(keys), value


def changes(recipe: Recipe, name: str, made: dict[str, Any]) -> list[str]:
    """Fields that differ between a recorded lineage and the recipe, in words.

    A field that the record lacks and that stands at its default is no change: a newer version added it.
    """
    missing = object()
    before = dict(_flat(made["inputs"]))
    now = dict(_flat(inputs(recipe, name)))
    was_set = dict(_flat(inputs(recipe, name, only_set=True)))
    told = []
    for key in [*now, *(k for k in before if k not in now)]:
        old, new = before.get(key, missing), now.get(key, missing)
        if old != new and (old is not missing or key in was_set):
            words = ["not there" if side is missing else given(side) for side in (old, new)]
            told.append(f"{key}: was {words[0]}, is {words[1]}")
    recorded = made["parents"]
    for parent in graph.parents(recipe.stages, name):
        if parent not in recorded:
            told.append(f"it needs {parent}, which it did not before")
        elif changes(recipe, parent, recorded[parent]):
            told.append(f"it needs {parent}, which changed")
    return told


def check_unchanged(recipe: Recipe, folder: Path, todo: list[str], renewed: list[str]) -> None:
    """Raises UserError naming every stage that was begun or finished from something else than the recipe now
    says.

    `renewed` stages are about to be made again, so they may differ; what was made from them may not.
    """
    stale: dict[str, list[str]] = {}
    for name in todo:
        path = folder / name / "made.json"
        made = read_json(path)
        if made is not None and not {"inputs", "parents"} <= made.keys():
            raise UserError(f"{path}: not written by onebase; --fresh {name} makes the stage again")
        told = changes(recipe, name, made) if made and name not in renewed else []
        if told:
            stale[name] = told
    if not stale:
        return
    lines = [
        f"  {name} ({'finished' if is_done(folder / name) else 'begun'}): {line}"
        for name in stale
        for line in stale[name]
    ]
    again = [n for n in recipe.stages if n in stale or n in renewed]
    raise UserError(
        f"{folder}: the recipe changed since these stages ran:\n" + "\n".join(lines) + "\n"
        f"  to make them again (their folders are removed): --fresh {' '.join(again)}\n"
        "  to keep them: undo the change, or give the run another name: --set name=OTHER"
    )


def write_made(recipe: Recipe, folder: Path, name: str) -> None:
    """Note what the stage is made from.  A stage that goes on after a break keeps its first note."""
    path = folder / name / "made.json"
    if path.is_file():
        return
    parents = graph.parents(recipe.stages, name)
    note = lineage(recipe, name) | {
        "parents_finished": {p: (read_json(folder / p / "done.json") or {}).get("finished") for p in parents},
        "begun": now(),
    }
    files.atomic_write(path, to_json(note))


def older_parents(recipe: Recipe, folder: Path, name: str) -> list[str]:
    """Parents that were made again, from the same inputs, since this stage was made."""
    made = read_json(folder / name / "made.json") or {}
    before = made.get("parents_finished", {})
    return [
        p for p, when in before.items() if (read_json(folder / p / "done.json") or {}).get("finished") != when
    ]


def write_done(recipe: Recipe, folder: Path, name: str, numbers: dict[str, float], seconds: float) -> None:
    note = {
        "kind": recipe.stages[name].kind,
        "summary": numbers or {},
        "seconds": round(seconds, 1),
        "finished": now(),
    }
    files.atomic_write(folder / name / "done.json", to_json(note))


def is_done(own: Path) -> bool:
    return (own / "done.json").is_file()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file.  UserError where it is not readable."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(value, dict)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"{path}: not a JSON object any more; remove the file to have it made again"
        ) from error
    return value


def to_json(value: Any) -> str:
    return json.dumps(files.finite(value), indent=1, ensure_ascii=False) + "\n"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def versions(device: str) -> dict[str, Any]:
    """Python, libraries, commit and hardware, for the run's record."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for package in ("onebase", "torch", "transformers", "tokenizers", "datasets", "vllm", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    hardware: dict[str, Any] = {"cores": os.cpu_count(), "machine": platform.machine(), "device": device}
    if hasattr(os, "sched_getaffinity"):
        hardware["usable_cores"] = len(os.sched_getaffinity(0))
    if device == "cuda":
        import torch

        hardware["gpus"] = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        hardware["cuda"] = torch.version.cuda
    return {
        "started": now(),
        "python": platform.python_version(),
        "packages": found,
        "commit": commit(),
        "hardware": hardware,
        "system": platform.platform(),
    }


def commit() -> str | None:
    """The source's git commit, with `+changes` when files differ from it; None outside a clone."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("rev-parse", "--show-toplevel") != str(root):
        return None
    head = git("rev-parse", "HEAD")
    return f"{head}+changes" if git("status", "--porcelain", "--untracked-files=no") else head
