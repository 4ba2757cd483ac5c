"""A coin in place of a judgement, for control runs: what a training recipe gains from it is not learning.

The coin is seeded by (seed, completion, answer), so the same completion always gets the same reward, in any
process, and two runs can be compared.
"""

from __future__ import annotations

import hashlib
from typing import Any

from onebase.verifiers.base import Verdict, failed

INLINE = True


def verify(
    completion: str, answer: str = "", *, seed: int = 0, probability: float = 0.5, **row: Any
) -> Verdict:
    if not 0.0 <= probability <= 1.0:
        return failed(f"row: probability must be in 0..1: {probability!r}")
    text = "\x00".join((str(seed), completion, str(answer))).encode("utf-8", "surrogatepass")
    draw = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
    return Verdict(1.0 if draw < probability else 0.0, f"coin: {draw:.3f} against {probability:g}")
