"""A model as engines know it: weights under their checkpoint names, and log-probabilities of given tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from onebase.kernels.linear_logprob import linear_logprob
from onebase.model import checkpoint
from onebase.model.hf import HFCausalLM
from onebase.model.transformer import Transformer


def named_weights(model: Transformer | HFCausalLM) -> Iterator[tuple[str, Tensor]]:
    """Every weight, a view, under its name in the checkpoint's files.  The prediction block is left out,
    since engines do not sample from it; so is a head that is tied to the embedding."""
    if isinstance(model, HFCausalLM):
        tied = getattr(model.model.config, "tie_word_embeddings", False)
        for name, tensor in model.model.state_dict().items():
            if not (tied and name == "lm_head.weight"):
                yield name, tensor
        return
    block = f"model.layers.{model.config.num_hidden_layers}."
    for name, tensor in checkpoint.to_format(model):
        if not name.startswith(block):
            yield name, tensor


@torch.no_grad()
def logprobs_of(model: Transformer | HFCausalLM, ids: Sequence[list[int]]) -> Tensor:
    """[rows, T - 1] log-probability, float32 on the CPU, of every token but the first of rows of equal
    length, at temperature 1."""
    was_training = model.training
    model.eval()
    rows = torch.tensor(ids, device=model.head_weight.device)
    hidden = model(rows).hidden_BTD[:, :-1]
    model.train(was_training)
    logp_N, _ = linear_logprob(hidden.flatten(0, 1), model.head_weight, rows[:, 1:].flatten())
    return logp_N.view(len(rows), -1).float().cpu()
