"""A training loop's answer to spikes and to being told to end: skip, return to an earlier state, save and
leave.

The loop asks `Watch` for the place of a step's batch and for the learning rate's factor, hands it every
step's numbers and calls `go_back` when it is told to. All that
decides the future (windows left out, returns, the history that is scored) is in `Watch.to_save()` and so in
every saved state: a run that is killed at any moment decides the same again and ends with the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from onebase.data import Batch
from onebase.errors import UserError
from onebase.files import read_jsonl, write_jsonl
from onebase.log import RunLog
from onebase.model.transformer import Transformer
from onebase.recipe import Stability
from onebase.stage import Preempted, StageRun
from onebase.train import parallel_state, spikes, state
from onebase.train.attention_logits import logit_maxima, qk_clip
from onebase.train.optim import Optimizer
from onebase.train.spikes import FastGuard, Slow, Window
from onebase.train.step import Later

ROLLED_BACK = "rolled_back.jsonl"


@dataclass(frozen=True, slots=True)
class Return:
    """A decision to go back."""

    onset: int
    """First step (from 0) of the spike."""
    step: int
    """The step that told it."""
    why: str


class Watch:
    """What a loop knows about its past steps.  Steps count from 0 here, and from 1 in what is written."""

    def __init__(self, section: Stability, device: str | torch.device) -> None:
        self.section = section
        self.guard = FastGuard(section.window, section.skip, device)
        self.windows: list[Window] = []
        """Left out of the data's order."""
        self.returns = 0
        self.losses: list[float] = []
        self.heads = 1
        self.bad = 0
        """Steps in a row, the last included, whose loss or norm was not finite."""

    @property
    def back(self) -> int:
        """Steps that a state must be old to serve every return; 0 where none is wanted."""
        s = self.section
        return spikes.reach(s.window, s.patience) if s.rollback and s.rollbacks else 0

    def position(self, step: int) -> int:
        return spikes.position(step, self.windows)

    def lr_factor(self) -> float:
        return self.section.rollback_lr**self.returns

    def logits(
        self, step: int, model: Any, batch: Batch, document_mask: bool, optimizer: Optimizer
    ) -> Later | None:
        """Largest attention logits [L, H], flat, where they are due, clipped where the recipe asks; None at
        other steps and for models of other kinds."""
        every, place = self.section.logits_every, optimizer.place
        if not isinstance(model, Transformer) or place.sharded or place.context is not None:
            if self.section.qk_clip is not None:
                raise UserError(
                    "stability.qk_clip: for deepseek_v3 models, and without parallel.mode fsdp or context; "
                    "leave it out"
                )
            return None
        if not every or (step + 1) % every:
            return None
        row = step // every % len(batch.ids_BT)
        found_LH = place.max(logit_maxima(model, batch, document_mask, row))
        if self.section.qk_clip is not None:
            pairs = ((p, m) for (_, p), m in zip(optimizer.params, optimizer.masters, strict=True))
            qk_clip(model, found_LH, self.section.qk_clip, pairs)
        self.heads = found_LH.shape[1]
        return Later(*found_LH.flatten())

    def metrics(self, ok: float, z: list[float], logits: Later | None) -> dict[str, Any]:
        """Of a step, for its row of metrics.jsonl."""
        out: dict[str, Any] = {"loss_z": z[0], "grad_norm_z": z[1], "skipped": int(not ok)}
        if logits is not None:
            flat = [round(x, 3) for x in logits.read()]
            out["attention_logit_max"] = max(flat)
            out["attention_logits"] = [flat[i : i + self.heads] for i in range(0, len(flat), self.heads)]
        return out

    def read(
        self, step: int, loss: float, norm: float, ok: float, z: list[float], log: RunLog
    ) -> Return | None:
        """Take in a step's numbers; skipped updates go to events.jsonl.  Returns a decision to go back, or
        None."""
        s = self.section
        good = math.isfinite(loss) and math.isfinite(norm)
        self.bad = 0 if good else self.bad + 1
        self.losses = [*self.losses, loss if math.isfinite(loss) else math.inf]
        self.losses = self.losses[-spikes.horizon(s.window, s.patience) :]
        if not ok:
            log.event("skipped", step=step + 1, loss=loss, grad_norm=norm, why=_why_skipped(good, z, s.skip))
        if self.bad >= spikes.NOT_FINITE:
            words = f"loss or gradient was not finite {_times(self.bad)} in a row"
            return Return(step - self.bad + 1, step, words)
        slow = spikes.slow_spike(self.losses, s.window, s.patience, s.rollback)
        if slow is None:
            return None
        onset = step - (len(self.losses) - 1 - slow.onset)
        return Return(onset, step, _why_back(slow, onset, s))

    def window_of(self, told: Return) -> Window:
        """Places in the data's order to leave out for this decision; twice as many where the spike meets an
        earlier window, for then the bad data went on behind it."""
        m = spikes.margin(self.section.patience)
        start, stop = self.position(max(0, told.onset - m)), self.position(told.step) + 1 + m
        again = any(start <= b and a <= stop for a, b in self.windows)
        return start, stop + (stop - start) * again

    def to_save(self) -> dict[str, Any]:
        return {
            "guard": self.guard.state_dict(),
            "windows": [list(w) for w in self.windows],
            "returns": self.returns,
            "losses": list(self.losses),
            "bad": self.bad,
        }

    def restore(self, saved: dict[str, Any], with_windows: bool = True) -> None:
        """`with_windows` False keeps this watch's own windows and returns: it goes back in time, and they
        were decided later. A state of an older version has nothing to restore."""
        if not saved:
            return
        self.guard.load_state_dict(saved["guard"])
        self.losses, self.bad = list(saved["losses"]), int(saved["bad"])
        if with_windows:
            self.windows = [(int(a), int(b)) for a, b in saved["windows"]]
            self.returns = int(saved["returns"])


