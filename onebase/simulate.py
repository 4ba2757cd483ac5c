"""Rollout engines at scale without engines: a discrete-event simulation around the real router.

What is real: `rollout/router.py` decides who gets what, with its learned lengths, homes of groups and bounds;
the order of events is that of `rollout/ahead.py` and `rollout/ray_pool.py`:

    trainer   push weights v(s) | ask for steps up to s + staleness | wait for step s | train | ...
    engine    orders of `pump` seconds, one in flight; new requests and new weights come with the next order;
              it comes back early where an end leaves it fewer requests than slots and others wait
    failure   what the engine had is begun anew elsewhere once the failure is noticed; another engine takes
              its place after `restart` seconds, with the present weights

What is a model: an engine with n running completions draws a token for each in `fixed + per_row * n` seconds;
a prompt that it has not seen since its last weights costs `prefill` seconds a token, during which it draws
nothing; lengths are drawn from a distribution or taken from a run (simulate_lengths.py); failures are
exponential in time (Poisson) and each is noticed after `notice` seconds; the driver spends `reply` seconds on
each reply, so that with many engines it, not they, sets the pace: then an engine rests between its orders.

Left out: verifiers (they run beside generation), transfer times of weights that differ by host, an engine's
memory.  Progress is fluid: a token is drawn in no time shorter than a step but ends fall between steps, too.

Times are counted between the trainer's coming for step `warm` and the end of the last step for which later
ones had been asked as in a long run, so that neither the start nor the end of the run counts.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil
from typing import Any

from onebase.errors import UserError
from onebase.rollout.router import Item, Router
from onebase.simulate_parts import Fleet, Job, Lengths, Outcome, check


@dataclass(slots=True)
class _Engine:
    number: int
    version: int
    drawn: float = 0.0
    """Tokens that each row which ran all the time has drawn: the engine's own clock."""
    at: float = 0.0
    """Time to which it has been worked out; it may lie ahead by a prefill."""
    rows: list[tuple[float, int]] = field(default_factory=list)
    """Heap of (its clock at the end, request)."""
    queue: deque[int] = field(default_factory=deque)
    """Requests beyond the slots."""
    cached: set[int] = field(default_factory=set)
    ended: list[int] = field(default_factory=list)
    segments: list[tuple[float, float, int]] = field(default_factory=list)
    """(from, to, running) of the order in flight."""
    order: int = 0
    """Number of the event at which the order in flight comes back; 0: idle."""
    began: float = 0.0
    """When that order was given."""
    due: float = 0.0
    """When it comes back; of a dead engine, when that is noticed."""
    skips: bool = False
    """It stands for many orders, and nothing ends before it is due."""
    dead: bool = False


@dataclass(slots=True)
class _Request:
    step: int
    prompt: int
    tokens: int
    version: int = -1


