"""`onebase eval`: a recipe of one eval stage, made from the command line and run like any other."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from onebase import pipeline, recipe_loader, yaml_places
from onebase.errors import UserError
from onebase.recipe_checks import HUB_ID, world_names
from onebase.wording import hint, listed


def main(args: argparse.Namespace) -> int:
    document = yaml_places.Document(recipe(args), "onebase eval")
    for override in args.set:
        yaml_places.set_value(document, override)
    pipeline.run(recipe_loader.validate(document), fresh=args.fresh)
    return 0


def recipe(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe as a document; its name is made from the settings, so that asking the same again finds the
    answer."""
    stage = {
        "kind": "eval",
        "models": _labelled(args.checkpoints),
        "data": [_source(name, args.split) for name in args.data],
        "problems": args.problems,
        "samples": args.samples,
        "sampling": {"max_tokens": args.max_tokens, "temperature": args.temperature, "think": args.think},
        "rewards": [{"verifier": args.verifier}],
    }
    word = hashlib.sha256(json.dumps([stage, args.set], sort_keys=True).encode()).hexdigest()[:8]
    return {"name": args.name or f"eval-{word}", "stages": {"eval": stage}}


def _labelled(checkpoints: list[str]) -> dict[str, str]:
    """`LABEL=folder`, or the folder's last two names that are not `checkpoint`."""
    models: dict[str, str] = {}
    for text in checkpoints:
        label, equals, name = text.partition("=")
        if not equals:
            name = text
            label = (
                "/".join([part for part in Path(text).parts if part not in ("checkpoint", "/", "..")][-2:])
                or text
            )
        if label in models:
            raise UserError(f"{text}: the label {label!r} is given twice; write LABEL=FOLDER")
        models[label] = str(Path(name).resolve()) if Path(name).is_dir() else name
    return models


def _source(name: str, split: str) -> dict[str, Any]:
    if name in world_names():
        return {"world": name, "split": split}
    if Path(name).expanduser().exists():
        return {"path": str(Path(name).expanduser())}
    if HUB_ID.fullmatch(name.partition(":")[0]):
        return {"hub": name, "split": "test" if split == "heldout" else split}
    raise UserError(
        f"--data {name}: no world, no file, no hub id (owner/name)\n  worlds: {listed(world_names())}"
        + hint(name, world_names())
    )
