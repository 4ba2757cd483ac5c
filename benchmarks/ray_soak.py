"""A soak of the Ray engines with faults injected at random: does anything hang, get lost, or grow?

    python benchmarks/ray_soak.py --minutes 30 --out docs/results/soak.json

One pool of engines (rollout/ray_pool.py, copies of a tiny model on the CPU) serves one round after another
of generation ahead of a trainer (rollout/ahead.py).  A round has a few steps; in half of them the weights
change at every step (staleness 0), in the others they rest while their version rises (staleness 1 or 2),
because only then is there one right answer to compare with.  Some rounds are broken off in their middle and
taken up again from the buffer, as after a trainer's death.  Meanwhile, at random times:

    kill        SIGKILL to any engine's process, also one that starts or loads
    stop        SIGSTOP to it: it hangs
    step-*      at its next token an engine dies, raises, or answers a token that does not exist
    load-*      at its next weights an engine dies, hangs, raises, or reports an old version
    start-*     the next engine that starts dies, hangs or raises

What is demanded:

    every step arrives, and within `--limit` seconds (else it tells what it knows and leaves)
    every rollout equals that of one engine in this process without faults, same seeds: token ids, the finish,
    the log-probabilities to 1e-4
    every request that was handed in comes back once, or was forgotten by a round that was broken off
    memory: the medians of the last third of the run against the first, of this process and of each engine
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase import worlds
from onebase.model.config import ModelConfig
from onebase.model.transformer import Transformer, init_weights
from onebase.recipe import Sampling, Term
from onebase.rollout.ahead import Ahead
from onebase.rollout.engine import Request, Rollout
from onebase.rollout.groups import sample_groups
from onebase.rollout.ray_pool import RayEngines
from onebase.rollout.ray_seat import Patience
from onebase.rollout.ray_start import Place
from onebase.rollout.torch_engine import TorchEngine
from onebase.rollout.weight_sync import WeightSync

PROMPTS, GROUP, SLOTS, LENGTH = 4, 4, 6, 96
SAMPLING = Sampling(max_tokens=40)
TERMS = [Term(verifier="worlds")]
PLANTED = (
    "step-die", "step-raise", "step-nonsense", "load-die", "load-hang", "load-raise", "load-old-version",
    "start-die", "start-hang", "start-raise",
)  # fmt: skip
SIGNALS = ("kill", "kill", "kill", "stop")
GROWTH = 0.10
"""Memory may grow by this share of the first third's, or by SLACK where that is more."""
SLACK = 24e6
VARIANTS = 3


