"""The in-process rollout engine: batched generation with the trainer's own weights, no copy and no sync.

A fixed number of slots share one cache: compressed latents for our model (absorbed decoding), keys and values
for a Hugging Face one.  Running requests fill the first slots without gaps: a finished one is replaced by the
next request, and at the end by the last running one, so that a step computes running rows only.  Equal
prompts that enter together (a GRPO group) are prefilled once. On a GPU the step is a CUDA graph per (rows,
cached length) bucket and the host looks at the results every few steps.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onebase.errors import UserError
from onebase.model.transformer import Transformer
from onebase.rollout.decoders import HFDecoder, NativeDecoder, RouteLog
from onebase.rollout.engine import Request, Rollout, check_requests, generate
from onebase.rollout.fused_decoder import FusedDecoder
from onebase.rollout.named_weights import logprobs_of, named_weights
from onebase.rollout.packed_decoder import PackedDecoder, fits
from onebase.rollout.sampling import Kinds, draw, uniform

LOOK_EVERY = 8  # steps between the host's looks at a GPU's results
BUCKET = 32  # cached lengths are rounded up to a multiple of this on the CPU
PREFILL_TOKENS = 8192  # most padded prompt tokens of one prefill


def request_seed(run_seed: int, step: int, prompt: int, sample: int) -> int:
    """63-bit seed from (run, step, prompt, sample)."""
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(slots=True)
class _Slots:
    """State of the rows, on the device; row i < running is a request."""

    token: Tensor
    position: Tensor
    """Of `token` in the sequence: where its cache entry goes."""
    count: Tensor
    """Completion tokens so far, `token` included."""
    limit: Tensor
    noise: Tensor
    """[slots, longest completion]: the uniform number of each token to come"""
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    stop: Tensor
    """[slots, stops], padded with -1."""
    done: Tensor
    out_ids: Tensor
    """[slots, longest completion]"""
    out_logp: Tensor

    def move(self, source: Tensor, target: Tensor) -> None:
        """Rows `source` to the places of `target`, which are others."""
        for field in self.__slots__:
            tensor = getattr(self, field)
            tensor[target] = tensor[source]


class TorchEngine:
    def __init__(
        self, model: Any, tokenizer_pad_id: int, slots: int, max_length: int, record_routes: bool = False
    ) -> None:
        self.model, self.pad_id = model, tokenizer_pad_id
        self.slots, self.max_length = slots, max_length
        # a prefill takes a GPU about as long for one prompt as for many, so some places are waited for
        self.least = 1 if model.head_weight.device.type == "cpu" else max(1, slots // 16)
        weight = model.head_weight
        self.device = weight.device
        self.decoder: PackedDecoder | FusedDecoder | NativeDecoder | HFDecoder
        self.routes: RouteLog | None = None
        if isinstance(model, Transformer):
            if record_routes and model.trunk_moe_layers():
                self.routes = RouteLog(model, slots, max_length)
            kind: type[PackedDecoder] | type[FusedDecoder] | type[NativeDecoder] = NativeDecoder
            if self.device.type == "cpu" and weight.dtype == torch.float32 and fits(model.config):
                kind = PackedDecoder
            elif FusedDecoder.fits(model):
                kind = FusedDecoder
            self.decoder = kind(model, slots, max_length, self.routes)
        else:
            self.decoder = HFDecoder(model, slots, max_length)
        self.vocab_size = weight.shape[0]
        self.version = 0
        self.kinds = Kinds()
        # our experts in another dtype than bf16 need their counts on the host, which a graph cannot give
        native = isinstance(model, Transformer)
        self.capturable = self.device.type == "cuda" and (not native or weight.dtype == torch.bfloat16)
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.state: _Slots | None = None
        self.requests: dict[int, Request] = {}
        self.waiting: deque[int] = deque()
        self.owner: list[int] = []  # request of each running row
        self.versions: dict[int, list[tuple[int, int]]] = {}  # of running requests, as in Rollout
        self.steps = 0
        self.offset: dict[int, int] = {}  # a running row has used steps + offset positions

    # -- the engine protocol

    def generate(
        self, requests: list[Request], on_done: Callable[[int, Rollout], None] | None = None
    ) -> list[Rollout]:
        """Results in the order of the requests; `on_done(index, rollout)` as each ends."""
        was_training = self.model.training
        try:
            return generate(self, requests, on_done)
        finally:
            self.model.train(was_training)

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Queue requests under numbers of the caller's; those that run already are not disturbed.  The model
        is in evaluation mode from here on."""
        check_requests([r for _, r in requests], self.max_length, self.vocab_size)
        clash = {i for i, _ in requests} & self.requests.keys()
        assert not clash, f"{clash=}"
        if not self.busy:
            self.model.eval()
            self.decoder.begin()  # the weights may have been trained since
        self.requests |= dict(requests)
        self.waiting.extend(i for i, _ in requests)
        self._make_room(list(self.requests.values()))

    @property
    def busy(self) -> bool:
        return bool(self.requests)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Rollout]]:
        """Admit what fits, draw one token for every running request (on a GPU some), hand back what ended."""
        if self.waiting and (not self.owner or self.slots - len(self.owner) >= self.least):
            self._admit()
            ended = self._harvest()
            if ended or not self.owner:
                return ended
        for _ in range(1 if self.device.type == "cpu" else LOOK_EVERY):
            self.steps += 1
            longest = self.steps + max(self.offset[i] for i in self.owner)
            self._step(len(self.owner), min(longest, self.max_length))
        return self._harvest()

    def clear(self) -> None:
        """Forget every request."""
        self.requests.clear()
        self.waiting.clear()
        self.owner.clear()
        self.versions.clear()
        self.offset.clear()
        if self.state is not None:
            self.state.done.fill_(True)

    @torch.no_grad()
    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy tensors, named as in a checkpoint's files, into the model; some or all of them.  With the
        trainer's own model in place only the version is needed.  Requests that run go on under the new
        weights with the cache that the old ones made, and their rollouts say from which token on."""
        own = dict(named_weights(self.model))
        for name, tensor in tensors:
            if name not in own:
                raise UserError(f"weight {name!r} has no place in the engine's model")
            if own[name].shape != tensor.shape:
                raise UserError(f"weight {name!r}: {tuple(tensor.shape)}, expected {tuple(own[name].shape)}")
            own[name].copy_(tensor)
        self.version = version
        if self.owner:
            assert self.state is not None
            counts = self.state.count[: len(self.owner)].tolist()
            for i, count in zip(self.owner, counts, strict=True):
                self.versions[i].append((count, version))
            with torch.inference_mode():
                self.decoder.begin()

    @torch.no_grad()
    def fingerprint(self) -> dict[str, float]:
        """Version, and for every weight a sum with position-dependent signs and sizes: it differs where a
        weight differs, also where entries, rows or whole experts have only changed places."""
        sums = {n: checksum(t) for n, t in named_weights(self.model)}
        return {"version": float(self.version), **sums}

    def logprobs(self, ids: Sequence[list[int]]) -> list[list[list[float]]]:
        """Log-probability of every token but the first, at temperature 1, by the model's own forward; of the
        only replica."""
        return [logprobs_of(self.model, ids).tolist()]

    def reset_cache(self) -> None:
        """No prompt is cached beyond its request."""

    # -- generation

    def _make_room(self, requests: list[Request]) -> None:
        """Buffers wide enough for all of the requests; what running rows hold is kept."""
        width = max((r.max_tokens for r in requests), default=1)
        stops = max((len(r.stop_ids) for r in requests), default=0) or 1
        greedy = sum(r.temperature == 0 for r in requests)
        kinds = Kinds(
            greedy="none" if not greedy else "all" if greedy == len(requests) else "some",
            scaled=any(r.temperature not in (0, 1) for r in requests),
            cut=any(r.top_k or r.top_p < 1 for r in requests),
        )
        old = self.state
        if kinds != self.kinds:
            self.graphs.clear()
            self.kinds = kinds
        if old is not None and old.out_ids.shape[1] >= width and old.stop.shape[1] >= stops:
            return
        self.graphs.clear()  # they point at the old buffers
        if old is not None:
            width, stops = max(width, old.out_ids.shape[1]), max(stops, old.stop.shape[1])

        def new(dtype: torch.dtype, *shape: int, fill: float = 0) -> Tensor:
            return torch.full((self.slots, *shape), fill, dtype=dtype, device=self.device)

        i, f = torch.int64, torch.float32
        self.state = _Slots(
            new(i), new(i), new(i), new(i), new(f, width), new(f), new(i), new(f),
            new(i, stops, fill=-1), new(torch.bool, fill=1), new(i, width), new(f, width),
        )  # fmt: skip
        if old is not None and self.owner:
            for name in _Slots.__slots__:
                before, after = getattr(old, name), getattr(self.state, name)
                after[tuple(slice(0, n) for n in before.shape)] = before

    def _admit(self) -> None:
        """Prefill as many waiting requests as there is room for."""
        s, requests, owner = self.state, self.requests, self.owner
        assert s is not None
        chosen: list[int] = []
        prompts: dict[tuple[int, ...], int] = {}
        width = 0
        while self.waiting and len(owner) + len(chosen) < self.slots:
            prompt = tuple(requests[self.waiting[0]].prompt_ids)
            wider = max(width, len(prompt))
            count = len(prompts) + (prompt not in prompts)
            if chosen and wider * count > PREFILL_TOKENS:
                break
            prompts.setdefault(prompt, len(prompts))
            width = wider
            chosen.append(self.waiting.popleft())
        ids = torch.full((len(prompts), width), self.pad_id, dtype=torch.int64)
        for prompt, row in prompts.items():
            ids[row, : len(prompt)] = torch.tensor(prompt)
        length = torch.tensor([len(p) for p in prompts], device=self.device)
        of_prompt = torch.tensor([prompts[tuple(requests[c].prompt_ids)] for c in chosen], device=self.device)
        first = len(owner)
        slot = torch.arange(first, first + len(chosen), device=self.device)
        logits = self.decoder.prefill(ids.to(self.device), length, of_prompt, slot)
        mine = [requests[c] for c in chosen]

        def put(target: Tensor, values: list[Any]) -> None:
            target[slot] = torch.tensor(values, dtype=target.dtype, device=self.device)

        put(s.limit, [r.max_tokens for r in mine])
        seed = torch.tensor([r.seed for r in mine], dtype=torch.int64, device=self.device)
        s.noise[slot] = uniform(seed[:, None], torch.arange(s.noise.shape[1], device=self.device))
        put(s.temperature, [r.temperature for r in mine])
        put(s.top_k, [r.top_k for r in mine])
        put(s.top_p, [r.top_p for r in mine])
        stops = s.stop.shape[1]
        put(s.stop, [[*r.stop_ids, *[-1] * (stops - len(r.stop_ids))] for r in mine])
        s.count[slot] = 0
        s.position[slot] = length[of_prompt] - 1
        s.done[slot] = False
        owner += chosen
        for c in chosen:
            self.offset[c] = len(requests[c].prompt_ids) - self.steps
            self.versions[c] = [(0, self.version)]
        self._sample(logits[of_prompt], slice(first, first + len(chosen)))

    def _sample(self, logits_NV: Tensor, rows: slice) -> None:
        """Draw the next token of the rows and write it to their state."""
        s = self.state
        assert s is not None
        # a finished row goes on until the host has looked; it overwrites its last, then unread place
        at = s.count[rows].clamp(max=s.out_ids.shape[1] - 1)[:, None]
        token, logp = draw(
            logits_NV,
            s.noise[rows].gather(1, at)[:, 0],
            s.temperature[rows],
            s.top_k[rows],
            s.top_p[rows],
            self.kinds,
        )
        s.token[rows] = token
        live: Tensor | int = 1
        if self.device.type != "cpu":
            running = ~s.done[rows]
            token = torch.where(running, token, s.out_ids[rows].gather(1, at)[:, 0])
            logp = torch.where(running, logp, s.out_logp[rows].gather(1, at)[:, 0])
            live = running
        s.out_ids[rows].scatter_(1, at, token[:, None])
        s.out_logp[rows].scatter_(1, at, logp[:, None])
        s.count[rows] += live
        s.position[rows] += live
        s.done[rows] |= (s.stop[rows] == s.token[rows][:, None]).any(1) | (s.count[rows] >= s.limit[rows])

    def _advance(self, n: int, length: int) -> None:
        s = self.state
        assert s is not None
        self._sample(self.decoder.decode(s.token[:n], s.position[:n], n, length), slice(0, n))

    def _step(self, n: int, longest: int) -> None:
        """One token for the first n rows, whose cached lengths are at most `longest`."""
        if self.device.type == "cpu":
            self._advance(n, min(self.max_length, -(-longest // BUCKET) * BUCKET))
            return
        rows = next(b for b in _buckets(self.slots) if b >= n)
        length = self.max_length
        if not isinstance(self.decoder, FusedDecoder):  # which reads what is there, and no more
            length = next(b for b in _buckets(self.max_length) if b >= longest)
        if not self.capturable:
            self._advance(rows, length)
            return
        key = (rows, length)
        if key not in self.graphs:
            self.graphs[key] = self._capture(rows, length)
            return
        self.graphs[key].replay()

    def _capture(self, rows: int, length: int) -> torch.cuda.CUDAGraph:
        """Run the step once for real (which also warms up every kernel), then record it without running
        it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._advance(rows, length)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance(rows, length)
        return graph

    def _harvest(self) -> list[tuple[int, Rollout]]:
        """Take finished rows out and close the gaps with the last running rows."""
        s, owner = self.state, self.owner
        assert s is not None
        done = s.done[: len(owner)].nonzero()[:, 0].tolist()
        if not done:
            return []
        index = torch.tensor(done, device=self.device)
        counts = s.count[index].tolist()
        widest = max(counts)
        ids, logps = s.out_ids[index, :widest].tolist(), s.out_logp[index, :widest].tolist()
        ended = []
        for row, n, row_ids, row_logps in zip(done, counts, ids, logps, strict=True):
            i = owner[row]
            r = self.requests.pop(i)
            del self.offset[i]
            versions = [(at, v) for at, v in self.versions.pop(i) if at < n]
            rollout = Rollout(
                prompt_ids=r.prompt_ids,
                completion_ids=row_ids[:n],
                logp_rollout=row_logps[:n],
                finish_reason="stop" if row_ids[n - 1] in r.stop_ids else "length",
                versions=versions,
                seed=r.seed,
                routes=None if self.routes is None else self._routes(row, len(r.prompt_ids) + n - 1),
            )
            ended.append((i, rollout))
        left = len(owner) - len(done)
        holes = [row for row in done if row < left]
        gone = set(done)
        last = [row for row in range(left, len(owner)) if row not in gone]
        for hole, row in zip(holes, last, strict=True):
            owner[hole] = owner[row]
        if holes:
            source, target = (torch.tensor(rows, device=self.device) for rows in (last, holes))
            self.decoder.move(source, target)
            s.move(source, target)
        s.done[left : len(owner)] = True
        s.position[left : len(owner)] = 0  # a graph for more rows computes them: within any cached length
        del owner[left:]
        return ended

    def _routes(self, row: int, positions: int) -> Tensor:
        assert self.routes is not None
        return self.routes.slots[row, :positions].to("cpu", copy=True)


def _buckets(most: int) -> list[int]:
    """Powers of two from 32 up and three halves of them, and `most`."""
    sizes = []
    n = 32
    while n < most:
        sizes += [n, n + n // 2]
        n *= 2
    return [*(s for s in sizes if s < most), most]


def checksum(t: Tensor) -> float:
    """A sum with position-dependent signs and sizes."""
    flat = t.detach().flatten().double()
    return float((flat * torch.sin(torch.arange(1, len(flat) + 1, device=flat.device) * 2.399963)).sum())
