"""The parts of a message to the user: the nearest name, what is allowed, what was given."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like `name`, or None where none is like it."""
    lower = {other.lower(): other for other in allowed}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return lower[found[0]] if found else None


def hint(name: str, allowed: Iterable[str]) -> str:
    """A line to append to a message, or nothing."""
    found = nearest(name, allowed)
    return f"\n  did you mean: {found}" if found is not None else ""


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def given(value: Any) -> str:
    """A value as the user wrote it, cut to one readable piece."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
