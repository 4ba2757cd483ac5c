"""Gold answers that a verifier cannot understand are told before a model is loaded.

Every row of a stage's finite sources (and a few of each world) is put to every reward term: the verifier's
own `gold_problem`, else the verifier with the answer as the completion (registry.load_gold).  An error is the
outcome that counts, since it would come again for every completion of that row; a reward of 0 does not, as
few verifiers read a bare answer.  `bad_gold` of the stage says what then happens: refuse, or drop the rows.

The answer is kept in the stage's folder (gold.json) under everything that decides it, so that a resume does
not ask again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onebase.data import Problems
from onebase.errors import UserError
from onebase.files import atomic_write
from onebase.recipe import Recipe, Source, Term
from onebase.rewards import named, split_gate, verdicts_of
from onebase.rows import file_rows, problem_row
from onebase.stage import StageRun
from onebase.stage_state import read_json, to_json
from onebase.verifiers.base import Verdict
from onebase.verifiers.registry import digest, load_gold
from onebase.wording import hint, listed

MOST_ROWS = 20_000  # of one source
OF_A_WORLD = 8  # generated answers are right by construction; these show that the verifier takes such rows
MOST_SECONDS = 60.0  # for one term; a slow verifier is asked about fewer rows
CHUNK = 256
SHOWN = 3

Row = dict[str, Any]


@dataclass(slots=True)
class Bad:
    """A row whose answer a verifier cannot understand."""

    place: str
    """Its source and its number there, from 0 as in `rows` of a source."""
    problem: str
    answer: str
    term: str
    error: str


@dataclass(slots=True)
class Found:
    rows: int = 0
    """Rows that were asked about."""
    seconds: float = 0.0
    bad: list[Bad] = field(default_factory=list)

    @property
    def keys(self) -> set[tuple[str, str]]:
        return {(bad.problem, bad.answer) for bad in self.bad}


def check(run: StageRun, sources: Sequence[Source]) -> Found:
    """What is wrong with the gold of a stage's problems.  Raises UserError where `bad_gold` is refuse."""
    stage = run.stage
    path = run.folder / "gold.json"
    key = _key(sources, stage.rewards, run.folders)
    kept = read_json(path)
    if kept is not None and kept.get("key") == key:
        bad = [Bad(**one) for one in kept["bad"]]
        found = Found(kept["rows"], kept["seconds"], bad)
    else:
        found = look(sources, stage.rewards, run.seed, run.folders)
        atomic_write(path, to_json({"key": key, **asdict(found)}))
        if found.bad and stage.bad_gold == "drop":
            run.log.event("gold_dropped", rows=len(found.keys), of=found.rows, first=found.bad[0].place)
    generated = any(bad.place.startswith("world ") for bad in found.bad)  # of which there is no end to drop
    if found.bad and (stage.bad_gold == "refuse" or generated):
        raise UserError(
            f"{told(found)}\n  mend these answers, set `options` of the term (a policy, another field), or "
            f"leave the rows out: --set stages.{run.name}.bad_gold=drop"
        )
    return found


def told(found: Found) -> str:
    """For a person: how many, and the first ones."""
    lines = [
        f"\n  {b.place}: {b.term}: {b.error}\n    answer   {_cut(b.answer)}\n    problem  {_cut(b.problem)}"
        for b in found.bad[:SHOWN]
    ]
    more = len(found.keys) - SHOWN
    return (
        f"bad gold: {len(found.keys)} of {found.rows} rows have an answer that cannot be verified"
        + "".join(lines)
        + (f"\n  and {more} more" if more > 0 else "")
    )


def keep(rows: list[Row], found: Found) -> list[Row]:
    """The rows whose gold is sound."""
    keys = found.keys
    return [row for row in rows if (row["problem"], row["answer"]) not in keys] if keys else rows


def keep_problems(problems: Problems, found: Found) -> Problems:
    """The same for a stage's endless problems: their finite sources are cut."""
    for i, rows in enumerate(problems.finite):
        if rows is not None:
            kept = problems.finite[i] = keep(rows, found)
            if not kept:
                source = problems.sources[i]
                raise UserError(f"{_where(source)}: none of its {len(rows)} rows has a gold that is sound")
    return problems


