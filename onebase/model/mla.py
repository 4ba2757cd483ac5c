"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; V3, arXiv 2412.19437, equations 1
to 11).

    c = norm(W_a x)                    the latent, C numbers, cached
    k = [W_uk c ; rope(W_kr x)]        the rotated part is shared by all heads, R numbers, cached
    v = W_uv c
    q = [W_q x without position ; rope(W_q x)]   optionally through a compressed, normalised query latent

Two forms of the same function: `forward` expands keys and values (training, prefill); `decode` absorbs W_uk
into the query and W_uv into the output, so that one new token attends to the cached latents directly (the
same section's remark on absorption).  Pairs (2i, 2i+1) are rotated, as the format stores them. Letters: B
rows, T tokens, D model, H heads, N nope, R rope, C latent, V value, S cached positions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebase.kernels.attention import attention
from onebase.model.config import ModelConfig, YarnConfig

if TYPE_CHECKING:
    from onebase.train.context import Context


class RMSNorm(nn.Module):
    """Root mean square norm with a gain, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature, 0.1 m ln(s) + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_frequencies(dim: int, theta: float, yarn: YarnConfig | None) -> Tensor:
    """Angle per position of each pair, float32 [dim / 2]; under YaRN the slow ones are interpolated (section
    3.2)."""
    freq = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if yarn is None:
        return freq

    def pair_with(rotations: float) -> float:
        length = yarn.original_max_position_embeddings
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_with(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with(yarn.beta_slow)), dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    return freq / yarn.factor * interpolated + freq * (1 - interpolated)


class Rope(nn.Module):
    """Cosine and sine [..., R / 2, 2] of m f for positions m, float32, times YaRN's attention factor."""

    freq: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        yarn = config.rope_scaling
        freq = rope_frequencies(config.qk_rope_head_dim, config.rope_theta, yarn)
        self.register_buffer("freq", freq, persistent=False)
        self.factor = 1.0
        if yarn is not None:
            plain = not (yarn.mscale and yarn.mscale_all_dim)
            self.factor = yarn_mscale(yarn.factor, 1.0 if plain else yarn.mscale)
            self.factor /= 1.0 if plain else yarn_mscale(yarn.factor, yarn.mscale_all_dim)

    def forward(self, position: Tensor) -> Tensor:
        angle = position[..., None].float() * self.freq
        return torch.stack([angle.cos(), angle.sin()], -1).mul_(self.factor)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the last dimension's pairs; `rotation` [..., R / 2, 2] broadcasts against them."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if not x.is_cuda:  # one complex product is faster where nothing is compiled
        turned = torch.view_as_complex(pairs.contiguous()) * torch.view_as_complex(rotation)
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    cos, sin = rotation.unbind(-1)
    even, odd = pairs.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


class MLA(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.H, self.N, self.R = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
        self.V, self.C = config.v_head_dim, config.kv_lora_rank
        D, bias = config.hidden_size, config.attention_bias
        q_out = self.H * (self.N + self.R)
        self.q_lora_rank = config.q_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(D, q_out, bias=False)
        else:
            self.q_a_proj = nn.Linear(D, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = nn.Linear(config.q_lora_rank, q_out, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(D, self.C + self.R, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.C, config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(self.C, self.H * (self.N + self.V), bias=False)
        self.o_proj = nn.Linear(self.H * self.V, D, bias=bias)
        self.context: Context | None = None  # where rows are divided over processes
        self.scale = (self.N + self.R) ** -0.5
        if config.rope_scaling is not None:
            self.scale *= yarn_mscale(config.rope_scaling.factor, config.rope_scaling.mscale_all_dim) ** 2

    def query(self, x: Tensor) -> Tensor:
        """[..., H (N + R)], not yet rotated."""
        if self.q_lora_rank is None:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    def absorbed(self) -> tuple[Tensor, Tensor]:
        """Views of `kv_b_proj`: W_uk [H, N, C] and W_uv [H, V, C]."""
        w_uk, w_uv = self.kv_b_proj.weight.view(self.H, self.N + self.V, self.C).split([self.N, self.V], 1)
        return w_uk, w_uv

    def _project(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q_nope [..., H, N], q_rope [..., H, R], latent [..., C], k_rope [..., R], rotated and
        normalised."""
        q_nope, q_rope = self.query(x).unflatten(-1, (self.H, self.N + self.R)).split([self.N, self.R], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.C, self.R], -1)
        rope = rotate(torch.cat([q_rope, k_rope.unsqueeze(-2)], -2), rotation.unsqueeze(-3))
        return q_nope, rope[..., :-1, :], self.kv_a_layernorm(latent), rope[..., -1, :]

    def forward(self, x_BTD: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
        """Attention over the row itself; `mask` [B, 1, T, T] is True where a token may look, None is
        causal."""
        return self.prefill(x_BTD, rotation, mask)[0]

    def prefill(self, x_BTD: Tensor, rotation: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """`forward`'s output, and what a cache keeps of the row: latent and rotated key, [B, T, C + R]."""
        q_nope, q_rope, latent, k_rope = self._project(x_BTD, rotation)
        if self.context is not None:
            latent, k_rope = self.context.gather(torch.cat([latent, k_rope], -1)).split([self.C, self.R], -1)
        kv = self.kv_b_proj(latent).unflatten(-1, (self.H, self.N + self.V))
        k_nope, v = kv.split([self.N, self.V], -1)
        q = torch.cat([q_nope, q_rope], -1).transpose(1, 2)
        k = torch.cat([k_nope, k_rope.unsqueeze(-2).expand(-1, -1, self.H, -1)], -1).transpose(1, 2)
        out = attention(q, k, v.transpose(1, 2), mask, self.scale)
        return self.o_proj(out.transpose(1, 2).flatten(2)), torch.cat([latent, k_rope], -1)

    def decode(
        self, x_BD: Tensor, rotation_BR: Tensor, cache_BSK: Tensor, position_B: Tensor, bias_BS: Tensor
    ) -> Tensor:
        """One new token per row against the cached latents, absorbed.

        `cache_BSK` [B, S, C + R] is written at `position_B`, then read; `bias_BS` is 0 where the row may
        look, else -inf (float32).  Scores and softmax are float32.
        """
        q_nope, q_rope, latent, k_rope = self._project(x_BD, rotation_BR)
        entry = torch.cat([latent, k_rope], -1)
        index = position_B[:, None, None].expand(-1, 1, entry.shape[-1])
        cache_BSK.scatter_(1, index, entry.unsqueeze(1))
        w_uk, w_uv = self.absorbed()
        q_latent = torch.bmm(q_nope.transpose(0, 1), w_uk).transpose(0, 1)  # [B, H, C]
        q = torch.cat([q_latent, q_rope], -1)
        score = torch.bmm(q, cache_BSK.transpose(1, 2)).float().mul_(self.scale).add_(bias_BS[:, None])
        out = torch.bmm(score.softmax(-1).to(x_BD.dtype), cache_BSK)[..., : self.C]  # [B, H, C]
        out = torch.bmm(out.transpose(0, 1), w_uv.transpose(1, 2))  # [H, B, V]
        return self.o_proj(out.transpose(0, 1).flatten(1))
