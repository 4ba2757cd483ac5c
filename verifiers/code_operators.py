"""The operators of the stand-ins in `code_remote`, and what they may tell the solution.

An operator is the one place where test code hands a bare value over to be compared or subtracted, so it asks
the solution only about objects that the test itself made (see `code_remote`).
"""

from __future__ import annotations

from typing import Any

_BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift")
_LOGICAL = ("and", "or", "xor")  # in `operator` these end in an underscore
_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ior", "iand")


def install(cls: Any) -> None:
    """Give the class its operators."""
    for name in (*_BINARY, *_LOGICAL):
        ours = f"{name}_" if name in _LOGICAL else name
        setattr(cls, f"__{name}__", _binary(cls, ours))
        setattr(cls, f"__r{name}__", _reflected(cls, ours))
    for name in _IN_PLACE:
        setattr(cls, f"__{name}__", _binary(cls, name))
    for name in ("lt", "le", "gt", "ge"):
        setattr(cls, f"__{name}__", _order(cls, name))
    for name in ("neg", "pos", "abs", "invert"):
        setattr(cls, f"__{name}__", _unary(name))


def unmade(found: Any) -> Any:
    """Whatever the test made, a function that returns it says so itself, which is no evidence."""
    return found._onebase_as(0) if hasattr(type(found), "_onebase_as") and found._onebase_made else found


def derived(found: Any) -> Any:
    """What an operator on objects that the test made gave."""
    if not hasattr(type(found), "_onebase_as"):
        return found
    return found._onebase_as(2 if found._onebase_bridge.spec["objects"] == "trust" else 1)


def _may(cls: Any, mine: Any, other: Any) -> bool:
    if isinstance(other, cls):
        return mine._onebase_made > 0 and other._onebase_made > 0
    return mine._onebase_made == 2


def _binary(cls: Any, name: str) -> Any:
    def apply(self: Any, other: Any) -> Any:
        return derived(self._onebase_do(name, other)) if _may(cls, self, other) else NotImplemented

    return apply


def _reflected(cls: Any, name: str) -> Any:
    def apply(self: Any, other: Any) -> Any:
        return (
            derived(self._onebase_bridge.do(name, other, self)) if _may(cls, self, other) else NotImplemented
        )

    return apply


def _order(cls: Any, name: str) -> Any:
    def apply(self: Any, other: Any) -> Any:
        return self._onebase_want(bool, name, other) if _may(cls, self, other) else NotImplemented

    return apply


def _unary(name: str) -> Any:
    def apply(self: Any) -> Any:
        found = self._onebase_do(name)
        return derived(found) if self._onebase_made else found

    return apply