def look(sources: Sequence[Source], terms: Sequence[Term], seed: int, folders: dict[str, Path]) -> Found:
    """Ask every term about the rows of every source."""
    start = time.perf_counter()
    found = Found()
    asked = {name: t for name, t in named(terms).items() if load_gold(t.verifier) is not None}
    for source in sources if asked else ():
        rows = list(_rows(source, seed, folders))
        most = 0
        for name, term in asked.items():
            verdicts: list[Verdict] = []
            end = time.perf_counter() + MOST_SECONDS
            for at in range(0, len(rows), CHUNK):
                if time.perf_counter() < end:
                    calls = [row | term.options | {"n_tokens": 1} for _, row in rows[at : at + CHUNK]]
                    verdicts += verdicts_of(term, calls, gold=True)
            _details_exist(name, terms, [row for _, row in rows[:OF_A_WORLD]])
            for (number, row), verdict in zip(rows, verdicts, strict=False):
                if verdict.error is not None:
                    place = f"{_where(source)}, row {number}"
                    found.bad.append(Bad(place, row["problem"], row["answer"], name, verdict.error))
            most = max(most, len(verdicts))
        found.rows += most
    found.seconds = round(time.perf_counter() - start, 3)
    return found


def _details_exist(name: str, terms: Sequence[Term], rows: list[Row]) -> None:
    """A gate NAME.DETAIL whose detail no verdict has would never open."""
    for n, term in enumerate(terms):
        found = split_gate(term.gate, list(named(terms))) if term.gate is not None else None
        if found is None or found[0] != name or not found[1]:
            continue
        other = named(terms)[name]
        verdicts = verdicts_of(other, [{**row, **other.options, "completion": row["answer"]} for row in rows])
        have = sorted({key for v in verdicts for key in v.details})
        if any(v.error is None for v in verdicts) and found[1] not in have:
            raise UserError(
                f"rewards.{n}.gate: given {term.gate!r}: no verdict of {name} has a detail {found[1]!r}\n"
                f"  allowed: {listed(f'{name}.{key}' for key in have)}" + hint(found[1], have)
            )


def _rows(source: Source, seed: int, folders: dict[str, Path]) -> Iterator[tuple[int, Row]]:
    """(number in the source, row for verifiers)."""
    if source.world is not None:
        problems = Problems([source], seed, folders)
        for k in range(OF_A_WORLD):
            yield k, problems.of_source(0, k)
        return
    first = source.rows[0] if source.rows else 0
    for n, row in enumerate(itertools.islice(file_rows(source, folders), MOST_ROWS), first):
        yield n, problem_row(row, source)


def _key(sources: Sequence[Source], terms: Sequence[Term], folders: dict[str, Path]) -> str:
    """Digest of the rows (files by size and time), the terms and their verifiers' code."""
    files = []
    for source in sources:
        root = folders[source.stage] / "rows.jsonl" if source.stage else Path(source.path or "")
        for file in sorted(root.glob(source.glob)) if source.path and root.is_dir() else [root]:
            if file.is_file():
                files.append((str(file), file.stat().st_size, file.stat().st_mtime_ns))
    settings = [part.model_dump(mode="json") for part in (*sources, *terms)]
    text = json.dumps([settings, files, [digest(term.verifier) for term in terms]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _where(source: Source) -> str:
    return source.path or source.hub or (f"stage {source.stage}" if source.stage else f"world {source.world}")


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:60]} ... {line[-36:]}"


def plan_lines(recipe: Recipe, todo: Sequence[str]) -> list[str]:
    """For a dry run: what the check says about each stage whose rows are here already (no hub, no stage that
    has not run)."""
    folder = Path(recipe.runs).expanduser() / recipe.name
    folders = {name: folder / name for name in recipe.stages}
    lines = []
    for name in todo:
        stage = recipe.stages[name]
        if stage.kind not in ("grpo", "reject_sample", "eval"):
            continue
        sources = [*stage.data, *(stage.evaluate if stage.kind == "grpo" else [])]
        here = [s for s in sources if not s.hub]
        here = [s for s in here if not s.stage or (folders[s.stage] / "rows.jsonl").is_file()]
        try:
            found = look(here, stage.rewards, recipe.seed + stage.seed, folders)
        except UserError as error:
            lines.append(f"{name}: {error}")
            continue
        if found.bad:
            lines.append(f"{name}: {told(found)}")
    return lines
