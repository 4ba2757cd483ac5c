"""Fixtures that several test files share: a tiny configuration, models with weights that hide nothing, a tiny
tokenizer.

Two threads for torch: the machines that run the tests have two cores, and oversubscription is slower.  Set
through the environment, so that tests which never use torch do not import it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onebase.model.config import ModelConfig
    from onebase.model.transformer import Transformer
    from onebase.tokenizer import ChatTokenizer

os.environ.setdefault("OMP_NUM_THREADS", "2")
if shutil.which("nvidia-smi") is None:  # before anything imports it: kernels run on the CPU, as numpy
    os.environ.setdefault("TRITON_INTERPRET", "1")

MakeConfig = Callable[..., "ModelConfig"]
MakeModel = Callable[..., "Transformer"]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> ChatTokenizer:
    """Byte-level BPE of 280 entries, trained on generated sums."""
    from onebase.tokenizer import train

    return train((f"{i} plus {3 * i} makes {4 * i}\n" for i in range(300)), 280)


COMMON = (
    "the of and to in that is was he for it with as his on be at by had not are but from or have an they "
    "which one you were all she there would their we him been has when who will more no if out so said "
    "what up its about into than them can only other new some could time these two may then do first any "
    "my now such like our over man me even most made after also did many before must through back years "
    "where much your way well"
).split()


@pytest.fixture(scope="session")
def prose() -> Callable[..., str]:
    """prose(seed, lines=10): lines of fourteen common words that text filters keep; different seeds share
    hardly a run of words."""

    def make(seed: object, lines: int = 10) -> str:
        rng = random.Random(str(seed))
        return "\n".join(" ".join(rng.choices(COMMON, k=14)).capitalize() + "." for _ in range(lines))

    return make


@pytest.fixture(scope="session")
def make_config() -> MakeConfig:
    """A model of about 30 thousand parameters with every part of the architecture in it; keywords replace
    fields."""

    def make(**changes: Any) -> ModelConfig:
        from onebase.model.config import ModelConfig

        fields: dict[str, Any] = {
            "vocab_size": 288, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
            "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
            "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 8,
            "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.7,
            "max_position_embeddings": 256,
        }  # fmt: skip
        return ModelConfig(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """A float32 model in which no part is neutral: weights of unit gain, norms around 1, random biases, and
    selection biases from strongly negative to strongly positive."""

    def make(config: ModelConfig, seed: int = 0, bias: float = 1.0) -> Transformer:
        import torch

        from onebase.model.transformer import Transformer

        model = Transformer(config)
        randomise(model, seed, bias)
        assert not any(torch.isnan(t).any() for t in model.state_dict().values())
        return model

    return make


@pytest.fixture(scope="session")
def randomise_weights() -> Callable[[Any, int, float], None]:
    return randomise


def randomise(model: Any, seed: int, bias: float) -> None:
    """Fill any module's parameters and selection biases (also of a transformers model)."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(shape: Any) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.copy_((1.0 if "norm" in name else 0.0) + 0.2 * normal(p.shape))
            else:
                std = 0.5 if "embed_tokens" in name else p.shape[-1] ** -0.5
                p.copy_(normal(p.shape) * std)
        for name, b in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                b.copy_(bias * (normal(b.shape) - 1.0))
