"""datatrove's readers, bounded: no file, line, row or record is held whole where it is longer than allowed.

Each reader is datatrove's own class with another `read_file`, because theirs read a line, a record or a row
of any length into memory and drop the rest of a file at the first byte that is not UTF-8.  What is left out
is counted in `left_out` by reason; nothing is left out silently.
"""

from __future__ import annotations

import codecs
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, BinaryIO

from datatrove.data import Document
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.utils.logging import logger

from onebase.pretrain.corpus_config import FIELD

BLOCK = 1 << 20  # bytes of one read
ROW_GROUP = 1 << 30  # bytes of one Parquet row group's text that are read
LONG, EMPTY, BINARY, NOT_UTF8, DAMAGED = "too long", "empty", "binary", "not UTF-8", "damaged or cut short"
logger.disable("datatrove")  # it would tell of every file and bucket
LONGEST_LINE, MEAN_LINE, LEAST_ALNUM = 1000, 100, 0.25


class _Bounded:
    """What all readers share: the bound, the counts, the range of a file."""

    most: int
    left_out: Counter[str]
    fields: list[str]
    """Of a row, as the template names them."""
    cut: int = 0
    """Documents that were cut because their file was longer than allowed."""
    span: tuple[int, int] | None = None
    """Bytes [start, end) of the file: lines that begin there."""


def make(kind: str, folder: str, most: int, template: str) -> Any:
    """The reader of a format."""
    classes = {
        "text": TextReader,
        "code": CodeReader,
        "lines": LinesReader,
        "jsonl": RowsReader,
        "parquet": TableReader,
        "warc": ArchiveReader,
    }
    reader = classes[kind](folder, adapter=_adapter(template))
    reader.most, reader.left_out, reader.fields = most, Counter(), FIELD.findall(template)
    return reader


def _adapter(template: str) -> Any:
    """datatrove's adapter: the text made from the row's fields, and nothing else of it kept."""
    fields = FIELD.findall(template)

    def adapt(self: Any, data: dict[str, Any], path: str, number: int | str) -> dict[str, Any]:
        missing = [f for f in fields if data.get(f) is None]
        if missing:
            self.left_out[f"no field {missing[0]!r}"] += 1
            return {"text": "", "id": ""}
        text = FIELD.sub(lambda m: str(data[m[1]]), template)
        why = (
            EMPTY if not text.strip() else BINARY if "\0" in text else LONG if len(text) > self.most else None
        )
        if why:
            self.left_out[why] += 1
            return {"text": "", "id": ""}
        return {"text": text, "id": f"{path}#{number}", "metadata": {}}

    return adapt


def bounded_lines(
    f: BinaryIO, most: int, span: tuple[int, int] | None = None
) -> Iterator[tuple[int, bytes | None]]:
    """(where the line begins, line), None in its place where it is longer than `most`: such a line is passed
    over in blocks, never held.  With `span`, lines that begin in [start, end)."""
    at, end = span or (0, 1 << 62)
    if at:
        f.seek(at - 1)
        at += -1 + _pass_over(f, end - at + 1)  # behind the line before; none is lost if it ends just here
    while at < end:
        line = f.readline(most + 1)
        if not line:
            return
        start, at = at, at + len(line)
        if len(line) > most and not line.endswith(b"\n"):
            at += _pass_over(f, end - at)
            yield start, None
        else:
            yield start, line


def _pass_over(f: BinaryIO, most: int) -> int:
    """Read up to behind the next line end, or `most` bytes or a little more; returns how many that were."""
    passed = 0
    while passed < most and (block := f.readline(BLOCK)):
        passed += len(block)
        if block.endswith(b"\n"):
            break
    return passed


def _torn(error: Exception) -> bool:
    """Whether the error is that of a compressed file that is cut short or damaged."""
    names = {"BadGzipFile", "ZstdError", "ArrowInvalid", "ArchiveLoadFailed"}
    return isinstance(error, EOFError | zlib.error) or type(error).__name__ in names


class LinesReader(_Bounded, BaseDiskReader):
    """Text of which each line is a document."""

    name = "lines"

    def read_file(self, filepath: str) -> Iterator[Document]:
        for start, line in _lines(self, filepath):
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                self.left_out[NOT_UTF8] += 1
                continue
            if document := self.get_document_from_dict({"text": text}, filepath, start):
                yield document


