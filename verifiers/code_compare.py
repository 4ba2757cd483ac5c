"""Outputs and values of a solution against the expected ones, outside the solution's process.

Standard output: lines are compared exactly and in number; blanks at the ends of lines are ignored, and so is
one final newline (an expected text that ends in blank lines may be matched without them).  With a tolerance
the words of a line are compared one by one, and a decimal number in the expected line allows that much,
absolutely or relative to it, whichever is more.

Values of call tests: as Python's `==`, except that lists and tuples are alike (JSON has no tuples), that the
keys of an expected object may be the JSON text of the keys, and that NaN equals NaN.
"""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any

from onebase.verifiers.code_wire import Array


def output_differs(got: bytes, expected: str, tolerance: float | None = None) -> str | None:
    """None where the output is right, else a line that says how it differs."""
    found = _lines(got)
    wanted = _lines(expected.encode("utf-8", "surrogateescape"))
    shorter = _lines(expected.rstrip().encode("utf-8", "surrogateescape"))
    for lines in (wanted, shorter):
        if len(found) == len(lines) and all(map(_line_matches, found, lines, [tolerance] * len(lines))):
            return None
    for number, (mine, theirs) in enumerate(zip(found, shorter, strict=False), 1):
        if not _line_matches(mine, theirs, tolerance):
            return f"line {number} is {_clip(mine)}, expected {_clip(theirs)}"
    return f"{len(found)} lines, expected {len(shorter)}"


def _lines(text: bytes) -> list[bytes]:
    return [line.rstrip() for line in text.removesuffix(b"\n").split(b"\n")]


def _line_matches(got: bytes, expected: bytes, tolerance: float | None) -> bool:
    if got == expected:
        return True
    if tolerance is None:
        return False
    mine, theirs = got.split(), expected.split()
    return len(mine) == len(theirs) and all(
        _word_matches(a, b, tolerance) for a, b in zip(mine, theirs, strict=True)
    )


def _word_matches(got: bytes, expected: bytes, tolerance: float) -> bool:
    if got == expected:
        return True
    if not any(mark in expected.lower() for mark in (b".", b"e")) or len(got) > 400 or b"_" in got:
        return False
    try:
        return near(float(got), float(expected), tolerance)
    except ValueError:
        return False


def near(got: float, expected: float, tolerance: float) -> bool:
    return (
        math.isfinite(got)
        and math.isfinite(expected)
        and abs(got - expected) <= tolerance * max(1.0, abs(expected))
    )


def same_value(got: Any, expected: Any, tolerance: float | None = None) -> bool:
    """`got` is rebuilt plain data.  The recursion follows `expected`, which is the data set's own."""
    if isinstance(got, Array):
        got = got.items
    if isinstance(expected, list | tuple):
        alike = isinstance(got, list | tuple) and len(got) == len(expected)
        return alike and all(same_value(a, b, tolerance) for a, b in zip(got, expected, strict=True))
    if isinstance(expected, dict):
        return isinstance(got, dict) and _same_dict(got, expected, tolerance)
    if isinstance(expected, float):
        if type(got) not in (int, float, bool):
            return same_plain(got, expected)
        if math.isnan(expected):
            return isinstance(got, float) and math.isnan(got)
        if tolerance is not None and type(got) is not bool and _finite(got):
            return near(float(got), expected, tolerance)
    return same_plain(got, expected)


def same_plain(got: Any, expected: Any) -> bool:
    """Python's `==` on plain data, False where it fails (nested too deep, an array of several truths)."""
    if isinstance(got, Array):
        return False
    try:
        return bool(got == expected)
    except (RecursionError, ValueError, TypeError):
        return False


def _finite(got: float) -> bool:
    try:
        return math.isfinite(got)
    except OverflowError:
        return False


def _same_dict(got: dict[Any, Any], expected: dict[Any, Any], tolerance: float | None) -> bool:
    if len(got) != len(expected):
        return False
    if not all(key in got for key in expected):
        named = {_json_key(key): value for key, value in got.items()}
        if len(named) != len(got) or not all(key in named for key in expected):
            return False
        got = named
    return all(same_value(got[key], value, tolerance) for key, value in expected.items())


def _json_key(key: Any) -> Any:
    if key is None or type(key) in (bool, float) or (type(key) is int and -(1 << 64) < key < 1 << 64):
        return json.dumps(key)
    return key


class _Short(reprlib.Repr):
    """Bounded in length, depth and time, whatever the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxtuple, self.maxlist, self.maxdict, self.maxset, self.maxfrozenset = (
            4,
            12,
            12,
            8,
            12,
            12,
        )
        self.maxstring, self.maxother, self.maxlong, self.maxdeque = 60, 80, 40, 12

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"<an int of {x.bit_length()} bits>"

    repr_bool = staticmethod(lambda x, level: repr(x))  # type: ignore[assignment]


def show(value: Any, limit: int = 120) -> str:
    """One line for people."""
    text = " ".join(_Short().repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _clip(line: bytes, limit: int = 60) -> str:
    text = repr(line[: 2 * limit].decode("utf-8", "replace"))
    return text if len(text) <= limit else text[: limit - 1] + "…"
