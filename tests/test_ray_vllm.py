"""vLLM as it is, in Ray actors on a CPU: two engines from one folder against our forward, weights proven in
both, one of them killed under way.  Skipped where vLLM or Ray is not installed."""

from __future__ import annotations

import copy
import importlib.util
import os
import signal
from typing import Any

import pytest
import torch

from onebase.model import checkpoint
from onebase.rollout.engine import Request
from onebase.rollout.ray_engine import EngineSpec
from onebase.rollout.ray_pool import RayEngines
from onebase.rollout.ray_seat import Patience
from onebase.rollout.ray_start import Place
from onebase.rollout.weight_sync import WeightSync

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(p) is None for p in ("vllm", "ray")), reason="vLLM and Ray are needed"
    ),
]
GEOMETRY = {
    "hidden_size": 64, "num_attention_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32, "v_head_dim": 64, "intermediate_size": 128, "moe_intermediate_size": 32,
    "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 1,
}  # fmt: skip


@torch.no_grad()
def forward_logp(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + completion])
    logits = model(ids[:, :-1]).hidden_BTD @ model.head_weight.T
    return logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


def test_two_vllm_engines(make_config: Any, make_model: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    model = make_model(make_config(**GEOMETRY), 21, 0.1).eval()
    checkpoint.save(tmp_path / "folder", model, tiny_tokenizer)
    spec = EngineSpec("vllm", tmp_path / "folder", "float32", slots=8, max_length=96)
    requests = [
        Request([5, 9, 20 + i // 4, 40], seed=2**60 + i, max_tokens=8 + i % 9, stop_ids=(101, 102))
        for i in range(40)
    ]
    patience = Patience(start=300, grace=60)
    with RayEngines(spec, 2, place=Place(cpus=1), patience=patience, cpus=2) as engines:
        sync = WeightSync(copy.deepcopy(model), engines)
        assert sync.first_gap < 1e-5 and len(engines.replicas) == 2
        first = engines.generate(requests)
        with torch.no_grad():
            for p in sync.model.parameters():
                p.mul_(1.05)
        assert sync.push(3)["sync_gap"] < 1e-5
        second = engines.generate(requests)
        for version, held, rollouts in ((0, model, first), (3, sync.model, second)):
            for rollout in rollouts:
                assert rollout.versions == [(0, version)]
                expected = forward_logp(held, rollout.prompt_ids, rollout.completion_ids)
                torch.testing.assert_close(
                    torch.tensor(rollout.logp_rollout), expected, rtol=1e-4, atol=1e-4
                )
        where = next(iter(engines.seats.values())).where
        assert where is not None
        engines.add(list(enumerate(requests)))
        done = dict(engines.step())
        os.kill(where.pid, signal.SIGKILL)
        while engines.busy:
            done |= dict(engines.step())
        assert [done[i].completion_ids for i in range(40)] == [r.completion_ids for r in second]
        assert len(engines.faults) == 1 and "died" in engines.faults[0].reason
