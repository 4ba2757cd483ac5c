"""Plain values as bytes, for talk between the verifier, a solution's process and a test's process.

A frame is JSON `[values, nodes]`.  A value is a JSON null, bool, int, finite float or string, or one of
`[k]` (node k), `["i", hex]` (an int beyond 62 bits), `["f", "nan"]`, `["s", hex]` (a string with surrogates).
A node is `[tag, meta, child, child, …]`.  Containers are nodes, so shared and cyclic structures keep their
shape and nothing nests deeper than three brackets, however deep the value is.

Encoding reduces instances of subclasses of the built-in types to the built-in value through the base type's
own methods, so that overridden `__eq__`, `__hash__`, `__iter__`, `__len__` and the like have no say.
`code_unwire` builds the values again.  Nothing here is pickle.
"""

from __future__ import annotations

import base64
import collections
import datetime
import json
import math
import sys
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

FRAME_BYTES = 8 << 20
IMMUTABLE_DEPTH = 100
_NATIVE = 1 << 62  # JSON readers elsewhere lose digits beyond; Python's own limit lies at 4300 digits


class WireError(ValueError):
    """A frame that is out of form or bounds, or a value that cannot be a frame."""


class Node:
    """What a hook for unknown objects returns: a tag, JSON meta data, and values to encode as children."""

    __slots__ = ("children", "meta", "mutable", "tag")

    def __init__(self, tag: str, meta: Any, children: Iterable[Any] = (), mutable: bool = False) -> None:
        self.tag, self.meta, self.children, self.mutable = tag, meta, list(children), mutable


class Array:
    """A numpy array on a side that has no numpy: its dtype, shape and plain nested lists."""

    __slots__ = ("dtype", "items", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...], items: Any) -> None:
        self.dtype, self.shape, self.items = dtype, shape, items


Hook = Callable[[Any], Node]


def _no_hook(thing: Any) -> Node:
    raise WireError(f"a {type(thing).__name__} is not plain data")


class Encoder:
    """One frame in the making.  `mutables` lists the mutable containers met, in the order of their nodes."""

    def __init__(self, hook: Hook = _no_hook) -> None:
        self.hook = hook
        self.nodes: list[Any] = []
        self.mutables: list[Any] = []
        self.places: list[int] = []  # node of each of `mutables`
        self._memo: dict[int, list[int]] = {}
        self._alive: list[Any] = []  # ids in the memo stay taken
        self._waiting: collections.deque[tuple[int, str, Any, list[Any]]] = collections.deque()

    def frame(self, values: Iterable[Any]) -> bytes:
        roots = [self.value(x) for x in values]
        while self._waiting:
            index, tag, meta, children = self._waiting.popleft()
            self.nodes[index] = [tag, meta, *[self.value(child) for child in children]]
        return json.dumps([roots, self.nodes], separators=(",", ":"), allow_nan=False).encode()

    def value(self, x: Any, depth: int = 0) -> Any:
        kind = type(x)
        if kind is str:
            return x if x.isascii() else _text(x)
        if kind is int:
            return x if -_NATIVE < x < _NATIVE else ["i", hex(x)]
        if x is None or kind is bool:
            return x
        if kind is float:
            return x if math.isfinite(x) else ["f", repr(x)]
        known = self._memo.get(id(x))
        if known is not None:
            return known
        return self._container(x, kind, depth)

    def _container(self, x: Any, kind: type, depth: int) -> Any:
        if kind is tuple:
            return self._immutable(x, "t", None, x, depth)
        if kind is list:
            return self._mutable(x, "l", None, list(x))
        base = kind if kind in _PLAIN else _base_of(kind)
        if base in _SCALARS:  # a subclass of a scalar: its built-in value
            return self.value(_SCALARS[base](x))
        if base is not None:
            tag, meta, children, mutable = _PLAIN[base](x)
        else:
            node = self.hook(x)
            tag, meta, children, mutable = node.tag, node.meta, node.children, node.mutable
        if mutable:
            return self._mutable(x, tag, meta, children)
        return self._immutable(x, tag, meta, children, depth)

    def _mutable(self, x: Any, tag: str, meta: Any, children: list[Any]) -> list[int]:
        place = self._reserve(x)
        self.mutables.append(x)
        self.places.append(place[0])
        self._waiting.append((place[0], tag, meta, children))
        return place

    def _immutable(self, x: Any, tag: str, meta: Any, children: Iterable[Any], depth: int) -> list[int]:
        """Children first, so that decoding finds them built.  Deep tuples would overflow the stack there."""
        if depth >= IMMUTABLE_DEPTH:
            raise WireError(f"tuples nested deeper than {IMMUTABLE_DEPTH}")
        node = [tag, meta, *[self.value(child, depth + 1) for child in children]]
        place = self._reserve(x)
        self.nodes[place[0]] = node
        return place

    def _reserve(self, x: Any) -> list[int]:
        place = [len(self.nodes)]
        self.nodes.append(None)
        self._memo[id(x)] = place
        self._alive.append(x)
        return place


