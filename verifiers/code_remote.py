"""The solution, as the test code sees it: stand-ins for its functions, classes and objects.

Runs in the test's process.  Calling a stand-in asks the solution's process; plain results come back as plain
values, everything else as another stand-in.  A stand-in must not let the solution decide a test, so:

- It is equal to no plain value.  Objects that the test makes of plain data classes, and those that it writes
  down to compare with, are kept here and compared by their fields (`code_shapes`).  Otherwise two are equal
  where they are the same object of the solution, and where both are as the test made them through a class
  (then the class's own `__eq__` is what is tested).
- Operators and comparisons ask the solution only for objects that the test made through a class; for what
  such an operator gave, only together with other such objects.  A function that returns an object whose
  `__sub__` is told the expected value gets a TypeError.  Made through a class means: through a name that the
  test code writes as class names are written, with a capital; a class called `mean` is a function here.
- `in` goes by iteration, except for objects that the test made.
- A context manager of the solution cannot swallow an exception.
- With the option `objects: trust`, two objects are also equal where class and attributes are, and what an
  operator gave counts as made.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from onebase.verifiers.code_operators import derived, install, unmade
from onebase.verifiers.code_shapes import Shape
from onebase.verifiers.code_unwire import namedtuple

_DUNDERS = ("__name__", "__doc__", "__dict__", "__annotations__", "__module__", "__qualname__", "__members__")


def by_name(thing: Any) -> list[str] | None:
    """Module and name of a function or class that the solution's process has too."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if (
        not (isinstance(thing, type) or callable(thing))
        or not isinstance(module, str)
        or not isinstance(name, str)
    ):
        return None
    if module.partition(".")[0] not in sys.stdlib_module_names or module == "__main__" or "<" in name:
        return None
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return [module, name] if found is thing else None


