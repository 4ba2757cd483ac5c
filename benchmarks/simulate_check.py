"""The simulation of `onebase plan --simulate` against a small real run.

    python benchmarks/simulate_check.py --out docs/results/simulate_check.json

Two engines as Ray actors on the CPU, a tiny model, generation ahead of a trainer (rollout/ahead.py) that
sleeps where it would train.  First the engines are measured: batches of equal length with 1 and with
`--slots` completions give the seconds of a decoding step, the sync its seconds.  Then the lengths that the
run will have are drawn once in this process (same seeds, same weights, so they are the same completions), the
simulation is given these lengths and those seconds, and only then the real run is timed: steps per hour and
the share of time that the trainer waits, over the same steps.

On a machine that does other work the measurement and the run may meet different loads; the engines are
measured before and after each run, and the difference between the two is told as the spread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

SAMPLING_TOKENS = 200
LENGTH = 256


def tiny() -> tuple[Any, Any]:
    from onebase.model.config import ModelConfig
    from onebase.model.transformer import Transformer, init_weights
    from onebase.tokenizer import train

    config = ModelConfig(
        vocab_size=288, hidden_size=64, num_hidden_layers=4, num_attention_heads=2, kv_lora_rank=24,
        qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, intermediate_size=96,
        moe_intermediate_size=32, n_routed_experts=8, num_experts_per_tok=2, num_nextn_predict_layers=0,
        max_position_embeddings=512,
    )  # fmt: skip
    model = Transformer(config)
    init_weights(model, 0, 0.5)
    return model.eval(), train((f"{i} plus {3 * i} makes {4 * i}\n" for i in range(300)), 280)


class Maker:
    """Makes the engine in its actor, from weights that travel with it."""

    def __init__(self, model: Any, slots: int, pad: int) -> None:
        self.model, self.slots, self.pad = model, slots, pad

    def __call__(self) -> Any:
        from onebase.rollout.torch_engine import TorchEngine

        return TorchEngine(self.model, self.pad, self.slots, LENGTH)


def rows_of(step: int, prompts: int) -> list[dict[str, Any]]:
    from onebase import worlds

    stream = worlds.stream("addition", split="train", seed=step)
    return [
        {"problem": p.prompt, "answer": p.answer, "family": "addition"}
        for p, _ in zip(stream, range(prompts), strict=False)
    ]


def measure(pool: Any, engines: int, slots: int, tokens: int = 80) -> tuple[float, float]:
    """(fixed, per_row): seconds of a decoding step of an engine while all engines work."""
    from onebase.rollout.engine import Request

    seconds = {}
    for rows in (1, slots):
        requests = [Request([5 + i, 9, 20], i, tokens) for i in range(engines * rows)]
        took = []
        for _ in range(3):
            start = time.perf_counter()
            pool.generate(requests)
            took.append((time.perf_counter() - start) / tokens)
        seconds[rows] = statistics.median(took)
    per_row = max(0.0, (seconds[slots] - seconds[1]) / (slots - 1))
    return max(1e-6, seconds[1] - per_row), per_row


def reply_seconds(pool: Any, engines: int, times: int = 100) -> float:
    """The driver's processor time for one reply and the next order, by orders that ask next to nothing."""
    pool.reset_cache()
    start = time.process_time()
    for _ in range(times):
        pool.reset_cache()
    return (time.process_time() - start) / (times * engines)


def real(pool: Any, model: Any, tokenizer: Any, args: argparse.Namespace, staleness: int) -> dict[str, Any]:
    """Run it: when the trainer came for each step, what it waited, how old the rollouts were."""
    from onebase.recipe import Sampling, Term
    from onebase.rollout.ahead import Ahead
    from onebase.rollout.weight_sync import WeightSync

    class Kept:
        """The pool, which a source must not close."""

        def __getattr__(self, name: str) -> Any:
            if name == "close":
                raise AttributeError(name)
            return getattr(pool, name)

    engine: Any = Kept()
    source = Ahead(
        engine, WeightSync(model, engine), tokenizer, lambda s: rows_of(s, args.prompts), args.group_size,
        Sampling(max_tokens=SAMPLING_TOKENS), [Term(verifier="worlds")], 7, args.steps, staleness,
    )  # fmt: skip
    came, waited, syncs = [], [], []
    ages: list[list[int]] = []
    try:
        for step in range(args.steps):
            came.append(time.perf_counter())
            rollouts, metrics = source.of_step(step)
            waited.append(metrics["seconds_wait"])
            syncs.append(metrics["seconds_sync"] + metrics["seconds_proof"])
            ages.append([step - r.rollout.weight_version for r in rollouts])
            time.sleep(args.train)
        came.append(time.perf_counter())
    finally:
        source.close()
    return {"came": came, "waited": waited, "sync": statistics.median(syncs), "ages": ages}


