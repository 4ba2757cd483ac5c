"""The phases of a GRPO step: onebase beside TRL's GRPOTrainer, same folder, prompts, group size and reward.

    python benchmarks/grpo_step.py --shape small                        # a CPU, a minute
    python benchmarks/grpo_step.py --shape 698m --device cuda --json FILE
    python benchmarks/grpo_step.py --only onebase                       # without TRL

Both systems load the same folder of random weights and get the same problems under the same chat template.
Every completion is drawn to its full length in both (no stop token here, `min_new_tokens` there), so that
both make and train the same number of tokens.  The reward is a sum of coins seeded by the completion
(verifiers/random_reward.py), the same in both, and of so many values that no group is without signal.  One
optimizer step per batch, GRPO's loss, no KL, AdamW at 1e-6, so that weights stay as they are.  Each system
runs in a process of its own, one after the other: two steps to warm up, then `--steps` that count; the table
has medians.

    generate   prompt ids to completions            verify   completions to rewards
    sync       weights to the engine: none, both generate with the trainer's own
    logprobs   passes without gradient; neither needs one with one update per batch and no KL
    update     forward, loss, backward, clipping, optimizer; the new log-probabilities are part of it
    rest       what is left of the step: padding, advantages, metrics, records

onebase's side calls what grpo/train.py calls: `sample_groups`, `select`, `Update`.  TRL (1.16) generates with
its default, transformers' `generate`; its gradient checkpointing, on by default, is off unless asked for.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PHASES = ("generate", "verify", "sync", "logprobs", "update", "rest")
WARM = 2
COINS = {seed: 0.5**seed for seed in range(4)}
"""Weight of each coin, by its seed."""
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "model": {
            "vocab_size": 512, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
            "kv_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24,
            "intermediate_size": 192, "moe_intermediate_size": 48, "n_routed_experts": 8,
            "num_experts_per_tok": 2,
        },
        "prompts": 8, "group_size": 4, "tokens": 48,
    },
    "698m": {
        "model": {
            "vocab_size": 32768, "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8,
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "intermediate_size": 2816, "moe_intermediate_size": 512, "n_routed_experts": 32,
            "num_experts_per_tok": 4,
        },
        "prompts": 64, "group_size": 8, "tokens": 256,
    },
}  # fmt: skip


def make_folder(folder: Path, shape: str, dtype: str) -> None:
    from onebase import tokenizer
    from onebase.model import checkpoint
    from onebase.model.config import ModelConfig
    from onebase.model.transformer import Transformer, init_weights

    fields = SHAPES[shape]["model"] | {"num_nextn_predict_layers": 0, "n_shared_experts": 1}
    model = Transformer(ModelConfig(**fields))
    init_weights(model, 0)
    words = tokenizer.train((f"{i} plus {3 * i} makes {4 * i}\n" for i in range(300)), 300)
    checkpoint.save(folder, model.to(checkpoint.DTYPES[dtype]), words)


def problems(steps: int, count: int) -> list[list[dict[str, Any]]]:
    """Rows of each step."""
    from onebase import worlds

    stream = worlds.stream("addition", split="train", seed=0)
    flat = [
        {"problem": p.prompt, "answer": p.answer} for p, _ in zip(stream, range(steps * count), strict=False)
    ]
    return [flat[i * count : (i + 1) * count] for i in range(steps)]


class Clock:
    """Seconds of each phase of the step under way."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.steps: list[dict[str, float]] = []
        self.began = 0.0

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self.now()
        try:
            yield
        finally:
            self.seconds[name] += self.now() - start

    def begin(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.began = self.now()
        if self.device == "cuda" and len(self.steps) == WARM:
            torch.cuda.reset_peak_memory_stats()

    def end(self, remainder: str) -> None:
        """The phase `remainder` gets what no phase has had."""
        total = self.now() - self.began
        self.seconds[remainder] += total - sum(self.seconds.values())
        self.steps.append(self.seconds | {"step": total})

    def result(self, system: str, tokens: int, lengths: set[int], wanted: int) -> dict[str, Any]:
        assert lengths == {wanted}, f"{system}: completions of {sorted(lengths)} tokens, {wanted} were wanted"
        counted = self.steps[WARM:]
        median = {k: statistics.median(s[k] for s in counted) for k in (*PHASES, "step")}
        memory = torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else None
        return {
            "system": system,
            "seconds": median,
            "tokens": tokens,
            "tokens_per_second": tokens / median["step"],
            "generated_per_second": tokens / median["generate"],
            "gpu_gb": memory,
            "steps": counted,
        }


def onebase_side(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from onebase.grpo.train import Update, select
    from onebase.model import checkpoint
    from onebase.recipe import Grpo
    from onebase.rollout.groups import prompt_ids, sample_groups
    from onebase.rollout.torch_engine import TorchEngine
    from onebase.train.compiled import compile_blocks
    from onebase.train.optim import Optimizer

    rows = problems(WARM + args.steps, args.prompts)
    stage = Grpo.model_validate({
        "kind": "grpo", "init": str(folder), "data": [{"world": "addition"}], "steps": len(rows),
        "prompts": args.prompts, "group_size": args.group_size, "slots": args.prompts * args.group_size,
        "micro_tokens": args.micro_tokens, "sampling": {"max_tokens": args.tokens},
        "rewards": [
            {"verifier": "random_reward", "weight": w, "options": {"seed": seed}} for seed, w in COINS.items()
        ],
        "loss": {"name": "grpo", "advantage": "group"},
        "optim": {"lr": 1e-6, "weight_decay": 0.0},
    })  # fmt: skip
    model, tokenizer = checkpoint.load(folder, args.device, args.dtype)
    model.train()
    if args.compile:
        compile_blocks(model, dynamic=True)
    tokenizer.stop_ids = ()  # every completion to its full length
    longest = max(len(prompt_ids(tokenizer, row, stage.sampling)) for step in rows for row in step)
    engine = TorchEngine(model, tokenizer.pad_id, stage.slots, longest + args.tokens)
    optimizer = Optimizer(model.named_parameters(), stage.optim)
    update = Update(model, None, optimizer, stage, tokenizer.pad_id, args.device)
    clock, lengths, trained = Clock(args.device), set(), 0
    for step, mine in enumerate(rows):
        clock.begin()
        engine.version = step
        groups = (stage.group_size, stage.sampling, stage.rewards, 0, step)
        rollouts, metrics = sample_groups(engine, tokenizer, mine, *groups)
        clock.seconds["generate"] += metrics["seconds_generate"]
        clock.seconds["verify"] += metrics["seconds_verify"]
        samples, fate, _ = select(rollouts, stage, step)
        trained += fate.count("trained")
        with clock.phase("update"):
            update(samples, 1.0)
        clock.end("rest")
        lengths |= {len(r.rollout.completion_ids) for r in rollouts}
    many = args.prompts * args.group_size
    assert trained > 0.95 * many * len(rows), f"only {trained} of {many * len(rows)} completions were trained"
    return clock.result("onebase", many * args.tokens, lengths, args.tokens)


def trl_side(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from onebase.verifiers.random_reward import verify

    rows = [row for step in problems(WARM + args.steps, args.prompts) for row in step]
    data = Dataset.from_list([
        {"prompt": [{"role": "user", "content": r["problem"]}], "answer": r["answer"]} for r in rows
    ])  # fmt: skip
    clock, lengths, many = Clock(args.device), set(), args.prompts * args.group_size

    def reward(completions: list[Any], answer: list[str], completion_ids: list[list[int]], **_: Any) -> Any:
        lengths.update(len(ids) for ids in completion_ids)
        return [
            sum(w * (verify(c[0]["content"], a, seed=seed).reward or 0.0) for seed, w in COINS.items())
            for c, a in zip(completions, answer, strict=True)
        ]

    class Timed(GRPOTrainer):
        def _generate_single_turn(self, *a: Any, **k: Any) -> Any:
            with clock.phase("generate"):
                return super()._generate_single_turn(*a, **k)

        def _calculate_rewards(self, *a: Any, **k: Any) -> Any:
            with clock.phase("verify"):
                return super()._calculate_rewards(*a, **k)

        def _get_per_token_logps_and_entropies(self, *a: Any, **k: Any) -> Any:
            if torch.is_grad_enabled():
                return super()._get_per_token_logps_and_entropies(*a, **k)
            with clock.phase("logprobs"):
                return super()._get_per_token_logps_and_entropies(*a, **k)

        def _generate_and_score_completions(self, *a: Any, **k: Any) -> Any:
            before, start = sum(clock.seconds.values()), clock.now()
            out = super()._generate_and_score_completions(*a, **k)
            clock.seconds["rest"] += clock.now() - start - (sum(clock.seconds.values()) - before)
            return out

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end("update")

    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out, max_steps=WARM + args.steps, per_device_train_batch_size=args.trl_batch,
            gradient_accumulation_steps=many // args.trl_batch, num_generations=args.group_size,
            max_completion_length=args.tokens, temperature=1.0, top_p=1.0, top_k=0, learning_rate=1e-6,
            lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.95, beta=0.0, loss_type="grpo",
            optim="adamw_torch_fused", bf16=args.device == "cuda" and args.dtype == "bfloat16",
            use_cpu=args.device == "cpu", gradient_checkpointing=args.trl_checkpointing,
            generation_kwargs={"min_new_tokens": args.tokens}, model_init_kwargs={"dtype": args.dtype},
            shuffle_dataset=False, save_strategy="no", report_to="none", logging_steps=1000,
            disable_tqdm=True, seed=0,
        )  # fmt: skip
        trainer = Timed(
            model=str(folder), reward_funcs=reward, args=config, train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[Steps()],
        )  # fmt: skip
        trainer.train()
    tokens = many * args.tokens
    return clock.result("TRL", tokens, lengths, args.tokens)


SIDES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "onebase": onebase_side, "trl": trl_side,
}  # fmt: skip


def apart(side: str, folder: Path) -> dict[str, Any]:
    """A side in a process of its own, with this one's arguments."""
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp) / "result.json"
        words = [*sys.argv[1:], "--only", side, "--folder", str(folder), "--json", str(out)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
        if done.returncode:
            tail = "\n".join(done.stderr.splitlines()[-15:])
            print(f"{side} did not run through:\n{tail}", file=sys.stderr)
            return {"system": side, "failed": done.stderr.splitlines()[-1:]}
        got: dict[str, Any] = json.loads(out.read_text())["systems"][0]
        return got


def show(results: list[dict[str, Any]]) -> None:
    fine = [r for r in results if "seconds" in r]
    print(
        f"{'seconds':>14}" + "".join(f"{r['system']:>12}" for r in fine) + f"{'ratio':>9}" * (len(fine) == 2)
    )
    for key in (*PHASES, "step"):
        values = [r["seconds"][key] for r in fine]
        ratio = f"{values[1] / values[0]:9.2f}" if len(values) == 2 and values[0] > 1e-4 else ""
        print(f"{key:>14}" + "".join(f"{v:12.3f}" for v in values) + ratio)
    for key, name in (("tokens_per_second", "tokens/s"), ("generated_per_second", "generated/s")):
        print(f"{name:>14}" + "".join(f"{r[key]:12,.0f}" for r in fine))
    if any(r["gpu_gb"] for r in fine):
        print(f"{'GPU GB':>14}" + "".join(f"{r['gpu_gb']:12.1f}" for r in fine))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--only", choices=tuple(SIDES))
    parser.add_argument("--steps", type=int, default=3, help="steps that count (default 3)")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--group-size", type=int)
    parser.add_argument("--tokens", type=int, help="of each completion")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--micro-tokens", type=int, default=16384, help="onebase: of one forward pass")
    parser.add_argument("--trl-batch", type=int, help="TRL: completions of one forward pass")
    parser.add_argument("--trl-checkpointing", action="store_true", help="TRL: gradient checkpointing")
    parser.add_argument("--compile", action="store_true", help="onebase: blocks compiled, for any shape")
    parser.add_argument("--folder", type=Path, help="checkpoint folder; made where it is missing")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here")
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    for name in ("prompts", "group_size", "tokens"):
        setattr(args, name, getattr(args, name) or SHAPES[args.shape][name])
    many = args.prompts * args.group_size
    args.trl_batch = args.trl_batch or min(64, many)
    if many % args.trl_batch or args.trl_batch % args.group_size:
        parser.error(f"--trl-batch {args.trl_batch}: a divisor of {many} and a multiple of {args.group_size}")
    with tempfile.TemporaryDirectory() as temp:
        folder = args.folder or Path(temp) / "folder"
        if not (folder / "config.json").is_file():
            make_folder(folder, args.shape, args.dtype)
        if args.only:
            results = [SIDES[args.only](folder, args)]
        else:
            sides = ["onebase"] + ["trl"] * (importlib.util.find_spec("trl") is not None)
            if len(sides) == 1:
                print("trl is not installed (pip install trl==1.16): onebase alone", file=sys.stderr)
            results = [apart(side, folder) for side in sides]
    print(f"{args.shape}: {args.prompts} prompts x {args.group_size} x {args.tokens} tokens, {args.device}")
    show(results)
    if args.json:
        told = {"command": ["benchmarks/grpo_step.py", *sys.argv[1:]], "systems": results}
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    return int(any("failed" in r for r in results))


if __name__ == "__main__":
    raise SystemExit(main())
