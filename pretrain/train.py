"""Pretraining: packed documents, next-token and multi-token prediction, balanced experts (DeepSeek-V3,
section 4).

recipe -> tokenizer (trained on this stage's corpus, or init's) -> model -> packed rows by (seed, step) ->
loop -> folder
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from onebase import card
from onebase.data import Mixture, mixture, texts
from onebase.errors import UserError
from onebase.model import checkpoint
from onebase.model.transformer import Transformer, init_weights
from onebase.pretrain.corpus_shards import corpus_bytes_per_token, corpus_tokenizer
from onebase.pretrain.shards import bits_per_byte, bytes_per_token
from onebase.recipe import Pretrain, Source
from onebase.stage import StageRun
from onebase.tokenizer import ChatTokenizer, train
from onebase.train import parallel, parallel_state, stability
from onebase.train.compiled import compile_blocks
from onebase.train.flops import peak_flops, train_flops_per_token
from onebase.train.optim import Optimizer
from onebase.train.schedule import wsd
from onebase.train.stability import Return, Watch
from onebase.train.step import Later, balance_routers, forward_backward, heldout_loss

HELDOUT_BATCHES = 4
KEPT = ("loss", "heldout_loss", "bits_per_byte")


def main(run: StageRun) -> dict[str, float]:
    stage: Pretrain = run.stage
    place = parallel.here(run.recipe.parallel, run.device)
    with place.first_then_others():
        tokenizer, model = _start(run)
        data, heldout = _data(run, tokenizer)
    model.train()
    if place.whole_blocks:
        compile_blocks(model)
    model.recompute = stage.batch.recompute
    model.config.max_position_embeddings = max(model.config.max_position_embeddings, stage.batch.length)
    model = place.shard(model)
    optimizer = Optimizer(model.named_parameters(), stage.optim, stage.batch.accumulate, place)
    rows = stage.batch.rows
    held = [place.batch(heldout, i, rows) for i in range(HELDOUT_BATCHES)] if heldout else []
    per_token = _bytes_per_token(run)
    flops = train_flops_per_token(model.config, stage.batch.length, stage.mtp_weight > 0)
    peak = peak_flops(run.device, run.recipe.dtype) * place.layout.processes
    watch = Watch(stage.stability, run.device)
    step, summary = stability.begin(run, watch, model, optimizer)
    since = 0.0  # when the step before was finished

    def finish(
        step: int,
        begun: float,
        tokens: int,
        factor: float,
        values: Later,
        logits: Later | None,
        heldout_now: bool,
    ) -> Return | None:
        """Read a step's numbers and log it; says whether to go back."""
        nonlocal since
        loss, mtp, balance, entropy, grad_norm, load, bias, ok, *z = values.read()
        seconds, since = values.at - max(since, begun), values.at
        metrics: dict[str, Any] = {
            "loss": loss,
            "loss_mtp": mtp,
            "balance": balance,
            "entropy": entropy,
            "lr": stage.optim.lr * factor,
            "grad_norm": grad_norm,
            **watch.metrics(ok, z, logits),
            "router_load_max": load,
            "router_bias_max": bias,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "mfu": tokens / seconds * flops / peak,
        }
        if heldout_now:
            metrics["heldout_loss"] = heldout_loss(model, held, stage.document_mask, place)
            if per_token is not None:
                metrics["bits_per_byte"] = bits_per_byte(metrics["heldout_loss"], per_token)
        summary.update({k: metrics[k] for k in KEPT if k in metrics})
        run.log.step(
            step + 1, stage.steps, metrics, ("loss", "heldout_loss", "router_load_max", "tokens_per_second")
        )
        return watch.read(step, loss, grad_norm, ok, z, run.log)

    # launched, not yet read: at most one between steps
    open_steps: list[tuple[int, float, int, float, Later, Later | None]] = []
    while step < stage.steps:
        begun = time.perf_counter()
        batch = place.batch(data, watch.position(step), rows)
        sums = forward_backward(
            model,
            batch,
            stage.batch.accumulate,
            document_mask=stage.document_mask,
            balance_alpha=stage.balance_alpha,
            mtp_weight=stage.mtp_weight,
            place=place,
        )
        factor = wsd(step, stage.steps, stage.optim.warmup, stage.optim.decay, stage.optim.final)
        factor *= watch.lr_factor()
        norm = optimizer.step(factor, partial(watch.guard, sums.loss))
        worst, drift = balance_routers(model, sums.load_LE, stage.balance_speed, watch.guard.ok)
        logits = watch.logits(step, model, batch, stage.document_mask, optimizer)
        values = Later(
            sums.loss, sums.mtp, sums.balance, sums.entropy, norm, worst, drift, *watch.guard.answer()
        )
        open_steps.append((step, begun, sums.tokens, factor, values, logits))
        step += 1
        last = step == stage.steps
        evaluates = bool(held) and (step % stage.eval_every == 0 or last)
        leaves = place.any(run.preemption.wanted) and not last
        saves = leaves or (step % stage.checkpoint_every == 0 and not last)
        back = None
        # a GPU works on this step while the one before is logged
        while back is None and len(open_steps) > (0 if evaluates or saves or last else 1):
            told = finish(*open_steps.pop(0), heldout_now=evaluates and not open_steps)
            back = stability.go_back(told, run, watch, model, optimizer) if told else None
        if back is not None:
            step, summary = back
            open_steps.clear()
        elif saves:
            stability.save(run, watch, step, model, optimizer, summary, leaves)
    whole = parallel_state.whole_model(model, optimizer)
    if whole is not None:
        out = run.folder / "checkpoint"
        checkpoint.save(out, whole, tokenizer)
        card.write(out, recipe=run.recipe, stage=run.name, summary=summary, data=stage.data)
    return summary