class Remote:
    """An object of the solution's process.  `_onebase_made`: 2 for one that the test made through a class,
    1 for what an operator on those gave, else 0."""

    __slots__ = ("_onebase_bridge", "_onebase_class", "_onebase_id", "_onebase_made")

    def __init__(self, bridge: Any, number: int, cls: Any, made: int = 0) -> None:
        put = object.__setattr__
        put(self, "_onebase_bridge", bridge)
        put(self, "_onebase_id", number)
        put(self, "_onebase_class", cls)
        put(self, "_onebase_made", made)

    def _onebase_as(self, made: int) -> Remote:
        """The same object with another standing."""
        return type(self)(self._onebase_bridge, self._onebase_id, self._onebase_class, made)

    def _onebase_coroutine(self) -> Any:
        async def wait() -> Any:
            return self._onebase_do("run")

        return wait()

    def _onebase_do(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return self._onebase_bridge.do(name, self, *args, **kwargs)

    def _onebase_want(self, kind: type, name: str, *args: Any) -> Any:
        found = self._onebase_do(name, *args)
        if type(found) is not kind:
            raise TypeError(f"{name} of the solution's object gave a {type(found).__name__}")
        return found

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        found = self._onebase_do("call", *args, **kwargs)
        return unmade(found)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in _DUNDERS:
            raise AttributeError(name)
        found = self._onebase_do("get", name)
        return (
            self._onebase_bridge.reached_as(name, found) if isinstance(found, RemoteClass) else unmade(found)
        )

    def __setattr__(self, name: str, value: Any) -> None:
        self._onebase_do("set", name, value)

    def __delattr__(self, name: str) -> None:
        self._onebase_do("del", name)

    def __dir__(self) -> list[str]:
        return [name for name in self._onebase_want(list, "dir") if type(name) is str]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return False
        if isinstance(other, LocalObject) and other._onebase_local:
            return other == self
        if self._onebase_id == other._onebase_id:
            return True
        bridge = self._onebase_bridge
        if self._onebase_fresh(other):
            return self._onebase_want(bool, "eq", other)
        if bridge.spec["objects"] == "trust":
            return self._onebase_same_state(other)
        bridge.note("two objects of the solution's own classes were compared: see the option `objects`")
        return False

    def __ne__(self, other: object) -> bool:
        if isinstance(other, Remote) and self._onebase_fresh(other):
            return self._onebase_want(bool, "ne", other)
        return not self == other

    def _onebase_fresh(self, other: Remote) -> bool:
        """Both are as the test made them, so it is the class's `__eq__` that is tested."""
        if not self._onebase_made == other._onebase_made == 2:
            return False
        return not self._onebase_bridge.touched & {self._onebase_id, other._onebase_id}

    def __hash__(self) -> int:
        return hash(self._onebase_id)

    def _onebase_same_state(self, other: Remote) -> bool:
        if self._onebase_class is None or self._onebase_class is not other._onebase_class:
            return False
        mine, theirs = self._onebase_want(dict, "state"), other._onebase_want(dict, "state")
        return bool(mine) and mine == theirs

    def __bool__(self) -> bool:
        return self._onebase_want(bool, "bool")

    def __len__(self) -> int:
        return self._onebase_want(int, "len")

    def __iter__(self) -> Any:
        found = self._onebase_do("iter")
        return found if isinstance(found, Remote) else iter(found)

    def __reversed__(self) -> Any:
        found = self._onebase_do("reversed")
        return found if isinstance(found, Remote) else iter(found)

    def __contains__(self, item: Any) -> bool:
        if self._onebase_made == 2:
            return self._onebase_want(bool, "contains", item)
        return any(item is x or item == x for x in self)

    def __getitem__(self, key: Any) -> Any:
        return self._onebase_do("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._onebase_do("setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        self._onebase_do("delitem", key)

    def __enter__(self) -> Any:
        found = self._onebase_do("get", "__enter__")()
        return self if isinstance(found, Remote) and found._onebase_id == self._onebase_id else found

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """The exception goes on, whatever the solution's `__exit__` would say."""
        kind = kind if kind is None or by_name(kind) is not None else Exception
        self._onebase_do("get", "__exit__")(kind, None if error is None else str(error), None)

    def __str__(self) -> str:
        return self._onebase_want(str, "str")

    def __repr__(self) -> str:
        return self._onebase_want(str, "repr")

    def __format__(self, spec: str) -> str:
        return self._onebase_want(str, "format", spec)

    def __int__(self) -> int:
        return self._onebase_want(int, "int")

    def __float__(self) -> float:
        return self._onebase_want(float, "float")

    def __complex__(self) -> complex:
        return self._onebase_want(complex, "complex")

    def __index__(self) -> int:
        return self._onebase_want(int, "index")

    def __round__(self, digits: int | None = None) -> Any:
        return derived(self._onebase_do("round", digits))


class RemoteIterator(Remote):
    __slots__ = ()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        """One item at a time, as a test may look at what an item costs; more at once when it goes on."""
        ahead = self._onebase_bridge.ahead.setdefault(self._onebase_id, Ahead())
        if not ahead.items and not ahead.ended:
            found = self._onebase_want(list, "advance", ahead.want())
            if len(found) != 2 or type(found[0]) is not list or type(found[1]) is not bool:
                raise TypeError("items out of form")
            ahead.items, ahead.ended = found[0][::-1], found[1]
        if not ahead.items:
            raise StopIteration
        return ahead.items.pop()


class Ahead:
    """What an iterator of the solution has given beyond what the test has taken."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.ended = False
        self.asked = 0

    def want(self) -> int:
        self.asked += 1
        return 1 if self.asked <= 32 else min(256, 1 << (self.asked - 32))


class RemoteClass(Remote):
    """A class of the solution; `_onebase_made` is 2 where it is reached under a class's name."""

    __slots__ = ("_onebase_name", "_onebase_shape")

    def _onebase_as(self, made: int) -> RemoteClass:
        return remote_class(
            self._onebase_bridge, self._onebase_id, self._onebase_name, self._onebase_shape, made
        )

    def __getattr__(self, name: str) -> Any:
        shape = self._onebase_shape
        if shape is not None and shape.kind == "enum" and name in shape.names:
            return shape.values[shape.names.index(name)]
        return super().__getattr__(name)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        shape, name = self._onebase_shape, self._onebase_name
        if shape is not None and self._onebase_made and shape.kind != "enum":
            bound = shape.bind(name, args, kwargs)
            if shape.kind == "tuple":
                return namedtuple([name, *bound], list(bound.values()))
            if shape.kind == "data":
                return LocalObject(self, bound)
        found = self._onebase_do("call", *args, **kwargs)
        if not isinstance(found, Remote):
            return found
        return found._onebase_as(self._onebase_made)

    def _onebase_expected(self, *args: Any, **kwargs: Any) -> Any:
        """An object that is written down to be compared with."""
        shape = self._onebase_shape
        trusted = self._onebase_bridge.spec["objects"] == "trust"
        if shape is None or shape.kind != "init" or not self._onebase_made or trusted:
            return self(*args, **kwargs)
        return LocalObject(self, shape.bind(self._onebase_name, args, kwargs))

    def __instancecheck__(self, thing: Any) -> bool:
        return isinstance(thing, Remote) and self._onebase_bridge.do("isinstance", thing, self) is True

    def __subclasscheck__(self, cls: Any) -> bool:
        return isinstance(cls, Remote) and self._onebase_bridge.do("issubclass", cls, self) is True


def remote_class(bridge: Any, number: int, name: str, shape: Shape | None, made: int = 0) -> RemoteClass:
    found = RemoteClass(bridge, number, None, made)
    object.__setattr__(found, "_onebase_name", name)
    object.__setattr__(found, "_onebase_shape", shape)
    return found


_MISSING = object()


class LocalObject(Remote):
    """An object that is made here.  The solution hears of it when it is passed on or asked for more than its
    fields; until then it is compared here."""

    __slots__ = ("_onebase_fields", "_onebase_known")

    def __init__(self, cls: RemoteClass, fields: dict[str, Any]) -> None:
        put = object.__setattr__
        put(self, "_onebase_bridge", cls._onebase_bridge)
        put(self, "_onebase_class", cls)
        put(self, "_onebase_made", 2)
        put(self, "_onebase_fields", fields)
        put(self, "_onebase_known", None)

    @property
    def _onebase_id(self) -> int:  # type: ignore[override]
        if self._onebase_known is None:
            found = self._onebase_bridge.do("call", self._onebase_class, **self._onebase_fields)
            if not isinstance(found, Remote):
                raise TypeError(f"{self._onebase_class._onebase_name} made a {type(found).__name__}")
            object.__setattr__(self, "_onebase_known", found._onebase_id)
        return self._onebase_known

    @property
    def _onebase_local(self) -> bool:
        return self._onebase_known is None

    @property
    def _onebase_plain(self) -> bool:
        return self._onebase_class._onebase_shape.kind == "data"

    def _onebase_as(self, made: int) -> Remote:
        return self

    def __getattr__(self, name: str) -> Any:
        if self._onebase_local and name in self._onebase_fields and self._onebase_plain:
            return self._onebase_fields[name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._onebase_local:
            self._onebase_id  # noqa: B018  whether it may be set is the class's to say
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not self._onebase_local or not isinstance(other, Remote):
            return super().__eq__(other)
        number = self._onebase_class._onebase_id
        if other._onebase_class is None or other._onebase_class._onebase_id != number:
            return False
        if isinstance(other, LocalObject) and other._onebase_local:
            if self._onebase_plain:
                return self._onebase_fields == other._onebase_fields
            return bool(self._onebase_id and other._onebase_id) and super().__eq__(other)
        return all(self._onebase_held(other, name) == value for name, value in self._onebase_fields.items())

    def _onebase_held(self, other: Remote, name: str) -> Any:
        """The attribute that a constructor's parameter of this name is kept in."""
        bridge, cls = self._onebase_bridge, self._onebase_class._onebase_name
        for attribute in (name, f"_{name}", f"_{cls}__{name}"):
            try:
                return bridge.do("get", other, attribute)
            except AttributeError:
                continue
        bridge.note(
            f"{cls} keeps no attribute {name}, by which it could be compared: see the option `objects`"
        )
        return _MISSING

    def __ne__(self, other: object) -> bool:
        if self._onebase_local and (self._onebase_plain or not isinstance(other, LocalObject)):
            return not self == other
        return super().__ne__(other)

    __hash__ = Remote.__hash__

    def __repr__(self) -> str:
        if not self._onebase_local:
            return super().__repr__()
        fields = ", ".join(f"{name}={value!r}" for name, value in self._onebase_fields.items())
        return f"{self._onebase_class._onebase_name}({fields})"


NATURES: dict[str, type[Remote]] = {"iterator": RemoteIterator}


install(Remote)
