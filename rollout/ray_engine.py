"""One engine in a Ray actor: how it is made, what it is told, what it answers.

The actor has no thread of its own.  Each call is one `Order` (forget, load, take requests, generate for some
seconds, answer a question) and returns one `Reply`, so that the driver knows by a deadline whether the actor
lives.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from onebase.errors import UserError
from onebase.rollout.engine import Engine, Request, Rollout
from onebase.rollout.ray_weights import Entry, Packed, unpack

FETCH_SECONDS = 300
"""Longest wait for a version's weights to come from another host."""
Question = Literal["logprobs", "fingerprint", "reset_cache"]


class Hosted(Engine, Protocol):
    """What an actor can hold: an engine that says which requests it can serve."""

    vocab_size: int
    max_length: int
    """Of prompt and completion together."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine with its own copy of a checkpoint folder's model, made where it will run; the folder must be
    readable there."""

    kind: Literal["torch", "vllm"]
    folder: str | Path
    dtype: str
    slots: int
    max_length: int
    device: str = "cpu"
    """Of the torch engine; vLLM takes the GPU that it is given."""
    record_routes: bool = False
    cut: bool = False
    """For vLLM: requests will have top-k or top-p."""
    memory_share: float = 0.85
    """For vLLM: of the GPU's memory, the trainer's and other engines' shares left out."""
    eager: bool = False
    """For vLLM: no captured graphs."""

    def __call__(self) -> Hosted:
        if self.kind == "vllm":
            from onebase.rollout.vllm_engine import VLLMEngine

            return VLLMEngine(
                self.folder,
                self.dtype,
                self.slots,
                self.max_length,
                cut=self.cut,
                record_routes=self.record_routes,
                memory_share=self.memory_share,
                eager=self.eager,
            )
        from onebase.model import checkpoint
        from onebase.rollout.torch_engine import TorchEngine

        model, tokenizer = checkpoint.load(self.folder, self.device, self.dtype)
        return TorchEngine(model, tokenizer.pad_id, self.slots, self.max_length, self.record_routes)


@dataclass(frozen=True, slots=True)
class Where:
    host: str
    node: str
    pid: int
    logs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    vocab_size: int
    max_length: int
    version: int


@dataclass(slots=True)
class Order:
    epoch: int
    """Another than the last order's: forget every request first."""
    weights: list[Entry]
    requests: list[tuple[int, Request]]
    seconds: float
    low: int
    """Come back when an end leaves fewer requests than this: there are more to be had."""
    question: Question | None = None
    ids: list[list[int]] = field(default_factory=list)


@dataclass(slots=True)
class Reply:
    version: int
    busy: bool
    loaded: int
    """Number of the last entry that it loaded."""
    ended: list[tuple[int, Rollout]] = field(default_factory=list)
    """Without their prompts, which the driver has."""
    refused: dict[int, str] = field(default_factory=dict)
    """Requests that break a rule of the engine's own."""
    bad_weights: str | None = None
    """Why the entry after that does not fit the model."""
    answer: Any = None


class EngineActor:
    """The engine's process."""

    def where(self) -> Where:
        import ray

        logs = tuple(str(Path(f"/proc/self/fd/{n}").resolve()) for n in (1, 2))
        node = ray.get_runtime_context().get_node_id()
        return Where(socket.gethostname(), node, os.getpid(), logs)

    def start(self, make: bytes, threads: int) -> Ready | str:
        """Make the engine.  A string: what is wrong with the user's input."""
        from ray import cloudpickle

        torch.set_num_threads(threads)
        maker: Callable[[], Hosted] = cloudpickle.loads(make)
        try:
            self.engine = maker()
        except UserError as e:
            return str(e)
        self.epoch = 0
        self.held: set[int] = set()
        return Ready(self.engine.vocab_size, self.engine.max_length, self.engine.version)

    def serve(self, order: Order) -> Reply:
        end = time.monotonic() + order.seconds
        if order.epoch != self.epoch:
            self.engine.clear()
            self.held.clear()
            self.epoch = order.epoch
        reply = Reply(self.engine.version, False, -1)
        for entry in order.weights:
            try:
                self._load(entry)
                reply.loaded = entry.number
            except UserError as e:
                reply.bad_weights = str(e)
                break
        if order.requests:
            self._take(order.requests, reply)
        while self.engine.busy and time.monotonic() < end:
            if reply.ended and len(self.held) < order.low:
                break
            for number, rollout in self.engine.step():
                rollout.prompt_ids = []
                reply.ended.append((number, rollout))
                self.held.discard(number)
        if order.question == "logprobs":
            reply.answer = self.engine.logprobs(order.ids)
        elif order.question == "fingerprint":
            reply.answer = self.engine.fingerprint()
        elif order.question == "reset_cache":
            self.engine.reset_cache()
        reply.version, reply.busy = self.engine.version, self.engine.busy
        return reply

    def _load(self, entry: Entry) -> None:
        import ray

        packed: Packed = ray.get(entry.ref, timeout=FETCH_SECONDS)
        self.engine.load_weights(entry.version, unpack(packed))

    def _take(self, requests: list[tuple[int, Request]], reply: Reply) -> None:
        try:
            self.engine.add(requests)
            self.held |= {n for n, _ in requests}
        except UserError:  # one of them; engines take all or nothing
            for number, request in requests:
                try:
                    self.engine.add([(number, request)])
                    self.held.add(number)
                except UserError as e:
                    reply.refused[number] = str(e).replace("request 0", f"request {number}", 1)
