"""Instructions that a program can check, as data in the row: a list of `{check: NAME, ...arguments}`.

    checks: [{check: words, relation: at least, n: 300}, {check: no_commas}, {check: keywords, words: [war]}]

The public form of IFEval (arXiv 2311.07911), `instruction_id_list` and `kwargs`, is taken as it is; one
instruction may stand for several checks.  Both may also be JSON text, and `answer` may hold them where the
row has neither.  The reward is 1 if all instructions are followed, with `partial=True` their share.
`loose=True` is IFEval's loose form: an instruction counts as followed if it is in the answer as given, or
without its asterisks, its first line, its last line, or any mixture of these.

Only the answer after the thought is judged, and an empty one follows nothing.  A check that is unknown or has
wrong arguments is an error of the row, not a 0.  The checks and where they deviate from IFEval:
`instruction_checks.py`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, get_type_hints

from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.instruction_checks import CHECKS, BadCheck, Found, clean
from onebase.verifiers.math_extract import answer_part
from onebase.wording import hint

INLINE = True
_LIMIT = 400_000  # characters of an answer
Check = dict[str, Any]

# IFEval's instruction -> our checks; a value that begins with = is the name of one of IFEval's arguments.
IFEVAL: dict[str, list[Check]] = {
    "keywords:existence": [{"check": "keywords", "words": "=keywords", "whole": False}],
    "keywords:frequency": [
        {"check": "keyword", "word": "=keyword", "relation": "=relation", "n": "=frequency", "whole": False}
    ],
    "keywords:forbidden_words": [{"check": "forbidden", "words": "=forbidden_words"}],
    "keywords:letter_frequency": [
        {"check": "letters", "letter": "=letter", "relation": "=let_relation", "n": "=let_frequency"}
    ],
    "language:response_language": [{"check": "language", "language": "=language"}],
    "length_constraints:number_sentences": [
        {"check": "sentences", "relation": "=relation", "n": "=num_sentences"}
    ],
    "length_constraints:number_paragraphs": [
        {"check": "paragraphs", "relation": "exactly", "n": "=num_paragraphs", "separator": "***"}
    ],
    "length_constraints:number_words": [{"check": "words", "relation": "=relation", "n": "=num_words"}],
    "length_constraints:nth_paragraph_first_word": [
        {
            "check": "paragraph_first_word",
            "paragraph": "=nth_paragraph",
            "word": "=first_word",
            "n": "=num_paragraphs",
        }
    ],
    "detectable_content:number_placeholders": [
        {"check": "placeholders", "relation": "at least", "n": "=num_placeholders"}
    ],
    "detectable_content:postscript": [{"check": "postscript", "marker": "=postscript_marker"}],
    "detectable_format:number_bullet_lists": [
        {"check": "bullets", "relation": "exactly", "n": "=num_bullets"}
    ],
    "detectable_format:constrained_response": [
        {
            "check": "one_of",
            "options": ["My answer is yes.", "My answer is no.", "My answer is maybe."],
        }
    ],
    "detectable_format:number_highlighted_sections": [
        {"check": "highlights", "relation": "at least", "n": "=num_highlights"}
    ],
    "detectable_format:multiple_sections": [
        {"check": "sections", "mark": "=section_spliter", "relation": "at least", "n": "=num_sections"}
    ],
    "detectable_format:json_format": [{"check": "json_only"}],
    "detectable_format:title": [{"check": "title"}],
    "combination:two_responses": [{"check": "two_answers"}],
    "combination:repeat_prompt": [{"check": "repeat", "prompt": "=prompt_to_repeat"}],
    "startend:end_checker": [{"check": "ends_with", "phrase": "=end_phrase"}],
    "startend:quotation": [{"check": "quoted"}],
    "change_case:capital_word_frequency": [
        {"check": "capital_words", "relation": "=capital_relation", "n": "=capital_frequency"}
    ],
    "change_case:english_capital": [
        {"check": "case", "form": "upper"},
        {"check": "language", "language": "en"},
    ],
    "change_case:english_lowercase": [
        {"check": "case", "form": "lower"},
        {"check": "language", "language": "en"},
    ],
    "punctuation:no_comma": [{"check": "no_commas"}],
}


def verify(
    completion: str,
    answer: str = "",
    *,
    checks: Sequence[Mapping[str, Any]] | str | None = None,
    instruction_id_list: Sequence[str] | str | None = None,
    kwargs: Sequence[Mapping[str, Any]] | str | None = None,
    partial: bool = False,
    loose: bool = False,
    prefilled: bool = False,
    **row: Any,
) -> Verdict:
    try:
        instructions = _understood(answer, checks, instruction_id_list, kwargs)
    except BadCheck as error:
        return failed(f"gold: {error}")
    part = answer_part(completion, prefilled)
    if part.text is None or not (text := clean(part.text)).strip():
        return Verdict(0.0, part.how or "no text after the thought")
    if len(text) > _LIMIT:
        return Verdict(0.0, f"the answer has {len(text)} characters; at most {_LIMIT} are judged")
    forms = _loose(text) if loose else [text]
    faults = [_fault(instruction, forms) for instruction in instructions]
    followed = sum(fault is None for fault in faults)
    told = [fault for fault in faults if fault is not None]
    reason = f"{followed} of {len(faults)} instructions followed"
    reason += "; not: " + " | ".join(told) if told else ""
    reward = followed / len(faults) if partial else float(not told)
    return Verdict(reward, " ".join(reason.split())[:600], details={"followed": [f is None for f in faults]})


def gold_problem(answer: str = "", **row: Any) -> str | None:
    """Why a row's checks cannot be understood."""
    try:
        _understood(answer, *(row.get(key) for key in ("checks", "instruction_id_list", "kwargs")))
    except BadCheck as error:
        return str(error)
    return None