def encode(*values: Any, hook: Hook = _no_hook) -> bytes:
    return Encoder(hook).frame(values)


def _text(x: str) -> Any:
    try:
        x.encode()
    except UnicodeEncodeError:  # lone surrogates: two of them would merge into one character in JSON
        return ["s", x.encode("utf-8", "surrogatepass").hex()]
    return x


def _base_of(kind: type) -> type | None:
    """The plain type that instances of `kind` reduce to, if any."""
    if _is_numpy(kind):
        return _numpy_base(kind)
    for base in kind.__mro__:
        if base in _PLAIN or base in _SCALARS:
            return base
    return None


def _is_numpy(kind: type) -> bool:
    return kind.__module__ == "numpy" and "numpy" in sys.modules


def _numpy_base(kind: type) -> type | None:
    numpy = sys.modules["numpy"]
    if issubclass(kind, numpy.ndarray):
        _PLAIN.setdefault(kind, _of_array)
        return kind
    if issubclass(kind, numpy.generic):
        _SCALARS.setdefault(kind, lambda x: x.item())
        return kind
    return None


def _of_array(x: Any) -> Any:
    if x.dtype.kind not in "biufcUS":
        raise WireError(f"an array of {x.dtype} is not plain data")
    return "A", [x.dtype.str, list(x.shape)], x.ravel().tolist(), False


def _namedtuple_or_tuple(x: Any) -> Any:
    items = tuple.__getitem__(x, slice(None))
    fields: Any = getattr(type(x), "_fields", None)
    named = isinstance(fields, tuple) and 0 < len(fields) == len(items)
    if named and all(type(f) is str and f.isidentifier() for f in fields):
        return "n", [type(x).__name__, *fields], list(items), False
    return "t", None, list(items), False


def _pairs(x: Any) -> list[Any]:
    return [part for pair in dict.items(x) for part in pair]


def _offset(x: Any) -> Any:
    offset = x.utcoffset() if x.tzinfo is not None else None
    return None if offset is None else [offset.days, offset.seconds, offset.microseconds]


def _of_datetime(x: Any) -> Any:
    meta = [x.year, x.month, x.day, x.hour, x.minute, x.second, x.microsecond, x.fold, _offset(x)]
    return "datetime", meta, [], False


# Type → (tag, meta, children, mutable).  Bool has no subclasses; str, int, float are in _SCALARS.
_PLAIN: dict[type, Callable[[Any], tuple[str, Any, Any, bool]]] = {
    list: lambda x: ("l", None, list.__getitem__(x, slice(None)), True),
    dict: lambda x: ("d", None, _pairs(x), True),
    set: lambda x: ("s", None, list(set.__iter__(x)), True),
    frozenset: lambda x: ("z", None, list(frozenset.__iter__(x)), False),
    tuple: _namedtuple_or_tuple,
    bytes: lambda x: ("b", base64.b64encode(bytes.__getitem__(x, slice(None))).decode(), [], False),
    bytearray: lambda x: ("B", base64.b64encode(bytearray.__getitem__(x, slice(None))).decode(), [], True),
    complex: lambda x: ("c", [repr(complex.real.__get__(x)), repr(complex.imag.__get__(x))], [], False),
    range: lambda x: ("r", None, [x.start, x.stop, x.step], False),
    collections.deque: lambda x: ("D", x.maxlen, list(collections.deque.__iter__(x)), True),
    collections.OrderedDict: lambda x: (
        "O",  # its order is its own, not the dict's
        None,
        [part for pair in collections.OrderedDict.items(x) for part in pair],
        True,
    ),
    collections.Counter: lambda x: ("C", None, _pairs(x), True),
    collections.defaultdict: lambda x: ("F", None, _pairs(x), True),
    Decimal: lambda x: ("m", Decimal.__str__(x), [], False),
    Fraction: lambda x: ("q", None, [x.numerator, x.denominator], False),
    datetime.datetime: _of_datetime,
    datetime.date: lambda x: ("date", [x.year, x.month, x.day], [], False),
    datetime.time: lambda x: ("time", [x.hour, x.minute, x.second, x.microsecond, _offset(x)], [], False),
    datetime.timedelta: lambda x: ("delta", [x.days, x.seconds, x.microseconds], [], False),
    type({}.keys()): lambda x: ("k", None, list(x), False),
    type(Ellipsis): lambda x: ("e", None, [], False),
}
_SCALARS: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
}
