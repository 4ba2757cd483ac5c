"""Attention of whole rows, for training and prefill, with unequal widths of keys and values (MLA's 192/128).

The library's kernels are called, none is our own: on a GPU cuDNN's comes first, since it alone takes unequal
widths at full speed (one H200, causal: 508-570 TFLOP/s forward; the memory-efficient kernel that torch would
take reaches 140).  What it refuses goes to the next of torch's list.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[B, H, T, V].  `mask` [B, 1, T, T] is True where a token may look; None is causal."""
    if not q_BHTK.is_cuda:
        return F.scaled_dot_product_attention(
            q_BHTK, k_BHTK, v_BHTV, attn_mask=mask, is_causal=mask is None, scale=scale
        )
    with sdpa_kernel(ORDER, set_priority=True):
        return F.scaled_dot_product_attention(
            q_BHTK, k_BHTK, v_BHTV, attn_mask=mask, is_causal=mask is None, scale=scale
        )
