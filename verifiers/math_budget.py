"""A count of operations that bounds one reading or one comparison by construction.

Every node that is parsed, walked, evaluated or compared is paid for here, dear operations more, so the same
input costs the same number on every machine and a verdict never depends on how busy one is: no clock is read.
What does not fit raises Exhausted, which is no ValueError, so that no handler of a single step swallows it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Exhausted(Exception):
    """More operations than an answer is worth."""


class _Purse(threading.local):
    left = 1 << 40  # outside of `budget`, where nothing bounds
    extras = 0  # dear steps (a call of sympy, a numeric estimate) that there is room for


_purse = _Purse()


@contextmanager
def budget(operations: int, extras: int = 0) -> Iterator[None]:
    """Gives what runs inside its own number of operations, and of dear steps; what is outside pays
    nothing."""
    before = _purse.left, _purse.extras
    _purse.left, _purse.extras = operations, extras
    try:
        yield
    finally:
        _purse.left, _purse.extras = before


def spend(operations: int = 1) -> None:
    _purse.left -= operations
    if _purse.left < 0:
        raise Exhausted


def spend_extra() -> bool:
    """Whether there was room for one more dear step."""
    _purse.extras -= 1
    return _purse.extras >= 0


def left() -> int:
    return _purse.left
