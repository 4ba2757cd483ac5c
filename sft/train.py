"""Supervised fine-tuning on conversations: loss on the assistant's last turn only, documents masked from each
other.

The same step as pretraining (onebase/train/step.py); what differs is the mask, which `conversation` makes:
with `think: free` the opening <think> is a target, with `open` it stands in the prompt.
"""

from __future__ import annotations

import time

from onebase import card
from onebase.data import Mixture, mixture
from onebase.model import checkpoint
from onebase.pretrain.train import HELDOUT_BATCHES, check_finite
from onebase.recipe import Sft, Source
from onebase.stage import StageRun
from onebase.train import state
from onebase.train.optim import Optimizer
from onebase.train.schedule import wsd
from onebase.train.step import balance_routers, forward_backward, heldout_loss, numbers


def main(run: StageRun) -> dict[str, float]:
    stage: Sft = run.stage
    assert run.init is not None
    model, tokenizer = checkpoint.load(run.init, run.device, run.recipe.dtype)
    model.train()
    optimizer = Optimizer(model.named_parameters(), stage.optim, stage.batch.accumulate)
    done, extra = state.load(run.folder / "state", model, optimizer, run.device)
    run.log.truncate_after(done)

    def rows_of(sources: list[Source], cache: str) -> Mixture:
        folder = run.folder / cache
        length = stage.batch.length
        return mixture(sources, tokenizer, length, run.seed, "sft", stage.think, run.folders, folder)

    data = rows_of(stage.data, "cache")
    heldout = rows_of(stage.heldout, "cache_heldout") if stage.heldout else None
    held = [heldout.batch(i, stage.batch.rows) for i in range(HELDOUT_BATCHES)] if heldout else []
    summary: dict[str, float] = dict(extra)
    skipped = 0
    for step in range(done, stage.steps):
        start = time.perf_counter()
        batch = data.batch(step, stage.batch.rows)
        sums = forward_backward(
            model,
            batch,
            stage.batch.accumulate,
            document_mask=True,
            balance_alpha=stage.balance_alpha,
            mtp_weight=stage.mtp_weight,
        )
        factor = wsd(step, stage.steps, stage.optim.warmup, stage.optim.decay, stage.optim.final)
        norm = optimizer.step(factor)
        worst, drift = balance_routers(model, sums.load_LE, stage.balance_speed)
        loss, mtp, balance, entropy, grad_norm, load, bias = numbers(
            sums.loss, sums.mtp, sums.balance, sums.entropy, norm, worst, drift
        )
        skipped = check_finite(loss, grad_norm, skipped, run, step)
        metrics = {
            "loss": loss,
            "loss_mtp": mtp,
            "entropy": entropy,
            "lr": stage.optim.lr * factor,
            "grad_norm": grad_norm,
            "router_load_max": load,
            "router_bias_max": bias,
            "targets": sums.targets,
            "tokens": sums.tokens,
            "tokens_per_second": sums.tokens / (time.perf_counter() - start),
        }
        last = step + 1 == stage.steps
        if held and ((step + 1) % stage.eval_every == 0 or last):
            metrics["heldout_loss"] = heldout_loss(model, held, document_mask=True)
        summary.update({k: metrics[k] for k in ("loss", "heldout_loss") if k in metrics})
        run.log.step(step + 1, stage.steps, metrics, ("loss", "heldout_loss", "tokens_per_second"))
        if (step + 1) % stage.checkpoint_every == 0 and not last:
            state.save(run.folder / "state", step + 1, model, optimizer, summary)
    checkpoint.save(run.folder / "checkpoint", model, tokenizer)
    card.write(run.folder / "checkpoint", recipe=run.recipe, stage=run.name, summary=summary, data=stage.data)
    return summary