def _understood(answer: str, checks: Any, ids: Any, arguments: Any) -> list[list[Check]]:
    """The row's instructions.  Raises BadCheck for a wrong one, whatever the completion is."""
    instructions = _instructions(answer, checks, ids, arguments)
    for instruction in instructions:
        for check in instruction:
            run_check("", check)
    return instructions


def run_check(text: str, check: Mapping[str, Any]) -> Found:
    """One check of a text.  Raises BadCheck where the check's name or arguments are wrong."""
    name = check.get("check")
    if not isinstance(name, str) or name not in CHECKS:
        near = hint(str(name), CHECKS)
        raise BadCheck(f"no check {name!r}{near}\n  allowed: {', '.join(CHECKS)}".replace("\n ", ";"))
    # Tables give every row every column: what is None was not given.
    given = {key: value for key, value in check.items() if key != "check" and value is not None}
    types, needed = _arguments(name)
    for key, value in given.items():
        if key not in types:
            allowed = f"; allowed: {', '.join(types) or 'no arguments'}"
            raise BadCheck(
                f"check {name!r} has no argument {key!r}{allowed}{hint(key, types)}".replace("\n ", ";")
            )
        given[key] = _typed(f"check {name!r}, argument {key!r}", value, types[key])
    missing = [key for key in needed if key not in given]
    if missing:
        raise BadCheck(f"check {name!r} needs {', '.join(missing)}")
    return CHECKS[name](text, **given)


def _instructions(answer: str, checks: Any, ids: Any, arguments: Any) -> list[list[Check]]:
    """Checks in groups: each group is one instruction."""
    if checks is None and ids is None:
        if not str(answer).strip():
            raise BadCheck("the row has neither checks nor instruction_id_list")
        read = _from_json(answer, "answer")
        if isinstance(read, dict):
            checks, ids, arguments = (read.get(k) for k in ("checks", "instruction_id_list", "kwargs"))
        else:
            checks = read
    checks, ids = _from_json(checks, "checks"), _from_json(ids, "instruction_id_list")
    arguments = _from_json(arguments, "kwargs")
    groups = [[dict(check)] for check in _listed(checks, "checks", Mapping)]
    names = _listed(ids, "instruction_id_list", str)
    given = _listed(arguments, "kwargs", Mapping) or [{}] * len(names)
    if len(given) != len(names):
        raise BadCheck(f"{len(names)} instructions in instruction_id_list, {len(given)} entries in kwargs")
    groups += [_from_ifeval(name, theirs) for name, theirs in zip(names, given, strict=True)]
    if not groups:
        raise BadCheck("the row's list of checks is empty")
    return groups


def _from_json(value: Any, field: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise BadCheck(f"{field} is text, but not JSON ({error}): {value[:80]!r}") from error


def _listed(value: Any, field: str, kind: type) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise BadCheck(f"{field} is a list, not {type(value).__name__}")
    items = list(value)
    if wrong := [item for item in items if not isinstance(item, kind)]:
        raise BadCheck(f"{field}: {wrong[0]!r} is not a {kind.__name__.lower()}")
    return items


def _from_ifeval(name: str, theirs: Mapping[str, Any]) -> list[Check]:
    if name not in IFEVAL:
        raise BadCheck(f"no IFEval instruction {name!r}{hint(name, IFEVAL)}".replace("\n ", ";"))
    out = []
    for check in IFEVAL[name]:
        filled: Check = {}
        for ours, value in check.items():
            named = isinstance(value, str) and value.startswith("=")
            filled[ours] = theirs.get(value[1:]) if named else value
        out.append(filled)
    return out


@lru_cache(maxsize=64)
def _arguments(name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(type of each argument, names of those without a default) of a check."""
    hints = get_type_hints(CHECKS[name])
    parameters = [p for p in inspect.signature(CHECKS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: hints[p.name] for p in parameters}, tuple(
        p.name for p in parameters if p.default is p.empty
    )


def _typed(where: str, value: Any, kind: Any) -> Any:
    """The value as the argument's type; numbers may come as 3.0 from a table."""
    if kind == list[str]:
        items = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else []
        if not items or not all(isinstance(item, str) for item in items):
            raise BadCheck(f"{where}: a list of texts is wanted, given {value!r}")
        return items
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise BadCheck(f"{where}: {kind.__name__} is wanted, given {value!r}")
    return value


def _loose(text: str) -> list[str]:
    rows = text.split("\n")
    cut = [text, "\n".join(rows[1:]).strip(), "\n".join(rows[:-1]).strip(), "\n".join(rows[1:-1]).strip()]
    return [form for form in [*cut, *(t.replace("*", "") for t in cut)] if form.strip()]


def _fault(instruction: list[Check], forms: list[str]) -> str | None:
    """Why no form of the answer follows the instruction (told for the first form), or None."""
    first = None
    for form in forms:
        wrong = [(check, found) for check in instruction if not (found := run_check(form, check)).holds]
        if not wrong:
            return None
        first = first or f"{wrong[0][0]['check']}: {wrong[0][1].how}"
    return first
