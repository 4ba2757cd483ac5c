"""`onebase schema`: the recipe's fields, as JSON schema (for editors) or as text (for people)."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from onebase.errors import UserError
from onebase.model.config import ModelConfig
from onebase.recipe import Recipe
from onebase.recipe_loader import stage_kinds, stage_section
from onebase.wording import hint, listed


def main(kind: str | None) -> int:
    print(json.dumps(Recipe.model_json_schema(), indent=1) if kind is None else text(kind))
    return 0


def text(kind: str) -> str:
    """Every field of a kind of stage, of the model, or of the recipe, with its sections."""
    if kind == "recipe":
        section: type[BaseModel] | None = Recipe
    elif kind == "model":
        section = ModelConfig
    else:
        section = stage_section(kind)
    if section is None:
        allowed = ["recipe", "model", *stage_kinds()]
        raise UserError(
            f"schema --text {kind}: no such kind\n  allowed: {listed(allowed)}" + hint(kind, allowed)
        )
    head = " ".join((section.__doc__ or "").split()) if section is not Recipe else "A recipe."
    return "\n".join([f"{kind}: {head}", "", *_lines(section, None, 0)])


def _lines(section: type[BaseModel], made: BaseModel | None, depth: int) -> Iterator[str]:
    """`made` is the section as its parent makes it by default: an sft stage's `optim.lr` is not Optim's
    own."""
    for name, field in section.model_fields.items():
        if name == "stages":
            yield f"stages{'':<18} by name; `onebase schema --text KIND` with one of {listed(stage_kinds())}"
            continue
        inner = _section(field.annotation)
        head = "  " * depth + name
        doc = " ".join((field.description or "").split())
        yield f"{head:<24} {_kind(field)}{_default(field, inner, getattr(made, name, None))}" + (
            f"\n{'':<24}   {doc}" if doc else ""
        )
        if inner is not None and inner is not ModelConfig:
            yield from _lines(inner, _made(field, made, name), depth + 1)
        elif inner is ModelConfig:
            yield f"{'':<24}   `onebase schema --text model`"


def _made(field: FieldInfo, parent: BaseModel | None, name: str) -> BaseModel | None:
    value = getattr(parent, name, field.default)
    return value if isinstance(value, BaseModel) else None


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in get_args(annotation) if (found := _section(a)) is not None), None)


def _kind(field: FieldInfo) -> str:
    limits = [f"{sign} {getattr(m, key)}" for m in field.metadata for key, sign in _LIMITS if hasattr(m, key)]
    return _name(field.annotation) + (f" ({', '.join(limits)})" if limits else "")


_LIMITS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="), ("min_length", "at least"))


def _name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " | ".join(_name(a) for a in args)
    if origin is list:
        return f"list of {_name(args[0])}"
    if origin is dict:
        return f"mapping of {_name(args[0])} to {_name(args[1])}"
    if origin is tuple:
        return f"[{', '.join(_name(a) for a in args)}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    words = {int: "integer", float: "number", str: "text", bool: "true | false"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo, inner: type[BaseModel] | None, made: Any) -> str:
    if field.is_required():
        return ", required"
    if field.default is PydanticUndefined or isinstance(field.default, BaseModel):
        return ""
    value = field.default if made is None else made
    value = list(value) if isinstance(value, tuple) else value
    return f", default {json.dumps(value)}" if value not in ([], {}) or inner is None else ""
