"""What to say to a stage that ran out of memory: settings that fit, by the plan's estimate.

The estimate (`plan.py`) is not the truth, and what was just tried did not fit: where the estimate of the
settings that failed is below what the machine has, it is scaled up until it is not, and so are all others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from onebase import plan
from onebase.files import human_bytes
from onebase.recipe import Recipe

SHARE = 0.9
"""Of the memory that there is: allocators leave gaps."""


def capacity(device: str) -> int:
    """Bytes that this process may have: on a GPU those that are free or its own, else the machine's
    memory."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def advice(recipe: Recipe, name: str, have: int | None = None) -> str:
    """Lines of an error message; `have` bytes (None: asks the device)."""
    if have is None:
        have = capacity(_device(recipe))
    tried = estimate(recipe, name, {})
    end = "\n  the stage goes on from its last whole checkpoint"
    if not tried:
        return "  smaller: batch.rows, batch.length, micro_tokens, slots, sampling.max_tokens" + end
    factor = max(1.0, have / tried)
    told = f"  estimated for these settings: {human_bytes(tried)}; here: {human_bytes(have)}"
    if factor > 1:
        told += f" (so the estimate is too low, and is taken times {factor:.2g} below)"
    for same, changes in alternatives(recipe, name):
        needed = estimate(recipe, name, changes) * factor
        if needed <= SHARE * have:
            words = "the same result" if same else "another result"
            settings = " ".join(f"--set stages.{name}.{k}={str(v).lower()}" for k, v in changes.items())
            return f"{told}\n  fits with {words}, about {human_bytes(needed)}: {settings}{end}"
    return f"{told}\n  no smaller batch fits by the estimate: take a smaller model or a larger device{end}"


def alternatives(recipe: Recipe, name: str) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Settings that need less memory, the dearest in time or the most different last: (whether the result
    stays the same, dotted field -> value)."""
    stage = recipe.stages[name]
    if stage.kind in ("pretrain", "sft"):
        rows, now = stage.batch.rows, stage.batch.accumulate
        micros = list(_halves(-(-rows // now)))
        for micro in micros:
            yield True, {"batch.accumulate": -(-rows // micro)}
        again: dict[str, Any] = {"batch.recompute": True}
        if not stage.batch.recompute:
            yield True, again
            for micro in micros:
                yield True, again | {"batch.accumulate": -(-rows // micro)}
        for length in _halves(stage.batch.length, least=32):
            yield False, again | {"batch.accumulate": rows, "batch.length": length}
        return
    fields = [f for f in ("micro_tokens", "slots") if f in type(stage).model_fields]
    values = {f: [getattr(stage, f), *_halves(getattr(stage, f))] for f in fields}
    for step in range(1, max(len(v) for v in values.values())):
        yield True, {f: v[min(step, len(v) - 1)] for f, v in values.items()}


def _halves(n: int, least: int = 1) -> Iterator[int]:
    while n > least:
        n = -(-n // 2)
        yield n


def estimate(recipe: Recipe, name: str, changes: dict[str, Any]) -> int:
    """Bytes by the plan, with the stage's fields changed; 0 where the model's size is not known."""
    stage: Any = recipe.stages[name]
    for key, value in changes.items():
        section, _, field = key.rpartition(".")
        inner = getattr(stage, section).model_copy(update={field: value}) if section else value
        stage = stage.model_copy(update={section or field: inner})
    changed = recipe.model_copy(update={"stages": {**recipe.stages, name: stage}})
    return plan.plan(changed, [name])[0].memory


def _device(recipe: Recipe) -> str:
    from onebase.pipeline import pick_device

    return pick_device(recipe.hardware)