def drawn(model: Any, tokenizer: Any, args: argparse.Namespace) -> list[list[list[int]]]:
    """Lengths of the run's completions, by step, prompt and sample."""
    from onebase.recipe import Sampling
    from onebase.rollout.groups import requests_of
    from onebase.rollout.torch_engine import TorchEngine

    engine = TorchEngine(model, tokenizer.pad_id, 64, LENGTH)
    lengths = []
    for step in range(args.steps):
        rows = rows_of(step, args.prompts)
        sampling = Sampling(max_tokens=SAMPLING_TOKENS)
        got = engine.generate(requests_of(tokenizer, rows, args.group_size, sampling, 7, step))
        flat, G = [len(r.completion_ids) for r in got], args.group_size
        lengths.append([flat[i : i + G] for i in range(0, len(flat), G)])
    return lengths


def compare(
    pool: Any, model: Any, tokenizer: Any, args: argparse.Namespace, staleness: int, lengths: Any
) -> dict[str, Any]:
    from onebase.simulate import simulate
    from onebase.simulate_parts import Fleet, Job

    before = measure(pool, args.engines, args.slots)
    run = real(pool, model, tokenizer, args, staleness)
    after = measure(pool, args.engines, args.slots)
    job = Job(
        prompts=args.prompts, group_size=args.group_size, prompt_tokens=24, max_tokens=SAMPLING_TOKENS,
        staleness=staleness, steps=args.steps, train=args.train, sync=run["sync"],
    )  # fmt: skip
    guesses = {}
    for name, (fixed, per_row) in (("before", before), ("after", after)):
        fleet = Fleet(
            engines=args.engines, slots=args.slots, fixed=fixed, per_row=per_row, prefill=0.0,
            pump=pool.patience.pump, reply=args.reply,
        )  # fmt: skip
        guesses[name] = simulate(fleet, job, lambda s: lengths[s])
    start, end = run["came"][job.warm], run["came"][job.last + 1]
    counted = range(job.warm, job.last + 1)
    ages = [a for s in counted for a in run["ages"][s]]
    measured = {
        "steps_per_hour": 3600 * len(counted) / (end - start),
        "wait": sum(run["waited"][s] for s in counted) / (end - start),
        "staleness_mean": statistics.fmean(ages),
    }
    out: dict[str, Any] = {"staleness": staleness, "job": asdict(job), "measured": measured}
    for name, guess in guesses.items():
        out[f"engine_{name}"] = {"fixed": (before if name == "before" else after)[0],
                                 "per_row": (before if name == "before" else after)[1]}  # fmt: skip
        out[f"predicted_{name}"] = {k: getattr(guess, k) for k in (*measured, "busy", "filled")}
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--train", type=float, default=2.0, help="seconds that the trainer sleeps")
    parser.add_argument("--reply", type=float, default=5e-3, help="seconds of the driver for a reply")
    parser.add_argument("--staleness", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own default, 15, starves them on a busy machine
    from onebase.rollout.ray_pool import RayEngines
    from onebase.rollout.ray_start import Place

    model, tokenizer = tiny()
    lengths = drawn(model, tokenizer, args)
    flat = sorted(n for step in lengths for group in step for n in group)
    print(f"lengths: mean {statistics.fmean(flat):.0f}, median {flat[len(flat) // 2]}, longest {flat[-1]}")
    maker, results = Maker(model, args.slots, tokenizer.pad_id), []
    heads = ("staleness", "steps/h", "predicted", "and", "waits", "predicted", "and", "age", "predicted")
    print("".join(f"{h:>11}" for h in heads))
    with RayEngines(maker, args.engines, place=Place(cpus=0.5), cpus=args.engines) as pool:
        reply = reply_seconds(pool, args.engines)
        print(f"the driver: {1e3 * reply:.2f} ms of processor time for a reply")
        for _ in range(args.repeats):
            for staleness in args.staleness:
                got = compare(pool, model, tokenizer, args, staleness, lengths)
                m, a, b = got["measured"], got["predicted_before"], got["predicted_after"]
                cells = [m["steps_per_hour"], a["steps_per_hour"], b["steps_per_hour"]]
                shares = [m["wait"], a["wait"], b["wait"], m["staleness_mean"], a["staleness_mean"]]
                row = f"{staleness:11}" + "".join(f"{x:11.0f}" for x in cells)
                print(row + "".join(f"{x:11.3f}" for x in shares), flush=True)
                results.append(got)
        assert not pool.faults, pool.faults
    if args.out:
        command = ["benchmarks/simulate_check.py", *sys.argv[1:]]
        told = {"command": command, "reply": reply, "lengths": lengths, "runs": results}
        args.out.write_text(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
