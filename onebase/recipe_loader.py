"""Reads a recipe strictly: a wrong line is told with file:line, what was given, what is allowed and the
nearest name.

Three passes: `yaml_places` (syntax, repeated keys), pydantic in strict mode (keys, types, ranges; through
JSON, so a list may fill a tuple but "5" is no number), and the checks here that need the whole recipe or the
disk: stage names, the graph, files, verifiers, worlds.  All faults of a pass are told at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from onebase import recipe_checks, yaml_places
from onebase.errors import UserError
from onebase.recipe import Recipe
from onebase.wording import given, hint, listed
from onebase.yaml_places import Document, Keys

SHIPPED = Path(__file__).parent / "recipes"


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in the file, with `a.b=c` overrides applied.  Raises UserError that lists every fault
    found."""
    document = yaml_places.read(find(path))
    for override in overrides:
        yaml_places.set_value(document, override)
    return validate(document)


def validate(document: Document) -> Recipe:
    expand_home(document.data)
    _complete_sections(document.data)
    try:
        recipe = Recipe.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        raise UserError("\n".join(dict.fromkeys(pydantic_faults(error, document)))) from None
    faults = list(dict.fromkeys(recipe_checks.faults(recipe, document)))
    if faults:
        raise UserError("\n".join(faults))
    return recipe


def dump(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that `load` reads back to an equal recipe."""
    return yaml_places.dump(recipe.model_dump(mode="json"))


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    return {p.stem: p for p in sorted(SHIPPED.glob("*.yaml"))}


def find(name: str | Path) -> Path:
    """The recipe file behind a path or a shipped name."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path}: a folder, expected a recipe file (.yaml)")
    known = shipped()
    if str(name) in known:
        return known[str(name)]
    beside = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    raise UserError(
        f"{path}: no such recipe file\n  allowed: a path, or a shipped name: {listed(known)}"
        + hint(str(path), [*known, *beside])
    )


def expand_home(value: Any) -> None:
    """`~` in the paths of sources, once and for all."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str) and value["path"].startswith("~"):
            value["path"] = str(Path(value["path"]).expanduser())
        for child in value.values():
            expand_home(child)
    elif isinstance(value, list):
        for child in value:
            expand_home(child)


def _complete_sections(data: dict[str, Any]) -> None:
    """A section given in part keeps the rest of its stage's defaults: `optim: {warmup: 5}` in a grpo stage
    leaves the learning rate at a grpo stage's default, not at that of Optim itself."""
    stages = data.get("stages")
    for stage in stages.values() if isinstance(stages, dict) else ():
        section = stage_section(stage.get("kind")) if isinstance(stage, dict) else None
        for name, field in section.model_fields.items() if section else ():
            if isinstance(field.default, BaseModel) and isinstance(stage.get(name), dict):
                stage[name] = field.default.model_dump(mode="json") | stage[name]


# Faults that pydantic finds, in our words.


def pydantic_faults(
    error: ValidationError, document: Document, root: type[BaseModel] = Recipe
) -> Iterator[str]:
    """One message per fault; `root` is the schema of the whole document."""
    for fault in error.errors(include_url=False):
        keys = _keys(fault["loc"], document)
        kind, message = fault["type"], str(fault["msg"])
        head = f"{document.place(keys)}: {_dotted(keys)}: "
        section = section_at(document.data, keys[:-1], root)
        allowed = list(section.model_fields) if section else []
        if kind == "extra_forbidden":
            name = str(keys[-1])
            yield (
                f"{head}unknown key\n  allowed: {listed(allowed)}"
                + (_inner(section, name) or hint(name, allowed))
            )
        elif kind == "missing" and isinstance(keys[-1], str):
            doc = section.model_fields[keys[-1]].description if section else None
            yield f"{head}missing" + (f"\n  it is: {doc}" if doc else "")
        elif kind in ("union_tag_not_found", "union_tag_invalid"):
            value = document.get((*keys, "kind"))
            if value is None and document.place(keys).startswith("--set"):  # the override made this stage
                stages = [name for name in document.data["stages"] if name != keys[-1]]
                yield f"{head}no such stage\n  allowed: {listed(stages)}" + hint(str(keys[-1]), stages)
                continue
            told = "missing" if value is None else f"given {given(value)}"
            head = f"{document.place((*keys, 'kind'))}: {_dotted((*keys, 'kind'))}: "
            yield f"{head}{told}\n  allowed: {listed(stage_kinds())}" + hint(str(value or ""), stage_kinds())
        elif kind in ("assertion_error", "value_error"):
            yield head + message.partition(", ")[2]
        else:
            yield head + _mismatch(document.get(keys), kind, message, fault.get("ctx", {}))


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys)) or "the recipe"


def _mismatch(value: Any, kind: str, message: str, ctx: dict[str, Any]) -> str:
    allowed = message.removeprefix("Input should be ")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        allowed = "a section (key: value lines)"
    if kind == "missing":
        allowed = "a value here: the list is too short"
    text = f"given {given(value)}\n  allowed: {allowed}"
    if kind == "literal_error" and isinstance(value, str):
        text += hint(value, re.findall(r"'([^']*)'", str(ctx.get("expected", ""))))
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        text += f"\n  did you mean: {int(value)}"
    if kind == "bool_type" and str(value).lower() in ("yes", "no", "on", "off", "y", "n", "0", "1"):
        text += f"\n  did you mean: {'true' if str(value).lower() in ('yes', 'on', 'y', '1') else 'false'}"
    return text


def _inner(section: type[BaseModel] | None, name: str) -> str:
    """A hint when the key is right but belongs one section deeper (`lr` stands under `optim`)."""
    for field, info in (section.model_fields if section else {}).items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name in inner.model_fields:
            return f"\n  did you mean: {field}.{name}"
    return ""


def _keys(loc: tuple[str | int, ...], document: Document) -> Keys:
    """pydantic's `loc` as keys of the document: without the kind that the discriminated union inserts."""
    if len(loc) > 2 and loc[0] == "stages" and document.get((*loc[:2], "kind")) == loc[2]:
        loc = (*loc[:2], *loc[3:])
    return tuple(key for key in loc if key != "[key]")


def stage_kinds() -> list[str]:
    return [kind for member in _stage_members() for kind in get_args(member.model_fields["kind"].annotation)]


def _stage_members() -> list[type[BaseModel]]:
    annotated = get_args(Recipe.model_fields["stages"].annotation)[1]
    return list(get_args(get_args(annotated)[0]))


def stage_section(kind: Any) -> type[BaseModel] | None:
    """The schema of one kind of stage."""
    for member in _stage_members():
        if kind in get_args(member.model_fields["kind"].annotation):
            return member
    return None


def section_at(data: dict[str, Any], keys: Keys, root: type[BaseModel] = Recipe) -> type[BaseModel] | None:
    """The schema of the section that stands at `keys`, or None for plain values, lists and mappings."""
    annotation: Any = root
    here: Any = data
    for n, key in enumerate(keys):
        try:
            here = here[key]
        except (KeyError, IndexError, TypeError):
            here = None
        if root is Recipe and n == 1 and keys[0] == "stages":
            annotation = stage_section(here.get("kind") if isinstance(here, dict) else None)
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            info = annotation.model_fields.get(str(key))
            annotation = info.annotation if info else None
        elif get_origin(annotation) in (list, dict):
            annotation = get_args(annotation)[-1]
        else:
            return None
        if annotation is not None and get_origin(annotation) not in (list, dict, tuple):
            inner = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
            annotation = inner[0] if inner else annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
