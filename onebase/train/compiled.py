"""Compiled blocks (torch.compile, one graph per kind of block): what stands between the matrix products is
fused.

Only on a GPU in bf16, where the experts' products need no counts on the host.  The blocks keep their names
and parameters; evaluation and generation run the same code uncompiled where shapes vary.
"""

from __future__ import annotations

from typing import Any

import torch

from onebase.model.transformer import Transformer


def compile_blocks(model: Any, dynamic: bool = False) -> bool:
    """Compile every block's `forward` in place where that pays; says whether it did.  `dynamic` for batches
    whose shape varies.

    Pitfall: the first step takes half a minute; without `dynamic` a new shape compiles again."""
    weight = model.head_weight
    if not isinstance(model, Transformer) or not weight.is_cuda or weight.dtype != torch.bfloat16:
        return False
    for block in [*model.blocks(), *([model.mtp] if model.mtp is not None else [])]:
        block.compile(dynamic=dynamic)
    return True
