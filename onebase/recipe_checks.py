"""What pydantic cannot see: stage names and their graph, files, worlds and verifiers that a recipe names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from onebase import graph
from onebase.recipe import TRAINED, Pretrain, Recipe, Sft, Source, Term
from onebase.wording import given, hint, listed, nearest
from onebase.yaml_places import Document, Keys

NEEDS_INIT = ("sft", "grpo", "reject_sample")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def faults(recipe: Recipe, document: Document) -> Iterator[str]:
    """One message per fault, each with its place."""
    if not WORD.fullmatch(recipe.name):
        yield _fault(document, ("name",), f"given {given(recipe.name)}\n  allowed: letters, digits, - and _")
    for name, stage in recipe.stages.items():
        at: Keys = ("stages", name)
        if not WORD.fullmatch(name):
            yield _fault(document, at, f"given the name {given(name)}\n  allowed: letters, digits, - and _")
        yield from _init_faults(recipe, document, name)
        for where, reference, what in graph.references(stage):
            yield from _reference_faults(recipe, document, (*at, *where), name, reference, what)
        for key in ("data", "heldout", "evaluate"):
            for n, source in enumerate(getattr(stage, key, [])):
                yield from _source_faults(source, document, (*at, key, n))
                if source.corpus is not None:
                    yield from _corpus_faults(source, stage.kind, document, (*at, key, n))
        yield from _reward_faults(getattr(stage, "rewards", []), stage.kind, document, (*at, "rewards"))
        yield from _parallel_faults(recipe, document, name)
    loop = graph.cycle(recipe.stages)
    if loop:
        steps = [
            f"\n  {document.place(('stages', name))}: {name} needs {other}"
            for name, other in zip(loop, loop[1:], strict=False)
        ]
        text = f"the stages go in a circle: {' -> '.join(loop)}" + "".join(steps)
        yield _fault(document, ("stages", loop[0]), text)


def _fault(document: Document, keys: Keys, text: str) -> str:
    return f"{document.place(keys)}: {'.'.join(map(str, keys))}: {text}"


def _init_faults(recipe: Recipe, document: Document, name: str) -> Iterator[str]:
    stage, keys = recipe.stages[name], ("stages", name, "init")
    if stage.kind in NEEDS_INIT and stage.init is None:
        makers = listed(n for n, s in recipe.stages.items() if s.kind in TRAINED and n != name)
        text = f"missing: a {stage.kind} stage starts from a checkpoint"
        yield _fault(document, keys, f"{text}\n  allowed: a stage ({makers}), a folder or a hub id")
    if stage.kind == "eval" and stage.init is not None:
        yield _fault(document, keys, "an eval stage has no init; it measures what `models` lists")


def _parallel_faults(recipe: Recipe, document: Document, name: str) -> Iterator[str]:
    """Rows, tokens and experts that do not fall into equal parts."""
    stage, p = recipe.stages[name], recipe.parallel
    if p.processes == 1 or not isinstance(stage, Pretrain | Sft):
        return
    batch, at, groups = stage.batch, ("stages", name, "batch"), p.processes // p.context
    of = f"parallel: processes={p.processes}" + (f", context={p.context}" if p.context > 1 else "")
    if batch.rows % groups:
        text = f"given {batch.rows}; {of}: rows are divided over {groups}"
        yield _fault(document, (*at, "rows"), f"{text}\n  allowed: a multiple of {groups}")
    elif batch.accumulate > batch.rows // groups:
        text = f"given {batch.accumulate}; {of}: each process has {batch.rows // groups} rows of a step"
        yield _fault(document, (*at, "accumulate"), f"{text}\n  allowed: 1 to {batch.rows // groups}")
    if p.context > 1 and batch.length % (2 * p.context):
        text = f"given {batch.length}; {of}: a row falls into {2 * p.context} pieces"
        yield _fault(document, (*at, "length"), f"{text}\n  allowed: a multiple of {2 * p.context}")
    E = recipe.model.n_routed_experts
    if stage.init is None and E % p.expert:
        text = f"given {p.expert}; model.n_routed_experts={E} is not divisible by it"
        yield _fault(document, ("parallel", "expert"), text)


def _reference_faults(
    recipe: Recipe, document: Document, keys: Keys, stage: str, name: str, what: str
) -> Iterator[str]:
    kinds = TRAINED if what == "checkpoint" else ("reject_sample",)
    makers = [n for n, s in recipe.stages.items() if s.kind in kinds]
    others = [n for n in makers if n != stage]
    if name in recipe.stages:
        if name not in makers and name != stage:
            text = f"given {given(name)}: {recipe.stages[name].kind} stages have no {what}"
            yield _fault(document, keys, f"{text}\n  allowed: {listed(others)}")
        return
    allowed = f"\n  allowed: {listed(others)}"
    if what == "checkpoint":
        path = Path(name).expanduser()
        if path.is_dir():
            return
        allowed += ", or a folder, or a hub id (owner/name)"
        if path.is_file():
            text = "a file; a checkpoint is a folder (config.json, *.safetensors, tokenizer)"
            yield _fault(document, keys, f"given {given(name)}: {text}")
            return
        if HUB_ID.fullmatch(name):
            return
        if "/" in name or name.startswith("~"):
            yield _fault(document, keys, f"given {given(name)}: no such folder (from {Path.cwd()}){allowed}")
            return
    yield _fault(document, keys, f"given {given(name)}: no such stage{allowed}" + hint(name, others))


def _source_faults(source: Source, document: Document, keys: Keys) -> Iterator[str]:
    if source.path is not None and not Path(source.path).exists():
        path = Path(source.path)
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        name = nearest(path.name, beside)
        text = f"given {given(source.path)}: no such file or folder (from {Path.cwd()})"
        yield _fault(
            document, (*keys, "path"), text + (f"\n  did you mean: {path.parent / name}" if name else "")
        )
    if source.world is not None:
        yield from _world_faults(source, document, keys)
    if source.rows is not None and not 0 <= source.rows[0] < source.rows[1]:
        text = f"given {list(source.rows)}\n  allowed: [start, stop), 0 <= start < stop"
        yield _fault(document, (*keys, "rows"), text)


def _corpus_faults(source: Source, kind: str, document: Document, keys: Keys) -> Iterator[str]:
    if kind != "pretrain":
        text = f"a prepared corpus holds tokens without turns; a {kind} stage cannot use it"
        yield _fault(document, (*keys, "corpus"), f"{text}\n  allowed: world, path, hub or stage")
        return
    from onebase.errors import UserError
    from onebase.pretrain.corpus_shards import open_corpus, parts_of

    try:
        parts_of(open_corpus(str(source.corpus)), source.split)
    except UserError as error:
        yield _fault(document, (*keys, "corpus"), str(error))


def _world_faults(source: Source, document: Document, keys: Keys) -> Iterator[str]:
    from onebase import worlds

    family = worlds.FAMILIES.get(str(source.world))
    if family is None:
        text = f"given {given(source.world)}: no such world\n  allowed: {listed(world_names())}"
        yield _fault(document, (*keys, "world"), text + hint(str(source.world), world_names()))
        return
    if source.split not in worlds.SPLITS:
        text = f"given {given(source.split)}\n  allowed: {listed(worlds.SPLITS)}"
        yield _fault(document, (*keys, "split"), text + hint(source.split, worlds.SPLITS))
    styles = ("direct", *family.styles)
    for style in source.styles:
        if style not in styles:
            text = f"world {family.name} has no such style\n  allowed: {listed(styles)}"
            yield _fault(document, (*keys, "styles", style), text + hint(style, styles))
    low, high = family.allowed
    if source.difficulty is not None and not low <= source.difficulty[0] <= source.difficulty[1] <= high:
        text = f"given {list(source.difficulty)}\n  allowed: [lowest, highest] within {low} to {high}"
        yield _fault(document, (*keys, "difficulty"), text)


def _reward_faults(terms: list[Term], kind: str, document: Document, keys: Keys) -> Iterator[str]:
    if not terms:
        return
    from onebase import rewards

    known = verifier_names()
    for n, term in enumerate(terms):
        text = f"given {given(term.verifier)}: "
        if ".py:" in term.verifier:
            if not Path(term.verifier.rpartition(":")[0]).expanduser().is_file():
                yield _fault(document, (*keys, n, "verifier"), f"{text}no such file (from {Path.cwd()})")
        elif term.verifier not in known:
            text += f"no such verifier\n  allowed: {listed(known)}, or path/to/file.py:function"
            yield _fault(document, (*keys, n, "verifier"), text + hint(term.verifier, known))
        if term.schedule and kind != "grpo":
            text = f"a {kind} stage has no steps; only a grpo stage's weights change"
            yield _fault(document, (*keys, n, "schedule"), text)
        if term.name is not None and not WORD.fullmatch(term.name):
            text = f"given {given(term.name)}\n  allowed: letters, digits, - and _"
            yield _fault(document, (*keys, n, "name"), text)
    for n, field, text in rewards.term_faults(terms):
        yield _fault(document, (*keys, n, field), text)


def verifier_names() -> list[str]:
    from onebase.verifiers import registry

    return sorted({*registry.builtin_names(), *registry.plugins()})


def world_names() -> list[str]:
    """Families of generated problems."""
    from onebase import worlds

    return sorted(worlds.FAMILIES)
