"""Frames of `code_wire` back to plain values.

The other side may be hostile, so decoding builds plain values only, never runs code that a frame names, is
bounded in size, depth and hashing work, and raises WireError for whatever is out of form.
"""

from __future__ import annotations

import base64
import collections
import datetime
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from onebase.verifiers.code_wire import FRAME_BYTES, IMMUTABLE_DEPTH, Array, WireError

MAX_NODES = 200_000
IMMUTABLE_WEIGHT = 1 << 20
WIDE_KEYS = 256
FRACTION_BITS = 20_000
_HASH_PRIME = sys.hash_info.modulus

_MUTABLE_TAGS = {"l": list, "d": dict, "s": set, "D": collections.deque, "O": collections.OrderedDict,
                 "C": collections.Counter, "F": collections.defaultdict, "B": bytearray}  # fmt: skip

Builder = Callable[[Any, list[Any]], Any]
Shell = tuple[Callable[[Any], Any], Callable[[Any, Any, list[Any]], None]]


class Decoder:
    """Builds the values of one frame.

    `leaves` maps further tags to builders `(meta, children) -> object`; `shells` maps further mutable tags to
    `(make(meta), fill(object, meta, children))`.
    """

    def __init__(
        self,
        leaves: Mapping[str, Builder] | None = None,
        shells: Mapping[str, Shell] | None = None,
    ) -> None:
        self.leaves = {**_LEAVES, **(leaves or {})}
        self.shells = shells or {}
        self.built: list[Any] = []
        self._places: list[int] = []
        self._wide_nodes: set[int] = set()
        self._wide_keys = 0

    def mutables(self) -> list[Any]:
        """The mutable containers of the frame, in the order in which the encoder met them."""
        return [self.built[k] for k in self._places]

    def frame(self, data: bytes, originals: Sequence[Any] = ()) -> list[Any]:
        """The values.  Whatever is wrong with `data`, the error is a WireError.

        With `originals`, the third value may be a list of as many containers: these are the originals in
        their present state, and the originals themselves are filled anew."""
        if len(data) > FRAME_BYTES:
            raise WireError(f"a frame of {len(data)} bytes; the limit is {FRAME_BYTES}")
        try:
            document = json.loads(data, parse_constant=_no_constant)
            roots, nodes = document
            if type(roots) is not list or type(nodes) is not list:
                raise WireError("not a frame")
            if len(nodes) > MAX_NODES:
                raise WireError(f"{len(nodes)} containers; the limit is {MAX_NODES}")
            self._build(nodes, _same_as(originals, roots, nodes) if originals else {})
            return [self._value(x) for x in roots]
        except WireError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError, AttributeError,
                InvalidOperation) as error:  # fmt: skip
            raise WireError(f"not a frame: {type(error).__name__}: {str(error)[:100]}") from error

    def _build(self, nodes: list[Any], into: Mapping[int, Any]) -> None:
        self.built = [_UNBUILT] * len(nodes)
        weights = [1] * len(nodes)
        depths = [0] * len(nodes)
        later = self._places = []
        for k, node in enumerate(nodes):
            if type(node) is not list or len(node) < 2 or type(node[0]) is not str:
                raise WireError("not a node")
            tag, meta = node[0], node[1]
            if tag in _MUTABLE_TAGS or tag in self.shells:
                self.built[k] = self._shell(tag, meta, into.get(k, _UNBUILT))
                later.append(k)
        for k, node in enumerate(nodes):
            tag, meta = node[0], node[1]
            if tag in _MUTABLE_TAGS or tag in self.shells:
                continue
            for child in node[2:]:  # shared tuples must not be dearer to hash than the frame is long
                if type(child) is list and len(child) == 1 and self._is_index(child[0]):
                    weights[k] += weights[child[0]]
                    depths[k] = max(depths[k], 1 + depths[child[0]])
            if weights[k] > IMMUTABLE_WEIGHT or depths[k] > IMMUTABLE_DEPTH:
                raise WireError("tuples too deep or too much shared")
            if tag not in self.leaves:
                raise WireError(f"unknown tag {tag[:20]!r}")
            children = [self._value(x) for x in node[2:]]
            if tag in ("z", "k"):
                self._count_keys(node[2:])
            self.built[k] = self.leaves[tag](meta, children)
            if _wide(self.built[k]) or any(map(self._is_wide, node[2:])):
                self._wide_nodes.add(k)
        for k in later:
            tag, meta = nodes[k][0], nodes[k][1]
            children = [self._value(x) for x in nodes[k][2:]]
            if tag in "dsOCF":
                self._count_keys(nodes[k][2:] if tag == "s" else nodes[k][2::2])
            if tag in self.shells:
                self.shells[tag][1](self.built[k], meta, children)
            else:
                _fill(tag, self.built[k], meta, children)

    def _is_wide(self, x: Any) -> bool:
        if type(x) is list and len(x) == 1:
            return x[0] in self._wide_nodes
        return _wide(self._value(x))

    def _count_keys(self, keys: list[Any]) -> None:
        """Numbers beyond the hash's modulus, and those whose hash is easily steered, could be chosen to
        collide, which would make one frame take hours."""
        self._wide_keys += sum(map(self._is_wide, keys))
        if self._wide_keys > WIDE_KEYS:
            raise WireError(f"more than {WIDE_KEYS} very large numbers as keys")

    def _shell(self, tag: str, meta: Any, given: Any) -> Any:
        if tag in self.shells:
            return self.shells[tag][0](meta) if given is _UNBUILT else given
        kind = _MUTABLE_TAGS[tag]
        if given is not _UNBUILT:
            if type(given) is not kind:
                raise WireError(f"a {type(given).__name__} cannot become a {kind.__name__}")
            return given
        if tag == "D":
            if meta is not None and not (type(meta) is int and 0 <= meta < 1 << 62):
                raise WireError("not a deque's length")
            return collections.deque(maxlen=meta)
        return kind()

    def _is_index(self, k: Any) -> bool:
        return type(k) is int and 0 <= k < len(self.built)

    def _value(self, x: Any) -> Any:
        if type(x) is not list:
            if type(x) is dict:
                raise WireError("an object is not a value")
            return x
        if len(x) == 1 and self._is_index(x[0]):
            found = self.built[x[0]]
            if found is _UNBUILT:
                raise WireError("a node before its parts")
            return found
        if len(x) == 2 and type(x[1]) is str:
            if x[0] == "i":
                return int(x[1], 16)
            if x[0] == "f" and x[1] in ("nan", "inf", "-inf"):
                return float(x[1])
            if x[0] == "s":
                return bytes.fromhex(x[1]).decode("utf-8", "surrogatepass")
        raise WireError("not a value")


