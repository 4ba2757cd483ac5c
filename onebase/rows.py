"""Rows of files and hub data sets through `datasets`, in our field names.

A row is one of: text (`text`), a conversation (`messages`, or `problem` with `solution` or `completion`), a
problem (`problem`, `answer`).  `fields` of a source renames theirs to ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onebase.errors import UserError
from onebase.recipe import Source

# What a verifier may need instead of an answer: unit tests, instructions, a schema, a generator's own entry.
JUDGED_BY = {"answer", "tests", "checks", "instruction_id_list", "schema", "entry"}
TABLES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def file_rows(source: Source, folders: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Rows of a path, hub or stage source, renamed and cut to `rows`."""
    start, stop = source.rows or (0, None)
    for n, row in enumerate(_raw_rows(source, folders, stop)):
        if stop is not None and n >= stop:
            return
        if n >= start:
            yield _renamed(row, source, n)


def _raw_rows(source: Source, folders: dict[str, Path], stop: int | None) -> Iterator[dict[str, Any]]:
    if source.hub is not None and source.hub.startswith("reasoning_gym:"):
        from onebase.verifiers.reasoning_gym import source_rows

        yield from source_rows(source.hub.partition(":")[2], source.split, stop)
        return
    if source.hub is not None:
        yield from _hub(source)
        return
    if source.stage is not None:
        path = folders[source.stage] / "rows.jsonl"
        if not path.is_file():
            raise UserError(f"stage {source.stage} has no rows at {path}; run it first")
        files = [path]
    else:
        assert source.path is not None
        root = Path(source.path)
        if not root.exists():
            raise UserError(f"{root}: no such file or folder")
        files = [root] if root.is_file() else sorted(p for p in root.glob(source.glob) if p.is_file())
        if not files:
            raise UserError(f"{root}: no file matches glob {source.glob!r}")
    for file in files:
        yield from _file(file)


def _file(file: Path) -> Iterator[dict[str, Any]]:
    """Tables row by row; any other file is one text, left out where it is binary or not UTF-8."""
    kind = TABLES.get(file.suffix)
    if kind is None:
        data = file.read_bytes()
        if not data or b"\0" in data[:8192]:
            return
        try:
            yield {"text": data.decode("utf-8")}
        except UnicodeDecodeError:
            return
        return
    import datasets

    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(kind, data_files=str(file), split="train", streaming=True)
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as e:
        cause = e.__cause__ or e
        raise UserError(f"{file}: cannot be read as {kind}: {str(cause).splitlines()[0]}") from e


def _hub(source: Source) -> Iterator[dict[str, Any]]:
    import datasets

    assert source.hub is not None
    name, _, config = source.hub.partition(":")
    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(name, config or None, split=source.split, streaming=True)
    except (datasets.exceptions.DatasetNotFoundError, ValueError, OSError) as e:
        raise UserError(
            f"data set {source.hub!r} cannot be opened: {str(e).splitlines()[0]}  "
            "Without network, download it once and name its folder as `path`."
        ) from e


def _renamed(row: dict[str, Any], source: Source, n: int) -> dict[str, Any]:
    where = f"{source.path or source.hub or source.stage}, row {n}"
    out = dict(row)
    for ours, theirs in source.fields.items():
        if theirs not in row:
            raise UserError(f"{where}: no field {theirs!r} (for {ours!r}); the row has: {', '.join(row)}")
        out[ours] = row[theirs]
    if "problem" in out:
        out["problem"] = source.prompt.replace("{problem}", str(out["problem"]))
    if source.answer_after is not None and "answer" in out:
        text = str(out["answer"])
        if source.answer_after not in text:
            raise UserError(f"{where}: the answer has no {source.answer_after!r}: {text[-80:]!r}")
        out["answer"] = text.split(source.answer_after)[-1].strip()
    return out


def chat_row(row: dict[str, Any], where: str) -> list[dict[str, str]]:
    """A conversation that ends with the assistant, from `messages` or from `problem` and an answer text."""
    messages = row.get("messages")
    if messages is None and "problem" in row:
        text = row.get("completion") or row.get("solution") or row.get("answer")
        if text is not None:
            messages = [
                {"role": "user", "content": row["problem"]},
                {"role": "assistant", "content": str(text)},
            ]
    if not messages or messages[-1].get("role") != "assistant":
        raise UserError(
            f"{where}: a row for SFT has `messages` that end with the assistant, or `problem` with "
            f"`completion`, `solution` or `answer`; this one has: {', '.join(row)}"
        )
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def problem_row(row: dict[str, Any], source: Source) -> dict[str, Any]:
    where = source.path or source.hub or f"stage {source.stage}"
    given = {field for field, value in row.items() if value not in (None, "")}
    if "problem" not in given or not given & JUDGED_BY:
        raise UserError(
            f"{where}: a problem needs `problem` and `answer`; this row has: {', '.join(row)}. "
            "Rename with `fields`.  In place of `answer` it may have: "
            f"{', '.join(sorted(JUDGED_BY - {'answer'}))}."
        )
    family = row.get("family") or Path(where).stem
    answer = "" if row.get("answer") is None else str(row["answer"])
    return {**row, "problem": str(row["problem"]), "answer": answer, "family": family}