@dataclass
class Planted:
    """Makes an engine that misbehaves once for every file that it finds in the folder."""

    config: ModelConfig
    weights: Path
    folder: Path
    slots: int = SLOTS

    def __call__(self) -> TorchEngine:
        self.act("start")
        model = Transformer(self.config)
        model.load_state_dict(torch.load(self.weights))
        engine = TorchEngine(model.eval(), 2, self.slots, LENGTH)
        load, step = engine.load_weights, engine.step

        def planted_load(version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
            self.act("load")
            load(version - self.found("load-old-version"), tensors)

        def planted_step() -> list[tuple[int, Rollout]]:
            self.act("step")
            ended = step()
            if ended and self.found("step-nonsense"):
                number, rollout = ended[0]
                ended[0] = (number, replace(rollout, completion_ids=[10**6] * len(rollout.completion_ids)))
            return ended

        engine.load_weights, engine.step = planted_load, planted_step  # type: ignore[method-assign]
        return engine

    def found(self, fault: str) -> bool:
        try:
            (self.folder / fault).unlink()
        except FileNotFoundError:
            return False
        return True

    def act(self, phase: str) -> None:
        if self.found(f"{phase}-die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.found(f"{phase}-hang"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.found(f"{phase}-raise"):
            raise RuntimeError(f"planted in {phase}")


class Accounted:
    """The pool, with every request counted on its way in and out; rounds may not close it."""

    def __init__(self, pool: RayEngines) -> None:
        self.pool = pool
        self.out: set[int] = set()
        self.asked = self.back = self.forgotten = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        numbers = [n for n, _ in requests]
        assert len(set(numbers)) == len(numbers) and self.out.isdisjoint(numbers), "a request was added twice"
        self.pool.add(requests)
        self.out |= set(numbers)
        self.asked += len(numbers)

    def step(self) -> list[tuple[int, Rollout]]:
        ended = self.pool.step()
        for number, _ in ended:
            assert number in self.out, f"request {number} came back twice, or was never handed in"
            self.out.remove(number)
        self.back += len(ended)
        return ended

    def clear(self) -> None:
        self.forgotten += len(self.out)
        self.out.clear()
        self.pool.clear()

    def close(self) -> None:
        """A round ends, the pool stays."""


@dataclass
class Chaos:
    """A thread that plants faults at random times."""

    pool: RayEngines
    folder: Path
    every: float
    """Mean seconds between faults."""
    rng: random.Random
    done: Counter[str] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.wait(self.rng.expovariate(1 / self.every)):
            if not any(s.working for s in list(self.pool.seats.values())):
                continue  # a pool that is never let up would say nothing
            kind = self.rng.choice(SIGNALS if self.rng.random() < 0.5 else PLANTED)
            if kind in PLANTED:
                (self.folder / kind).touch()
                self.done[kind] += 1
                continue
            seats = [s for s in list(self.pool.seats.values()) if s.where is not None]
            if seats:
                seat = self.rng.choice(seats)
                where = seat.where
                assert where is not None
                try:
                    os.kill(where.pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
                    self.done[kind if seat.working else f"{kind} while it starts"] += 1
                except ProcessLookupError:
                    pass  # it has just ended for another reason


@dataclass
class Watch:
    """Ends the process, with all that is known of the engines, where a step does not come in time."""

    pool: RayEngines
    limit: float
    last: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.wait(1.0):
            now = time.monotonic()
            if now - self.last < self.limit:
                continue
            print(f"no step for {self.limit:g} s; the engines:", file=sys.stderr)
            for s in list(self.pool.seats.values()):
                told = f"{s}: {s.doing(-1)}, working {s.working}, deadline in {s.deadline - now:.1f} s"
                print(f"  {told}, where_ref {s.where_ref}, flight {s.flight}", file=sys.stderr)
            print(f"  waiting {self.pool.router.waiting} of {len(self.pool.requests)}", file=sys.stderr)
            for fault in self.pool.faults[-20:]:
                print(f"  {fault}", file=sys.stderr)
            faulthandler.dump_traceback()
            os._exit(3)


@dataclass
class Memory:
    """Resident bytes of this process, of the engines' processes (mean) and of Ray's own (sum), with times."""

    samples: list[tuple[float, float, float, float]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        import psutil

        me, start = psutil.Process(), time.monotonic()
        while not self.stop.wait(3.0):
            actors, others = [], 0.0
            for p in me.children(recursive=True):
                try:
                    line, rss = " ".join(p.cmdline()), float(p.memory_info().rss)
                except psutil.Error:
                    continue
                if "EngineActor" in line:
                    actors.append(rss)
                else:
                    others += rss
            if actors:
                mean = statistics.fmean(actors)
                self.samples.append((time.monotonic() - start, float(me.memory_info().rss), mean, others))

    def thirds(self) -> dict[str, dict[str, float]]:
        """Medians in MB of the first third and the last."""
        n = max(1, len(self.samples) // 3)
        out = {}
        for i, name in enumerate(("driver", "engine", "ray"), start=1):
            first = statistics.median(s[i] for s in self.samples[:n])
            last = statistics.median(s[i] for s in self.samples[-n:])
            out[name] = {"first": round(first / 1e6, 1), "last": round(last / 1e6, 1)}
        return out


def rows_of(round_: int, step: int) -> list[dict[str, Any]]:
    stream = worlds.stream("addition", split="train", seed=1000 * round_ + step)
    return [
        {"problem": p.prompt, "answer": p.answer, "family": "addition"}
        for p, _ in zip(stream, range(PROMPTS), strict=False)
    ]


def same(ours: Rollout, theirs: Rollout, name: str) -> None:
    for key in ("prompt_ids", "completion_ids", "finish_reason", "seed"):
        assert getattr(ours, key) == getattr(theirs, key), f"{name}: {key} is not that of the calm run"
    gap = max(abs(a - b) for a, b in zip(ours.logp_rollout, theirs.logp_rollout, strict=True))
    assert gap < 1e-4, f"{name}: log-probabilities differ by {gap} from the calm run"


@dataclass
class Soak:
    model: Transformer
    """The trainer's."""
    variants: list[dict[str, Tensor]]
    """Weights that it has in turn."""
    tokenizer: Any
    engine: Accounted
    watch: Watch
    rng: random.Random
    idle: float
    """Longest time that the trainer spends on a step without looking at the engines."""
    steps: int = 0
    rounds: int = 0
    broken_off: int = 0
    compared: int = 0
    longest: float = 0.0
    """Seconds of the longest step."""

    def round(self, number: int) -> None:
        steps, staleness = self.rng.randint(2, 5), self.rng.choice((0, 0, 1, 2))
        changing = staleness == 0
        cut = self.rng.randrange(1, steps) if self.rng.random() < 0.3 else None
        self.model.load_state_dict(self.variants[0])
        source = self._ahead(number, steps, staleness)
        try:
            for step in range(steps):
                if step == cut:  # the trainer dies and resumes with what had landed
                    buffer = source.buffer()
                    source.close()
                    source = self._ahead(number, steps, staleness)
                    source.restore(buffer)
                    self.broken_off += 1
                if changing:
                    self.model.load_state_dict(self.variants[step % len(self.variants)])
                self._step(source, number, step)
        finally:
            source.close()
        assert not any(t.is_alive() for t in source.threads), "a thread outlived its round"
        assert cut is not None or not self.engine.busy
        self.rounds += 1

    def _step(self, source: Ahead, number: int, step: int) -> None:
        self.watch.last = time.monotonic()
        start = time.monotonic()
        got, _ = source.of_step(step)
        self.longest = max(self.longest, time.monotonic() - start)
        alone = TorchEngine(self.model, self.tokenizer.pad_id, SLOTS, LENGTH)
        rows = rows_of(number, step)
        expected, _ = sample_groups(alone, self.tokenizer, rows, GROUP, SAMPLING, TERMS, number, step)
        assert len(got) == len(expected) == PROMPTS * GROUP, f"{len(got)} rollouts"
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            same(a.rollout, b.rollout, f"round {number} step {step} rollout {i}")
            assert a.scored.reward == b.scored.reward
        self.compared += len(got)
        self.steps += 1
        time.sleep(self.rng.random() ** 4 * self.idle)

    def _ahead(self, number: int, steps: int, staleness: int) -> Ahead:
        self.watch.last = time.monotonic()
        engine: Any = self.engine
        # versions of an earlier round must not be taken for this one's
        return Ahead(
            engine, WeightSync(self._as_engine(number), engine), self.tokenizer, lambda s: rows_of(number, s),
            GROUP, SAMPLING, TERMS, number, steps, staleness,
        )  # fmt: skip

    def _as_engine(self, number: int) -> Transformer:
        """The model, with its present weights in the engines: a link is made between equals."""
        from onebase.rollout.named_weights import named_weights

        self.engine.pool.load_weights(0, named_weights(self.model))
        return self.model


def tiny() -> tuple[Any, ModelConfig]:
    from onebase.tokenizer import train

    tokenizer = train((f"{i} plus {3 * i} makes {4 * i}\n" for i in range(300)), 280)
    config = ModelConfig(
        vocab_size=288, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, kv_lora_rank=12,
        qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6, intermediate_size=48,
        moe_intermediate_size=16, n_routed_experts=8, num_experts_per_tok=2, num_nextn_predict_layers=0,
        max_position_embeddings=256,
    )  # fmt: skip
    return tokenizer, config


def soak(
    minutes: float, engines: int, every: float, seed: int, limit: float, idle: float, grace: float
) -> dict[str, Any]:
    """Run it; raises AssertionError where something is not as demanded."""
    tokenizer, config = tiny()
    model = Transformer(config).eval()
    variants = []
    for i in range(VARIANTS):
        init_weights(model, i, 0.5)
        variants.append({k: v.clone() for k, v in model.state_dict().items()})
    rng = random.Random(seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "faults"
        folder.mkdir()
        torch.save(variants[0], Path(temp) / "state.pt")
        patience = Patience(
            pump=0.1, grace=grace, room=600.0, start=8 * grace, replacements=10**6, failed_starts=20
        )
        maker = Planted(config, Path(temp) / "state.pt", folder)
        with RayEngines(maker, engines, place=Place(cpus=0.5), patience=patience, cpus=engines) as pool:
            started = time.monotonic() - began
            chaos = Chaos(pool, folder, every, random.Random(seed + 1))
            memory, accounted, watch = Memory(), Accounted(pool), Watch(pool, limit)
            run = Soak(model, variants, tokenizer, accounted, watch, rng, idle)
            threads = [threading.Thread(target=w.run, daemon=True) for w in (chaos, memory, watch)]
            for thread in threads:
                thread.start()
            end = time.monotonic() + 60 * minutes
            try:
                while time.monotonic() < end:
                    run.round(run.rounds)
            finally:
                for side in (chaos, memory, watch):
                    side.stop.set()
                for thread in threads:
                    thread.join()
            seen = Counter(f.reason.split(";")[0].split(":")[0][:60] for f in pool.faults)
            lost = accounted.asked - accounted.back - accounted.forgotten - len(accounted.out)
            assert lost == 0 and not accounted.out, f"{lost=} {accounted.out=}"
            result = {
                "minutes": round((time.monotonic() - began) / 60, 2),
                "seconds_start": round(started, 1),
                "rounds": run.rounds,
                "steps": run.steps,
                "trainer_resumed": run.broken_off,
                "requests": {
                    "asked": accounted.asked, "came_back": accounted.back, "forgotten": accounted.forgotten
                },
                "rollouts_compared": run.compared,
                "longest_step_seconds": round(run.longest, 1),
                "faults_planted": dict(sorted(chaos.done.items())),
                "faults_not_met": sorted(f.name for f in folder.iterdir()),
                "engines_replaced": len(pool.faults),
                "reasons": dict(seen.most_common()),
                "memory_mb": memory.thirds() if memory.samples else {},
                "memory_samples": len(memory.samples),
            }  # fmt: skip
    return result


def check_memory(result: dict[str, Any]) -> None:
    for name in ("driver", "engine"):
        first, last = (1e6 * result["memory_mb"][name][k] for k in ("first", "last"))
        allowed = first + max(GROWTH * first, SLACK)
        assert last <= allowed, f"{name}: {last / 1e6:.0f} MB at the end, {first / 1e6:.0f} MB at the start"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--every", type=float, default=12.0, help="mean seconds between faults")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds in which a step must come")
    parser.add_argument("--grace", type=float, default=15.0, help="seconds in which an engine must answer")
    parser.add_argument("--idle", type=float, default=12.0, help="longest time between two steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own default, 15, starves them on a busy machine
    result = soak(args.minutes, args.engines, args.every, args.seed, args.limit, args.idle, args.grace)
    result = {"command": ["benchmarks/ray_soak.py", *sys.argv[1:]], **result}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    check_memory(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