class Simulation:
    """One run; `run()` gives what came of it, `generated` how often each request's result was delivered."""

    def __init__(self, fleet: Fleet, job: Job, lengths: Lengths, seed: int = 0) -> None:
        check(fleet, job)
        self.fleet, self.job, self.lengths, self.seed = fleet, job, lengths, seed
        self.router = Router(fleet.factor)
        self.bound = fleet.slots + max(1, fleet.slots // 4)
        self.rate = fleet.order / fleet.cycle  # share of its time that an engine with an order works on it
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.count = 0
        self.engines: dict[int, _Engine] = {}
        self.hired = 0
        self.requests: dict[int, _Request] = {}
        self.open: dict[int, int] = {}  # requests of a step that have not come back
        self.generated: dict[int, int] = {}
        self.segments: list[tuple[float, float, int]] = []
        self.asked = -1
        self.version = -1
        self.step = 0
        self.waiting_since: float | None = None
        self.came = [0.0] * (job.steps + 1)  # when the trainer came for each step, and when it was through
        self.waited = [0.0] * job.steps
        self.ages: list[int] = []  # of the requests of the steps that count
        self.tokens = 0
        self.hits = self.given = self.failures = self.begun_anew = 0
        self.finished = False

    def run(self) -> Outcome:
        for _ in range(self.fleet.engines):
            self._hire()
        self._come()
        while not self.finished:
            assert self.events, "nothing is to come and the run has not ended"
            self.now, _, act, what = heappop(self.events)
            act(*what)
        return self._outcome()

    def _at(self, time: float, act: Callable[..., None], *what: Any) -> int:
        self.count += 1
        heappush(self.events, (time, self.count, act, what))
        return self.count

    # -- the trainer

    def _come(self) -> None:
        """The trainer has trained and brings new weights; they go with each engine's next order."""
        self.came[self.step] = self.now
        if self.step == self.job.steps:
            self.finished = True
            return
        self.version = self.step
        ready = self.now
        for engine in self.engines.values():
            if engine.dead:  # and not noticed yet
                ready = max(ready, engine.due)
                continue
            self._cut_short(engine)
            if not engine.order:
                self._load(engine)
                ready = max(ready, engine.due)
            else:
                ready = max(ready, engine.due + self.job.sync)
        self._at(ready, self._ask)

    def _ask(self) -> None:
        """All weights are there: ask for steps, then wait for this one."""
        job = self.job
        for step in range(max(self.asked + 1, self.step), min(self.step + job.staleness + 1, job.steps)):
            items = []
            for p, group in enumerate(self.lengths(step)):
                for tokens in group:
                    number = len(self.requests)
                    self.requests[number] = _Request(step, step * job.prompts + p, tokens)
                    self.generated[number] = 0
                    items.append(Item(number, step * job.prompts + p, job.max_tokens))
            self.router.add(items)
            self.open[step] = len(items)
            self.asked = step
        self._spread()
        self.waiting_since = self.now
        self._if_whole()

    def _if_whole(self) -> None:
        if self.waiting_since is None or self.open[self.step]:
            return
        self.waited[self.step] = self.now - self.waiting_since
        self.waiting_since = None
        self.step += 1
        self._at(self.now + self.job.train, self._come)

    def _landed(self, number: int) -> None:
        request = self.requests[number]
        self.generated[number] += 1
        self.open[request.step] -= 1
        self.router.done(number, request.tokens)
        if self.job.warm <= request.step <= self.job.last:
            self.ages.append(request.step - request.version)
            self.tokens += request.tokens

    # -- orders

    def _spread(self) -> None:
        """There is something to be had: to idle engines at once, to the others with their next order."""
        live = [e for e in self.engines.values() if not e.dead]
        for engine in live:
            if engine.order and len(self.router.places[engine.number].running) < self.bound:
                self._cut_short(engine)
        idle = [e.number for e in live if not e.order]
        given = self.router.assign(idle)
        for number in idle:
            if number in given:
                self._begin(self.engines[number], given[number])

    def _begin(self, engine: _Engine, numbers: Sequence[int] = ()) -> None:
        """An order: take the requests, work for a while.  Orders that would bring nothing back are skipped,
        up to the one with the next end; `_cut_short` breaks that off where something is to be given."""
        engine.queue.extend(numbers)
        engine.at = max(engine.at, self.now)
        engine.began = self.now
        self._fill(engine, self.now)
        running = self.router.places[engine.number].running
        if not running:
            return
        cycle = self.fleet.cycle
        room = self.router.waiting and len(running) < self.bound
        orders = int((self._next_end(engine) - self.now) / cycle)
        if orders and not room:
            engine.skips = True
            self._due(engine, self.now + orders * cycle)
        else:
            self._work(engine, self.now + cycle)

    def _due(self, engine: _Engine, time: float) -> None:
        """Its order in flight comes back then, and not at another time said before."""
        engine.due = time
        engine.order = self._at(time, self._return, engine.number, self.count + 1)

    def _work(self, engine: _Engine, end: float) -> None:
        """Work out what the engine does until `end`, or until it comes back early."""
        low = self.fleet.slots if self.router.waiting else 0
        while (time := self._next_end(engine)) <= end:
            self._pass(engine, time)
            engine.drawn, number = heappop(engine.rows)
            engine.ended.append(number)
            self._fill(engine, time)
            if len(engine.rows) + len(engine.queue) < low:
                end = time
                break
        self._pass(engine, end)
        self._due(engine, max(end, engine.at))

    def _next_end(self, engine: _Engine) -> float:
        if not engine.rows:
            return float("inf")
        return engine.at + max(0.0, engine.rows[0][0] - engine.drawn) * self._seconds(len(engine.rows))

    def _seconds(self, running: int) -> float:
        """Of one token."""
        return (self.fleet.fixed + self.fleet.per_row * running) / self.rate

    def _pass(self, engine: _Engine, time: float) -> None:
        n = len(engine.rows)
        if time > engine.at:
            if n:
                engine.drawn += (time - engine.at) / self._seconds(n)
                engine.segments.append((engine.at, time, n))
            engine.at = time

    def _fill(self, engine: _Engine, time: float) -> None:
        """Requests into free slots, each beginning with its prompt."""
        new = 0
        while engine.queue and len(engine.rows) < self.fleet.slots:
            number = engine.queue.popleft()
            request = self.requests[number]
            self.given += 1
            if request.prompt in engine.cached:
                self.hits += 1
            else:
                engine.cached.add(request.prompt)
                new += 1
            request.version = engine.version
            heappush(engine.rows, (engine.drawn + request.tokens, number))
        if new:
            cost = new * self.job.prompt_tokens * self.fleet.prefill / self.rate
            start = max(time, engine.at)
            engine.segments.append((start, start + cost, len(engine.rows)))
            engine.at = start + cost

    def _cut_short(self, engine: _Engine) -> None:
        """Something waits for the engine: it comes back with the order that it is at."""
        if engine.skips:
            orders = max(1, ceil((self.now - engine.began) / self.fleet.cycle))
            time = max(self.now, engine.began + orders * self.fleet.cycle)
            if time < engine.due:
                self._due(engine, time)

    def _return(self, number: int, order: int) -> None:
        engine = self.engines.get(number)
        if engine is None or engine.order != order or engine.dead:
            return
        self._pass(engine, self.now)
        engine.order, engine.skips = 0, False
        self.segments += engine.segments
        engine.segments.clear()
        for ended in engine.ended:
            self._landed(ended)
        engine.ended.clear()
        self._if_whole()
        if engine.version != self.version:
            self._load(engine)
        else:
            self._go_on(engine)

    def _go_on(self, engine: _Engine) -> None:
        given = self.router.assign([engine.number])
        self._begin(engine, given.get(engine.number, []))

    def _load(self, engine: _Engine) -> None:
        """New weights: nothing is drawn meanwhile, and what was cached is no longer right."""
        engine.version = self.version
        engine.cached.clear()
        engine.at = max(engine.at, self.now) + self.job.sync
        self._due(engine, engine.at)

    # -- engines that come and go

    def _hire(self) -> None:
        self.hired += 1
        engine = self.engines[self.hired] = _Engine(self.hired, self.version, at=self.now)
        self.router.join(self.hired, self.bound)
        if self.fleet.mtbf:
            rng = random.Random(f"{self.seed} {self.hired}")
            self._at(self.now + rng.expovariate(1 / self.fleet.mtbf), self._fail, self.hired)
        if self.asked >= 0:
            self._go_on(engine)

    def _fail(self, number: int) -> None:
        engine = self.engines[number]
        self._pass(engine, self.now)
        self.segments += [(a, min(b, self.now), n) for a, b, n in engine.segments if a < self.now]
        engine.dead = True
        engine.due = self.now + self.fleet.notice
        self.failures += 1
        self._at(engine.due, self._notice, number)

    def _notice(self, number: int) -> None:
        del self.engines[number]
        self.begun_anew += len(self.router.leave(number))
        self._at(self.now + self.fleet.restart, self._hire)
        self._spread()

    # -- what came of it

    def _outcome(self) -> Outcome:
        job, fleet = self.job, self.fleet
        start, end = self.came[job.warm], self.came[job.last + 1]
        if end <= start:
            raise UserError(
                "steps take no time: the trainer's seconds are 0 and all rollouts were there before"
            )
        counted = job.last + 1 - job.warm
        engine_seconds = busy = filled = 0.0
        for a, b, n in self.segments:
            inside = min(b, end) - max(a, start)
            if inside > 0:
                busy += inside
                filled += inside * n
        engine_seconds = fleet.engines * (end - start)
        slowest = max(r.tokens for r in self.requests.values()) * (fleet.fixed + fleet.per_row)
        return Outcome(
            engines=fleet.engines,
            seconds=end - start,
            steps_per_hour=3600 * counted / (end - start),
            tokens_per_second=self.tokens / (end - start),
            busy=busy / engine_seconds,
            filled=filled / (engine_seconds * fleet.slots),
            wait=sum(self.waited[job.warm : job.last + 1]) / (end - start),
            staleness_mean=sum(self.ages) / len(self.ages),
            staleness_max=max(self.ages),
            prefix_hits=self.hits / self.given,
            failures=self.failures,
            begun_anew=self.begun_anew,
            longest=slowest,
            driver=fleet.engines * fleet.reply / fleet.cycle,
        )


def simulate(fleet: Fleet, job: Job, lengths: Lengths, seed: int = 0) -> Outcome:
    return Simulation(fleet, job, lengths, seed).run()
