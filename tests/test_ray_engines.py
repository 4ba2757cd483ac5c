"""Engines as real Ray actors: the results of one engine in this process, weights proven in every replica, and
actors that are killed, stopped, or made to talk nonsense at every phase.

Faults are planted as files: an actor that finds one takes it away and misbehaves, once.
"""

from __future__ import annotations

import copy
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.errors import UserError
from onebase.model import checkpoint
from onebase.rollout.engine import Request, Rollout
from onebase.rollout.named_weights import named_weights
from onebase.rollout.nonsense import nonsense
from onebase.rollout.ray_engine import EngineSpec, Hosted, Order, Reply
from onebase.rollout.ray_pool import RayEngines
from onebase.rollout.ray_seat import EnginesLost, Patience, Seat, distrust
from onebase.rollout.ray_start import Place
from onebase.rollout.ray_weights import Entry, Ledger, pack, unpack
from onebase.rollout.torch_engine import TorchEngine, request_seed
from onebase.rollout.weight_sync import SyncError, WeightSync

SMALL = Place(cpus=0.5)
QUICK = Patience(pump=0.05, grace=8.0, start=60.0, replacements=1000)


@dataclass
class Planted:
    """An engine that misbehaves once for every file of its folder.  It has the fixture's model, without the
    seconds that reading a checkpoint's tokenizer takes."""

    config: Any
    weights: Path
    folder: Path
    slots: int = 6

    def __call__(self) -> Hosted:
        from onebase.model.transformer import Transformer

        self.act("start")
        model = Transformer(self.config)
        model.load_state_dict(torch.load(self.weights))
        engine = TorchEngine(model.eval(), 2, self.slots, 64, record_routes=True)
        load, step = engine.load_weights, engine.step

        def planted_load(version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
            self.act("load")
            given = dict(tensors)
            if self.found("load-stale"):
                del given["model.layers.2.self_attn.kv_b_proj.weight"]
            load(version - self.found("load-old-version"), given.items())

        def planted_step() -> list[tuple[int, Rollout]]:
            self.act("step")
            ended = step()
            if ended and self.found("step-nonsense"):
                number, rollout = ended[0]
                ended[0] = (number, replace(rollout, completion_ids=[10**6] * len(rollout.completion_ids)))
            return ended

        engine.load_weights, engine.step = planted_load, planted_step  # type: ignore[method-assign]
        return engine

    def plant(self, *faults: str) -> None:
        for fault in faults:
            (self.folder / fault).touch()

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
            print("planted: it will not answer", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.found(f"{phase}-raise"):
            raise RuntimeError(f"planted in {phase}")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=4,
        log_to_driver=False,
        logging_level="ERROR",
        _system_config={"preload_python_modules": ["torch"]},  # spare workers import while others work
        object_store_memory=150 * 2**20,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def model(make_config: Any, make_model: Any) -> Any:
    return make_model(make_config(), 31).eval()


@pytest.fixture(scope="module")
def spec(model: Any, tiny_tokenizer: Any, tmp_path_factory: Any) -> EngineSpec:
    folder = tmp_path_factory.mktemp("checkpoint") / "folder"
    checkpoint.save(folder, model, tiny_tokenizer)
    return EngineSpec("torch", folder, "float32", slots=6, max_length=64, record_routes=True)


@pytest.fixture(scope="module")
def planted(model: Any, tmp_path_factory: Any) -> Planted:
    weights = tmp_path_factory.mktemp("weights") / "state.pt"
    torch.save(model.state_dict(), weights)
    return Planted(model.config, weights, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def pool(ray: Any, planted: Planted) -> Iterator[RayEngines]:
    with RayEngines(planted, 2, place=SMALL, patience=QUICK) as engines:
        yield engines


@pytest.fixture
def engines(pool: RayEngines, planted: Planted) -> Iterator[RayEngines]:
    """The pool, without what an earlier test may have left."""
    pool.clear()
    yield pool
    left = list(planted.folder.iterdir())
    for file in left:
        file.unlink()
    assert not left, "a planted fault was not met"


@pytest.fixture
def trained(model: Any) -> Any:
    """A copy whose every weight has moved."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1 + 0.05 * torch.randn(p.shape, generator=generator))
    return other


def mixed(groups: int, size: int = 4, first: int = 0) -> list[Request]:
    """Groups of one prompt; lengths, temperatures and stops of many kinds."""
    return [
        Request(
            prompt_ids=[5 + p % 7, 9, 20 + p, 40],
            seed=request_seed(first, 1, p, g),
            max_tokens=4 + (7 * p + g) % 30,
            temperature=(1.0, 0.0, 0.7)[p % 3],
            stop_ids=((), tuple(range(100, 140)))[p % 2],
        )
        for p in range(groups)
        for g in range(size)
    ]


def alone(model: Any, requests: list[Request]) -> list[Rollout]:
    """By one engine in this process."""
    return TorchEngine(copy.deepcopy(model), 2, 8, 64, record_routes=True).generate(requests)


def same(ours: list[Rollout], theirs: list[Rollout], versions: bool = True) -> None:
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.completion_ids == b.completion_ids, f"request {i}"
        assert (a.prompt_ids, a.finish_reason, a.seed) == (b.prompt_ids, b.finish_reason, b.seed)
        assert a.logp_rollout == pytest.approx(b.logp_rollout, abs=1e-4)
        assert a.routes is not None and b.routes is not None and torch.equal(a.routes, b.routes)


def test_a_spec_makes_the_engine_it_names(spec: EngineSpec, model: Any) -> None:
    requests = mixed(3)
    same(spec().generate(requests), alone(model, requests))


def wait_for_all(engines: RayEngines) -> None:
    end = time.monotonic() + 60
    while not all(s.working for s in engines.seats.values()):
        engines.step()
        assert time.monotonic() < end


# -- one pool, without faults


def test_results_are_those_of_one_engine_in_this_process(engines: RayEngines, model: Any) -> None:
    engines.load_weights(0, named_weights(model))
    requests = mixed(12)
    told: list[int] = []
    ours = engines.generate(requests, lambda i, _: told.append(i))
    same(ours, alone(model, requests))
    assert sorted(told) == list(range(48)) and not engines.busy and not engines.faults
    assert {r.versions[0] for r in ours} == {(0, 0)}
    assert engines.generate([]) == []


def test_weights_arrive_in_every_replica_and_are_proven(
    engines: RayEngines, model: Any, trained: Any
) -> None:
    engines.load_weights(0, named_weights(model))
    sync = WeightSync(copy.deepcopy(model), engines)
    assert sync.first_gap < 1e-5
    sync.model = trained
    assert sync.push(3)["sync_gap"] < 1e-5 and engines.version == 3
    requests = mixed(6)
    ours = engines.generate(requests)
    same(ours, alone(trained, requests))
    assert {r.weight_version for r in ours} == {3}
    print_ = engines.fingerprint()
    assert (print_["version"], print_["replicas"], print_["replicas_that_differ"]) == (3, 2, 0)
    assert engines.replicas == [str(s) for s in engines.seats.values()] and "pid" in engines.replicas[0]


def test_stale_weights_in_one_replica_are_caught(
    engines: RayEngines, planted: Planted, model: Any, trained: Any
) -> None:
    engines.load_weights(0, named_weights(model))
    sync = WeightSync(copy.deepcopy(model), engines)
    sync.model = trained
    planted.plant("load-stale")
    with pytest.raises(SyncError, match=r"model\.layers\.2 differed"):
        sync.push(4)
    planted.plant("load-stale")
    engines.load_weights(5, named_weights(model))
    assert engines.fingerprint()["replicas_that_differ"] == 1
    engines.load_weights(6, named_weights(model))
    assert engines.fingerprint()["replicas_that_differ"] == 0 and not engines.faults


def test_weights_that_change_under_way_are_recorded(engines: RayEngines, model: Any, trained: Any) -> None:
    engines.load_weights(10, named_weights(model))
    requests = [Request([7, 8, 9], seed=i, max_tokens=20 + 7 * i % 38) for i in range(60)]
    done: dict[int, Rollout] = {}
    engines.add(list(enumerate(requests)))
    while not done:
        done |= dict(engines.step())
    engines.load_weights(11, named_weights(trained), wait=False)
    while engines.busy:
        done |= dict(engines.step())
    assert sorted(done) == list(range(60))
    before, after = alone(model, requests), alone(trained, requests)
    both = 0
    for i, rollout in done.items():
        assert [v for _, v in rollout.versions] in ([10], [11], [10, 11])
        if len(rollout.versions) == 2:
            at, both = rollout.versions[1][0], both + 1
            assert rollout.completion_ids[:at] == before[i].completion_ids[:at]
        else:
            same([rollout], [before[i] if rollout.weight_version == 10 else after[i]])
    assert both


def test_a_caller_that_goes_away_finds_the_work_done(ray: Any, engines: RayEngines, model: Any) -> None:
    """While it trains, say, engines go on for as long as they were told."""
    engines.load_weights(0, named_weights(model))
    requests = mixed(2)  # what the engines hold at once
    engines.add(list(enumerate(requests)))
    done = dict(engines.step(ahead=60.0))
    flights = [s.flight for s in engines.seats.values() if s.flight is not None]
    came, _ = ray.wait(flights, num_returns=len(flights), timeout=60)
    assert len(came) == len(flights)
    done |= dict(engines.step())
    same([done[i] for i in range(8)], alone(model, requests))


def test_forgotten_requests_do_not_come_back(engines: RayEngines, model: Any) -> None:
    engines.load_weights(0, named_weights(model))
    engines.add([(i, Request([9, 9], seed=i, max_tokens=60)) for i in range(30)])
    engines.step()
    engines.clear()
    assert not engines.busy
    requests = mixed(4, first=9)
    same(engines.generate(requests), alone(model, requests))  # of the same numbers


def test_errors_of_the_callers_kill_nothing(engines: RayEngines, model: Any, trained: Any) -> None:
    good = mixed(2)
    with pytest.raises(UserError, match="request 1: the prompt is empty"):
        engines.generate([good[0], Request([], 0, 3)])
    with pytest.raises(UserError, match="request 0: token id 9999"):
        engines.add([(7, Request([9999], 0, 3))])
    with pytest.raises(UserError, match=r"weight 'nobody' has no place"):
        engines.load_weights(8, [("nobody", torch.zeros(2))])
    engines.load_weights(0, named_weights(model))
    name, tensor = next(named_weights(model))
    with pytest.raises(UserError, match=rf"weight '{name}': \(1,\), expected"):
        engines.load_weights(8, [(name, torch.zeros(1))])
    assert engines.version == 0

    def fail(i: int, _: Any) -> None:
        raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        engines.generate(mixed(8), fail)
    same(engines.generate(good), alone(model, good))
    assert not engines.faults


# -- the same pool, with faults


FAULTS = {
    "step-die": "its process died",
    "step-hang": "did not answer within 8 s; its last line: planted: it will not answer",
    "step-raise": "it raised RuntimeError: planted in step",
    "step-nonsense": "nonsense: token id 1000000 outside the vocabulary",
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_results_with_a_fault_are_those_without(
    fault: str, engines: RayEngines, planted: Planted, model: Any
) -> None:
    engines.load_weights(0, named_weights(model))
    before = len(engines.faults)
    requests = mixed(12, first=2)
    planted.plant(fault)
    told: list[int] = []
    same(engines.generate(requests, lambda i, _: told.append(i)), alone(model, requests))
    assert sorted(told) == list(range(48))
    (happened,) = engines.faults[before:]
    assert FAULTS[fault] in str(happened) and "generating for" in happened.doing and happened.aboard


def test_an_idle_engine_that_died_is_replaced(engines: RayEngines, model: Any, trained: Any) -> None:
    """And the new one holds the current weights."""
    wait_for_all(engines)
    engines.load_weights(21, named_weights(trained))
    pids = {s.where.pid for s in engines.seats.values() if s.where}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    requests = mixed(6)
    ours = engines.generate(requests)
    same(ours, alone(trained, requests))
    assert {r.weight_version for r in ours} == {21}
    wait_for_all(engines)
    assert not pids & {s.where.pid for s in engines.seats.values() if s.where}


@pytest.mark.parametrize(
    ("fault", "reason"), [("load-die", "died"), ("load-old-version", "reports weight version 29")]
)
def test_an_engine_that_fails_at_loading_is_replaced(
    fault: str, reason: str, engines: RayEngines, planted: Planted, model: Any
) -> None:
    wait_for_all(engines)
    before = len(engines.faults)
    planted.plant(fault)
    engines.load_weights(30, named_weights(model))
    assert engines.version == 30
    (happened,) = engines.faults[before:]
    # a replacement of an earlier test may still be loading an older version when the fault is planted
    assert reason in happened.reason and happened.doing.startswith("loading version")
    requests = mixed(5)
    ours = engines.generate(requests)
    same(ours, alone(model, requests))
    assert {r.weight_version for r in ours} == {30}


def test_a_replacement_must_prove_its_weights(
    engines: RayEngines, planted: Planted, model: Any, trained: Any
) -> None:
    """It dies once while it starts; then it comes up with a stale layer, is found out by the probe that the
    others had answered, and is replaced again."""
    wait_for_all(engines)
    engines.load_weights(40, named_weights(trained))
    ids = [[5, 6, 7, 8, 9, 10, 11, 12], [9, 8, 7, 6, 5, 4, 3, 2]]
    engines.logprobs(ids)
    before = len(engines.faults)
    planted.plant("start-die", "load-stale", "step-die")
    engines.generate(mixed(6))
    wait_for_all(engines)
    reasons = [f"{f.doing}: {f.reason}" for f in engines.faults[before:]]
    assert len(reasons) == 3 and "starting: its process died" in reasons[1]
    assert "loading version 40: its log-probabilities of the probe differ" in reasons[2]
    first, second = engines.logprobs(ids)
    assert torch.tensor(first).sub(torch.tensor(second)).abs().max() < 1e-5


def test_an_engine_that_came_up_unobserved(ray: Any, engines: RayEngines, model: Any) -> None:
    """The driver was away while the process came up and the engine started: both answers are there when it
    looks, and only one of them is the engine's."""
    wait_for_all(engines)
    engines.load_weights(0, named_weights(model))
    (old, other) = engines.seats.values()
    assert old.where is not None
    os.kill(old.where.pid, signal.SIGKILL)
    engines.add(list(enumerate(mixed(1))))
    while old.number in engines.seats:
        engines.step()
    (new,) = (s for s in engines.seats.values() if s is not other)
    ray.wait([new.where_ref, new.flight], num_returns=2, timeout=60)
    assert new.where is None and not new.started
    engines.step()
    assert new.where is not None and new.started
    engines.clear()
    requests = mixed(5, first=3)
    same(engines.generate(requests), alone(model, requests))


# -- pools that cannot go on


def test_more_faults_than_allowed_end_the_run_with_their_list(ray: Any, planted: Planted, model: Any) -> None:
    patience = replace(QUICK, replacements=1)
    with RayEngines(planted, 1, place=SMALL, patience=patience) as engines:
        planted.plant("step-raise", "step-nonsense")
        engines.add(list(enumerate(mixed(2))))
        with pytest.raises(EnginesLost, match="1 within 600 s") as e:
            while True:
                engines.step()
        told = str(e.value)
        assert "planted in step" in told and "nonsense" in told and "host" in told
        assert re.search(r"aboard each time: \[\d, .*\]", told)
        with pytest.raises(EnginesLost):
            engines.step()


def test_engines_that_do_not_start(ray: Any, planted: Planted, spec: EngineSpec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):  # the caller's folder: at once
        RayEngines(replace(spec, folder=tmp_path), 1, place=SMALL, patience=QUICK)
    planted.plant("start-hang")
    with pytest.raises(
        EnginesLost, match="starting: it did not answer within 4 s; its last line: planted: it will not"
    ):
        RayEngines(planted, 1, place=SMALL, patience=replace(QUICK, start=4))
    with pytest.raises(
        UserError, match=r"no room for 9 engines of 1 CPUs each: the cluster has .* of 4 CPUs"
    ):
        RayEngines(spec, 9)
    with pytest.raises(UserError, match=r"of 0 GPUs free on 1 hosts"):
        RayEngines(spec, 1, place=Place(cpus=0.5, gpus=0.25))


# -- the parts, without Ray


def rollout(request: Request, **changes: Any) -> Rollout:
    n = request.max_tokens
    sound = Rollout(request.prompt_ids, [7] * n, [-1.0] * n, "length", [(0, 3)], request.seed)
    return replace(sound, **changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"seed": 2}, "seed 2 where 1 was asked for"),
        ({"completion_ids": []}, "0 tokens where 1 to 3"),
        ({"completion_ids": [7] * 4}, "4 tokens where 1 to 3"),
        ({"logp_rollout": [-1.0] * 2}, "2 log-probabilities for 3 tokens"),
        ({"completion_ids": [7, -1, 7]}, "token id -1 outside the vocabulary of 50"),
        ({"completion_ids": [7, 50, 7]}, "token id 50 outside"),
        ({"logp_rollout": [-1.0, float("nan"), -1.0]}, "a log-probability of nan"),
        ({"logp_rollout": [-1.0, -1.0, float("-inf")]}, "a log-probability of -inf"),
        ({"logp_rollout": [-1.0, 0.5, -1.0]}, "a log-probability of 0.5"),
        ({"logp_rollout": [-1.0, 1e-6, -1.0]}, None),
        ({"finish_reason": "stop"}, "finish reason 'stop' for 3 tokens, the last one 7"),
        ({"completion_ids": [7, 9]} | {"logp_rollout": [-1.0] * 2, "finish_reason": "stop"}, None),
        ({"completion_ids": [7, 7]} | {"logp_rollout": [-1.0] * 2}, "finish reason 'length' for 2 tokens"),
        ({"completion_ids": [7, 7, 9]}, "finish reason 'length'"),
        ({"completion_ids": [9, 7, 7]}, "it goes on behind a stop token"),
        ({"versions": []}, "versions"),
        ({"versions": [(1, 3)]}, "versions"),
        ({"versions": [(0, 3), (3, 4)]}, "versions"),
        ({"versions": [(0, 3), (2, 4)]}, None),
        ({"versions": [(0, 3), (2, 5)]}, "weight version 5, which it never got"),
        ({"routes": torch.zeros(4, 2, 2, dtype=torch.int16)}, None),
        ({"routes": torch.zeros(5, 2, 2, dtype=torch.int16)}, "routes of 5 positions for 2 \\+ 3 tokens"),
    ],
)
def test_what_counts_as_nonsense(changes: dict[str, Any], told: str | None) -> None:
    request = Request([5, 6], seed=1, max_tokens=3, stop_ids=(9,))
    why = nonsense(rollout(request, **changes), request, 50, {3, 4})
    assert why is None if told is None else why is not None and re.search(told, why)


