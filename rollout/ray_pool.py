"""Many engines as Ray actors behind the one `Engine` protocol, on one machine's cores and GPUs or on many.

Everything is driven by the caller's own calls (`step`, `load_weights`, ...), without a thread: each actor has
one order in flight, generates for a fraction of a second, and comes back.  Between two calls of the driver's
the actors finish what they were told; `step(ahead=seconds)` tells them to go on for longer, for a caller
that trains meanwhile.

Weights go into Ray's object store once per version; the actors of a host read the same memory.  Every tensor
that was sent is kept until it is replaced, so that a new actor can be brought to the current version.

An actor that dies, does not come back in time, raises, or answers nonsense is killed and replaced.  The new
one loads the current weights and, where a probe of these weights was answered before, must answer it alike;
the requests that the old one had go to whichever engine has room, from their beginning.  Since seeds belong
to requests, the results are those of a run without the fault.  An error of the caller's (UserError) is the
caller's and kills nothing.  Replacements are bounded: beyond that the run stops with the list of what
happened.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.errors import UserError
from onebase.rollout.engine import Request, Rollout, check_requests, generate
from onebase.rollout.ray_engine import EngineActor, Hosted, Order, Question, Ready, Reply
from onebase.rollout.ray_seat import Answers, Fault, Patience, Seat, disagreement, distrust, lost
from onebase.rollout.ray_start import (
    Place,
    connect,
    end_of,
    first_line,
    in_bundle,
    last_line,
    release,
    reserve,
)
from onebase.rollout.ray_weights import Ledger, pack
from onebase.rollout.router import Item, Router, order_seconds

REPLY_SECONDS = 60
"""Longest wait for the contents of a reply that has come."""


class RayEngines:
    """`Engine` over `count` engines that `make` makes, each in an actor with its `place`.  `bound`: requests
    that one engine holds at once, its own slots and a few that follow (default: a quarter of the slots)."""

    def __init__(
        self,
        make: Callable[[], Hosted],
        count: int,
        *,
        place: Place | None = None,
        bound: int | None = None,
        patience: Patience | None = None,
        factor: float = 1.5,
        cpus: int | None = None,
    ) -> None:
        assert count >= 1, f"{count=}"
        self.slots: int = getattr(make, "slots", bound or 64)
        self.bound = bound or self.slots + max(1, self.slots // 4)
        self.place, self.patience = place or Place(), patience or Patience()
        self.ray, self.own_ray = connect(cpus)
        self.make = self.ray.cloudpickle.dumps(make)
        self.version = 0
        self.faults: list[Fault] = []
        self.replicas: list[str] = []
        """Whose answers the last `logprobs` gave, in their order."""
        self.router = Router(factor)
        self.requests: dict[int, Request] = {}
        self.ended: list[tuple[int, Rollout]] = []
        self.refused: list[str] = []
        self.epoch = 0
        self.ledger = Ledger()
        self.dtype = torch.float32
        self.questions = self.settled = 0
        self.question: Question = "reset_cache"
        self.ids: list[list[int]] = []
        self.probe: tuple[int, list[list[int]], Answers] | None = None  # (entry, ids, answers) of `logprobs`
        self.seats: dict[int, Seat] = {}
        self.hired = self.failed_starts = 0
        self.began = time.monotonic()
        self.dead: UserError | None = None
        self.complete = False
        self.group: Any = None
        try:
            self.group = reserve(self.ray, count, self.place, self.patience.room)
            for bundle in range(count):
                self._hire(bundle)
            self._until(lambda: all(s.working for s in self.seats.values()))
        except BaseException:
            self.close()
            raise
        self.complete = True

    def __enter__(self) -> RayEngines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the actors, give their room back, and stop Ray where it was started here."""
        if self.ray.is_initialized():
            for seat in self.seats.values():
                self._kill(seat)
            if self.group is not None:
                release(self.group)
            if self.own_ray:
                self.ray.shutdown()
        self.seats.clear()
        self.ledger.entries.clear()
        self.group = None

    # -- the engine protocol

    def generate(
        self, requests: list[Request], on_done: Callable[[int, Rollout], None] | None = None
    ) -> list[Rollout]:
        """Results in the order of the requests; `on_done(index, rollout)` as each ends."""
        return generate(self, requests, on_done)

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Queue requests under numbers of the caller's; those of one call are spread together."""
        check_requests([r for _, r in requests], self.max_length, self.vocab_size)
        clash = {i for i, _ in requests} & self.requests.keys()
        assert not clash, f"{clash=}"
        self.requests |= dict(requests)
        self.router.add(Item(i, hash(tuple(r.prompt_ids)), r.max_tokens) for i, r in requests)

    @property
    def busy(self) -> bool:
        return bool(self.requests or self.ended or self.refused)

    def step(self, ahead: float = 0.0) -> list[tuple[int, Rollout]]:
        """Hand out work, wait a moment, and give back what has ended.  `ahead`: the caller will not come back
        for about so many seconds.  UserError for requests that break a rule of the engine's own: they are
        dropped, the others go on."""
        self._turn(ahead)
        if self.refused:
            told, self.refused = self.refused, []
            raise UserError("\n".join(told))
        ended, self.ended = self.ended, []
        return ended

    def clear(self) -> None:
        """Forget every request; each actor does with its next order."""
        self.requests.clear()
        self.router.clear()
        self.ended.clear()
        self.refused.clear()
        self.epoch += 1

    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]], wait: bool = True) -> None:
        """Send tensors, named as in a checkpoint's files, some or all, to every engine.  Without `wait` each
        loads them with its next order.  Requests that run go on and record both versions."""
        packed = pack(tensors)
        floats = [dtype for _, dtype in packed.values() if "float" in dtype]
        if floats:
            self.dtype = getattr(torch, floats[0])
        entry = self.ledger.add(version, packed, self.ray.put(packed))
        self.version = version
        if wait:
            self._until(lambda: self._every(lambda s: s.entry >= entry.number))

    def logprobs(self, ids: Sequence[list[int]]) -> Answers:
        """[replica][row][token but the first]; `replicas` names them."""
        rows = [list(row) for row in ids]
        seats = self._ask("logprobs", rows)
        self.replicas = [str(s) for s in seats]
        answers = [s.answer[0] for s in seats]
        self.probe = (self.ledger.last, rows, answers)
        return answers

    def reset_cache(self) -> None:
        self._ask("reset_cache")

    def fingerprint(self) -> dict[str, float]:
        """Of the first engine, with the number of engines whose own differs in at least one sum."""
        prints = [s.answer for s in self._ask("fingerprint")]
        differ = sum(p != prints[0] for p in prints)
        return prints[0] | {"replicas": float(len(prints)), "replicas_that_differ": float(differ)}

    # -- orders and replies

    def _ask(self, question: Question, ids: Sequence[list[int]] = ()) -> list[Seat]:
        """Put a question to every engine; those that have answered."""
        self.questions += 1
        self.question, self.ids = question, list(ids)
        self._until(lambda: self._every(lambda s: s.answered == self.questions))
        self.settled = self.questions
        return [s for s in self.seats.values() if s.answered == self.questions]

    def _every(self, fine: Callable[[Seat], bool]) -> bool:
        """Whether it holds for every engine that works, and there is one."""
        working = [s for s in self.seats.values() if s.working]
        return bool(working) and all(fine(s) for s in working)

    def _until(self, met: Callable[[], bool]) -> None:
        while not met():
            self._turn()

    def _turn(self, ahead: float = 0.0) -> None:
        if self.dead:
            raise self.dead
        if ahead:  # first let what is out there come back, which has been told to be short
            while any(s.order is not None for s in self.seats.values()):
                self._receive(self._order_seconds())
        else:
            self._send(0.0)
            self._receive(self._order_seconds() + 0.05)
        self._send(ahead)

    def _send(self, ahead: float) -> None:
        """An order to every idle engine that has something to do."""
        idle = [s for s in self.seats.values() if s.started and s.flight is None]
        given = self.router.assign([s.number for s in idle if s.working])
        for seat in idle:
            order = self._order(seat, given.get(seat.number, []), ahead)
            if order is not None:
                seat.order, seat.flight = order, seat.actor.serve.remote(order)
                seat.deadline = time.monotonic() + order.seconds + self.patience.grace

    def _order_seconds(self) -> float:
        return order_seconds(self.patience.pump, len(self.seats))

    def _order(self, seat: Seat, numbers: list[int], ahead: float) -> Order | None:
        weights = self.ledger.after(seat.entry)
        running = bool(seat.working and self.router.places[seat.number].running)
        question: Question | None = None
        ids: list[list[int]] = []
        if not seat.working:  # its proof, before it is given any request
            assert self.probe is not None
            question, ids = "logprobs", self.probe[1]
        elif seat.answered < self.questions:
            question, ids, seat.asked = self.question, self.ids, self.questions
        if not (weights or running or question):
            return None
        return Order(
            epoch=self.epoch,
            weights=weights,
            requests=[(n, self.requests[n]) for n in numbers],
            seconds=0.0 if weights or question else max(self._order_seconds(), ahead),
            low=self.slots if self.router.waiting else 0,
            question=question,
            ids=ids,
        )

    def _receive(self, seconds: float) -> None:
        """Wait for a reply, take in all that have come, and replace engines that are late."""
        flights = {s.flight: s for s in self.seats.values() if s.flight is not None}
        if not flights:
            return
        first = min(s.deadline for s in flights.values()) - time.monotonic()
        located = {s.where_ref: s for s in self.seats.values() if s.where_ref is not None}
        refs = [*located, *flights]
        come, _ = self.ray.wait(refs, num_returns=1, timeout=max(0.0, min(seconds, first)))
        if come and len(refs) > 1:
            come, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0)
        # where a process runs is no reply, also where both have come since the driver last looked
        for ref in come:
            if ref in located:
                self._locate(located[ref])
        for ref in come:
            if ref in flights and flights[ref].number in self.seats:
                self._take_in(flights[ref], ref)
        now = time.monotonic()
        for ref, seat in flights.items():
            if ref not in come and now > seat.deadline and seat.number in self.seats:
                self._late(seat)

    def _take_in(self, seat: Seat, ref: Any) -> None:
        errors = self.ray.exceptions
        try:
            reply = self.ray.get(ref, timeout=REPLY_SECONDS)
        except errors.RayActorError as e:
            return self._replace(seat, f"its process died{end_of(e)}")
        except errors.RayTaskError as e:
            cause = e.cause if isinstance(e.cause, BaseException) else e
            return self._replace(seat, f"it raised {type(cause).__name__}: {first_line(cause)}")
        except errors.RayError as e:
            return self._replace(seat, f"its answer was lost: {type(e).__name__}: {first_line(e)}")
        seat.flight = None
        if seat.order is None:
            return self._begun(seat, reply)
        running = self.router.places[seat.number].running if seat.working else set()
        if seat.order.epoch != self.epoch:
            reply.ended, reply.refused, running = [], {}, set()
        why = distrust(seat, reply, self.requests, running, self.vocab_size)
        if why is None and not seat.working:
            assert self.probe is not None
            why = disagreement(reply.answer, self.probe[2], self.dtype)
        if why is not None:
            return self._replace(seat, why)
        self._believe(seat, seat.order, reply)

    def _begun(self, seat: Seat, reply: Ready | str) -> None:
        """The answer to a start."""
        self._locate(seat)
        if isinstance(reply, str):
            if not self.complete:
                raise UserError(reply)
            return self._replace(seat, reply)
        self.vocab_size, self.max_length = reply.vocab_size, reply.max_length
        seat.started, seat.version, seat.versions = True, reply.version, {reply.version}
        seat.answered = self.settled
        self.failed_starts = 0
        if self.probe is None or self.probe[0] != self.ledger.last:
            self._set_to_work(seat)

    def _set_to_work(self, seat: Seat) -> None:
        seat.working = True
        seat.fruitful = time.monotonic()
        self.router.join(seat.number, self.bound)

    def _believe(self, seat: Seat, order: Order, reply: Reply) -> None:
        """A sound reply's effects."""
        bad = next((e for e in order.weights if e.number > reply.loaded), None)
        if order.weights:
            seat.entry, seat.version = bad.number if bad else reply.loaded, reply.version
            seat.versions |= {e.version for e in order.weights}
        if not seat.working:
            self._set_to_work(seat)
        elif order.question is not None:
            seat.answered, seat.answer = seat.asked, reply.answer
        for number, rollout in reply.ended:
            rollout.prompt_ids = self.requests.pop(number).prompt_ids
            self.router.done(number, len(rollout.completion_ids))
            self.ended.append((number, rollout))
        for number, told in reply.refused.items():
            del self.requests[number]
            self.router.drop(number)
            self.refused.append(told)
        now = time.monotonic()
        if reply.ended or not self.router.places[seat.number].running:
            seat.fruitful = now
        if now - seat.fruitful > self.patience.stall:
            return self._replace(seat, f"it has ended no request for {self.patience.stall:g} s")
        seat.order = None
        if bad in self.ledger.entries:  # weights that do not fit are the caller's error, told once
            self.ledger.entries.remove(bad)
            self.version = self.ledger.entries[-1].version if self.ledger.entries else reply.version
            raise UserError(reply.bad_weights)

    # -- faults

    def _late(self, seat: Seat) -> None:
        if seat.where is None:
            if any(s.working for s in self.seats.values()):
                seat.deadline = time.monotonic() + self.patience.room  # the others go on meanwhile
                return
            free, needed = self.ray.available_resources(), self.place.bundle()
            room = ", ".join(f"{free.get(k, 0):g} {k}s" for k in needed)
            why = f"no process came up for it within {self.patience.room:g} s; free in the cluster: {room}"
        else:
            allowed = self.patience.grace if seat.started else self.patience.start
            why = f"it did not answer within {allowed:g} s"
        self._replace(seat, why, late=True)

    def _replace(self, seat: Seat, why: str, late: bool = False) -> None:
        """Kill it, give its requests to others, start another, unless that has been done too often."""
        self._locate(seat)
        aboard: list[int] = []
        if seat.number in self.router.places:
            aboard = self.router.leave(seat.number)
        del self.seats[seat.number]
        said = last_line(self.ray, seat.where.node, seat.where.logs) if seat.where else ""
        self._kill(seat)
        now = time.monotonic()
        reason = f"{why}; its last line: {said}" if said else why
        doing = seat.doing(len(aboard))
        self.faults.append(Fault(now - self.began, str(seat), doing, reason, frozenset(aboard)))
        patience = self.patience
        recent = [f for f in self.faults if f.at > now - self.began - patience.window]
        if not seat.started:
            self.failed_starts += 1
        if not seat.started and (self.failed_starts >= patience.failed_starts or late and not self.complete):
            self.dead = lost("engines do not start", self.faults[-self.failed_starts :])
        elif len(recent) > patience.replacements:
            allowed = f"{patience.replacements} within {patience.window:g} s"
            self.dead = lost(f"engines fail more often than they may be replaced ({allowed})", recent)
        if self.dead:
            raise self.dead
        self._hire(seat.bundle)

    def _hire(self, bundle: int) -> None:
        options: dict[str, Any] = {"num_cpus": self.place.cpus, "num_gpus": self.place.gpus}
        strategy = in_bundle(self.group, bundle)
        made = self.ray.remote(EngineActor).options(
            **options, max_restarts=0, max_task_retries=0, scheduling_strategy=strategy
        )
        actor = made.remote()
        self.hired += 1
        self.seats[self.hired] = Seat(
            number=self.hired,
            bundle=bundle,
            actor=actor,
            where_ref=actor.where.remote(),
            flight=actor.start.remote(self.make, max(1, int(self.place.cpus))),
            deadline=time.monotonic() + self.patience.room,
        )

    def _locate(self, seat: Seat) -> None:
        """Take in where it runs, if it has said so; from then on its start counts."""
        if seat.where_ref is None or not self.ray.wait([seat.where_ref], timeout=0)[0]:
            return
        try:
            seat.where = self.ray.get(seat.where_ref, timeout=REPLY_SECONDS)
            seat.deadline = time.monotonic() + self.patience.start
        except self.ray.exceptions.RayError:
            pass  # it died before; its start's reply says so, too
        seat.where_ref = None

    def _kill(self, seat: Seat) -> None:
        """Ray gives a process some seconds to leave, which a stopped one does not use; on this host it is
        done at once, so that its memory is free for the next."""
        self.ray.kill(seat.actor)
        if seat.where is None or seat.where.node != self.ray.get_runtime_context().get_node_id():
            return
        try:
            if b"EngineActor" in Path(f"/proc/{seat.where.pid}/cmdline").read_bytes():
                os.kill(seat.where.pid, signal.SIGKILL)
        except OSError:
            pass  # it is gone