def decode(data: bytes, leaves: Mapping[str, Builder] | None = None) -> list[Any]:
    return Decoder(leaves).frame(data)


_UNBUILT = object()


def _same_as(originals: Sequence[Any], roots: list[Any], nodes: list[Any]) -> dict[int, Any]:
    """Node → the original that it is the new state of."""
    if len(roots) < 3 or roots[0] != "ok" or roots[2] is None:
        return {}
    ((k,),) = (roots[2],)
    _, _, *places = nodes[k]
    found = {place: thing for (place,), thing in zip(places, originals, strict=True)}
    if len(found) != len(originals) or any(type(place) is not int for place in found):
        raise WireError("not the containers that were sent")
    return found


def _no_constant(name: str) -> Any:
    raise WireError(f"{name} is not a value")


def _wide(x: Any) -> bool:
    if type(x) in (Decimal, Fraction, complex):
        return True
    return type(x) in (int, float) and not abs(x) < _HASH_PRIME


def _fill(tag: str, shell: Any, meta: Any, children: list[Any]) -> None:
    """Put a mutable container's contents in, replacing what was there."""
    if tag == "B":
        shell[:] = base64.b64decode(meta, validate=True)
        return
    shell.clear()
    if tag in "lD":
        shell.extend(children)
    elif tag == "s":
        shell.update(children)
    else:
        if len(children) % 2:
            raise WireError("a key without its value")
        for key, value in zip(children[::2], children[1::2], strict=True):
            shell[key] = value