def test_a_reply_is_believed_only_where_all_of_it_fits() -> None:
    request = Request([5, 6], seed=1, max_tokens=3)
    entry = Entry(4, 8, frozenset(), None)

    def why(reply: Reply, running: tuple[int, ...] = (1, 2), **order: Any) -> str | None:
        given = Order(0, [entry], [], 0.0, 0)
        seat = Seat(0, 0, None, None, None, 0.0, order=replace(given, **order), version=3, versions={3})
        return distrust(seat, reply, dict.fromkeys((1, 2), request), running, 50)

    sound = Reply(8, True, 4, [(1, rollout(request))])
    assert why(sound) is None
    assert why(replace(sound, version=3)) == "it reports weight version 3, 8 was sent"
    assert why(replace(sound, loaded=-1)) == "it loaded 0 of 1 versions"
    assert why(replace(sound, loaded=-1, bad_weights="too large", version=3)) is None
    assert why(sound, weights=[]) == "it reports weight version 8, 3 was sent"
    assert why(sound, running=(2,)) == "it answers request 1 that it does not have"
    assert why(replace(sound, ended=sound.ended * 2)) == "it answers request 1 twice"
    assert why(replace(sound, refused={1: "no"})) == "it answers request 1 twice"
    assert why(replace(sound, busy=False)) == "it has forgotten 1 requests"
    assert why(replace(sound, busy=False), running=(1,)) is None
    bad = replace(sound, ended=[(1, rollout(request, seed=9))])
    assert why(bad) == "its answer to request 1 is nonsense: seed 9 where 1 was asked for"
    asked: Any = {"question": "logprobs", "ids": [[1, 2, 3], [1, 2]]}
    assert why(replace(sound, answer=[[[-1.0, -1.0], [-1.0]]]), **asked) is None
    for answer in (None, [], [[[-1.0], [-1.0]]], [[[-1.0, -1.0]]]):
        assert "not of the probe's shape" in (why(replace(sound, answer=answer), **asked) or "")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64]
)
def test_weights_go_through_the_store_bit_by_bit(dtype: torch.dtype) -> None:
    whole = torch.arange(24).view(4, 6).to(dtype)
    sent = {"a": whole, "b": whole.T, "c": whole[0, 0]}
    got = dict(unpack(pack(sent.items())))
    assert list(got) == ["a", "b", "c"]
    for name, tensor in sent.items():
        assert got[name].dtype == dtype and torch.equal(got[name].float(), tensor.float())
    assert pack({"a": torch.zeros(3)}.items())["a"][0].base is not None  # shared, not copied


def test_the_ledger_keeps_what_a_new_engine_needs() -> None:
    ledger = Ledger()
    ledger.add(1, "abc", None)
    ledger.add(2, "a", None)
    assert [e.version for e in ledger.entries] == [1, 2]
    ledger.add(2, "bc", None)  # with this, all of version 1 has been sent again
    assert [(e.version, sorted(e.names)) for e in ledger.entries] == [(2, ["a"]), (2, ["b", "c"])]
    ledger.add(3, "", None)
    assert [e.number for e in ledger.after(2)] == [3, 4]
    ledger.add(4, "abc", None)
    assert [(e.number, e.version) for e in ledger.entries] == [(5, 4)]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, spec: EngineSpec) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'onebase\[ray\]'"):
        RayEngines(spec, 1)
