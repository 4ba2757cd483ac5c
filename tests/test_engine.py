"""The in-process engine against the trainer's forward, itself in other batches, and bad requests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from onebase.errors import UserError
from onebase.kernels.linear_logprob import linear_logprob
from onebase.model import checkpoint
from onebase.model.hf import HFCausalLM
from onebase.rollout import torch_engine
from onebase.rollout.engine import Request, Rollout
from onebase.rollout.named_weights import named_weights
from onebase.rollout.sampling import Kinds, draw, uniform
from onebase.rollout.torch_engine import TorchEngine, request_seed

KINDS = ["packed", "packed with YaRN", "native", "qwen2", "llama"]
V = 96
PAD = 2


@pytest.fixture(scope="module")
def models(
    make_config: Any, make_model: Any, randomise_weights: Any, tmp_path_factory: Any
) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    yarn = {"factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 0.7}
    shape: dict[str, Any] = {
        "vocab_size": V, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    hf = {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True)),
        "llama": LlamaForCausalLM(LlamaConfig(**shape, head_dim=8)),
    }
    loaded = {}
    for seed, (name, model) in enumerate(hf.items()):
        randomise_weights(model, seed, 1.0)
        folder = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(folder)  # through a folder, as every stage has them
        loaded[name] = HFCausalLM.from_pretrained(folder, "cpu", torch.float32)
    return {
        "packed": make_model(make_config(vocab_size=V), 1),
        "packed with YaRN": make_model(make_config(vocab_size=V, rope_scaling=yarn, n_shared_experts=2), 3),
        "native": make_model(
            make_config(vocab_size=V, q_lora_rank=9, rope_scaling=yarn, attention_bias=True), 2
        ),
        **loaded,
    }


def test_each_decoder_is_under_test(models: dict[str, Any]) -> None:
    used = [type(TorchEngine(models[k], PAD, 1, 8).decoder).__name__ for k in KINDS]
    assert used == ["PackedDecoder", "PackedDecoder", "NativeDecoder", "HFDecoder", "HFDecoder"]


def prompts(n: int, longest: int = 12) -> list[list[int]]:
    g = torch.Generator().manual_seed(n)
    lengths = torch.randint(1, longest + 1, (n,), generator=g).tolist()
    return [torch.randint(0, V, (length,), generator=g).tolist() for length in lengths]


def mixed_requests(n: int) -> list[Request]:
    """Different prompts, lengths, temperatures, cuts and stop ids, some of each."""
    return [
        Request(
            prompt_ids=p,
            seed=request_seed(0, 1, i, 0),
            max_tokens=1 + (i * 5) % 17,
            temperature=(0.0, 1.0, 0.6, 1.5)[i % 4],
            top_k=(0, 0, 6)[i % 3],
            top_p=(1.0, 1.0, 1.0, 1.0, 0.8)[i % 5],
            stop_ids=((), (3, 50, 7), (40,))[i % 3],
        )
        for i, p in enumerate(prompts(n))
    ]


def trained_logp(model: Any, rollout: Rollout, temperature: float) -> torch.Tensor:
    """Log-probabilities of the completion as the trainer computes them: one forward over the whole row."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    with torch.no_grad():
        hidden = model(ids).hidden_BTD[0, len(rollout.prompt_ids) - 1 : -1]
        target = torch.tensor(rollout.completion_ids)
        return linear_logprob(hidden, model.head_weight, target, temperature or 1.0)[0]


def one_by_one(model: Any, r: Request) -> list[int]:
    """The completion by the plainest loop: a whole forward per token, no cache."""
    ids: list[int] = []
    while len(ids) < r.max_tokens:
        with torch.no_grad():
            row = torch.tensor([r.prompt_ids + ids])
            logits = model(row).hidden_BTD[:, -1] @ model.head_weight.T
        noise = uniform(torch.tensor([r.seed]), torch.tensor([len(ids)]))
        cuts = (torch.tensor([r.top_k]), torch.tensor([r.top_p]))
        token, _ = draw(logits, noise, torch.tensor([r.temperature]), *cuts, Kinds())
        ids.append(int(token))
        if ids[-1] in r.stop_ids:
            break
    return ids


