"""Classes that are nothing but their fields: named tuples, plain data classes, enumerations.

The solution's process describes such a class once, before it has heard of any test; from then on the test's
process makes values of it by itself.  So `assert move(p) == Point(4, 6)` compares with a Point that the
solution has never seen.  A false description does not help: every argument that a test gives must find its
field, and all fields are compared.

For other classes the constructor's parameters are described.  Where the test code writes an object down only
to compare with it (`mark_expected`), that object is not made at all unless it must be: what it is compared
with must have the attributes that are called as the parameters are, with the values of the arguments.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
from dataclasses import dataclass
from typing import Any

from onebase.verifiers.code_wire import WireError

MAX_FIELDS = 200


@dataclass(frozen=True, slots=True)
class Shape:
    """`kind` is tuple, data, enum or init; `names` are the fields, members or constructor's parameters;
    `values` are the defaults of the last ones, or the members."""

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
    constructor = getattr(cls, "__init__", None)
    if type(cls) is type and inspect.isfunction(constructor):
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        if parameters and all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters):
            values = [p.default for p in parameters if p.default is not p.empty]
            return "init", [p.name for p in parameters], values
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
    fine = (
        kind in ("tuple", "data", "enum", "init") and isinstance(names, list) and 0 < len(names) <= MAX_FIELDS
    )
    if not fine or any(type(n) is not str or not n.isidentifier() for n in names):
        raise WireError("not a class's shape")
    if (
        len(set(names)) != len(names)
        or len(values) > len(names)
        or (kind == "enum" and len(values) != len(names))
    ):
        raise WireError("not a class's shape")
    return Shape(kind, tuple(names), tuple(values))


MARK = "__onebase_expected__"
_EQUAL = ("assertEqual", "assertEquals", "assertNotEqual", "assertListEqual", "assertTupleEqual", "assertIn",
          "assertCountEqual", "assertSequenceEqual", "assertDictEqual")  # fmt: skip


def is_class_name(name: str) -> bool:
    return len(name) > 2 and name.lstrip("_")[:1].isupper()


def mark_expected(tree: ast.Module) -> int:
    """Wrap the class in MARK where an object is written down as one side of `==` or `in`, in an
    `assertEqual`, or in an assignment to `expected…`, by itself or in a list, tuple, set or dict."""
    count = 0
    for node in list(ast.walk(tree)):
        sides: list[ast.expr] = []
        if isinstance(node, ast.Compare) and all(
            isinstance(o, ast.Eq | ast.NotEq | ast.In) for o in node.ops
        ):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _EQUAL:
            sides = node.args
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id.lower()
            sides = [node.value] if name.startswith(("expect", "want")) else []
        while sides:
            side = sides.pop()
            if isinstance(side, ast.List | ast.Tuple | ast.Set):
                sides += side.elts
            elif isinstance(side, ast.Dict):
                sides += side.values
            elif isinstance(side, ast.Call):
                name = (
                    side.func.attr if isinstance(side.func, ast.Attribute) else getattr(side.func, "id", "")
                )
                if is_class_name(name):
                    wrapped = ast.Call(ast.Name(MARK, ast.Load()), [side.func], [])
                    side.func = ast.copy_location(wrapped, side.func)
                    count += 1
    ast.fix_missing_locations(tree)
    return count
