"""Text as one flat file of token ids, made once: what pretraining draws its windows from.

    <folder>/tokens.bin   ids one behind the other, uint16 or uint32; each document closed by the end mark
    <folder>/index.json   how many tokens, bytes and documents, what was skipped, what it was made from

Documents are read, cut into pieces and tokenised as a stream, so memory depends neither on the corpus nor on
its longest file or line.  A piece ends between a letter or digit and white space, where the pre-tokenizers of
byte-level BPE always cut, so that a document in pieces has the ids of the whole one; only where 4,096
characters hold no such place the cut falls anywhere.

The bytes are counted because the loss per token depends on the tokenizer and the loss per byte does not:

    bits per byte = nats per token / ln 2 * tokens / bytes

(as in The Pile, arXiv 2101.00027, section 3.1).
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from onebase.errors import UserError
from onebase.files import atomic_folder, settle
from onebase.recipe import Source
from onebase.rows import TABLES, chat_row, file_rows
from onebase.tokenizer import ChatTokenizer

TOKENS, INDEX = "tokens.bin", "index.json"
PIECE = 1 << 16  # most characters that are tokenised in one go
BATCH = 1 << 21  # characters that are handed to the tokenizer's threads together
BLOCK = 1 << 20  # bytes of one read
LOOK_BACK = 4096  # characters in which a place to cut is looked for
HEAD = 8192  # bytes at a file's start in which a zero byte means that it is binary


@dataclass(frozen=True, slots=True)
class Index:
    tokens: int
    """Ids in the file, end marks included."""
    bytes: int
    """UTF-8 bytes of the documents."""
    documents: int
    skipped: dict[str, int]
    """Files and rows left out: empty, binary, not UTF-8."""
    dtype: str
    vocabulary: str
    """Digest of the tokenizer."""
    source: str
    """Digest of the recipe's source and of the names, sizes and times of its files."""


def token_file(
    source: Source, tokenizer: ChatTokenizer, folder: Path, folders: dict[str, Path]
) -> np.memmap[Any, Any]:
    """The source's ids, mapped from `folder`; tokenised first unless they are there for the same source and
    tokenizer.  UserError where the source holds no text."""
    files = _files(source, folders)
    made_from = (vocabulary_digest(tokenizer), _source_digest(source, files))
    settle(folder)
    index = _found(folder)
    if index is None or (index.vocabulary, index.source) != made_from:
        index = _make(source, tokenizer, folder, folders, files, made_from)
    return np.memmap(folder / TOKENS, dtype=index.dtype, mode="r", shape=(index.tokens,))


def read_index(folder: Path) -> Index:
    """What is known of a token file; UserError where there is none or it is damaged."""
    index = _found(folder)
    if index is None:
        raise UserError(f"{folder}: no whole token file there ({TOKENS}, {INDEX})")
    return index


