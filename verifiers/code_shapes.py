"""Classes that are nothing but their fields: named tuples, plain data classes, enumerations.

The solution's process describes such a class once, before it has heard of any test; from then on the test's
process makes values of it by itself.  So `assert move(p) == Point(4, 6)` compares with a Point that the
solution has never seen.  A false description does not help: every argument that a test gives must find its
field, and all fields are compared.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from dataclasses import dataclass
from typing import Any

from onebase.verifiers.code_wire import WireError

MAX_FIELDS = 200


@dataclass(frozen=True, slots=True)
class Shape:
    """`kind` is tuple, data or enum; `names` are the fields or members; `values` are the defaults of the last
    fields, or the members."""

    kind: str
    names: tuple[str, ...]
    values: tuple[Any, ...]

    def bind(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments to fields, as a constructor would; TypeError where they do not fit."""
        first = len(self.names) - len(self.values)
        defaults = [*[inspect.Parameter.empty] * first, *self.values]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature(
            [inspect.Parameter(n, kind, default=d) for n, d in zip(self.names, defaults, strict=True)]
        )
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        bound.apply_defaults()
        return dict(bound.arguments)


def shape_of(cls: Any) -> tuple[str, list[str], list[Any]] | None:
    """In the solution's process: kind, names and values of such a class, else None."""
    if issubclass(cls, enum.Enum):
        members = list(cls.__members__.items())
        return "enum", [name for name, _ in members], [member for _, member in members]
    if cls.__bases__ == (tuple,) and isinstance(getattr(cls, "_fields", None), tuple):
        return "tuple", list(cls._fields), list(cls._field_defaults.values())
    if dataclasses.is_dataclass(cls) and _plain(cls):
        found = dataclasses.fields(cls)
        values = [f.default for f in found if f.default is not dataclasses.MISSING]
        last = [f.default is not dataclasses.MISSING for f in found]
        if sorted(last) == last:
            return "data", [f.name for f in found], values
    return None


def _plain(cls: Any) -> bool:
    """Made by the decorator and by nothing else: no code of the solution's runs when one is made."""
    own = {name for base in cls.__mro__[:-1] for name in base.__dict__}
    if own & {"__post_init__", "__new__", "__getattr__", "__getattribute__", "__slots__"}:
        return False
    frozen = cls.__dataclass_params__.frozen
    generated = cls.__init__.__code__.co_filename == "<string>"
    fields = dataclasses.fields(cls)
    return generated and (frozen or "__setattr__" not in own) and all(
        f.init and not f.kw_only and f.default_factory is dataclasses.MISSING for f in fields
    )  # fmt: skip


def read_shape(meta: list[Any], values: list[Any]) -> Shape | None:
    """In the test's process: the description, looked at as a stranger's claim."""
    if len(meta) < 4 or meta[2] is None:
        return None
    kind, names = meta[2], meta[3]
    fine = kind in ("tuple", "data", "enum") and isinstance(names, list) and 0 < len(names) <= MAX_FIELDS
    if not fine or any(type(n) is not str or not n.isidentifier() for n in names):
        raise WireError("not a class's shape")
    if (
        len(set(names)) != len(names)
        or len(values) > len(names)
        or (kind == "enum" and len(values) != len(names))
    ):
        raise WireError("not a class's shape")
    return Shape(kind, tuple(names), tuple(values))
