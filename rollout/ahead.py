"""Generation that goes on while the trainer steps: at most `staleness` steps ahead, in order, nothing
dropped.

    trainer   push weights v(s) | wait for step s | train on it | push v(s+1) | ...
    engines   ... groups of s, s+1, ..., s+staleness, in this order; weights change under way ...
    judge     verdicts of a group as soon as its last rollout has landed

When the trainer comes for step s, the groups up to step s + staleness have been handed to the engines, so no
token of step s was drawn by weights older than version s - staleness: the bound holds by construction, also
after a resume.  Steps are taken in order and whole.  Nothing late is dropped, so there is no bias towards
short completions: a prompt's completions are trained on whatever their length, and with weights that do not
change the rollouts are those of a synchronous run, request by request.  The price is that a step waits for
its longest completion; with staleness 1 and more the engines work on later steps meanwhile.

One thread drives the engine and one judges; both end with `close`.  An error in either is raised by
`of_step`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from onebase.recipe import Sampling, Term
from onebase.rollout.engine import Engine, Rollout
from onebase.rollout.groups import ScoredRollout, judged, requests_of
from onebase.rollout.weight_sync import WeightSync
from onebase.tokenizer import ChatTokenizer

WATCH_SECONDS = 0.5
STRIDE = 1 << 24  # places of a step's requests in their ticket numbers


class Ahead:
    def __init__(
        self,
        engine: Engine,
        sync: WeightSync,
        tokenizer: ChatTokenizer,
        rows_of: Callable[[int], list[dict[str, Any]]],
        group_size: int,
        sampling: Sampling,
        terms: Sequence[Term],
        seed: int,
        steps: int,
        staleness: int,
    ) -> None:
        self.engine, self.sync, self.tokenizer, self.rows_of = engine, sync, tokenizer, rows_of
        self.group_size, self.sampling, self.terms, self.seed = group_size, sampling, terms, seed
        self.steps, self.staleness = steps, staleness
        self.rows: dict[int, list[dict[str, Any]]] = {}
        self.landed: dict[int, dict[int, Rollout]] = {}  # by step, by place in it
        self.judged: dict[int, list[ScoredRollout]] = {}
        self.asked = -1  # the last step whose requests are with the engine
        self.tokens = 0
        self.turned = time.perf_counter()
        self.error: BaseException | None = None
        self.lock = threading.RLock()  # of the engine and of all the above
        self.changed = threading.Condition(self.lock)
        self.to_judge: queue.Queue[tuple[int, int] | None] = queue.Queue()
        self.closing = self.wanted = False
        self.threads = [
            threading.Thread(target=self._guarded, args=(f,), daemon=True) for f in (self._drive, self._judge)
        ]
        for thread in self.threads:
            thread.start()

    def of_step(self, step: int) -> tuple[list[ScoredRollout], dict[str, float]]:
        """Send the trainer's weights as version `step`, ask for all steps up to step + staleness, wait for
        this one.  Metrics: the sync's, seconds_wait (the trainer had nothing to do), and over the time since
        the last call seconds_generate and the tokens that landed."""
        self.wanted = True  # a lock is not fair: the driving thread waits as long as this is set
        with self.changed:
            self.wanted = False
            self._raise()
            metrics = self.sync.push(step)
            for later in range(max(self.asked + 1, step), min(step + self.staleness + 1, self.steps)):
                self._ask(later)
            start = time.perf_counter()
            while len(self.judged.get(step, ())) < len(self.rows[step]) * self.group_size:
                self.changed.wait(WATCH_SECONDS)
                self._raise()
            out = sorted(self.judged.pop(step), key=lambda r: r.prompt)
            del self.rows[step], self.landed[step]
            now = time.perf_counter()
            metrics |= {
                "seconds_wait": now - start,
                "seconds_generate": now - self.turned,
                "tokens_landed": float(self.tokens),
                "steps_ahead": float(len(self.rows)),
            }
            self.turned, self.tokens = now, 0
        oldest = min((r.rollout.weight_version for r in out), default=step)
        assert step - oldest <= self.staleness, f"{step=} {oldest=} {self.staleness=}"
        return out, metrics

    def buffer(self) -> dict[int, dict[int, dict[str, Any]]]:
        """Rollouts of later steps that have landed, as plain values: what a resume need not draw again."""
        with self.lock:
            return {
                step: {place: r.plain() for place, r in landed.items()}
                for step, landed in self.landed.items()
                if landed
            }

    def restore(self, buffer: dict[int, dict[int, dict[str, Any]]]) -> None:
        """Take up the buffer of an earlier process, before the first `of_step`."""
        with self.lock:
            assert self.asked < 0, "restore comes before the first step"
            self.landed = {
                step: {place: Rollout(**fields) for place, fields in landed.items()}
                for step, landed in buffer.items()
            }

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.to_judge.put(None)
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(timeout=60)
        with self.lock:
            self.engine.clear()
            close = getattr(self.engine, "close", None)
            if close is not None:
                close()

    # -- under the lock

    def _ask(self, step: int) -> None:
        rows = self.rows[step] = self.rows_of(step)
        landed = self.landed.setdefault(step, {})
        requests = requests_of(self.tokenizer, rows, self.group_size, self.sampling, self.seed, step)
        # a buffer of another recipe or seed must not slip in
        kept = {
            i: r
            for i, r in landed.items()
            if i < len(requests) and (r.seed, r.prompt_ids) == (requests[i].seed, requests[i].prompt_ids)
        }
        self.landed[step] = kept
        many = len(rows) * self.group_size
        self.engine.add([(step * STRIDE + i, r) for i, r in enumerate(requests) if i not in kept])
        assert many < STRIDE, f"{many=}"
        self.asked = step
        for group in range(len(rows)):
            self._if_whole(step, group)
        self.changed.notify_all()

    def _if_whole(self, step: int, group: int) -> None:
        places = range(group * self.group_size, (group + 1) * self.group_size)
        if all(p in self.landed[step] for p in places):
            self.to_judge.put((step, group))

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    # -- the two threads

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self.changed:
                self.error = error
                self.changed.notify_all()

    def _drive(self) -> None:
        while True:
            with self.changed:
                if self.closing:
                    return
                if not self.engine.busy:
                    self.changed.wait(WATCH_SECONDS)
                    continue
                for ticket, rollout in self.engine.step():
                    step, place = divmod(ticket, STRIDE)
                    self.landed[step][place] = rollout
                    self.tokens += len(rollout.completion_ids)
                    self._if_whole(step, place // self.group_size)
            while self.wanted:
                time.sleep(1e-3)

    def _judge(self) -> None:
        while (item := self.to_judge.get()) is not None:
            step, group = item
            with self.lock:
                row = self.rows[step][group]
                places = range(group * self.group_size, (group + 1) * self.group_size)
                rollouts = [self.landed[step][p] for p in places]
            verdicts = judged(self.tokenizer, [row], rollouts, self.sampling, self.terms, step, group)
            with self.changed:
                self.judged.setdefault(step, []).extend(verdicts)
                self.changed.notify_all()
