"""The vLLM engine with real vLLM on a CPU: tokens and log-probabilities against our forward, weight syncs
with planted faults, bad requests.  Skipped where vLLM is not installed; `make test-vllm` installs it."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from onebase.errors import UserError
from onebase.model import checkpoint
from onebase.rollout.engine import Request
from onebase.rollout.vllm_engine import VLLMEngine
from onebase.rollout.weight_sync import SyncError, WeightSync

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
GEOMETRY = {
    "hidden_size": 64, "num_attention_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32, "v_head_dim": 64, "intermediate_size": 128, "moe_intermediate_size": 32,
    "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(make_config: Any, make_model: Any) -> Any:
    return make_model(make_config(**GEOMETRY), 21, 0.1).eval()


@pytest.fixture(scope="module")
def engine(model: Any, tiny_tokenizer: Any, tmp_path_factory: Any) -> Iterator[VLLMEngine]:
    folder = tmp_path_factory.mktemp("checkpoint") / "folder"
    checkpoint.save(folder, model, tiny_tokenizer)
    engine = VLLMEngine(folder, "float32", slots=8, max_length=96)
    yield engine
    engine.close()


def requests(n: int, **changes: Any) -> list[Request]:
    return [
        Request([5, 9, 20 + i % 3, 40], seed=2**60 + i, max_tokens=4 + i % 9, **changes) for i in range(n)
    ]


@torch.no_grad()
def forward_logp(model: Any, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    ids = torch.tensor([prompt + completion])
    logits = (model(ids[:, :-1]).hidden_BTD @ model.head_weight.T) / temperature
    return logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_equal_the_trainers(temperature: float, model: Any, engine: VLLMEngine) -> None:
    """More requests than slots, with stops; at the sampling temperature, in the requests' order."""
    asked = requests(25, temperature=temperature, stop_ids=tuple(range(100, 140)))
    seen: list[int] = []
    out = engine.generate(asked, lambda i, _: seen.append(i))
    assert sorted(seen) == list(range(25)) and [r.seed for r in out] == [r.seed for r in asked]
    assert {r.finish_reason for r in out} == {"stop", "length"}
    for request, rollout in zip(asked, out, strict=True):
        assert rollout.prompt_ids == request.prompt_ids
        assert (rollout.completion_ids[-1] in request.stop_ids) == (rollout.finish_reason == "stop")
        assert not set(rollout.completion_ids[:-1]) & set(request.stop_ids)
        expected = forward_logp(model, rollout.prompt_ids, rollout.completion_ids, temperature)
        torch.testing.assert_close(torch.tensor(rollout.logp_rollout), expected, rtol=1e-4, atol=1e-4)
    assert [r.completion_ids for r in engine.generate(asked)] == [r.completion_ids for r in out]


def test_greedy_is_the_forwards_best_token(model: Any, engine: VLLMEngine) -> None:
    (out,) = engine.generate([Request([5, 9, 21], seed=0, max_tokens=12, temperature=0)])
    ids = torch.tensor([out.prompt_ids + out.completion_ids])
    with torch.no_grad():
        best = (model(ids[:, :-1]).hidden_BTD @ model.head_weight.T).argmax(-1)[0, 2:]
    assert best.tolist() == out.completion_ids


