"""The stage graph: who needs whom, and in which order stages run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Keys = tuple[str | int, ...]


def references(section: Any) -> Iterator[tuple[Keys, str, str]]:
    """Every name in a stage that may be another stage: (where in the section, name, "checkpoint" or "rows").

    An init or model that is no stage is a folder or a hub id; the caller knows the stages.
    """
    if section.init is not None:
        yield ("init",), section.init, "checkpoint"
    for key in ("data", "heldout", "evaluate"):
        for n, source in enumerate(getattr(section, key, [])):
            if source.stage is not None:
                yield (key, n, "stage"), source.stage, "rows"
    for label, name in getattr(section, "models", {}).items():
        yield ("models", label), name, "checkpoint"


def parents(stages: Mapping[str, Any], name: str) -> list[str]:
    """Stages that must be finished before `name`, each once, in the order of the section."""
    return list(dict.fromkeys(other for _, other, _ in references(stages[name]) if other in stages))


def order(stages: Mapping[str, Any], wanted: list[str] | None = None) -> list[str]:
    """Wanted stages (None: all) with everything they need, parents first, otherwise in the order of the
    file."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in done:
            return
        for parent in sorted(parents(stages, name), key=list(stages).index):
            visit(parent)
        done[name] = None

    for name in stages if wanted is None else sorted(wanted, key=list(stages).index):
        visit(name)
    return list(done)


def cycle(stages: Mapping[str, Any]) -> list[str] | None:
    """One cycle as a list of names whose last is its first, or None."""
    state: dict[str, int] = {}  # 1 on the way, 2 finished

    def visit(name: str, way: list[str]) -> list[str] | None:
        if state.get(name) == 2:
            return None
        if state.get(name) == 1:
            return [*way[way.index(name) :], name]
        state[name] = 1
        for parent in parents(stages, name):
            found = visit(parent, [*way, name])
            if found:
                return found
        state[name] = 2
        return None

    return next((found for name in stages if (found := visit(name, []))), None)


def descendants(stages: Mapping[str, Any], name: str) -> list[str]:
    """Stages that need `name`, directly or through others, in the order of the file."""
    return [other for other in stages if other != name and name in order(stages, [other])]
