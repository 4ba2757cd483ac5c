"""GRPO with an engine that is not the trainer: what routing replay and corrections are worth.

    python benchmarks/mismatch.py replay CHECKPOINT
    python benchmarks/mismatch.py train CHECKPOINT --round int4 --steps 60 --seeds 3 --out FILE.json

The engine samples from the trainer's weights in another precision (`--round`), as engines do that serve
quantised weights: `bf16` (weights and arithmetic), `float8` (e4m3, one scale per matrix), `int8` ... `int3`
(one scale per row).  The trainer is float32 throughout.

`replay` draws rollouts from a checkpoint and compares the trainer's log-probabilities of them with the
engine's, once with its own routing and once with the engine's experts replayed (R3, arXiv 2510.11370).
CHECKPOINT may be `random`: a random mixture of 32 experts, another one for each seed.

`train` runs the laptop recipe's R1-Zero stage on CHECKPOINT (runs/laptop/base/checkpoint), with `--updates`
optimizer steps per batch, in several ways:

    exact       an engine with the trainer's own weights: the ceiling
    ignored     the engine's log-probabilities are taken for the trainer's own (what goes wrong elsewhere)
    engine      the ratio is taken against the engine's log-probabilities (onebase's default)
    truncate    truncated importance sampling, token level
    mask        masked importance sampling, whole sequences (geometric mean), and IcePop's bounds
    negatives   as engine, and sequences of negative advantage that the trainer has moved away from left out
    replay      routing replay, and the ratio against the engine's log-probabilities
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

WAYS = ("exact", "ignored", "engine", "truncate", "mask", "negatives", "replay")
ROUNDS = ("bf16", "float8", "int8", "int6", "int5", "int4", "int3")
WORLDS = [{"world": "chain", "difficulty": [3, 6]}, {"world": "addition", "difficulty": [2, 4]}]
SHOWN = ("dlogp_mean", "dlogp_max", "kl_k3", "beyond_2", "ess", "router_agreement", "rerouted")


def rounded(tensor: Tensor, how: str) -> Tensor:
    """A matrix in the named precision, back in its own dtype; vectors stay."""
    if tensor.dim() < 2:
        return tensor
    if how == "bf16":
        return tensor.bfloat16().to(tensor.dtype)
    if how == "float8":
        scale = tensor.abs().amax().clamp(min=1e-12) / 448.0
        return (tensor / scale).to(torch.float8_e4m3fn).to(tensor.dtype) * scale
    most = 2 ** (int(how.removeprefix("int")) - 1) - 1
    scale = tensor.abs().amax(-1, keepdim=True).clamp(min=1e-12) / most
    return (tensor / scale).round() * scale


def engine_model(model: Any, how: str) -> Any:
    """A copy of the model as the engine holds it."""
    other = copy.deepcopy(model)
    if how == "bf16":
        other = other.bfloat16()
        for theirs, ours in zip(other.moe_layers(), model.moe_layers(), strict=True):
            theirs.gate.e_score_correction_bias = ours.gate.e_score_correction_bias.clone()  # float32 always
        return other
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(rounded(p, how))
    return other


# -- replay


@torch.no_grad()
def random_mixture(folder: Path, seed: int) -> None:
    """A folder with a random model of 5 layers and 32 experts, 2 of them chosen: weights of unit gain, no
    selection bias."""
    from onebase.model import checkpoint
    from onebase.model.config import ModelConfig
    from onebase.model.transformer import Transformer
    from onebase.tokenizer import train

    config = ModelConfig(
        vocab_size=288, hidden_size=32, num_hidden_layers=5, num_attention_heads=2, kv_lora_rank=12,
        qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6, intermediate_size=48,
        moe_intermediate_size=16, n_routed_experts=32, num_experts_per_tok=2, routed_scaling_factor=1.7,
        num_nextn_predict_layers=0, max_position_embeddings=256,
    )  # fmt: skip
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            p.copy_((1.0 if "norm" in name else 0.0) + 0.2 * noise)
        else:
            p.copy_(noise * (0.5 if "embed_tokens" in name else p.shape[-1] ** -0.5))
    checkpoint.save(folder, model, train((f"{i} plus {3 * i} makes {4 * i}\n" for i in range(300)), 280))


def replay(folder: str, how: str, prompts: int, seed: int) -> dict[str, dict[str, float]]:
    """Mismatch metrics with and without routing replay of one batch of rollouts."""
    from onebase.data import Problems
    from onebase.grpo.batch import Sample, logp_of, micro_batches
    from onebase.grpo.mismatch import Mismatch
    from onebase.model import checkpoint
    from onebase.recipe import Sampling, Source
    from onebase.rollout.groups import requests_of
    from onebase.rollout.torch_engine import TorchEngine

    model, tokenizer = checkpoint.load(folder)
    model.eval()
    problems = Problems([Source.model_validate(w) for w in WORLDS], seed, {})
    rows = [problems.item(i) for i in range(prompts)]
    requests = requests_of(tokenizer, rows, 8, Sampling(max_tokens=80), seed, 0)
    longest = max(len(r.prompt_ids) for r in requests) + 80
    engine = TorchEngine(engine_model(model, how), tokenizer.pad_id, 256, longest, record_routes=True)
    samples = [
        Sample(r.prompt_ids, r.completion_ids, r.logp_rollout, 0.0, 0, 0, r.routes)
        for r in engine.generate(requests)
    ]
    out = {}
    for name, again in (("own", False), ("replayed", True)):
        mismatch = Mismatch()
        for batch in micro_batches(samples, 16384, tokenizer.pad_id, "cpu"):
            with torch.no_grad():
                logp_NT, _, routing = logp_of(model, batch, 1.0, again)
            mismatch.add(logp_NT, batch.logp_rollout_NT, batch.mask_NT, batch.staleness_N)
            assert batch.route_NTLK is not None, f"{folder} has no routed experts"
            mismatch.add_routes(batch.route_NTLK, [r.own_NK for r in routing])
        metrics = mismatch.metrics()
        out[name] = {key: metrics[key] for key in SHOWN}
    return out


def replay_table(args: argparse.Namespace) -> list[dict[str, Any]]:
    print(f"{'engine':>8}{'seed':>5}{'routing':>10}" + "".join(f"{key:>18}" for key in SHOWN))
    results = []
    for how in args.round:
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as temp:
                base = args.base
                if str(base) == "random":
                    base = Path(temp) / "base"
                    random_mixture(base, seed)
                got = replay(str(base), how, args.prompts, seed)
            for name, m in got.items():
                print(f"{how:>8}{seed:5}{name:>10}" + "".join(f"{m[k]:18.6f}" for k in SHOWN), flush=True)
            results.append({"round": how, "seed": seed, **got})
    return results


# -- train


@dataclass(slots=True)
class Push:
    """A weight sync without the proof, which an engine of other weights would fail by intention.  With
    `stale` > 0 the engine gets the weights of that many steps ago, the worst that generation ahead of the
    trainer allows."""

    model: Any
    engine: Any
    stale: int
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def push(self, version: int) -> dict[str, float]:
        from onebase.rollout.named_weights import named_weights

        self.kept[version] = {name: t.detach().clone() for name, t in named_weights(self.model)}
        oldest = min(self.kept)
        while oldest < version - self.stale:
            del self.kept[oldest]
            oldest = min(self.kept)
        self.engine.load_weights(oldest, self.kept[oldest].items())
        return {}


def source_of(how: str, exact: bool, stale: int) -> Callable[..., Any]:
    """`make_source` of an engine that rounds the weights it is sent."""
    from onebase.rollout.source import Synchronous
    from onebase.rollout.torch_engine import TorchEngine

    class Rounding(TorchEngine):
        def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
            super().load_weights(version, ((n, t if exact else rounded(t, how)) for n, t in tensors))

    def source(run: Any, stage: Any, model: Any, tokenizer: Any, own: Any, rows_of: Any) -> Any:
        length = stage.max_prompt + stage.sampling.max_tokens
        held = copy.deepcopy(model) if exact or how != "bf16" else engine_model(model, how)
        engine = Rounding(held, tokenizer.pad_id, stage.slots, length, record_routes=True)
        groups = (tokenizer, rows_of, stage.group_size, stage.sampling, stage.rewards, run.seed)
        return Synchronous(engine, Push(model, engine, 0 if exact else stale), *groups)  # type: ignore[arg-type]

    return source


def train(args: argparse.Namespace, way: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """The metrics of one run, step by step."""
    import onebase.grpo.train as grpo
    from onebase.pipeline import run as run_recipe
    from onebase.recipe import Recipe

    def ignored(logp_old: Tensor, *_: Any) -> Tensor:
        return torch.ones_like(logp_old)

    correction = {
        "ignored": {"method": "truncate"},  # its weight is replaced by 1: the old policy is the trainer's
        "truncate": {"method": "truncate"},
        "mask": {"method": "mask", "level": "geometric"},
        "negatives": {"stale_negatives": 0.05},
        "replay": {"replay_routes": True},
    }.get(way, {})
    stage = {
        "kind": "grpo", "init": str(args.base), "data": WORLDS, "steps": args.steps, "prompts": args.prompts,
        "group_size": 8, "evaluate": [w | {"split": "heldout"} for w in WORLDS], "eval_problems": 32,
        "eval_every": 10, "sampling": {"max_tokens": 80}, "rewards": [{"verifier": "worlds"}],
        "updates": args.updates, "optim": {"lr": args.lr, "warmup": 5, "weight_decay": 0.0},
        "correction": correction, "loss": {"name": args.loss},
    }  # fmt: skip
    recipe = Recipe.model_validate(
        {"name": way, "seed": seed, "runs": str(folder), "hardware": "cpu", "stages": {"rl": stage}}
    )
    with patch.object(grpo, "make_source", source_of(args.round, way == "exact", args.stale)):
        if way == "ignored":
            with patch.object(grpo, "correction_weight", ignored):
                run_recipe(recipe, quiet=True)
        else:
            run_recipe(recipe, quiet=True)
    lines = (folder / way / "rl" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def train_table(args: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    heads = ("way", "seed", "train acc", "held best", "held last", "dlogp", "beyond 2", "ess", "agree", "s")
    print("".join(f"{head:>11}" for head in heads))
    for seed in range(args.first, args.first + args.seeds):
        for way in args.ways:
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                rows = train(args, way, seed, Path(folder))
            held = [r["eval_accuracy"] for r in rows if "eval_accuracy" in r]
            steps = [r for r in rows if "dlogp_mean" in r]
            keys = ("accuracy", "dlogp_mean", "beyond_2", "ess", "router_agreement")
            mean = {k: sum(r.get(k, float("nan")) for r in steps[-10:]) / len(steps[-10:]) for k in keys}
            numbers = (mean["accuracy"], max(held), held[-1], *(mean[k] for k in keys[1:]))
            spent = time.monotonic() - start
            print(f"{way:>11}{seed:11}" + "".join(f"{x:11.4f}" for x in (*numbers, spent)), flush=True)
            curves = {k: [round(r.get(k, float("nan")), 5) for r in rows if k in r] for k in keys}
            results.append({"way": way, "seed": seed, "held": held, "last": mean, "curves": curves})
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("replay", "train"):
        p = verbs.add_parser(name)
        p.add_argument("base", type=Path, help="checkpoint to start from")
        p.add_argument("--seeds", type=int, default=1)
        p.add_argument("--out", type=Path)
        if name == "replay":
            p.add_argument("--round", nargs="*", default=list(ROUNDS[:4]), choices=ROUNDS)
            p.add_argument("--prompts", type=int, default=32)
            continue
        p.add_argument("--round", default="float8", choices=ROUNDS)
        p.add_argument("--steps", type=int, default=60)
        p.add_argument("--prompts", type=int, default=32)
        p.add_argument("--stale", type=int, default=0, help="steps by which the engine's weights are old")
        p.add_argument("--updates", type=int, default=4)
        p.add_argument("--lr", type=float, default=3e-4)
        p.add_argument("--loss", default="grpo", choices=("grpo", "cispo", "gspo"))
        p.add_argument("--first", type=int, default=0, help="the first seed")
        p.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = replay_table(args) if args.verb == "replay" else train_table(args)
    if args.out:
        told = {"command": ["benchmarks/mismatch.py", *sys.argv[1:]], "runs": results}
        args.out.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