class RowsReader(_Bounded, JsonlReader):
    """JSONL."""

    def read_file(self, filepath: str) -> Iterator[Document]:
        import orjson

        for start, line in _lines(self, filepath):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                self.left_out["not JSON" if _is_utf8(line) else NOT_UTF8] += 1
                continue
            if not isinstance(row, dict):
                self.left_out["not a JSON object"] += 1
            elif document := self.get_document_from_dict(row, filepath, start):
                yield document


def _lines(reader: Any, filepath: str) -> Iterator[tuple[int, bytes]]:
    with opened(reader, filepath) as f:
        try:
            for start, line in bounded_lines(f, reader.most, reader.span):
                if line is None:
                    reader.left_out[LONG] += 1
                else:
                    yield start, line
        except Exception as error:
            if not _torn(error):
                raise
            reader.left_out[DAMAGED] += 1


def opened(reader: Any, filepath: str) -> Any:
    """The file's bytes, decompressed by its name.  fsspec's own zstd ends silently behind the first frame and
    where a file is cut short."""
    if not filepath.endswith(".zst"):
        return reader.data_folder.open(filepath, "rb", compression="infer")
    return io.BufferedReader(_Zstd(reader.data_folder.open(filepath, "rb", compression=None)), BLOCK)


class _Zstd(io.RawIOBase):
    """All frames of a zstd file; EOFError where the last is not whole.  Compressed bytes are fed in small
    pieces, since a few of them may stand for very many."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.rest, self.made = raw, b"", memoryview(b"")
        self.frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self.made:
            data = self.rest or self.raw.read(2048)
            self.rest = b""
            if not data:
                if self.frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0
            frame = self.frame or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self.made = memoryview(frame.decompress(data))
            self.frame, self.rest = (None, frame.unused_data) if frame.eof else (frame, b"")
        n = min(len(buffer), len(self.made))
        buffer[:n], self.made = self.made[:n], self.made[n:]
        return n

    def close(self) -> None:
        self.raw.close()
        super().close()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class TextReader(_Bounded, BaseDiskReader):
    """Text of which each file is a document; a longer one is cut, at white space where there is some."""

    name = "text"

    def read_file(self, filepath: str) -> Iterator[Document]:
        why, size = self.unfit(filepath)
        if why:
            self.left_out[why] += 1
            return
        self.cut += size > self.most
        for n, text in enumerate(_cut(self.blocks(filepath), self.most)):
            if document := self.get_document_from_dict({"text": text}, filepath, n):
                yield document

    def unfit(self, filepath: str) -> tuple[str | None, int]:
        """Why the file is no text, found before a word of it is used, and its size in characters."""
        size = 0
        try:
            for block in self.blocks(filepath):
                size += len(block)
                if "\0" in block:
                    return BINARY, size
        except UnicodeDecodeError:
            return NOT_UTF8, size
        except Exception as error:
            if not _torn(error):
                raise
            return DAMAGED, size
        return (None if size else EMPTY), size

    def blocks(self, filepath: str) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with opened(self, filepath) as f:
            while data := f.read(BLOCK):
                yield decoder.decode(data)
        yield decoder.decode(b"", final=True)


def _cut(blocks: Iterator[str], most: int) -> Iterator[str]:
    rest = ""
    for block in blocks:
        rest += block
        while len(rest) > most:
            end = max(rest.rfind("\n", most // 2, most), rest.rfind(" ", most // 2, most)) + 1 or most
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


class CodeReader(TextReader):
    """Source files; what is generated or minified is left out by the rules of Codex (arXiv 2107.03374,
    section 3.1): a line of more than 1,000 characters, lines of more than 100 on average, hardly a letter or
    digit."""

    name = "code"

    def read_file(self, filepath: str) -> Iterator[Document]:
        why, size = self.unfit(filepath)
        text = ""
        if not why and size > self.most:
            why = LONG
        if not why:
            text = "".join(self.blocks(filepath))
            lengths = [len(line) for line in text.split("\n")]
            letters = sum(c.isalnum() for c in text)
            if max(lengths) > LONGEST_LINE or size / len(lengths) > MEAN_LINE or letters < LEAST_ALNUM * size:
                why = "generated or minified"
        if why:
            self.left_out[why] += 1
        elif document := self.get_document_from_dict({"text": text}, filepath, 0):
            yield document


class TableReader(_Bounded, ParquetReader):
    """Parquet, a few rows at a time; a row group whose text is over 1 GiB is left out, since Parquet's pages
    cannot be read in part."""

    def read_file(self, filepath: str) -> Iterator[Document]:
        import pyarrow
        import pyarrow.parquet as pq

        fields = self.fields
        try:
            with self.data_folder.open(filepath, "rb") as f, pq.ParquetFile(f) as table:
                known = [name for name in fields if name in table.schema_arrow.names]
                if len(known) < len(fields):
                    absent = next(name for name in fields if name not in known)
                    self.left_out[f"no field {absent!r}"] += table.metadata.num_rows
                    return
                number = 0
                for group in range(table.num_row_groups):
                    meta = table.metadata.row_group(group)
                    sizes = {
                        meta.column(c).path_in_schema: meta.column(c).total_uncompressed_size
                        for c in range(meta.num_columns)
                    }
                    if sum(sizes.get(name, 0) for name in known) > ROW_GROUP:
                        self.left_out[LONG] += meta.num_rows
                        number += meta.num_rows
                        continue
                    for batch in table.iter_batches(batch_size=64, row_groups=[group], columns=known):
                        for row in batch.to_pylist():
                            number += 1
                            if document := self.get_document_from_dict(row, filepath, number - 1):
                                yield document
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, EOFError):
            self.left_out[DAMAGED] += 1


class ArchiveReader(_Bounded, BaseDiskReader):
    """WARC and WET: the text of `conversion` records, and of `response` records in HTML, by trafilatura as
    FineWeb does.  datatrove's own reader asks libmagic, a library of the system, for a record's type; here
    the record's headers tell."""

    name = "archive"
    CHARSET = re.compile(rb"""charset=["']?([\w-]+)""", re.IGNORECASE)

    def read_file(self, filepath: str) -> Iterator[Document]:
        from datatrove.pipeline.extractors.base import ExtractorSandbox
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed

        with ExtractorSandbox(timeout=10) as sandbox, self.data_folder.open(filepath, "rb") as f:
            try:
                for number, record in enumerate(ArchiveIterator(f)):
                    if (text := self._text(record, sandbox)) is None:
                        continue
                    if document := self.get_document_from_dict({"text": text}, filepath, number):
                        yield document
            except (ArchiveLoadFailed, EOFError, zlib.error):
                self.left_out[DAMAGED] += 1

    def _text(self, record: Any, sandbox: Any) -> str | None:
        if record.rec_type not in ("response", "conversion"):
            return None  # requests and descriptions are no documents
        kind = record.http_headers.get_header("Content-Type", "") if record.http_headers else ""
        kind = record.rec_headers.get_header("WARC-Identified-Payload-Type") or kind
        if record.rec_type == "response" and not re.match(r"text/html|application/xhtml", kind or ""):
            self.left_out["not HTML"] += 1
            return None
        data = record.content_stream().read(8 * self.most + 1)  # pages are mostly markup
        if len(data) > 8 * self.most:
            self.left_out[LONG] += 1
            return None
        told = self.CHARSET.search(kind.encode()) or self.CHARSET.search(data[:1024])
        for charset in dict.fromkeys(["utf-8", told[1].decode() if told else "utf-8"]):
            try:
                page = data.decode(charset)
                break
            except (UnicodeDecodeError, LookupError):
                continue
        else:
            self.left_out[NOT_UTF8] += 1
            return None
        if record.rec_type == "conversion":
            return page
        try:
            return sandbox.process_document(page, _extract) or ""
        except Exception:  # whatever a page makes of the extractor: counted, and the next page gets a new one
            self.left_out["extraction failed"] += 1
            return None


def _extract(page: str) -> str | None:
    return _extractor().extract(page) if page else None


@cache
def _extractor() -> Any:
    from datatrove.pipeline.extractors import Trafilatura

    return Trafilatura()
