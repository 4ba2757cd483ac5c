"""What a run will cost, told before it starts: tokens, parameters, memory, minutes, stage by stage.

Parameters follow from the config by closed formulas and are exact.  Memory and minutes are estimates:

    memory    fp32 weights + two moments + gradient (16 bytes a parameter), a bf16 copy where asked for, what
              one micro-batch keeps for the backward pass, the logits and their gradient; for rollouts the
              weights and the latent cache of every slot
    minutes   6 FLOP per active parameter and trained token (Kaplan et al., arXiv 2001.08361, section 2.1),
              2 per generated one, attention added, over the speed of one matmul of the model's own size that
              is timed here for a moment, times the share of that speed that the loops reach (TRAIN_SHARE,
              DECODE_SHARE).  Generated tokens are an upper bound: every completion as long as allowed.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebase import graph
from onebase.files import human_bytes
from onebase.model.config import ModelConfig
from onebase.recipe import Recipe

TRAIN_SHARE = 0.35
"""Share of the matmul's speed that a training step reaches (0.33 to 0.43 was seen on a CPU at widths 96 and
256); routing, norms and the optimizer take the rest."""
DECODE_SHARE = 0.15
"""The same for generation, whose steps are many small operations (0.12 to 0.27 was seen)."""
PROCESS_BYTES = 600_000_000
"""Python with torch and transformers loaded."""
CALIBRATION_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Size:
    """Of a model: parameters, and what one token costs."""

    total: int
    active: int
    """Without the routed experts that a token is not sent to."""
    hidden: int
    layers: int
    vocab: int
    kept_per_token: int
    """Numbers that the layers keep for the backward pass."""
    cached_per_token: int
    """Numbers in the cache for generation."""
    attention_per_token: int
    """FLOP of one token's forward attention, for each token it looks at."""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    kind: str
    init: str
    steps: int
    trained: int
    """Tokens through forward and backward."""
    generated: int
    """Most tokens that can be sampled."""
    size: Size | None
    memory: int
    minutes: float | None
    finished: bool


def parameters(config: ModelConfig) -> tuple[int, int]:
    """(total, active) parameters, the multi-token prediction layer included."""
    c, D = config, config.hidden_size
    H, qk = c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
    latent = c.kv_lora_rank + c.qk_rope_head_dim
    if c.q_lora_rank is None:
        query = D * H * qk
    else:
        query = D * c.q_lora_rank + c.q_lora_rank + c.q_lora_rank * H * qk
    attention = query + D * latent + c.kv_lora_rank + c.kv_lora_rank * H * (c.qk_nope_head_dim + c.v_head_dim)
    attention += H * c.v_head_dim * D
    if c.attention_bias:
        attention += (c.q_lora_rank or 0) + latent + D
    block = attention + 2 * D
    expert = 3 * D * c.moe_intermediate_size
    dense_layers = min(c.first_k_dense_replace, c.num_hidden_layers)
    moe_layers = c.num_hidden_layers - dense_layers + c.num_nextn_predict_layers
    fixed = c.vocab_size * D * (1 if c.tie_word_embeddings else 2) + D
    fixed += c.num_nextn_predict_layers * (2 * D * D + 3 * D)  # eh_proj and three norms
    fixed += (dense_layers + moe_layers) * block + dense_layers * 3 * D * c.intermediate_size
    fixed += moe_layers * (c.n_routed_experts * D + c.n_shared_experts * expert)
    return (
        fixed + moe_layers * c.n_routed_experts * expert,
        fixed + moe_layers * c.num_experts_per_tok * expert,
    )


def size_of(config: ModelConfig) -> Size:
    c = config
    total, active = parameters(c)
    H, qk = c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
    layers = c.num_hidden_layers + c.num_nextn_predict_layers
    wide = (c.num_experts_per_tok + c.n_shared_experts) * 3 * c.moe_intermediate_size
    kept = 8 * c.hidden_size + H * (3 * qk + 3 * c.v_head_dim) + 2 * c.kv_lora_rank + wide
    return Size(
        total=total,
        active=active,
        hidden=c.hidden_size,
        layers=layers,
        vocab=c.vocab_size,
        kept_per_token=layers * kept,
        cached_per_token=c.num_hidden_layers * (c.kv_lora_rank + c.qk_rope_head_dim),
        attention_per_token=layers * 2 * H * (qk + c.v_head_dim),
    )


