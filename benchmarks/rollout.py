"""Generation on one GPU: the in-process engine beside bare vLLM, same folder, same requests.

    python benchmarks/rollout.py [--requests N] [--slots N] [--vllm] [--json FILE]

The model is benchmarks/train_step.py's, with random weights; prompts are random tokens; each request draws
exactly its own number of tokens, evenly spread over `--shortest` to `--longest`, at temperature 1.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import time
from pathlib import Path
from typing import Any

import torch

from onebase.rollout.engine import Request

PROMPT = 128


def requests_of(n: int, group: int, shortest: int, longest: int, vocab: int) -> list[Request]:
    """`n` requests, `group` to a prompt."""
    g = torch.Generator().manual_seed(1)
    prompts = torch.randint(10, vocab, (n // group, PROMPT), generator=g).tolist()
    lengths = torch.randint(shortest, longest + 1, (n,), generator=g).tolist()
    return [Request(prompts[i // group], i, lengths[i]) for i in range(n)]


def report(name: str, requests: list[Request], seconds: float, extra: dict[str, Any]) -> dict[str, Any]:
    tokens = sum(r.max_tokens for r in requests)
    memory = torch.cuda.max_memory_allocated() / 1e9
    print(f"{name:32}{tokens / seconds:12,.0f} tokens/s{seconds:9.2f} s{memory:8.1f} GB  {extra}", flush=True)
    return {"system": name, "tokens_per_second": tokens / seconds, "seconds": seconds, "gb": memory} | extra


def ours(requests: list[Request], slots: int, length: int, profile: Path | None) -> dict[str, Any]:
    from benchmarks.train_step import YARDSTICK, on_gpu
    from onebase.rollout.torch_engine import TorchEngine

    model = on_gpu(YARDSTICK)
    engine = TorchEngine(model, 0, slots, length)
    start = time.perf_counter()
    engine.generate(requests)
    first = time.perf_counter() - start
    torch.cuda.synchronize()
    host = cProfile.Profile() if profile is not None else None
    start = time.perf_counter()
    rollouts = host.runcall(engine.generate, requests) if host is not None else engine.generate(requests)
    seconds = time.perf_counter() - start
    assert [len(r.completion_ids) for r in rollouts] == [r.max_tokens for r in requests]
    if profile is not None:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            engine.generate(requests[: slots // 2])
        table = seen.key_averages().table(
            sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=110
        )
        profile.write_text(table)
        text = io.StringIO()
        pstats.Stats(host, stream=text).sort_stats("tottime").print_stats(40)
        profile.with_suffix(".host.txt").write_text(text.getvalue())
    return report(f"onebase, {slots} slots", requests, seconds, {"first_seconds": first})


def vllm(requests: list[Request], slots: int, length: int, folder: Path) -> list[dict[str, Any]]:
    """vLLM alone, then the same requests through our engine around it, then a proven weight sync."""
    from vllm import SamplingParams

    from benchmarks.train_step import YARDSTICK, on_gpu
    from onebase.rollout.vllm_engine import VLLMEngine
    from onebase.rollout.weight_sync import WeightSync

    start = time.perf_counter()
    engine = VLLMEngine(str(folder), "bfloat16", slots, length, memory_share=0.5)
    llm = engine.llm
    prompts: Any = [{"prompt_token_ids": r.prompt_ids} for r in requests]
    params = [
        SamplingParams(
            temperature=1.0, max_tokens=r.max_tokens, ignore_eos=True, detokenize=False, logprobs=0
        )
        for r in requests
    ]
    llm.generate(prompts[:slots], params[:slots], use_tqdm=False)
    first = time.perf_counter() - start
    start = time.perf_counter()
    done = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    assert [len(o.outputs[0].token_ids) for o in done] == [r.max_tokens for r in requests]
    rows = [report(f"vLLM, {slots} sequences", requests, seconds, {"first_seconds": first})]
    start = time.perf_counter()
    rollouts = engine.generate(requests)
    seconds = time.perf_counter() - start
    assert [len(r.completion_ids) for r in rollouts] == [r.max_tokens for r in requests]
    rows.append(report(f"onebase around vLLM, {slots}", requests, seconds, {}))
    sync = WeightSync(on_gpu(YARDSTICK), engine, True)
    for version in (1, 2, 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        proof = sync.push(version)
        rows.append({"system": "weight sync into vLLM", "seconds": time.perf_counter() - start} | proof)
        print(rows[-1], flush=True)
    return rows


def save_folder(folder: Path) -> None:
    from safetensors.torch import save_file

    from benchmarks.train_step import YARDSTICK, on_gpu
    from onebase.model.checkpoint import to_format

    folder.mkdir(parents=True, exist_ok=True)
    model = on_gpu(YARDSTICK)
    save_file(
        {n: t.detach().cpu().contiguous().clone() for n, t in to_format(model)}, folder / "model.safetensors"
    )
    config = YARDSTICK.to_hf(bos_token_id=0, eos_token_id=1, pad_token_id=2, dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=4096)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--slots", type=int, action="append")
    parser.add_argument("--shortest", type=int, default=256)
    parser.add_argument("--longest", type=int, default=1024)
    parser.add_argument("--vllm", action="store_true", help="vLLM instead of onebase's engine")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/yardstick"))
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    requests = requests_of(args.requests, args.group, args.shortest, args.longest, 32768)
    length = PROMPT + args.longest
    rows = []
    for slots in args.slots or [512]:
        if args.vllm:
            if not (args.folder / "config.json").is_file():
                save_folder(args.folder)
                torch.cuda.empty_cache()
            rows += vllm(requests, slots, length, args.folder)
        else:
            rows.append(ours(requests, slots, length, args.profile))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
