"""Floating-point operations of a training step, and the hardware's peak, for model FLOP utilisation.

Counted as 6 per active parameter and token (forward 2, backward 4; Kaplan et al., arXiv 2001.08361, section
2.1) plus causal attention, 6 * H * (qk + v) * T / 2 per layer and token.  Recomputation is not counted.
"""

from __future__ import annotations

import functools
import time

import torch

from onebase.model.config import ModelConfig

# dense bf16 peaks in FLOP/s, from the vendor's data sheets
GPU_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


def active_parameters(c: ModelConfig, with_mtp: bool) -> int:
    """Parameters that one token is multiplied with, the head included and the embedding not."""
    D, qk, H = c.hidden_size, c.qk_head_dim, c.num_attention_heads
    q = D * H * qk if c.q_lora_rank is None else c.q_lora_rank * (D + H * qk)
    kv = D * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank * H * (c.qk_nope_head_dim + c.v_head_dim)
    attention = q + kv + H * c.v_head_dim * D
    moe = (
        3 * D * c.moe_intermediate_size * (c.num_experts_per_tok + c.n_shared_experts)
        + D * c.n_routed_experts
    )
    dense = 3 * D * c.intermediate_size
    n_dense = min(c.first_k_dense_replace, c.num_hidden_layers)
    head = c.vocab_size * D
    total = c.num_hidden_layers * attention + n_dense * dense + (c.num_hidden_layers - n_dense) * moe + head
    if with_mtp and c.num_nextn_predict_layers:
        total += attention + moe + 2 * D * D + head
    return total


def train_flops_per_token(c: ModelConfig, length: int, with_mtp: bool) -> float:
    layers = c.num_hidden_layers + (1 if with_mtp and c.num_nextn_predict_layers else 0)
    attention = 6 * c.num_attention_heads * (c.qk_head_dim + c.v_head_dim) * length / 2 * layers
    return 6 * active_parameters(c, with_mtp) + attention


@functools.cache
def peak_flops(device: str, dtype: str) -> float:
    """The GPU's data sheet; on a CPU the best of a few float32 matrix products measured now."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
        bf16 = next((peak for key, peak in GPU_PEAKS.items() if key in name), 100e12)
        return bf16 if dtype == "bfloat16" else bf16 / 16
    x = torch.randn(512, 512)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - start)
    return 2 * 512**3 / best
