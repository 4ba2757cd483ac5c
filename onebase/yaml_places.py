"""YAML read strictly, with the place (file:line) of every node.

PyYAML follows YAML 1.1: `1e-6` is a string, `no` is False, `1:30` is 90, `010` is 8, a repeated key silently
wins.  Here scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), with
underscores in numbers allowed on top; a repeated key is an error; anchors are refused, since a recipe says
what it means where it means it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onebase.errors import UserError

Keys = tuple[str | int, ...]
"""Where a value stands in the document: mapping keys and list indices."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _kind, (_pattern, _first) in _SCALARS.items():  # in this order: what is an int is not asked for a float
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


@dataclass(slots=True)
class Document:
    data: dict[str, Any]
    file: str
    places: dict[Keys, str] = field(default_factory=dict)

    def place(self, keys: Keys) -> str:
        """file:line (or `--set a.b=c`) of the value, or of the nearest thing around it."""
        for n in range(len(keys), -1, -1):
            if keys[:n] in self.places:
                return self.places[keys[:n]]
        return self.file

    def get(self, keys: Keys) -> Any:
        """The value there, or None."""
        value: Any = self.data
        for key in keys:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def read(path: Path) -> Document:
    """Read a YAML file whose top is a mapping.  Raises UserError with file:line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    document = Document({}, str(path))
    value = _parse(text, str(path), document)
    if not isinstance(value, dict):
        raise UserError(
            f"{path}:1: a recipe is a mapping (`name: ...`, `stages: ...`), given {_short(value)}"
        )
    document.data = value
    return document


def set_value(document: Document, override: str) -> None:
    """Apply one `a.b.0.c=value` to the document; the value is read as YAML.  Raises UserError with the
    override."""
    place = f"--set {override}"
    dotted, equals, text = override.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"{place}: expected key.key=value, as in --set stages.base.steps=100")
    value = _parse(text, place, None)
    here: Any = document.data
    keys: Keys = ()
    for n, name in enumerate(names):
        last = n == len(names) - 1
        if isinstance(here, list):
            if not name.isdecimal() or int(name) >= len(here):
                told = ".".join(map(str, keys))
                raise UserError(
                    f"{place}: {told} is a list of {len(here)}, given index {name!r}, allowed: {_span(here)}"
                )
            key: str | int = int(name)
        elif isinstance(here, dict):
            key = name
        else:
            told = ".".join(map(str, keys))
            raise UserError(f"{place}: {told} is {_short(here)}, which has nothing under it to set")
        keys = (*keys, key)
        if last:
            here[key] = value
            for old in [k for k in document.places if k[: len(keys)] == keys]:
                del document.places[old]
            document.places[keys] = place
        elif isinstance(here, dict) and here.get(name) is None:
            here[
                key
            ] = {}  # a section that the file left out; an unknown one is found when the recipe is validated
            document.places[keys] = place
        here = here[key]


def dump(data: Any) -> str:
    """YAML text that `read` gives back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=1000)


def _span(items: list[Any]) -> str:
    return f"0 to {len(items) - 1}" if items else "none"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _parse(text: str, where: str, document: Document | None) -> Any:
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _value(node, (), where, document, set())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and document is not None else ""
        raise UserError(f"{where}{line}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply to be read") from error


def _value(node: yaml.Node, keys: Keys, where: str, document: Document | None, seen: set[int]) -> Any:
    """The node as Python values; notes its place."""
    place = where if document is None else f"{where}:{node.start_mark.line + 1}"
    if document is not None:
        document.places.setdefault(keys, place)
    if id(node) in seen:
        raise UserError(f"{place}: YAML anchors (&name, *name) are not used in recipes; write the value out")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            at = where if document is None else f"{where}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{at}: a key is one word, not a list or a mapping")
            key = str(key_node.value)  # as written: `no: 1` is the key "no"
            if key in result:
                raise UserError(
                    f"{at}: {'.'.join(map(str, (*keys, key)))} is given twice, first in line {lines[key]}"
                )
            lines[key] = key_node.start_mark.line + 1
            if document is not None:
                document.places[(*keys, key)] = at
            result[key] = _value(value_node, (*keys, key), where, document, seen)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*keys, n), where, document, seen) for n, child in enumerate(node.value)]
    return _scalar(node, place)


def _scalar(node: yaml.Node, place: str) -> Any:
    text, kind = str(node.value), node.tag.removeprefix("tag:yaml.org,2002:")
    try:
        match kind:
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                digits = text.replace("_", "")
                return int(digits, 0) if digits[:2] in ("0o", "0x") else int(digits)
            case "float":
                return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError as error:
        raise UserError(f"{place}: {_short(text)} is not a number: {error}") from error
    raise UserError(f"{place}: YAML tag {node.tag!r} is not used in recipes")
