"""A function of whole matrices applied to matrices whose rows are divided over processes.

Muon's orthogonalisation needs a matrix as a whole.  Matrix j is sent to one process, which applies the
function and sends the rows back: two all-to-alls for all matrices together, and each matrix is worked on once
(the idea of distributed Muon in Moonlight, arXiv 2502.16982, section 2.3, which gathers on every process's
own turn).

Rows are divided as FSDP2 and DTensor do it, in runs of ceil(rows / P); the last processes may have fewer or
none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def run_of(rows: int, size: int, rank: int) -> int:
    """How many of the rows process `rank` holds."""
    run = -(-rows // size)
    return max(0, min(run, rows - run * rank))


def owners(sizes: list[int], processes: int) -> list[int]:
    """The process that works on each matrix: the largest first, to the one with the least so far."""
    load, owner = [0] * processes, [0] * len(sizes)
    for j in sorted(range(len(sizes)), key=lambda j: -sizes[j]):
        owner[j] = load.index(min(load))
        load[owner[j]] += sizes[j]
    return owner


def on_whole(
    parts: list[Tensor], rows: list[int], group: Any, function: Callable[[list[Tensor]], list[Tensor]]
) -> list[Tensor]:
    """`parts[j]` are this process's rows of matrix j, which has `rows[j]` in all; returns its rows of the
    results.  `function` maps matrices to as many of the same shapes.  Every process of the group must
    call."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    owner = owners([r * p.shape[1] for r, p in zip(rows, parts, strict=True)], size)
    mine = [j for j in range(len(parts)) if owner[j] == rank]
    by_owner = [[j for j in range(len(parts)) if owner[j] == o] for o in range(size)]

    def numbers(j: int, process: int) -> int:
        return run_of(rows[j], size, process) * parts[j].shape[1]

    for j, part in enumerate(parts):
        assert part.numel() == numbers(j, rank), f"matrix {j}: {tuple(part.shape)} of {rows[j]} rows, {rank=}"
    out_splits = [sum(numbers(j, rank) for j in js) for js in by_owner]
    in_splits = [sum(numbers(j, process) for j in mine) for process in range(size)]

    flat = torch.cat([parts[j].flatten() for js in by_owner for j in js])
    got = flat.new_empty(sum(in_splits))
    dist.all_to_all_single(got, flat, in_splits, out_splits, group=group)
    pieces = [
        chunk.split([numbers(j, process) for j in mine]) for process, chunk in enumerate(got.split(in_splits))
    ]
    wholes = [
        torch.cat(run).view(rows[j], -1) for j, run in zip(mine, zip(*pieces, strict=True), strict=True)
    ]

    results = function(wholes) if wholes else []
    back = [
        result.reshape(-1).split([numbers(j, process) for process in range(size)])
        for j, result in zip(mine, results, strict=True)
    ]
    flat = torch.cat([run[process] for process in range(size) for run in back] or [got.new_empty(0)])
    got = flat.new_empty(sum(out_splits))
    dist.all_to_all_single(got, flat, out_splits, in_splits, group=group)
    out: list[Tensor] = [torch.empty(0)] * len(parts)
    for js, chunk in zip(by_owner, got.split(out_splits), strict=True):
        for j, run in zip(js, chunk.split([numbers(j, rank) for j in js]), strict=True):
            out[j] = run.view(parts[j].shape)
    return out