def _times(n: int) -> str:
    return {5: "five times"}.get(n, f"{n} times")


def _why_skipped(good: bool, z: list[float], threshold: float) -> str:
    if not good:
        return "not finite"
    what, value = ("loss", z[0]) if z[0] >= z[1] else ("gradient norm", z[1])
    return f"{what} is {value:.1f} robust standard deviations above the last steps (limit: {threshold:g})"


def _why_back(slow: Slow, onset: int, s: Stability) -> str:
    above = (slow.level - slow.reference) / slow.spread
    return (
        f"loss rose at step {onset + 1} and stays up: {slow.level:.4g}, the median of the last {s.patience} "
        f"steps, is {above:.1f} robust standard deviations above {slow.reference:.4g} (limit: {s.rollback:g})"
    )


def begin(
    run: StageRun, watch: Watch, model: torch.nn.Module, optimizer: Optimizer
) -> tuple[int, dict[str, float]]:
    """Go on from the newest state, or write one of step 0 to return to: (steps done, the summary so far).
    From here on the stage heeds SIGTERM."""
    done, extra = state.load(run.folder / "state", model, optimizer, run.device)
    watch.restore(extra.get("stability", {}))
    run.log.truncate_after(done, extra.get("events"))
    summary = dict(extra.get("summary", {}))
    if not done and watch.back and not state.saved(run.folder / "state"):
        save(run, watch, 0, model, optimizer, summary)
    run.preemption.heeded = True
    return done, summary


def save(
    run: StageRun,
    watch: Watch,
    step: int,
    model: torch.nn.Module,
    optimizer: Optimizer,
    summary: dict[str, float],
    leave: bool = False,
) -> None:
    """Write the state after `step` steps, whose numbers must all have been read; with `leave` raise Preempted
    behind it."""
    if leave:
        run.log.event("preempted", step=step, why="SIGTERM; the state was saved")
    extra = {"summary": summary, "stability": watch.to_save(), "events": run.log.events()}
    state.save(run.folder / "state", step, model, optimizer, extra, watch.back)
    if leave:
        parallel_state.finish(optimizer.place)
        raise Preempted(f"SIGTERM after step {step} of stage {run.name}, whose state is saved")


def go_back(
    told: Return, run: StageRun, watch: Watch, model: torch.nn.Module, optimizer: Optimizer
) -> tuple[int, dict[str, float]] | None:
    """Return to the newest state that is older than the spike: (steps done, summary); None where no such
    state is kept, and the loop goes on.

    The order of writing makes a kill at any moment harmless: until the target state is written anew with the
    window, a resume repeats the steps, decides the same and writes the same over it."""
    s, log, folder = watch.section, run.log, run.folder / "state"
    place = optimizer.place
    parallel_state.finish(place)
    kept = place.as_first(state.saved(folder))
    latest = max(0, told.onset - spikes.margin(s.patience))
    fitting = [n for n in kept if n <= latest]
    if watch.returns >= (s.rollbacks if s.rollback else 0) or (not fitting and watch.bad):
        raise UserError(_too_often(told, watch))
    if not fitting:
        log.event("spike", step=told.step + 1, why=f"{told.why}; no state of step {latest} or before is kept")
        watch.losses.clear()
        return None
    target, window = fitting[-1], watch.window_of(told)
    watch.windows = spikes.merged([*watch.windows, window])
    watch.returns += 1
    log.event(
        "rollback",
        step=told.step + 1,
        to=target,
        batches=[window[0], window[1] - 1],
        lr_factor=watch.lr_factor(),
        why=told.why,
    )
    if place.first:
        _keep_rows(log, target, told.step + 1, watch.returns)
        state.drop(folder, [n for n in kept if n > target])
    _, extra = state.load(folder, model, optimizer, run.device, at=target)
    watch.restore(extra.get("stability", {}), with_windows=False)
    summary = dict(extra.get("summary", {}))
    save(run, watch, target, model, optimizer, summary)
    parallel_state.finish(place)
    log.truncate_after(target)
    return target, summary


def _too_often(told: Return, watch: Watch) -> str:
    n = watch.section.rollbacks
    done = f"after {n} return{'s' * (n != 1)} to an earlier state" if n else "and stability.rollbacks is 0"
    return (
        f"step {told.step + 1}: {told.why}, {done}. The last saved state is kept.\n"
        "  Lower optim.lr (or stability.rollback_lr), look at the rows named in events.jsonl, or raise "
        "stability.rollbacks"
    )


def _keep_rows(log: RunLog, after: int, last: int, number: int) -> None:
    """Copy the metric rows that a return takes back to rolled_back.jsonl, marked with the return's number."""
    path = log.metrics_path.parent / ROLLED_BACK
    former = [row for row in read_jsonl(path) if row.get("rollback", 0) < number]
    gone = [{"rollback": number} | row for row in read_jsonl(log.metrics_path) if after < row["step"] <= last]
    write_jsonl(path, former + gone)


def check_finite(loss: float, grad_norm: float, skipped: int, run: StageRun, step: int) -> int:
    """Count steps whose loss or gradient is not finite (the optimizer has skipped them); five in a row end
    the run."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return 0
    run.log.event("skipped", step=step + 1, loss=loss, grad_norm=grad_norm, why="not finite")
    if skipped + 1 >= 5:
        raise UserError(
            f"stage {run.name}, step {step + 1}: loss or gradient was not finite five times in a row. "
            "Lower optim.lr; the last saved state is kept."
        )
    return skipped + 1