def bytes_per_token(folder: Path) -> float:
    """Bytes of text that one id stands for on average, end marks counted as ids."""
    index = read_index(folder)
    return index.bytes / index.tokens


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Loss per byte in bits.  The end mark is a target like any other and stands for no byte."""
    return nats_per_token / math.log(2) / bytes_per_token


def _found(folder: Path) -> Index | None:
    """The index of a whole token file, or None: absent, damaged, or not as long as it says."""
    try:
        index = Index(**json.loads((folder / INDEX).read_text(encoding="utf-8")))
        size = (folder / TOKENS).stat().st_size
    except (OSError, ValueError, TypeError):
        return None
    return index if index.tokens and size == index.tokens * np.dtype(index.dtype).itemsize else None


def _make(
    source: Source,
    tokenizer: ChatTokenizer,
    folder: Path,
    folders: dict[str, Path],
    files: list[Path],
    made_from: tuple[str, str],
) -> Index:
    dtype = np.dtype(np.uint16 if largest_id(tokenizer) < 1 << 16 else np.uint32)
    skipped: Counter[str] = Counter()
    with atomic_folder(folder) as aside:
        with open(aside / TOKENS, "wb") as out:
            writer = _Writer(out, tokenizer, dtype)
            for document in _chosen(_documents(source, folders, files, skipped), source.rows):
                for text in document:
                    writer.add(text)
                writer.end_document()
            writer.flush()
        if not writer.documents:
            raise UserError(_nothing(source, skipped))
        counts = (writer.tokens, writer.bytes, writer.documents)
        index = Index(*counts, dict(skipped), dtype.name, *made_from)
        (aside / INDEX).write_text(json.dumps(asdict(index), indent=1) + "\n", encoding="utf-8")
    return index


def _nothing(source: Source, skipped: Counter[str]) -> str:
    left_out = ", ".join(f"{n} {why}" for why, n in sorted(skipped.items()))
    cut = f" in rows {list(source.rows)}" if source.rows else ""
    return (
        f"{source.path or source.hub or source.stage}: no text{cut}; skipped: {left_out or 'nothing'}. "
        "A text file is UTF-8; a table (JSONL, JSON, Parquet, CSV) has a field `text` or a conversation."
    )


class _Writer:
    """Collects pieces until a batch is full, tokenises it and appends the ids."""

    def __init__(self, out: BinaryIO, tokenizer: ChatTokenizer, dtype: np.dtype[Any]) -> None:
        self.out, self.tokenizer, self.dtype = out, tokenizer, dtype
        self.tokens = self.bytes = self.documents = 0
        self.pieces: list[str] = []
        self.ends: list[bool] = []  # whether the piece is its document's last
        self.size = 0

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.ends.append(False)
        self.size += len(text)
        self.bytes += len(text.encode("utf-8", "surrogatepass"))
        if self.size >= BATCH:
            self.flush(keep=1)  # the last may yet turn out to end its document

    def end_document(self) -> None:
        self.ends[-1] = True
        self.documents += 1

    def flush(self, keep: int = 0) -> None:
        whole = len(self.pieces) - keep
        end = [self.tokenizer.document_end_id]
        encoded = self.tokenizer.encode_batch(self.pieces[:whole]) if whole else []
        for ids, last in zip(encoded, self.ends[:whole], strict=True):
            row = np.array(ids + end if last else ids, dtype=self.dtype)
            self.out.write(row.tobytes())
            self.tokens += len(row)
        del self.pieces[:whole], self.ends[:whole]
        self.size = sum(map(len, self.pieces))


def _chosen(documents: Iterator[Iterator[str]], rows: tuple[int, int] | None) -> Iterator[Iterator[str]]:
    """Documents [start, stop), counted without the skipped ones."""
    start, stop = rows or (0, None)
    for n, document in enumerate(documents):
        if stop is not None and n >= stop:
            return
        if n >= start:
            yield document


def _documents(
    source: Source, folders: dict[str, Path], files: list[Path], skipped: Counter[str]
) -> Iterator[Iterator[str]]:
    """Every document as its pieces, none of them empty; what is left out is counted in `skipped`."""
    whole = source.model_copy(update={"rows": None})  # `_chosen` cuts
    if source.path is None:
        yield from _rows(whole, folders, skipped)
        return
    for file in files:
        if file.suffix in TABLES:
            yield from _rows(whole.model_copy(update={"path": str(file)}), folders, skipped)
        elif why := _unfit(file):
            skipped[why] += 1
        else:
            yield pieces(_blocks(file))


def _rows(source: Source, folders: dict[str, Path], skipped: Counter[str]) -> Iterator[Iterator[str]]:
    for row in file_rows(source, folders):
        text = row.get("text")
        if text is None:
            turns = chat_row(row, str(source.path or source.hub or f"stage {source.stage}"))
            text = "\n".join(m["content"] for m in turns)
        if text:
            yield pieces(iter([str(text)]))
        else:
            skipped["empty"] += 1


def _unfit(file: Path) -> str | None:
    """Why a file is no text, found before a token of it is written; None where it is."""
    if file.stat().st_size == 0:
        return "empty"
    with open(file, "rb") as f:
        if b"\0" in f.read(HEAD):
            return "binary"
    try:
        for _ in _blocks(file):
            pass
    except UnicodeDecodeError:
        return "not UTF-8"
    return None


def _blocks(file: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(file, "rb") as f:
        while data := f.read(BLOCK):
            yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def pieces(blocks: Iterator[str]) -> Iterator[str]:
    """The blocks' text in pieces of at most PIECE characters."""
    rest = ""
    for block in blocks:
        text, at = rest + block, 0
        while len(text) - at > PIECE:
            end = _cut(text, at, at + PIECE)
            yield text[at:end]
            at = end
        rest = text[at:]
    if rest:
        yield rest


def _cut(text: str, start: int, most: int) -> int:
    """The last place up to `most` between a letter or digit and white space; `most` where there is none."""
    for i in range(most, max(start, most - LOOK_BACK), -1):
        if text[i].isspace() and text[i - 1].isalnum():
            return i
    return most


def _files(source: Source, folders: dict[str, Path]) -> list[Path]:
    """The files that a source reads, in the order it reads them; none for a hub source."""
    if source.stage is not None:
        return [folders[source.stage] / "rows.jsonl"]
    if source.path is None:
        return []
    root = Path(source.path)
    if not root.exists():
        raise UserError(f"{root}: no such file or folder")
    files = [root] if root.is_file() else sorted(p for p in root.glob(source.glob) if p.is_file())
    if not files:
        raise UserError(f"{root}: no file matches glob {source.glob!r}")
    return files


def largest_id(tokenizer: ChatTokenizer) -> int:
    return max(*tokenizer.hf.get_vocab().values(), tokenizer.document_end_id)


def vocabulary_digest(tokenizer: ChatTokenizer) -> str:
    """Of everything that decides which ids a text gets."""
    backend = getattr(tokenizer.hf, "backend_tokenizer", None)
    known = backend.to_str() if backend is not None else json.dumps(tokenizer.hf.get_vocab(), sort_keys=True)
    return hashlib.sha256(f"{tokenizer.document_end_id} {known}".encode()).hexdigest()


def _source_digest(source: Source, files: list[Path]) -> str:
    """Contents are not read: name, size and time of change stand for them, as in make.  A hub source is known
    by its name only."""
    said = source.model_dump_json(exclude={"path", "weight", "world", "styles", "difficulty"})
    digest = hashlib.sha256(said.encode())
    for file in files:
        stat = file.stat() if file.exists() else None
        digest.update(f"{file}\0{stat and (stat.st_size, stat.st_mtime_ns)}\0".encode())
    return digest.hexdigest()
