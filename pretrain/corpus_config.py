"""What `onebase corpus` is told: one YAML file, read as strictly as a recipe (onebase/recipe_loader.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from onebase import recipe_loader, yaml_places
from onebase.errors import UserError
from onebase.recipe import Section, Source
from onebase.wording import given
from onebase.yaml_places import Document, Keys

FIELD = re.compile(r"\{(\w+)\}")
Filter = Literal["gopher_quality", "gopher_repetition", "fineweb"]


class CorpusSource(Section):
    """Files of one origin, with their filters and their weight in the mix."""

    path: str
    """File or folder."""
    format: Literal["auto", "text", "lines", "jsonl", "parquet", "warc", "code"] = "auto"
    """auto: by the file's name.  text: a file is a document; lines: a line is one; code: text, with the rules
    for source files and without vendored folders.  .gz and .zst are read, too."""
    glob: str = "**/*"
    """Which files of a folder."""
    template: str = "{text}"
    """The text of a JSONL or Parquet row, its fields in braces: "{problem}\\n{solution}"."""
    weight: float = Field(1.0, gt=0)
    """Share of this source in the mix, in tokens; it does not change what is prepared."""
    filters: list[Filter] = ["gopher_repetition", "gopher_quality", "fineweb"]
    """datatrove's, with its thresholds.  They were made for web prose: [] for code and short rows."""
    language: list[str] = []
    """Languages that are kept, as in [en, de]; []: all."""
    language_threshold: float = Field(0.65, ge=0, le=1)
    """Least score of such a language."""
    min_math: float = Field(0.0, ge=0, le=1)
    """Least score for mathematics (pretrain/corpus_scores.py), as for code below."""
    min_code: float = Field(0.0, ge=0, le=1)
    min_whole: float = Field(0.0, ge=0, le=1)
    """Least share of formulas and code that came through extraction whole."""

    @field_validator("template")
    @classmethod
    def _names_a_field(cls, value: str) -> str:
        if not FIELD.search(value):
            raise ValueError(
                f"template: names no field; given: {value!r}; allowed: text with {{field}} in it"
            )
        return value


class CorpusTokenizer(Section):
    """An existing tokenizer, or a byte-level BPE trained on the kept text."""

    path: str | None = None
    """Checkpoint or tokenizer folder, or hub id; null: train one."""
    vocab_size: int = Field(32768, ge=300)
    sample_bytes: int = Field(50_000_000, gt=0)
    """Characters that it is trained on, drawn from all sources by weight."""


class Dedup(Section):
    """Near-duplicates by MinHash (datatrove; Lee et al., arXiv 2107.06499; FineWeb's numbers): documents
    whose n-grams overlap by some three quarters are found, one of each group is kept."""

    enabled: bool = True
    n_grams: int = Field(5, gt=0)
    """Words of a shingle."""
    buckets: int = Field(14, gt=0)
    hashes: int = Field(8, gt=0)
    """Hashes of a bucket; two documents of similarity s meet with probability 1 - (1 - s^hashes)^buckets."""


class Decontaminate(Section):
    """Documents that share an n-gram with a problem of an evaluation are left out (GPT-3, arXiv 2005.14165,
    appendix C)."""

    recipes: list[str] = []
    """Recipes (files or shipped names): everything that their stages evaluate on or hold out."""
    sources: list[Source] = []
    """More problems, written as in a recipe: path, hub or world."""
    n: int = Field(13, ge=8)
    """Words; a shorter problem counts as a whole from 8 words on."""
    problems: int = Field(100_000, gt=0)
    """Most problems of one source."""
    world_problems: int = Field(256, gt=0)
    """Problems of one world."""


class Repeats(Section):
    """A run of token ids that repeats itself: a short period, too many times (OLMo 2, arXiv 2501.00656,
    section 3.1: such documents made the loss spike).  The document is left out."""

    period: int = Field(13, gt=0)
    """Longest period in ids."""
    most: int = Field(32, gt=0)
    """Most repeats that are allowed."""


class CorpusConfig(Section):
    name: str
    seed: int = 0
    sources: dict[str, CorpusSource] = Field(min_length=1)
    """By name."""
    tokenizer: CorpusTokenizer = CorpusTokenizer()
    dedup: Dedup = Dedup()
    decontaminate: Decontaminate = Decontaminate()
    mask: list[Literal["email", "ip", "phone", "card"]] = ["email", "ip"]
    """Personal data that are replaced by a placeholder."""
    repeats: Repeats = Repeats()
    heldout: float = Field(0.0, ge=0, lt=1)
    """Share of the documents, chosen by their text, that become the split `heldout`."""
    max_document_bytes: int = Field(1 << 20, ge=1024)
    """A longer text file is cut, a longer line, row, page or source file is left out; so memory is bounded.
    Bytes of lines and pages, characters of files and rows."""
    part_bytes: int = Field(64 << 20, ge=1 << 10)
    """Bytes of text in one piece of work, which is the unit of resume; a shard holds at most so much."""

    @model_validator(mode="after")
    def _names(self) -> CorpusConfig:
        bad = [n for n in [self.name, *self.sources] if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", n)]
        if bad:
            raise ValueError(f"given the name {given(bad[0])}; allowed: letters, digits, - and _")
        if self.part_bytes < self.max_document_bytes:
            raise ValueError(
                f"part_bytes={self.part_bytes} is less than max_document_bytes={self.max_document_bytes}"
            )
        return self


def load(path: str | Path, overrides: Iterable[str] = ()) -> CorpusConfig:
    """The configuration in the file, with `a.b=c` overrides applied; UserError that lists every fault."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a corpus configuration (.yaml)")
    document = yaml_places.read(file)
    for override in overrides:
        yaml_places.set_value(document, override)
    recipe_loader.expand_home(document.data)
    try:
        config = CorpusConfig.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        faults: Iterable[str] = recipe_loader.pydantic_faults(error, document, CorpusConfig)
        raise UserError("\n".join(dict.fromkeys(faults))) from None
    found = list(_faults(config, document))
    if found:
        raise UserError("\n".join(found))
    return config


def _faults(config: CorpusConfig, document: Document) -> Iterator[str]:
    for name, source in config.sources.items():
        if not Path(source.path).exists():
            yield _missing(document, ("sources", name, "path"), source.path)
    for n, suite in enumerate(config.decontaminate.sources):
        keys: Keys = ("decontaminate", "sources", n)
        if suite.stage is not None or suite.corpus is not None:
            text = "no set of problems\n  allowed: path, hub or world"
            yield f"{document.place(keys)}: {'.'.join(map(str, keys))}: {text}"
        elif suite.path is not None and not Path(suite.path).exists():
            yield _missing(document, (*keys, "path"), suite.path)
    for n, recipe in enumerate(config.decontaminate.recipes):
        try:
            recipe_loader.find(recipe)
        except UserError as error:
            yield f"{document.place(('decontaminate', 'recipes', n))}: decontaminate.recipes.{n}: {error}"


def _missing(document: Document, keys: Keys, path: str) -> str:
    dotted = ".".join(map(str, keys))
    return (
        f"{document.place(keys)}: {dotted}: given {given(path)}: no such file or folder (from {Path.cwd()})"
    )
