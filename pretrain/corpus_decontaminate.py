"""Which documents hold a problem of an evaluation: an index of the problems' word n-grams, made once.

    <folder>/<n>.npz      sorted 64-bit hashes of n-grams, and of each the number of its suite
    <folder>/suites.json  by number: name, problems, how many cannot be looked for

GPT-3's rule (arXiv 2005.14165, appendix C): n = 13 words, and a problem that is shorter counts as a whole
from 8 words on.  A document that shares one n-gram is left out as a whole; GPT-3 cut 200 characters around
it.  Words are compared as datatrove's decontamination does (lower case, numbers as 0, no punctuation or
accents), so that a problem with other numbers counts as the same problem; n-grams of fewer than 4 different
words count not.  datatrove's own indexer reads lighteval's tasks only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebase import recipe_loader
from onebase.errors import UserError
from onebase.files import atomic_folder
from onebase.pretrain.corpus_config import Decontaminate
from onebase.pretrain.corpus_words import Hashes, ngrams
from onebase.recipe import Source
from onebase.rows import file_rows

SHORTEST = 8  # words of the shortest problem that is looked for
VARIED = 4  # different words that an n-gram must hold to count
TEXTS = ("problem", "prompt", "question", "text", "completion", "solution")


@dataclass(slots=True)
class Suite:
    name: str
    problems: int = 0
    not_looked_for: int = 0
    """Too short, or hardly anything but numbers."""
    ngrams: int = 0


class Index:
    """Problems' n-grams in memory: 12 bytes for each word of the evaluations."""

    def __init__(self, folder: Path) -> None:
        self.suites = [Suite(**s) for s in json.loads((folder / "suites.json").read_text(encoding="utf-8"))]
        self.tables: dict[int, tuple[NDArray[np.uint64], NDArray[np.uint32]]] = {}
        for file in folder.glob("*.npz"):
            with np.load(file) as table:
                self.tables[int(file.stem)] = (table["hashes"], table["suite"])

    def find(self, words: NDArray[np.uint64]) -> str | None:
        """The suite that a document's words share an n-gram with, or None."""
        for n, (hashes, suite) in self.tables.items():
            here = ngrams(words, n)
            at = np.minimum(np.searchsorted(hashes, here), len(hashes) - 1)
            hits = np.flatnonzero(hashes[at] == here)
            if len(hits):
                return self.suites[int(suite[at[hits[0]]])].name
        return None


def sources_of(section: Decontaminate) -> list[Source]:
    """Everything to be kept out of training: the section's sources, and of its recipes all that their stages
    measure on or hold out (`heldout`, `evaluate`, an eval stage's `data`).  Outputs of stages are none."""
    found = list(section.sources)
    for name in section.recipes:
        for stage in recipe_loader.load(name).stages.values():
            found += [*getattr(stage, "heldout", []), *getattr(stage, "evaluate", [])]
            found += stage.data if stage.kind == "eval" else []
    sets = [s for s in found if s.stage is None and s.corpus is None]
    unique = {s.model_dump_json(exclude={"weight", "styles"}): s for s in sets}
    return list(unique.values())


def build(section: Decontaminate, seed: int, folder: Path) -> None:
    """Write the index of a configuration's evaluations."""
    hashes = Hashes()
    suites: list[Suite] = []
    found: dict[int, list[tuple[NDArray[np.uint64], int]]] = {}
    for number, source in enumerate(sources_of(section)):
        suite = Suite(_name(source))
        suites.append(suite)
        for text in _texts(source, seed, section):
            suite.problems += 1
            words = hashes.words(text)
            n = min(section.n, len(words))
            grams = np.unique(ngrams(words, n)[_varied(words, n)]) if n >= SHORTEST else words[:0]
            suite.ngrams += len(grams)
            suite.not_looked_for += not len(grams)
            if len(grams):
                found.setdefault(n, []).append((grams, number))
        if not suite.problems:
            raise UserError(f"decontaminate: {suite.name} holds no problem")
    with atomic_folder(folder) as aside:
        for n, parts in found.items():
            keys = np.concatenate([grams for grams, _ in parts])
            owner = np.concatenate([np.full(len(g), number, dtype=np.uint32) for g, number in parts])
            keys, first = np.unique(keys, return_index=True)
            np.savez(aside / f"{n}.npz", hashes=keys, suite=owner[first])
        (aside / "suites.json").write_text(
            json.dumps([asdict(s) for s in suites], indent=1) + "\n", encoding="utf-8"
        )


def _varied(words: NDArray[np.uint64], n: int) -> NDArray[np.bool_]:
    """Whether every n words in a row hold VARIED different ones: a row of numbers (all of them 0) is in any
    table."""
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(words, n), axis=1)
    return (np.diff(windows, axis=1) != 0).sum(axis=1) + 1 >= VARIED


def _name(source: Source) -> str:
    where = source.path or source.hub or f"world {source.world}"
    cut = f" rows {source.rows[0]}-{source.rows[1]}" if source.rows else ""
    return f"{where}{cut}" + (f" ({source.split})" if source.world or source.hub else "")


def _texts(source: Source, seed: int, section: Decontaminate) -> Iterator[str]:
    """Each problem's text; of a file's rows everything that may be asked or answered."""
    if source.world is not None:
        from onebase.data import problem_rows  # loads torch, which no worker needs

        for row in problem_rows([source], seed, section.world_problems, {}):
            yield str(row["problem"])
        return
    for n, row in enumerate(file_rows(source, {})):
        if n >= section.problems:
            return
        yield from _row_texts(row)


def _row_texts(row: dict[str, Any]) -> Iterator[str]:
    texts = [str(row[k]) for k in TEXTS if row.get(k)]
    texts += [m["content"] for m in row.get("messages") or []]
    yield from texts or [""]
