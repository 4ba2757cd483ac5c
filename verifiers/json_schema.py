"""The answer is JSON that is valid under the row's `schema` (JSON Schema, any draft that `jsonschema` knows).

The JSON is the last fenced block of the answer part (```json, or without a language), else the whole of it.
It is read strictly: no key twice, no NaN or Infinity, no number that overflows to infinity, bounded size and
depth.  `schema` is an object, or JSON text as tables carry it; where the row has none, `answer` holds it.
References to other documents are never fetched: a schema that needs one, or that is no valid schema, is an
error of the row, not a 0.  `format` is an annotation unless `formats=True`.

A `pattern` can backtrack for ever on a hostile answer, so this verifier is not INLINE: run it on a pool.
Needs the extra `verifiers` (the package jsonschema).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from onebase.errors import UserError
from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.math_extract import answer_part

_SIZE = 200_000  # characters
_DEPTH = 64
_FENCE = re.compile(r"^[^\S\n]*```[^\S\n]*([\w+-]*)[^\S\n]*$", re.M)


def verify(
    completion: str,
    answer: str = "",
    *,
    schema: Mapping[str, Any] | bool | str | None = None,
    formats: bool = False,
    prefilled: bool = False,
    **row: Any,
) -> Verdict:
    try:
        validator = _validator(_text(schema, answer), formats)
    except ValueError as error:
        return failed(f"gold: {error}")
    part = answer_part(completion, prefilled)
    if part.text is None or not part.text.strip():
        return Verdict(0.0, part.how or "no text after the thought")
    try:
        value = read_strictly(fenced(part.text))
    except ValueError as error:
        return Verdict(0.0, f"not JSON: {error}")
    from referencing.exceptions import Unresolvable

    try:
        fault = next(validator.iter_errors(value), None)
    except Unresolvable as error:
        return failed(
            f"gold: the schema refers to {str(error)[:200]}, which is not in it; nothing is fetched"
        )
    except (RecursionError, re.error) as error:
        return failed(f"gold: the schema cannot be carried out: {type(error).__name__}: {str(error)[:200]}")
    if fault is None:
        return Verdict(1.0, "valid under the schema", details={"parsed": True})
    at = "/".join(map(str, fault.absolute_path)) or "the whole"
    # A key may hold half a surrogate pair, which no file takes.
    told = f"invalid at {at[:100]}: {fault.message[:300]}".encode("utf-8", "backslashreplace").decode()
    reason = " ".join(told.split())
    return Verdict(0.0, reason[:300], details={"parsed": True})


def gold_problem(answer: str = "", *, schema: Any = None, formats: bool = False, **row: Any) -> str | None:
    """Why a row's schema cannot be used."""
    try:
        _validator(_text(schema, answer), formats)
    except ValueError as error:
        return str(error)
    return None


def _text(schema: Any, answer: str) -> str:
    return schema if isinstance(schema, str) else answer if schema is None else json.dumps(schema)


def fenced(text: str) -> str:
    """The content of the last closed fence that says json or no language; without one, the whole text."""
    marks = list(_FENCE.finditer(text))
    found, i = text, 0
    while i + 1 < len(marks):  # an opening mark and the next bare one close a block
        closing = next((j for j in range(i + 1, len(marks)) if not marks[j].group(1)), None)
        if closing is None:
            break
        if marks[i].group(1).lower() in ("", "json"):
            found = text[marks[i].end() : marks[closing].start()]
        i = closing + 1
    return found


def read_strictly(text: str) -> Any:
    """The value of JSON text.  Raises ValueError with one line saying why there is none."""
    text = text.strip()
    if len(text) > _SIZE:
        raise ValueError(f"{len(text)} characters, at most {_SIZE}")
    if (depth := _depth(text)) > _DEPTH:
        raise ValueError(f"nested {depth} deep, at most {_DEPTH}")
    return json.loads(
        text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer
    )


def _depth(text: str) -> int:
    depth = most = 0
    for token in re.findall(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', text, re.S):
        if token in "[{":
            depth += 1
            most = max(most, depth)
        elif token in "]}":
            depth -= 1
    return most


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:40]!r} occurs twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} overflows")
    return value


def _integer(text: str) -> int:
    if len(text) > 300:  # past that it is no float, and multipleOf divides floats
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


@lru_cache(maxsize=256)
def _validator(schema_text: str, formats: bool) -> Any:
    """Raises ValueError where the text is no schema, UserError where the package is missing."""
    try:
        import jsonschema
        from referencing import Registry
    except ImportError as error:
        raise UserError(
            f"verifier 'json_schema' needs the package {error.name or 'jsonschema'}\n"
            "  install it: pip install 'onebase[verifiers]'"
        ) from error
    if not schema_text.strip():
        raise ValueError("the row has no schema")
    try:
        schema = json.loads(schema_text)
    except ValueError as error:
        raise ValueError(f"the schema is not JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise ValueError(f"a schema is an object, true or false, not {type(schema).__name__}")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    if (
        isinstance(schema, dict)
        and "$schema" in schema
        and kind.META_SCHEMA.get("$id", kind.META_SCHEMA.get("id", "")).rstrip("#")
        != str(schema["$schema"]).rstrip("#")
    ):
        raise ValueError(f"the schema's dialect {schema['$schema']!r} is unknown")
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        at = "/".join(map(str, error.absolute_path)) or "the whole"
        raise ValueError(f"no valid schema, at {at}: {error.message[:200]}") from error
    checker = kind.FORMAT_CHECKER if formats else None
    # A registry without a retriever: a reference to elsewhere is unresolvable, never a request.
    return kind(schema, registry=Registry(), format_checker=checker)
