"""Token files: the whole text's ids whatever the pieces, what is skipped, reuse, memory, bits per byte."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase.data import TokenRows
from onebase.errors import UserError
from onebase.pretrain import shards
from onebase.pretrain.shards import bits_per_byte, bytes_per_token, read_index, token_file
from onebase.recipe import Source
from onebase.tokenizer import ChatTokenizer, train

PROSE = (
    "The quick brown fox jumps over 13 lazy dogs; größere Füchse auch.\n\n\tdef f(x):  return x + 1\n" * 20
)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return train([PROSE], 400)


def ids_of(text: str, tokenizer: ChatTokenizer) -> list[int]:
    return [*tokenizer.encode(text), tokenizer.document_end_id]


def write(folder: Path, **files: bytes | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def test_documents_in_order_each_closed(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    text = write(tmp_path / "text", b__txt="second 2", a__md="first\r\n", c__py="x = '<|eos|>'")
    made = token_file(Source(path=str(text)), tokenizer, tmp_path / "out", {})
    expected = [i for t in ("first\r\n", "second 2", "x = '<|eos|>'") for i in ids_of(t, tokenizer)]
    assert made.tolist() == expected and made.dtype == np.uint16
    # an end mark written in a text is characters; only documents' ends are marks
    assert (made == tokenizer.document_end_id).sum() == 3
    index = read_index(tmp_path / "out")
    assert (index.documents, index.tokens, index.bytes) == (3, len(expected), 7 + 8 + 13)


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    import copy

    wide = ChatTokenizer(copy.deepcopy(tokenizer.hf))
    known = wide.hf.get_vocab()
    wide.hf.get_vocab = lambda: known | {"far": 70_000}  # a hole in the ids, as some vocabularies have
    text = write(tmp_path / "text", a="some text")
    made = token_file(Source(path=str(text)), wide, tmp_path / "out", {})
    assert made.dtype == np.uint32 and made.tolist() == ids_of("some text", wide)


def test_unfit_files_are_skipped_and_counted(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    late = b"ok " * 500_000 + b"\xff"  # the fault lies behind the first block
    text = write(
        tmp_path / "text",
        a=b"",
        b=b"\x7fELF\0\0",
        c="caf\xe9".encode("latin-1"),
        d=late,
        e="good",
        f=b"cut \xc3",
    )
    made = token_file(Source(path=str(text)), tokenizer, tmp_path / "out", {})
    assert made.tolist() == ids_of("good", tokenizer)
    assert read_index(tmp_path / "out").skipped == {"empty": 1, "binary": 1, "not UTF-8": 3}


def test_nothing_left_is_told(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    text = write(tmp_path / "text", a=b"", b=b"\0")
    with pytest.raises(UserError, match="1 binary, 1 empty"):
        token_file(Source(path=str(text)), tokenizer, tmp_path / "out", {})
    write(text, c="words")
    with pytest.raises(UserError, match=r"in rows \[1, 9\]"):
        token_file(Source(path=str(text), rows=(1, 9)), tokenizer, tmp_path / "out", {})
    with pytest.raises(UserError, match="no such file"):
        token_file(Source(path=str(tmp_path / "absent")), tokenizer, tmp_path / "out", {})
    with pytest.raises(UserError, match="no file matches"):
        token_file(Source(path=str(text), glob="*.rst"), tokenizer, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_rows_hold_documents_out_without_overlap(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    text = write(tmp_path / "text", a="one", b=b"\0", c="two", d="three", e="four")
    parts = [
        token_file(Source(path=str(text), rows=rows), tokenizer, tmp_path / f"out{rows}", {}).tolist()
        for rows in ((0, 2), (2, 100))
    ]
    whole = token_file(Source(path=str(text)), tokenizer, tmp_path / "out", {}).tolist()
    assert parts[0] == ids_of("one", tokenizer) + ids_of("two", tokenizer) and parts[0] + parts[1] == whole


def test_tables_give_a_document_a_row(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    rows = [{"text": "plain"}, {"text": ""}, {"text": "more"}]
    chats = [{"problem": "1+1?", "solution": "It is 2."}]
    text = write(
        tmp_path / "text",
        a__jsonl="\n".join(map(json.dumps, rows)),
        b__jsonl="\n".join(map(json.dumps, chats)),
        c__txt="last",
    )
    made = token_file(Source(path=str(text)), tokenizer, tmp_path / "out", {}).tolist()
    assert made == [i for t in ("plain", "more", "1+1?\nIt is 2.", "last") for i in ids_of(t, tokenizer)]
    assert read_index(tmp_path / "out").skipped == {"empty": 1}
    stage = write(tmp_path / "stage", rows__jsonl=json.dumps({"problem": "p", "completion": "c"}))
    made = token_file(Source(stage="made"), tokenizer, tmp_path / "out2", {"made": stage}).tolist()
    assert made == ids_of("p\nc", tokenizer)


def test_batches_cut_anywhere_give_the_same_file(
    tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    files = {f"f{n:02}": PROSE[: rng.randrange(1, 900)] for n in range(40)}
    text = write(tmp_path / "text", **files)
    made = []
    for n, (piece, batch, block) in enumerate([(10**6, 10**6, 10**6), (64, 200, 7), (50, 1, 100)]):
        monkeypatch.setattr(shards, "PIECE", piece)
        monkeypatch.setattr(shards, "BATCH", batch)
        monkeypatch.setattr(shards, "BLOCK", block)
        monkeypatch.setattr(shards, "LOOK_BACK", 50)
        made.append(token_file(Source(path=str(text)), tokenizer, tmp_path / f"out{n}", {}).tolist())
    assert made[0] == [i for t in files.values() for i in ids_of(t, tokenizer)]
    assert made[1] == made[0] and made[2] == made[0]
    indices = [read_index(tmp_path / f"out{n}") for n in range(3)]
    assert indices[0] == indices[1] == indices[2]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=8), st.integers(1, 12))
def test_pieces_are_the_text(blocks: list[str], most: int) -> None:
    former, shards.PIECE = shards.PIECE, most
    try:
        pieces = list(shards.pieces(iter(blocks)))
    finally:
        shards.PIECE = former
    assert "".join(pieces) == "".join(blocks)
    assert all(0 < len(p) <= most for p in pieces)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab1 \n\t.,-é中"), min_size=30, max_size=300))
def test_a_cut_at_its_place_changes_no_id(tokenizer: ChatTokenizer, text: str) -> None:
    """Where `_cut` finds a place, the two parts' ids are the whole's."""
    at = shards._cut(text, 0, len(text) // 2)
    if text[at].isspace() and text[at - 1].isalnum():
        assert tokenizer.encode(text[:at]) + tokenizer.encode(text[at:]) == tokenizer.encode(text)


def test_reused_until_source_or_tokenizer_changes(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    text, out = write(tmp_path / "text", a="words and more words"), tmp_path / "out"
    source = Source(path=str(text))

    def made() -> tuple[int, list[int]]:
        ids = token_file(source, tokenizer, out, {}).tolist()
        return (out / "tokens.bin").stat().st_ino, ids

    first = made()
    assert made() == first
    write(text, b="new")
    second = made()
    assert second[0] != first[0] and second[1] == first[1] + ids_of("new", tokenizer)
    os.utime(text / "a", ns=(1, 1))
    third = made()
    assert third[0] != second[0]
    tokenizer = train([PROSE], 320)
    assert made()[1] == ids_of("words and more words", tokenizer) + ids_of("new", tokenizer)
    source = Source(path=str(text), rows=(1, 2))
    assert made()[1] == ids_of("new", tokenizer)


@pytest.mark.parametrize("damage", ["short", "no index", "bad index", "no tokens"])
def test_a_damaged_file_is_made_again(tmp_path: Path, tokenizer: ChatTokenizer, damage: str) -> None:
    text, out = write(tmp_path / "text", a="words and more words"), tmp_path / "out"
    source = Source(path=str(text))
    whole = token_file(source, tokenizer, out, {}).tolist()
    match damage:
        case "short":
            os.truncate(out / "tokens.bin", 4)
        case "no index":
            (out / "index.json").unlink()
        case "bad index":
            (out / "index.json").write_text('{"tokens": 3')
        case _:
            (out / "tokens.bin").unlink()
    with pytest.raises(UserError, match="no whole token file"):
        bytes_per_token(out)
    assert token_file(source, tokenizer, out, {}).tolist() == whole
    assert bytes_per_token(out) == 20 / len(whole)


def test_a_kill_leaves_nothing_or_the_whole(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Killed while it writes: the folder is absent; the next call makes it."""
    text, out = write(tmp_path / "text", **{f"f{n}": PROSE for n in range(50)}), tmp_path / "out"
    tokenizer.save(tmp_path / "tokenizer")
    code = (
        "import os, signal, sys; from pathlib import Path; from onebase.pretrain import shards\n"
        "from onebase.recipe import Source; from onebase.tokenizer import ChatTokenizer\n"
        "shards.BATCH = 1000; flush = shards._Writer.flush; calls = []\n"
        "def die(self, keep=0):\n"
        "    flush(self, keep); calls.append(0)\n"
        "    if len(calls) == 9: self.out.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "shards._Writer.flush = die; text, tok, out = sys.argv[1:]\n"
        "shards.token_file(Source(path=text), ChatTokenizer.load(tok), Path(out), {})\n"
    )
    args = [sys.executable, "-c", code, str(text), str(tmp_path / "tokenizer"), str(out)]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not out.exists() and (tmp_path / ".out.part" / "tokens.bin").stat().st_size > 0
    made = token_file(Source(path=str(text)), tokenizer, out, {}).tolist()
    assert made == ids_of(PROSE, tokenizer) * 50 and not (tmp_path / ".out.part").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_one_long_line(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Lines of 3 and of 15 MB without a blank: the peaks are within 40 MB of each other."""
    tokenizer.save(tmp_path / "tokenizer")
    code = (
        "import resource, sys; from pathlib import Path; from onebase.pretrain import shards\n"
        "from onebase.recipe import Source; from onebase.tokenizer import ChatTokenizer\n"
        "text, tok, out = sys.argv[1:]\n"
        "ids = shards.token_file(Source(path=text), ChatTokenizer.load(tok), Path(out), {})\n"
        "print(len(ids), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peak = []
    for n, size in enumerate((3, 15)):
        line = tmp_path / f"line{n}"
        line.write_bytes(b"brownfox jumps".replace(b" ", b"-") * (size << 16))
        args = [sys.executable, "-c", code, str(line), str(tmp_path / "tokenizer"), str(tmp_path / f"out{n}")]
        done = subprocess.run(args, capture_output=True, text=True, check=True)
        count, kilobytes = map(int, done.stdout.split())
        assert count > size << 16
        peak.append(kilobytes)
    assert peak[1] - peak[0] < 40_000, peak


def test_windows_of_the_file_know_their_documents(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    text = write(tmp_path / "text", a="one two", b="three", c="four five six")
    tokens = token_file(Source(path=str(text)), tokenizer, tmp_path / "out", {})
    ids, trained, position, document = TokenRows(
        tokens, len(tokens), tokenizer.document_end_id, 0, "text"
    ).row(0)
    assert ids.tolist() == tokens.tolist() and trained.all()
    ends = np.flatnonzero(ids == tokenizer.document_end_id)
    assert document[ends].tolist() == [0, 1, 2] and position[ends[:-1] + 1].tolist() == [0, 0]


def test_bits_per_byte_of_a_model_that_guesses_bytes() -> None:
    """A uniform guess among 256 bytes costs 8 bits a byte, whatever the tokens' length."""
    for length in (1.0, 3.7):
        assert math.isclose(bits_per_byte(length * math.log(256), length), 8.0)
