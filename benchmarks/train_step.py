"""Training step of a 698M-A180M model on one GPU: onebase beside transformers, same weights, same batch.

    python benchmarks/train_step.py [--json FILE] [--only NAME] [--profile FILE]

A step is forward, backward, balance loss (onebase), clipping and fused AdamW in bf16 on random tokens with
the routers as they are; nothing is dropped.  Times are medians over `--steps` steps after warming up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.data import Batch
from onebase.model.checkpoint import to_dtype
from onebase.model.config import ModelConfig
from onebase.model.transformer import Transformer
from onebase.recipe import Optim
from onebase.train.compiled import compile_blocks
from onebase.train.flops import GPU_PEAKS, train_flops_per_token
from onebase.train.optim import Optimizer
from onebase.train.step import Later, balance_routers, forward_backward

YARDSTICK = ModelConfig(
    vocab_size=32768,
    hidden_size=1024,
    num_hidden_layers=12,
    num_attention_heads=8,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    intermediate_size=2816,
    moe_intermediate_size=512,
    n_routed_experts=32,
    num_experts_per_tok=4,
    n_shared_experts=1,
    num_nextn_predict_layers=0,
)


def batch_of(rows: int, length: int, vocab: int, seed: int = 0) -> Batch:
    ids = torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))
    place = torch.arange(length).expand_as(ids)
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), place, torch.zeros_like(ids))


def ours(config: ModelConfig, batch: Batch, compiled: bool) -> tuple[Callable[[], Later], Any]:
    model = on_gpu(config).train()
    if compiled:
        compile_blocks(model)
    optimizer = Optimizer(model.named_parameters(), Optim(), 1)

    def step() -> Later:
        sums = forward_backward(model, batch, 1, document_mask=False, balance_alpha=1e-4, mtp_weight=0.0)
        norm = optimizer.step(1.0)
        worst, drift = balance_routers(model, sums.load_LE, 1e-3)
        return Later(sums.loss, norm, worst, drift)

    return step, model


@torch.no_grad()
def on_gpu(config: ModelConfig) -> Transformer:
    """bf16, with weights as `init_weights` makes them but drawn on the GPU: 700 million numbers take the CPU
    long."""
    with torch.device("cuda"):
        model = Transformer(config)
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.fill_(1.0 if "norm" in name else 0.0)
        else:
            p.normal_(0, config.initializer_range)
    return to_dtype(model, torch.bfloat16)


def theirs(config: ModelConfig, batch: Batch, compiled: bool) -> tuple[Callable[[], Later], Any]:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    hf_config = DeepseekV3Config(
        **config.to_hf(bos_token_id=0, eos_token_id=1, pad_token_id=2, dtype="bfloat16")
    )
    hf_config._attn_implementation = "sdpa"
    if compiled:
        hf_config._experts_implementation = "grouped_mm"
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = DeepseekV3ForCausalLM(hf_config).bfloat16().train()
    runs: Any = torch.compile(model) if compiled else model
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids: Tensor = batch.ids_BT.cuda()

    def step() -> Later:
        loss = runs(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        return Later(loss, norm)

    return step, model


def measure(step: Callable[[], Later], steps: int, warm: int) -> tuple[list[float], list[float]]:
    for _ in range(warm):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    before, start = step(), time.perf_counter()
    for _ in range(steps):
        now = step()
        before.read()  # as the training loop does: a step's numbers while the next one runs
        seconds.append(time.perf_counter() - start)
        before, start = now, time.perf_counter()
    return seconds, before.read()


def profile(step: Callable[[], Later], file: Path) -> None:
    """Seconds by kernel over three steps."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    table = seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=110)
    file.write_text(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm", type=int, default=4)
    parser.add_argument(
        "--only", action="append", help="onebase, onebase-eager, transformers, transformers-compiled"
    )
    parser.add_argument("--profile", type=Path, help="write onebase's kernels here")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    batch = batch_of(args.rows, args.length, YARDSTICK.vocab_size)
    tokens = args.rows * args.length
    peak = next((p for k, p in GPU_PEAKS.items() if k in torch.cuda.get_device_name()), 989e12)
    flops = train_flops_per_token(YARDSTICK, args.length, False)
    kinds: dict[str, Any] = {
        "transformers": lambda: theirs(YARDSTICK, batch, False),
        "transformers-compiled": lambda: theirs(YARDSTICK, batch, True),
        "onebase-eager": lambda: ours(YARDSTICK, batch, False),
        "onebase": lambda: ours(YARDSTICK, batch, True),
    }
    rows = []
    for name, make in kinds.items():
        if args.only and name not in args.only:
            continue
        torch.cuda.empty_cache()
        start = time.perf_counter()
        step, model = make()
        seconds, last = measure(step, args.steps, args.warm)
        rate = tokens / statistics.median(seconds)
        memory = torch.cuda.max_memory_allocated() / 1e9
        rows.append(
            {"system": name, "tokens_per_second": rate, "mfu": rate * flops / peak, "memory_gb": memory}
            | {"seconds": seconds, "last": last}
        )
        print(
            f"{name:24}{rate:12,.0f} tokens/s{1e3 * statistics.median(seconds):8.1f} ms"
            f"{rate * flops / peak:8.1%} of peak{memory:8.1f} GB   {[round(x, 3) for x in last]} "
            f"({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
        if args.profile and name == "onebase":
            profile(step, args.profile)
        del step, model
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