def same(a: Sequence[Rollout], b: Sequence[Rollout]) -> None:
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert x.completion_ids == y.completion_ids, f"request {i}"
        assert x.finish_reason == y.finish_reason and x.seed == y.seed
        assert x.logp_rollout == pytest.approx(y.logp_rollout, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_equal_the_trainers_forward(kind: str, models: dict[str, Any]) -> None:
    model, requests = models[kind], mixed_requests(24)
    rollouts = TorchEngine(model, PAD, slots=7, max_length=32).generate(requests)
    for request, rollout in zip(requests, rollouts, strict=True):
        expected = trained_logp(model, rollout, request.temperature)
        torch.testing.assert_close(torch.tensor(rollout.logp_rollout), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_completions_equal_a_plain_loop_in_any_number_of_slots(kind: str, models: dict[str, Any]) -> None:
    """26 requests through 1, 4 and 64 slots, in order and reversed: every refill and every closing of a gap
    leaves each request's completion as if it had run alone."""
    model, requests = models[kind], mixed_requests(26)
    plain = [one_by_one(model.eval(), r) for r in requests]
    first = TorchEngine(model, PAD, slots=4, max_length=32).generate(requests)
    for i, (rollout, expected) in enumerate(zip(first, plain, strict=True)):
        assert rollout.completion_ids == expected, f"request {i}"
        assert rollout.prompt_ids == requests[i].prompt_ids
    for slots in (1, 64):
        same(first, TorchEngine(model, PAD, slots, max_length=30).generate(requests))
    reverse = TorchEngine(model, PAD, slots=5, max_length=32).generate(requests[::-1])
    same(first, reverse[::-1])


def test_the_same_engine_gives_the_same_again(models: dict[str, Any]) -> None:
    """Nothing of an earlier call (longer completions, more stop ids, an exception in its middle) is left."""
    engine = TorchEngine(models["packed"], PAD, slots=6, max_length=40)
    requests = mixed_requests(20)
    first = engine.generate(requests)
    engine.generate([Request([1, 2], 5, 38, stop_ids=(1, 2, 3, 4, 5, 6)) for _ in range(9)])

    def broken(index: int, rollout: Rollout) -> None:
        raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        engine.generate(mixed_requests(30), on_done=broken)
    same(first, engine.generate(requests))


def test_stop_ids_and_lengths(models: dict[str, Any]) -> None:
    """A completion ends with its first stop id, which it holds, or at max_tokens; a stop id that comes as the
    last allowed token counts as a stop."""
    engine = TorchEngine(models["packed"], PAD, slots=8, max_length=64)
    base = [Request([5, 6, 7], request_seed(1, 0, 0, g), 30) for g in range(12)]
    free = engine.generate(base)
    assert all(len(r.completion_ids) == len(r.logp_rollout) == 30 for r in free)
    assert {r.finish_reason for r in free} == {"length"}
    for at in (0, 4, 29):
        stops = [r.completion_ids[at] for r in free]
        stopped = engine.generate(
            [replace(b, stop_ids=(PAD + 90, t)) for b, t in zip(base, stops, strict=True)]
        )
        for f, s, t in zip(free, stopped, stops, strict=True):
            cut = f.completion_ids.index(t) + 1
            assert s.completion_ids == f.completion_ids[:cut] or 92 in s.completion_ids
            assert s.completion_ids[-1] in (t, 92) and s.finish_reason == "stop"
            assert not set(s.completion_ids[:-1]) & {t, 92}
    short = engine.generate([replace(b, max_tokens=1 + i) for i, b in enumerate(base)])
    for i, (f, s) in enumerate(zip(free, short, strict=True)):
        assert s.completion_ids == f.completion_ids[: 1 + i] and s.finish_reason == "length"


def test_a_request_may_fill_the_length_exactly(models: dict[str, Any]) -> None:
    for kind in ("packed", "native", "llama"):
        engine = TorchEngine(models[kind], PAD, slots=2, max_length=33)
        requests = [Request([1] * n, 7 + n, 33 - n) for n in (1, 20, 32)]
        for request, rollout in zip(requests, engine.generate(requests), strict=True):
            assert rollout.completion_ids == one_by_one(models[kind], request)


@pytest.mark.parametrize("kind", ["packed", "native", "qwen2"])
def test_equal_prompts_are_prefilled_once_and_drawn_apart(
    kind: str, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(models[kind], PAD, slots=32, max_length=32)
    rows: list[int] = []
    prefill = engine.decoder.prefill

    def counted(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(ids))
        return prefill(ids, *rest)

    monkeypatch.setattr(engine.decoder, "prefill", counted)
    group = [
        Request(p, request_seed(2, 0, n, g), 8)
        for n, p in enumerate([[4, 5, 6], [9], [4, 5]])
        for g in range(8)
    ]
    rollouts = engine.generate(group)
    assert rows == [3]
    for n in range(3):
        assert len({tuple(r.completion_ids) for r in rollouts[8 * n : 8 * n + 8]}) > 4
    for request, rollout in zip(group, rollouts, strict=True):
        assert rollout.completion_ids == one_by_one(models[kind], request)


def test_a_prefill_is_split_where_it_would_be_too_large(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = mixed_requests(30)
    first = TorchEngine(models["packed"], PAD, slots=30, max_length=32).generate(requests)
    monkeypatch.setattr(torch_engine, "PREFILL_TOKENS", 20)
    same(first, TorchEngine(models["packed"], PAD, slots=30, max_length=32).generate(requests))


def test_first_tokens_follow_the_exact_distribution(models: dict[str, Any]) -> None:
    """Through the whole engine: 6,000 draws from one prompt, chi-square below five standard deviations."""
    model = models["packed"]
    engine = TorchEngine(model, PAD, slots=3000, max_length=8)
    n = 6000
    rollouts = engine.generate([Request([8, 3], request_seed(9, 0, 0, g), 1, 0.8) for g in range(n)])
    counts = torch.bincount(torch.tensor([r.completion_ids[0] for r in rollouts]), minlength=V).double()
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[8, 3]])).hidden_BTD[0, -1] @ model.head_weight.T
    expected = (logits.double() / 0.8).softmax(0) * n
    often = expected >= 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([expected[often], expected[~often].sum()[None]])
    statistic, freedom = float(((observed - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, f"{statistic=} {freedom=}"


def test_results_are_told_as_they_end_and_come_in_order(models: dict[str, Any]) -> None:
    engine = TorchEngine(models["packed"], PAD, slots=3, max_length=32)
    told: dict[int, Rollout] = {}
    requests = mixed_requests(17)
    rollouts = engine.generate(requests, on_done=lambda i, r: told.update({i: r}))
    assert sorted(told) == list(range(17))
    assert all(told[i] is r for i, r in enumerate(rollouts))
    lengths = [len(told[i].completion_ids) for i in told]
    assert lengths != sorted(lengths, reverse=True)
    assert engine.generate([]) == []


def test_the_models_mode_is_kept_and_its_current_weights_are_used(make_config: Any, make_model: Any) -> None:
    model = make_model(make_config(vocab_size=V), 3).train()
    engine = TorchEngine(model, PAD, slots=4, max_length=32)
    request = Request([1, 2, 3], 11, 12)
    before = engine.generate([request])[0]
    assert model.training
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.ones_like(p).cumsum(-1) / p.shape[-1])
    after = engine.generate([request])[0]
    assert after.completion_ids == one_by_one(model, request) != before.completion_ids
    ((model(torch.tensor([[1, 2]])).hidden_BTD).sum()).backward()  # nothing was left as an inference tensor


@pytest.mark.parametrize("kind", ["native", "llama"])
def test_bfloat16(kind: str, models: dict[str, Any], make_config: Any, make_model: Any) -> None:
    if kind == "native":
        model = checkpoint.to_dtype(make_model(make_config(vocab_size=V), 4), torch.bfloat16)
    else:
        model = copy.deepcopy(models[kind]).to(torch.bfloat16)
    requests = [replace(r, temperature=1.0, top_k=0, top_p=1.0) for r in mixed_requests(24)]
    rollouts = TorchEngine(model, PAD, slots=5, max_length=32).generate(requests)
    gaps = torch.cat([(trained_logp(model, r, 1.0) - torch.tensor(r.logp_rollout)).abs() for r in rollouts])
    assert gaps.median() < 0.05, f"{gaps.median()=}"


# -- requests and weights between steps


@pytest.mark.parametrize("kind", KINDS)
def test_requests_that_come_later_change_nothing(kind: str, models: dict[str, Any]) -> None:
    """Added one or two at a time while others run, wider ones (more tokens, more stops) last."""
    requests = sorted(mixed_requests(14), key=lambda r: (r.max_tokens, len(r.stop_ids)))
    expected = TorchEngine(models[kind], PAD, slots=4, max_length=32).generate(requests)
    engine = TorchEngine(models[kind], PAD, slots=4, max_length=32)
    results: dict[int, Rollout] = {}
    left = list(enumerate(requests))
    while left or engine.busy:
        engine.add([left.pop(0) for _ in range(min(len(left), 1 + len(left) % 2))])
        results |= dict(engine.step())
    same([results[i] for i in range(len(requests))], expected)


def test_weights_that_change_under_way_are_recorded(make_config: Any, make_model: Any) -> None:
    """Every token's log-probability is that of the version it says, and untouched rows have one version."""
    a, b = (make_model(make_config(vocab_size=V), seed).eval() for seed in (5, 6))
    engine = TorchEngine(copy.deepcopy(a), PAD, slots=4, max_length=32)
    engine.load_weights(3, [])
    engine.add([(i, Request([4 + i, 9], seed=i, max_tokens=(2, 12)[i % 2])) for i in range(4)])
    done: dict[int, Rollout] = {}
    for _ in range(5):
        done |= dict(engine.step())
    assert sorted(done) == [0, 2] and all(r.versions == [(0, 3)] for r in done.values())
    engine.load_weights(4, named_weights(b))
    engine.add([(9, Request([7], seed=9, max_tokens=3))])
    while engine.busy:
        done |= dict(engine.step())
    assert done[9].versions == [(0, 4)]
    for i in (1, 3):
        rollout = done[i]
        assert [v for _, v in rollout.versions] == [3, 4] and rollout.weight_version == 3
        at = rollout.versions[1][0]
        assert 4 <= at <= 7
        before = trained_logp(a, rollout, 1.0)[:at]
        torch.testing.assert_close(torch.tensor(rollout.logp_rollout)[:at], before, rtol=1e-4, atol=1e-4)
        assert (
            torch.tensor(rollout.logp_rollout)[at:] - trained_logp(a, rollout, 1.0)[at:]
        ).abs().max() > 0.1


def test_a_callers_error_leaves_no_request_behind(models: dict[str, Any]) -> None:
    engine = TorchEngine(models["native"], PAD, slots=4, max_length=32)

    def fail(i: int, _: Rollout) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(mixed_requests(9), fail)
    requests = mixed_requests(5)
    same(engine.generate(requests), TorchEngine(models["native"], PAD, 4, 32).generate(requests))


# -- weights from elsewhere


def test_load_weights_brings_the_other_models_completions(make_config: Any, make_model: Any) -> None:
    a, b = (make_model(make_config(vocab_size=V), seed) for seed in (5, 6))
    requests = mixed_requests(6)
    engine = TorchEngine(a, PAD, slots=4, max_length=32)
    other = TorchEngine(b, PAD, slots=4, max_length=32)
    assert engine.fingerprint() != other.fingerprint()
    engine.load_weights(41, named_weights(b))
    other.load_weights(41, [])
    assert engine.fingerprint() == other.fingerprint()
    rollouts = engine.generate(requests)
    same(rollouts, other.generate(requests))
    assert {r.weight_version for r in rollouts} == {41}


@pytest.mark.parametrize("change", ["one number", "two rows exchanged", "a sign", "the halves of a stack"])
def test_the_fingerprint_differs_where_a_weight_differs(
    change: str, make_config: Any, make_model: Any
) -> None:
    model = make_model(make_config(vocab_size=V), 7)
    engine = TorchEngine(model, PAD, slots=2, max_length=16)
    before = engine.fingerprint()
    assert engine.fingerprint() == before
    with torch.no_grad():
        experts = model.layers[1].mlp.experts
        if change == "one number":
            model.embed_tokens.weight[5, 3] += 1e-3
        elif change == "two rows exchanged":
            experts.down_proj[[0, 1]] = experts.down_proj[[1, 0]].clone()
        elif change == "a sign":
            model.layers[0].self_attn.o_proj.weight.neg_()
        else:
            experts.gate_up_proj.copy_(experts.gate_up_proj.roll(experts.gate_up_proj.shape[1] // 2, 1))
    assert engine.fingerprint() != before


@pytest.mark.parametrize("fault", ["unknown name", "wrong shape", "a shape that broadcasts"])
def test_weights_that_do_not_fit_are_refused_by_name(fault: str, make_config: Any, make_model: Any) -> None:
    model = make_model(make_config(vocab_size=V), 8)
    engine = TorchEngine(model, PAD, slots=2, max_length=16)
    name, tensor = {
        "unknown name": ("layers.0.self_attn.q_prj.weight", torch.zeros(3)),
        "wrong shape": ("norm.weight", torch.zeros(3)),
        "a shape that broadcasts": ("norm.weight", torch.zeros(1)),
    }[fault]
    with pytest.raises(UserError, match=name):
        engine.load_weights(2, [(name, tensor)])
    assert engine.version == 0


# -- requests that cannot be served


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request([], 1, 4), "empty"),
        (Request([1] * 20, 1, 13), "32"),
        (Request([1, 2, V], 1, 4), str(V)),
        (Request([1, -1], 1, 4), "-1"),
        (Request([1, 2], 1, 0), "max_tokens"),
        (Request([1, 2], 1, -3), "max_tokens"),
        (Request([1, 2], 1, 4, temperature=-1.0), "temperature"),
        (Request([1, 2], 1, 4, top_p=0.0), "top_p"),
        (Request([1, 2], 1, 4, top_k=-2), "top_k"),
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_bad_requests_are_named_before_anything_is_drawn(
    request_: Request, told: str, place: int, models: dict[str, Any]
) -> None:
    engine = TorchEngine(models["packed"], PAD, slots=4, max_length=32)
    requests = [Request([1], 1, 2), Request([1], 2, 2)]
    requests.insert(place, request_)
    seen: list[int] = []
    with pytest.raises(UserError) as error:
        engine.generate(requests, on_done=lambda i, r: seen.append(i))
    assert f"request {place}" in str(error.value) and told in str(error.value)
    assert not seen