def size_of_folder(folder: Path) -> Size | None:
    """From a checkpoint folder's config.json and safetensors headers; None where they are not to be found."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if config.get("model_type") == "deepseek_v3":
        return size_of(ModelConfig.from_hf(config, str(folder / "config.json")))
    total = sum(_safetensors_numbers(file) for file in folder.glob("*.safetensors"))
    hidden, layers = config.get("hidden_size"), config.get("num_hidden_layers")
    if not (total and hidden and layers):
        return None
    heads = config.get("num_attention_heads") or 1
    head = config.get("head_dim") or hidden // heads
    kv = 2 * (config.get("num_key_value_heads") or heads) * head
    wide = 3 * (config.get("intermediate_size") or 4 * hidden)
    return Size(
        total=total,
        active=total,
        hidden=hidden,
        layers=layers,
        vocab=config.get("vocab_size") or 0,
        kept_per_token=layers * (8 * hidden + 2 * kv + wide),
        cached_per_token=layers * kv,
        attention_per_token=layers * 4 * heads * head,
    )


def _safetensors_numbers(file: Path) -> int:
    with open(file, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            count = 1
            for n in entry["shape"]:
                count *= n
            total += count
    return total


def plan(
    recipe: Recipe, todo: list[str] | None = None, finished: Iterable[str] = (), flops: float | None = None
) -> list[Row]:
    """One row per stage in running order.  `flops`: matmul FLOP per second here; None leaves the minutes
    out."""
    done = set(finished)
    return [
        _row(recipe, name, name in done, flops)
        for name in (todo if todo is not None else graph.order(recipe.stages))
    ]


def _row(recipe: Recipe, name: str, finished: bool, flops: float | None) -> Row:
    stage = recipe.stages[name]
    trained, generated, cached = _tokens(stage)
    sizes = [_size(recipe, origin) for origin in (stage.models.values() if stage.kind == "eval" else [name])]
    size = max((s for s in sizes if s), key=lambda s: s.total, default=None)
    if stage.kind == "eval":
        init = f"{len(stage.models)} models"
    else:
        init = stage.init or "new model"
    return Row(
        name=name,
        kind=stage.kind,
        init=init,
        steps=getattr(stage, "steps", 0),
        trained=trained,
        generated=generated,
        size=size,
        memory=_memory(recipe, stage, size, cached) if size else 0,
        minutes=_seconds(stage, size, trained, generated, flops) / 60 if size and flops else None,
        finished=finished,
    )


def _tokens(stage: Any) -> tuple[int, int, int]:
    """(trained, most generated, most in the rollout cache)."""
    match stage.kind:
        case "pretrain" | "sft":
            return stage.steps * stage.batch.rows * stage.batch.length, 0, 0
        case "grpo":
            drawn = stage.steps * stage.prompts * stage.group_size * stage.sampling.max_tokens
            checks = stage.steps // stage.eval_every + 1
            held = checks * stage.eval_problems * len(stage.evaluate) * stage.sampling.max_tokens
            return drawn * stage.updates, drawn + held, stage.slots * stage.sampling.max_tokens
        case "reject_sample":
            drawn = stage.problems * stage.samples * stage.sampling.max_tokens
            return 0, drawn, stage.slots * stage.sampling.max_tokens
        case "eval":
            drawn = len(stage.models) * len(stage.data) * stage.problems * (stage.samples + 1)
            return 0, drawn * stage.sampling.max_tokens, stage.slots * stage.sampling.max_tokens
    return 0, 0, 0


def _size(recipe: Recipe, origin: str) -> Size | None:
    """Size of a stage's model, found by going back to where its weights come from."""
    seen = origin
    while seen in recipe.stages:
        init = recipe.stages[seen].init
        if init is None:
            if recipe.stages[seen].kind != "pretrain":
                return None
            vocab = -(-recipe.tokenizer.vocab_size // 8) * 8  # at most; rounded up as pretrain/train.py does
            return size_of(recipe.model.model_copy(update={"vocab_size": vocab}))
        seen = init
    folder = Path(seen).expanduser()
    inner = folder / "checkpoint"
    return size_of_folder(inner if inner.is_dir() else folder)


def _memory(recipe: Recipe, stage: Any, size: Size, cached: int) -> int:
    width = 2 if recipe.dtype == "bfloat16" else 4
    total = PROCESS_BYTES + width * size.total
    if stage.kind in ("pretrain", "sft", "grpo"):
        total += (16 if width == 2 else 12) * size.total
        if stage.kind == "grpo":
            micro = stage.micro_tokens
            total += width * size.total * (stage.loss.kl > 0)
        else:
            micro = -(-stage.batch.rows // stage.batch.accumulate) * stage.batch.length
        kept = size.kept_per_token
        if stage.kind != "grpo" and stage.batch.recompute:
            kept = kept // size.layers + size.layers * size.hidden  # one block's, and every block's input
        total += micro * (width * kept + 3 * 4 * size.vocab)
    return total + cached * 4 * size.cached_per_token


def _seconds(stage: Any, size: Size, trained: int, generated: int, flops: float) -> float:
    if stage.kind in ("pretrain", "sft"):
        seen = stage.batch.length / 2
    else:
        seen = stage.sampling.max_tokens / 2
    per_token = 2 * size.active + size.attention_per_token * seen
    return trained * 3 * per_token / (flops * TRAIN_SHARE) + generated * per_token / (flops * DECODE_SHARE)


def matmul_flops(
    device: str, dtype: str, rows: int, hidden: int, seconds: float = CALIBRATION_SECONDS
) -> float:
    """FLOP per second of (rows, hidden) x (hidden, 4 hidden): the best of many short timings within
    `seconds`, so that other work on the machine does not count."""
    import torch

    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    a = torch.randn(rows, hidden, device=device, dtype=kind)
    b = torch.randn(hidden, 4 * hidden, device=device, dtype=kind)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        a @ b
    wait()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        wait()
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * rows * hidden * 4 * hidden / best


def show(recipe: Recipe, todo: list[str], finished: Iterable[str] = ()) -> list[Row]:
    """Print the plan as a table; returns its rows."""
    import torch
    from rich.console import Console
    from rich.table import Table

    on_gpu = recipe.hardware != "cpu" and torch.cuda.is_available()
    first = plan(recipe, todo, finished)
    hidden = max((row.size.hidden for row in first if row.size), default=0)
    # most CPUs have no bf16 units: a product there takes minutes and says nothing that float32 does not
    timed = ("cuda", recipe.dtype) if on_gpu else ("cpu", "float32")
    flops = matmul_flops(*timed, 4096, hidden) if hidden else None
    rows = plan(recipe, todo, finished, flops)
    table = Table(title=f"{recipe.name}: the plan", title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "kind", "from"):
        table.add_column(column, overflow="fold")
    for column in ("steps", "tokens", "params (active)", "memory", "min"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.kind, row.init, *_cells(row), style="dim" if row.finished else "")
    console = Console(highlight=False)
    console.print(table)
    left = [row.minutes for row in rows if not row.finished]
    if left and None not in left:
        console.print(
            f"about {_minutes(sum(m for m in left if m))} minutes on {'the GPU' if on_gpu else 'the CPU'}; "
            "memory and minutes are estimates, <= tokens are drawn",
            style="dim",
        )
    return rows


def _cells(row: Row) -> list[str]:
    return [
        str(row.steps or ""),
        f"<={_count(row.generated)}" if row.generated else _count(row.trained),
        f"{_count(row.size.total)} ({_count(row.size.active)})" if row.size else "?",
        human_bytes(row.memory) if row.memory else "?",
        "finished" if row.finished else ("?" if row.minutes is None else _minutes(row.minutes)),
    ]


def _count(n: int) -> str:
    for unit, factor in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= factor:
            return f"{n / factor:.3g}{unit}"
    return str(n or "")


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f}" if minutes < 10 else f"{minutes:.0f}"
