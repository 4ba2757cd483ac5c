"""GRPO with an engine that is not the trainer: what corrections and routing replay are worth.

    python benchmarks/mismatch.py CHECKPOINT --steps 60 --seeds 2 --out docs/results/mismatch.json

CHECKPOINT is the base of the laptop recipe (runs/laptop/base/checkpoint).  The engine samples from the
trainer's weights rounded to float8 (e4m3, one scale per matrix), as an FP8 rollout engine does, so that a
mixture of experts chooses other experts and other tokens.  Everything else is the laptop recipe's R1-Zero
stage, with `updates` optimizer steps per batch.  Four ways to train on such rollouts:

    ignored     the engine's log-probabilities are taken for the trainer's own (what goes wrong elsewhere)
    engine      the ratio is taken against the engine's log-probabilities (onebase's default)
    truncate    truncated importance sampling, token level
    replay      routing replay, and the ratio against the engine's log-probabilities

and `exact`, an engine with the trainer's own weights, as the ceiling.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

WAYS = ("exact", "ignored", "engine", "truncate", "replay")


def float8(tensor: Tensor) -> Tensor:
    """A matrix in e4m3 with one scale, back in its own dtype; vectors stay."""
    if tensor.dim() < 2:
        return tensor
    scale = tensor.abs().amax().clamp(min=1e-12) / 448.0
    return (tensor / scale).to(torch.float8_e4m3fn).to(tensor.dtype) * scale


def run(
    base: Path, way: str, steps: int, updates: int, lr: float, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """The metrics of one run."""
    import onebase.grpo.train as grpo
    from onebase.pipeline import run as run_recipe
    from onebase.recipe import Recipe
    from onebase.rollout.source import Synchronous
    from onebase.rollout.torch_engine import TorchEngine
    from onebase.rollout.weight_sync import WeightSync

    class Float8Engine(TorchEngine):
        def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
            exact = way == "exact"
            super().load_weights(version, ((n, t if exact else float8(t)) for n, t in tensors))

    def source(run: Any, stage: Any, model: Any, tokenizer: Any, own: Any, rows_of: Any) -> Synchronous:
        length = stage.max_prompt + stage.sampling.max_tokens
        engine = Float8Engine(copy.deepcopy(model), tokenizer.pad_id, stage.slots, length, record_routes=True)
        groups = (tokenizer, rows_of, stage.group_size, stage.sampling, stage.rewards, run.seed)
        return Synchronous(engine, WeightSync(model, engine, warn=True), *groups)

    def ignored(logp_old: Tensor, *_: Any) -> Tensor:
        return torch.ones_like(logp_old)

    worlds = [{"world": "chain", "difficulty": [3, 6]}, {"world": "addition", "difficulty": [2, 4]}]
    correction = {
        "ignored": {"method": "truncate"},  # its weight is replaced by 1: the old policy is the trainer's
        "truncate": {"method": "truncate"},
        "replay": {"replay_routes": True},
    }.get(way, {})
    stage = {
        "kind": "grpo", "init": str(base), "data": worlds, "steps": steps, "prompts": 32, "group_size": 8,
        "evaluate": [w | {"split": "heldout"} for w in worlds], "eval_problems": 64, "eval_every": 10,
        "sampling": {"max_tokens": 80}, "rewards": [{"verifier": "worlds"}], "updates": updates,
        "optim": {"lr": lr, "warmup": 5, "weight_decay": 0.0}, "correction": correction,
        "loss": {"name": "grpo"},
    }  # fmt: skip
    recipe = Recipe.model_validate(
        {"name": way, "seed": seed, "runs": str(folder), "hardware": "cpu", "stages": {"rl": stage}}
    )
    with patch.object(grpo, "make_source", source):
        if way == "ignored":
            with patch.object(grpo, "correction_weight", ignored):
                run_recipe(recipe, quiet=True)
        else:
            run_recipe(recipe, quiet=True)
    lines = (folder / way / "rl" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, help="checkpoint of the laptop recipe's base")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = []
    heads = ("way", "seed", "accuracy", "best", "last", "dlogp", "beyond 2", "ess", "agree")
    print("".join(f"{head:>10}" for head in heads))
    for seed in range(args.seeds):
        for way in args.ways:
            with tempfile.TemporaryDirectory() as folder:
                rows = run(args.base, way, args.steps, args.updates, args.lr, seed, Path(folder))
            held = [r["eval_accuracy"] for r in rows if "eval_accuracy" in r]
            late = [r for r in rows if "dlogp_mean" in r][-10:]
            keys = ("accuracy", "dlogp_mean", "beyond_2", "ess", "router_agreement")
            mean = {k: sum(r.get(k, float("nan")) for r in late) / len(late) for k in keys}
            numbers = (mean["accuracy"], max(held), held[-1], *(mean[k] for k in keys[1:]))
            print(f"{way:>10}{seed:10}" + "".join(f"{x:10.4f}" for x in numbers), flush=True)
            results.append({"way": way, "seed": seed, "held": held, "last": mean, "steps": args.steps})
    if args.out:
        args.out.write_text(json.dumps({"command": sys.argv[1:], "runs": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
