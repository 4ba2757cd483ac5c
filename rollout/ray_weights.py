"""Weights on their way to engines in other processes: packed for Ray's object store, and the ledger of what
has been sent, from which a new engine is brought to the current version."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

Packed = dict[str, tuple[numpy.ndarray[Any, Any], str]]


@dataclass(frozen=True, slots=True)
class Entry:
    """Weights to load: a version, and the reference of what `pack` made of its tensors."""

    number: int
    version: int
    names: frozenset[str]
    ref: Any


@dataclass(slots=True)
class Ledger:
    """Every tensor's last sending, in order."""

    entries: list[Entry] = field(default_factory=list)
    last: int = 0
    """Number of the newest entry there has been."""

    def add(self, version: int, names: Iterable[str], ref: Any) -> Entry:
        """A sending; earlier ones whose every tensor has been sent again since are let go, with their
        memory."""
        self.last += 1
        entry = Entry(self.last, version, frozenset(names), ref)
        kept: list[Entry] = [entry]
        later = entry.names
        for old in reversed(self.entries):
            if not old.names <= later:
                kept.append(old)
            later |= old.names
        self.entries = kept[::-1]
        return entry

    def after(self, number: int) -> list[Entry]:
        """What an engine lacks that has loaded up to this."""
        return [e for e in self.entries if e.number > number]


def pack(tensors: Iterable[tuple[str, Tensor]]) -> Packed:
    """For Ray's object store: arrays that share the tensors' memory where they lie on the CPU.  numpy has no
    bf16 and no fp8: these go as integers of their width."""
    packed: Packed = {}
    for name, tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        dtype = str(plain.dtype).removeprefix("torch.")
        if plain.dtype.is_floating_point and plain.dtype not in (torch.float64, torch.float32, torch.float16):
            plain = plain.view(torch.int16 if plain.element_size() == 2 else torch.uint8)
        packed[name] = (plain.numpy(), dtype)
    return packed


def unpack(packed: Packed) -> Iterator[tuple[str, Tensor]]:
    """Tensors over the same memory, which Ray has made read-only: to be copied, not changed."""
    for name, (array, dtype) in packed.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(array)
        yield name, tensor.view(getattr(torch, dtype))