def test_syncs_are_proven_and_planted_faults_are_named(model: Any, engine: VLLMEngine) -> None:
    """Reloads through vLLM's own path, whole and in part; with the prediction block's tensors left out."""
    sync = WeightSync(model, engine)
    assert sync.first_gap < 1e-5
    generator = torch.Generator().manual_seed(0)

    def train() -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + 0.05 * torch.randn(p.shape, generator=generator))
            for moe in model.moe_layers():
                moe.gate.e_score_correction_bias.add_(0.3 * torch.randn(8, generator=generator))

    for version in (1, 2):
        train()
        assert sync.gap() > 1e-2
        assert sync.push(version)["sync_gap"] < 1e-5 and engine.version == version
    real = engine.load_weights
    for fault in ("layers.2.self_attn.kv_b_proj", "layers.1.mlp.gate.e_score_correction_bias", "swap"):
        train()

        def faulty(version: int, tensors: Any, fault: str = fault) -> None:
            engine.load_weights = real  # type: ignore[method-assign]
            given = dict(tensors)
            if fault == "swap":
                a, b = (f"model.layers.1.mlp.experts.{e}.up_proj.weight" for e in (0, 3))
                given[a], given[b] = given[b], given[a]
            else:
                del given[next(n for n in given if fault in n)]
            real(version, given.items())

        engine.load_weights = faulty  # type: ignore[method-assign]
        layer = "model.layers.2 " if "layers.2" in fault else "model.layers.1 "
        with pytest.raises(SyncError, match=layer + r"differed \(sending it again closed the gap\)"):
            sync.push(9)
        assert sync.push(10)["sync_gap"] < 1e-5
    (rollout,) = engine.generate(requests(1))
    assert rollout.weight_version == 10
    expected = forward_logp(model, rollout.prompt_ids, rollout.completion_ids, 1.0)
    torch.testing.assert_close(torch.tensor(rollout.logp_rollout), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (Request([], 0, 4), "request 1: the prompt is empty"),
        (Request([5] * 90, 0, 7), "request 1: 90 prompt tokens and max_tokens=7 exceed the engine's length"),
        (Request([5, 99999], 0, 4), "request 1: token id 99999 is outside"),
        (Request([5], 0, 4, top_p=0.9), "request 1: top_k or top_p"),
    ],
    ids=["empty", "long", "unknown id", "cut"],
)
def test_a_bad_request_is_named_and_takes_nothing_down(bad: Request, named: str, engine: VLLMEngine) -> None:
    good = requests(2)
    with pytest.raises(UserError, match=named):
        engine.generate([good[0], bad, good[1]])
    assert len(engine.generate(good)) == 2


def test_a_callers_error_leaves_no_request_behind(engine: VLLMEngine) -> None:
    def fail(i: int, _: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(requests(20), fail)
    assert [len(r.completion_ids) for r in engine.generate(requests(3))] == [4, 5, 6]


def test_weights_and_probes_between_steps(model: Any, engine: VLLMEngine) -> None:
    """Requests run on through a sync and its proof, say which tokens came from which version, and a prompt
    that the old weights have cached is computed anew."""
    sync = WeightSync(model, engine)
    sync.push(20)
    old = copy.deepcopy(model)
    prompt = list(range(5, 53))  # three blocks of the prefix cache
    engine.add([(i, Request(prompt, seed=i, max_tokens=30)) for i in range(3)])
    done = dict(engine.step() + engine.step() + engine.step())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(7)))
    assert sync.push(21)["sync_gap"] < 1e-5
    engine.add([(9, Request(prompt, seed=9, max_tokens=6))])
    while engine.busy:
        done |= dict(engine.step())
    assert sorted(done) == [0, 1, 2, 9] and done[9].versions == [(0, 21)]
    fresh = forward_logp(model, prompt, done[9].completion_ids, 1.0)
    torch.testing.assert_close(torch.tensor(done[9].logp_rollout), fresh, rtol=1e-4, atol=1e-4)
    for i in range(3):
        (start, first), (at, second) = done[i].versions
        assert (start, first, second) == (0, 20, 21) and 0 < at < 30
        before = forward_logp(old, prompt, done[i].completion_ids, 1.0)[:at]
        torch.testing.assert_close(torch.tensor(done[i].logp_rollout)[:at], before, rtol=1e-4, atol=1e-4)


def test_a_folder_that_vllm_refuses(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model", "architectures": ["Nobody"]}')
    with pytest.raises(UserError, match="vLLM cannot serve"):
        VLLMEngine(tmp_path, "float32", 2, 32)