def _data(run: StageRun, tokenizer: ChatTokenizer) -> tuple[Mixture, Mixture | None]:
    """Packed rows to train on, and held out."""
    stage: Pretrain = run.stage

    def rows_of(sources: list[Source], cache: str) -> Mixture:
        where = (run.folders, run.folder / cache, stage.prompt_loss)
        return mixture(sources, tokenizer, stage.batch.length, run.seed, "pretrain", "free", *where)

    heldout = rows_of(stage.heldout, "cache_heldout") if stage.heldout else None
    return rows_of(stage.data, "cache"), heldout


def _start(run: StageRun) -> tuple[ChatTokenizer, Transformer]:
    """A new model with a prepared corpus' tokenizer or one trained on this stage's texts, or `init`'s to go
    on with."""
    stage: Pretrain = run.stage
    if run.init is not None:
        model, tokenizer = checkpoint.load(run.init, run.device, run.recipe.dtype)
        if not isinstance(model, Transformer):
            raise UserError(
                f"stage {run.name}: pretraining goes on from deepseek_v3 folders only, not {run.init}"
            )
        return tokenizer, model
    folder = run.folder / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        made = corpus_tokenizer(stage.data)
        if made is None:
            made = train(_sample(run, run.recipe.tokenizer.sample_bytes), run.recipe.tokenizer.vocab_size)
        with checkpoint.atomic_folder(folder) as aside:
            made.save(aside)
    tokenizer = ChatTokenizer.load(str(folder))
    # a multiple of 8 suits the GPU's matrix units; the few spare rows are never targets
    config = run.recipe.model.model_copy(update={"vocab_size": math.ceil(tokenizer.size / 8) * 8})
    model = Transformer(config)
    init_weights(model, run.seed, stage.embedding_std)
    return tokenizer, checkpoint.to_dtype(model, checkpoint.DTYPES[run.recipe.dtype]).to(run.device)


def _bytes_per_token(run: StageRun) -> float | None:
    """Of the held-out text, where that is one text source; worlds have no natural bytes."""
    sources = run.stage.heldout
    if len(sources) != 1 or sources[0].world is not None:
        return None
    if sources[0].corpus is not None:
        return corpus_bytes_per_token(sources[0].corpus, sources[0].split)
    return bytes_per_token(run.folder / "cache_heldout" / "tokens_0")


def _sample(run: StageRun, size: int) -> Iterator[str]:
    """Texts of the corpus, about `size` characters of them."""
    left = size
    for text in texts(run.stage.data, run.seed, run.folders):
        yield text
        left -= len(text)
        if left <= 0:
            return
