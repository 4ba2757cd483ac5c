"""Supervised fine-tuning on conversations: loss on the assistant's last turn only, documents masked from each
other.

The same step as pretraining (onebase/train/step.py); what differs is the mask, which `conversation` makes:
with `think: free` the opening <think> is a target, with `open` it stands in the prompt.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from onebase import card
from onebase.data import Mixture, mixture
from onebase.model import checkpoint
from onebase.pretrain.train import HELDOUT_BATCHES
from onebase.recipe import Sft, Source
from onebase.stage import StageRun
from onebase.train import parallel, parallel_state, stability
from onebase.train.optim import Optimizer
from onebase.train.schedule import wsd
from onebase.train.stability import Watch
from onebase.train.step import balance_routers, forward_backward, heldout_loss, numbers


def main(run: StageRun) -> dict[str, float]:
    stage: Sft = run.stage
    assert run.init is not None
    place = parallel.here(run.recipe.parallel, run.device)
    model, tokenizer = checkpoint.load(run.init, run.device, run.recipe.dtype)
    model = place.shard(model.train())
    model.recompute = stage.batch.recompute
    optimizer = Optimizer(model.named_parameters(), stage.optim, stage.batch.accumulate, place)

    def rows_of(sources: list[Source], cache: str) -> Mixture:
        folder = run.folder / cache
        length = stage.batch.length
        return mixture(sources, tokenizer, length, run.seed, "sft", stage.think, run.folders, folder)

    with place.first_then_others():
        data = rows_of(stage.data, "cache")
        heldout = rows_of(stage.heldout, "cache_heldout") if stage.heldout else None
    rows = stage.batch.rows
    held = [place.batch(heldout, i, rows) for i in range(HELDOUT_BATCHES)] if heldout else []
    watch = Watch(stage.stability, run.device)
    step, summary = stability.begin(run, watch, model, optimizer)
    while step < stage.steps:
        start = time.perf_counter()
        batch = place.batch(data, watch.position(step), rows)
        sums = forward_backward(
            model,
            batch,
            stage.batch.accumulate,
            document_mask=True,
            balance_alpha=stage.balance_alpha,
            mtp_weight=stage.mtp_weight,
            place=place,
        )
        factor = wsd(step, stage.steps, stage.optim.warmup, stage.optim.decay, stage.optim.final)
        factor *= watch.lr_factor()
        norm = optimizer.step(factor, partial(watch.guard, sums.loss))
        worst, drift = balance_routers(model, sums.load_LE, stage.balance_speed, watch.guard.ok)
        logits = watch.logits(step, model, batch, True, optimizer)
        loss, mtp, balance, entropy, grad_norm, load, bias, ok, *z = numbers(
            sums.loss, sums.mtp, sums.balance, sums.entropy, norm, worst, drift, *watch.guard.answer()
        )
        metrics: dict[str, Any] = {
            "loss": loss,
            "loss_mtp": mtp,
            "entropy": entropy,
            "lr": stage.optim.lr * factor,
            "grad_norm": grad_norm,
            **watch.metrics(ok, z, logits),
            "router_load_max": load,
            "router_bias_max": bias,
            "targets": sums.targets,
            "tokens": sums.tokens,
            "tokens_per_second": sums.tokens / (time.perf_counter() - start),
        }
        last = step + 1 == stage.steps
        if held and ((step + 1) % stage.eval_every == 0 or last):
            metrics["heldout_loss"] = heldout_loss(model, held, document_mask=True, place=place)
        summary.update({k: metrics[k] for k in ("loss", "heldout_loss") if k in metrics})
        run.log.step(step + 1, stage.steps, metrics, ("loss", "heldout_loss", "tokens_per_second"))
        told = watch.read(step, loss, grad_norm, ok, z, run.log)
        back = stability.go_back(told, run, watch, model, optimizer) if told else None
        if back is not None:
            step, summary = back
            continue
        step += 1
        leaves = place.any(run.preemption.wanted) and not last
        if leaves or (step % stage.checkpoint_every == 0 and not last):
            stability.save(run, watch, step, model, optimizer, summary, leaves)
    whole = parallel_state.whole_model(model, optimizer)
    if whole is not None:
        out = run.folder / "checkpoint"
        checkpoint.save(out, whole, tokenizer)
        card.write(out, recipe=run.recipe, stage=run.name, summary=summary, data=stage.data)
    return summary