def _ints(meta: Any, count: int) -> list[int]:
    if type(meta) is not list or len(meta) != count or any(type(x) is not int for x in meta):
        raise WireError("not the numbers expected")
    return meta


def _zone(offset: Any) -> datetime.timezone | None:
    return None if offset is None else datetime.timezone(datetime.timedelta(*_ints(offset, 3)))


def _datetime(meta: Any, children: list[Any]) -> datetime.datetime:
    *parts, fold, offset = meta
    year, month, day, hour, minute, second, micro = _ints(parts, 7)
    return datetime.datetime(year, month, day, hour, minute, second, micro, _zone(offset), fold=fold)


def _time(meta: Any, children: list[Any]) -> datetime.time:
    hour, minute, second, micro = _ints(meta[:4], 4)
    return datetime.time(hour, minute, second, micro, _zone(meta[4]))


def _fraction(meta: Any, children: list[Any]) -> Fraction:
    above, below = _ints(children, 2)
    if max(above.bit_length(), below.bit_length()) > FRACTION_BITS:
        raise WireError("a fraction of too many digits")
    return Fraction(above, below)


def _decimal(meta: Any, children: list[Any]) -> Decimal:
    if type(meta) is not str or len(meta) > FRACTION_BITS:
        raise WireError("not a decimal")
    return Decimal(meta)


def namedtuple(meta: Any, children: list[Any]) -> Any:
    """A tuple type of that name and those fields, made here; underscores are barred by namedtuple itself."""
    if type(meta) is not list or len(meta) != 1 + len(children) or len(meta) > 200:
        raise WireError("not a namedtuple")
    if any(type(x) is not str or not x.isidentifier() or len(x) > 100 for x in meta):
        raise WireError("not a namedtuple's names")
    key = tuple(meta)
    if key not in _NAMEDTUPLES:
        if len(_NAMEDTUPLES) > 500:
            _NAMEDTUPLES.clear()
        _NAMEDTUPLES[key] = collections.namedtuple(meta[0], meta[1:])  # type: ignore[misc]  # noqa: PYI024
    return _NAMEDTUPLES[key](*children)


_NAMEDTUPLES: dict[tuple[str, ...], Any] = {}


def array(meta: Any, children: list[Any]) -> Array:
    dtype, shape = meta
    items: Any = children
    if type(dtype) is not str or not (len(dtype) < 12 and dtype[1:2] in "biufcUS"):
        raise WireError("not a dtype")
    if type(shape) is not list or len(shape) > 32 or math.prod(_ints(shape, len(shape))) != len(items):
        raise WireError("not a shape")
    for length in reversed(shape[1:]):
        items = [items[i : i + length] for i in range(0, len(items), length)] if length else []
    return Array(dtype, tuple(shape), items if shape else items[0])


def numpy_array(meta: Any, children: list[Any]) -> Any:
    """For the two sides inside the sandbox: a real array where numpy is loaded there."""
    plain = array(meta, children)
    if "numpy" not in sys.modules:
        return plain
    return sys.modules["numpy"].array(children, dtype=plain.dtype).reshape(plain.shape)


_LEAVES: dict[str, Builder] = {
    "t": lambda meta, children: tuple(children),
    "z": lambda meta, children: frozenset(children),
    "n": namedtuple,
    "b": lambda meta, children: base64.b64decode(meta, validate=True),
    "c": lambda meta, children: complex(float(meta[0]), float(meta[1])),
    "r": lambda meta, children: range(*_ints(children, 3)),
    "m": _decimal,
    "q": _fraction,
    "datetime": _datetime,
    "date": lambda meta, children: datetime.date(*_ints(meta, 3)),
    "time": _time,
    "delta": lambda meta, children: datetime.timedelta(*_ints(meta, 3)),
    "k": lambda meta, children: dict.fromkeys(children).keys(),
    "e": lambda meta, children: Ellipsis,
    "A": array,
}
