"""The parts of corpus preparation, each alone: repeats of ids, order, readers' bounds, scores, filters,
duplicates, evaluations."""

from __future__ import annotations

import gzip
import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase.errors import UserError
from onebase.pretrain import corpus_read
from onebase.pretrain.corpus_config import CorpusConfig, CorpusSource, Decontaminate, Dedup
from onebase.pretrain.corpus_decontaminate import Index, build, sources_of
from onebase.pretrain.corpus_dedup import SHINGLES, Signature, group, match, minhash, sign
from onebase.pretrain.corpus_filter import Filter
from onebase.pretrain.corpus_gopher import FastQuality, FastRepetition
from onebase.pretrain.corpus_plan import plan
from onebase.pretrain.corpus_read import bounded_lines
from onebase.pretrain.corpus_repeats import repeating_period
from onebase.pretrain.corpus_scores import scores
from onebase.pretrain.corpus_shards import Corpus, CorpusRows, Part, Shard, Stream
from onebase.pretrain.corpus_words import Words
from onebase.tokenizer import ChatTokenizer

Prose = Callable[..., str]

# Repeats of token ids.


def spelled_out(ids: list[int], most_period: int, most_repeats: int) -> int | None:
    """The definition: some block of p ids stands more than `most_repeats` times in a row."""
    for p in range(1, most_period + 1):
        for start in range(len(ids) - p * (most_repeats + 1) + 1):
            block = ids[start : start + p]
            if ids[start : start + p * (most_repeats + 1)] == block * (most_repeats + 1):
                return p
    return None


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2), max_size=60),
    block=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    times=st.integers(0, 8),
    at=st.integers(0, 60),
    period=st.integers(1, 5),
    repeats=st.integers(1, 6),
)
def test_the_check_is_its_definition(
    ids: list[int], block: list[int], times: int, at: int, period: int, repeats: int
) -> None:
    text = ids[:at] + block * times + ids[at:]
    assert repeating_period(np.array(text, dtype=np.uint16), period, repeats) == spelled_out(
        text, period, repeats
    )


@pytest.mark.parametrize("period", [1, 2, 7, 13])
def test_the_bound_is_more_than_32_repeats(period: int) -> None:
    rng = random.Random(period)
    around = [rng.randrange(100, 60_000) for _ in range(500)]
    block = list(range(period))
    for where in (0, 250, 500):
        for times, expected in ((32, None), (33, period)):
            ids = np.array(around[:where] + block * times + around[where:], dtype=np.uint16)
            assert repeating_period(ids) == expected, (where, times)
    assert (
        repeating_period(np.array(list(range(14)) * 40, dtype=np.uint16)) is None
    )  # 14 is too long a period


@pytest.mark.parametrize(
    "text", ["m" * 5000, "mm " * 2000, "ab\n" * 1000, "-" * 4000, "So it was. " + "ha" * 3000]
)
def test_a_document_of_mmmm_is_found(text: str, tiny_tokenizer: ChatTokenizer) -> None:
    assert repeating_period(np.array(tiny_tokenizer.encode(text), dtype=np.uint16)) is not None


def test_prose_is_not(prose: Prose, tiny_tokenizer: ChatTokenizer) -> None:
    for n in range(20):
        assert repeating_period(np.array(tiny_tokenizer.encode(prose(n)), dtype=np.uint16)) is None


# Order: a function of (seed, row).


def corpus_of(folder: Path, sizes: list[int]) -> tuple[Corpus, Part]:
    """Shards of the numbers 1, 2, 3, ..., so that a token tells where it stood."""
    shards, at = [], 1
    for n, size in enumerate(sizes):
        np.arange(at, at + size, dtype=np.uint32).tofile(folder / f"{n}.tokens")
        shards.append(Shard(str(n), size, size, 1, str(n)))
        at += size
    part = Part("a", 1.0, tuple(shards))
    return Corpus(folder, "test", "uint32", "", {"train": (part,), "heldout": ()}), part


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    length=st.integers(2, 17),
    seed=st.integers(0, 1 << 40),
)
def test_an_epoch_shows_every_token_once_and_any_row_can_be_made_alone(
    sizes: list[int], length: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    corpus, part = corpus_of(tmp_path_factory.mktemp("order"), sizes)
    rows = CorpusRows(Stream(corpus, part), length, document_end=0, pad=0, seed=seed)
    orders = []
    for epoch in range(3):
        made = [rows.row(k) for k in range(epoch * rows.count, (epoch + 1) * rows.count)]
        seen = [int(i) for ids, trained, _, _ in made for i in ids[trained]]
        assert sorted(seen) == list(range(1, sum(sizes) + 1))
        orders.append(seen)
    fresh = CorpusRows(Stream(corpus, part), length, document_end=0, pad=0, seed=seed)
    for k in random.Random(seed).sample(range(3 * rows.count), min(5, 3 * rows.count)):  # in any order
        assert all((a == b).all() for a, b in zip(fresh.row(k), rows.row(k), strict=True))


def test_epochs_and_seeds_differ(tmp_path: Path) -> None:
    corpus, part = corpus_of(tmp_path, [1000, 24])
    first, second = (CorpusRows(Stream(corpus, part), 8, 0, 0, seed) for seed in (1, 2))
    order = [[int(r.row(k)[0][0]) for k in range(256)] for r in (first, second)]
    assert order[0][:128] != order[0][128:] and order[0] != order[1]
    assert order[0][:128] != sorted(order[0][:128])


def test_positions_and_documents_restart_behind_an_end_mark(tmp_path: Path) -> None:
    np.array([5, 6, 0, 7, 8, 9, 0, 4], dtype=np.uint16).tofile(tmp_path / "0.tokens")
    part = Part("a", 1.0, (Shard("0", 8, 8, 2, ""),))
    corpus = Corpus(tmp_path, "test", "uint16", "", {"train": (part,), "heldout": ()})
    ids, trained, position, document = CorpusRows(Stream(corpus, part), 10, 0, 3, 0).row(0)
    assert ids.tolist() == [5, 6, 0, 7, 8, 9, 0, 4, 3, 3]
    assert position.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 0, 0]
    assert (
        document.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, -1, -1] and trained.tolist() == [True] * 8 + [False] * 2
    )


# Readers.


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=12),
    last=st.booleans(),
    most=st.integers(1, 10),
    cuts=st.lists(st.integers(0, 100), max_size=4),
)
def test_ranges_of_a_file_hold_each_line_once(
    lines: list[bytes], last: bool, most: int, cuts: list[int]
) -> None:
    data = b"\n".join(lines) + (b"\n" if last and lines else b"")
    whole = list(bounded_lines(io.BytesIO(data), most))
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    ranges = zip(edges, edges[1:], strict=False)
    assert [x for span in ranges for x in bounded_lines(io.BytesIO(data), most, span)] == whole
    at = 0
    for line in data.splitlines(keepends=True) if b"\r" not in data else []:
        if not any(c in line for c in b"\x0b\x0c\x1c\x1d\x1e\x85"):
            assert (at, line if len(line.rstrip(b"\n")) <= most else None) in whole
        at += len(line)


def texts_of(
    kind: str, folder: Path, name: str, most: int = 1000, template: str = "{text}"
) -> tuple[list[str], dict]:  # type: ignore[type-arg]
    reader = corpus_read.make(kind, str(folder), most, template)
    found = [d.text for d in reader.read_file(name)]
    return found, dict(reader.left_out)


def test_rows_that_are_none(tmp_path: Path) -> None:
    good = b'{"text": "good"}\n'
    bad = b'not json\n[1]\n{"other": 1}\n{"text": "caf\xe9"}\n{"text": ""}\n{"text": "a\\u0000b"}\n\n'
    (tmp_path / "a.jsonl").write_bytes(good + bad + b'{"text": "' + b"x" * 2000 + b'"}\n' + good)
    found, left_out = texts_of("jsonl", tmp_path, "a.jsonl")
    assert found == ["good", "good"]
    assert left_out == {
        "not JSON": 1, "not a JSON object": 1, "no field 'text'": 1, "not UTF-8": 1, "empty": 1, "binary": 1,
        "too long": 1,
    }  # fmt: skip


def test_a_compressed_file_that_is_cut_short_keeps_what_came_before(tmp_path: Path) -> None:
    rows = b"".join(
        b'{"text": "row %d of noise %d"}\n' % (n, random.Random(n).getrandbits(400)) for n in range(3000)
    )
    packed = gzip.compress(rows)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    found, left_out = texts_of("jsonl", tmp_path, "a.jsonl.gz")
    assert 500 < len(found) < 2500 and left_out == {"damaged or cut short": 1}


def test_zstd_files_of_several_frames_are_read_whole_and_a_torn_one_is_told(tmp_path: Path) -> None:
    rows = [b'{"text": "row %d of noise %d"}\n' % (n, random.Random(n).getrandbits(400)) for n in range(300)]
    packed = b"".join(zstandard.compress(b"".join(rows[at : at + 100])) for at in (0, 100, 200))
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    (tmp_path / "b.jsonl.zst").write_bytes(packed[:-20])
    assert len(texts_of("jsonl", tmp_path, "a.jsonl.zst")[0]) == 300
    found, left_out = texts_of("jsonl", tmp_path, "b.jsonl.zst")
    assert 200 <= len(found) < 300 and left_out == {"damaged or cut short": 1}


def test_long_text_is_cut_at_white_space_and_loses_nothing(tmp_path: Path, prose: Prose) -> None:
    text = prose("long", 60)
    (tmp_path / "a.txt").write_text(text)
    found, _ = texts_of("text", tmp_path, "a.txt", most=1024)
    assert "".join(found) == text and len(found) > 3 and all(len(t) <= 1024 for t in found)
    assert all(t[-1] in " \n" for t in found[:-1])
    (tmp_path / "b.txt").write_text("x" * 5000)  # no place to cut
    assert [len(t) for t in texts_of("text", tmp_path, "b.txt", most=1024)[0]] == [1024] * 4 + [904]


def test_code_leaves_out_what_a_machine_wrote(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(x):\n    return x + 1\n")
    (tmp_path / "b.js").write_text("var a=1;" * 300)
    (tmp_path / "c.py").write_text("[" + "(),\n" * 300 + "]")
    (tmp_path / "d.py").write_text("x = 1\n" * 1000)
    assert texts_of("code", tmp_path, "a.py")[1] == {}
    assert texts_of("code", tmp_path, "b.js", 10_000)[1] == {"generated or minified": 1}
    assert texts_of("code", tmp_path, "c.py", 10_000)[1] == {"generated or minified": 1}
    assert texts_of("code", tmp_path, "d.py")[1] == {"too long": 1}


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"q": [f"question {n}" for n in range(200)], "a": [str(n) for n in range(200)], "z": [0] * 200}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    found, _ = texts_of("parquet", tmp_path, "a.parquet", template="{q}: {a}")
    assert found == [f"question {n}: {n}" for n in range(200)]
    assert texts_of("parquet", tmp_path, "a.parquet")[1] == {"no field 'text'": 200}
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    assert texts_of("parquet", tmp_path, "b.parquet", template="{q}")[1] == {"damaged or cut short": 1}


def archive(path: Path, records: list[tuple[str, str, bytes]]) -> None:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with open(path, "wb") as f:
        writer = WARCWriter(f, gzip=path.suffix == ".gz")
        for kind, content_type, body in records:
            http = StatusAndHeaders("200 OK", [("Content-Type", content_type)], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                "http://example.com/",
                kind,
                payload=io.BytesIO(body),
                http_headers=http if kind == "response" else None,
            )
            writer.write_record(record)


def test_archives(tmp_path: Path, prose: Prose) -> None:
    archive(tmp_path / "a.warc.wet.gz", [("conversion", "", prose(n).encode()) for n in range(3)])
    assert texts_of("warc", tmp_path, "a.warc.wet.gz") == ([prose(n) for n in range(3)], {})
    paragraphs = "".join(f"<p>{prose(n, 3)}</p>" for n in range(4))
    body = f"<body><nav>Home Login</nav><article>{paragraphs}</article></body>"
    page = f"<html><head><title>t</title></head>{body}</html>"
    records = [
        ("request", "", b"GET / HTTP/1.1"),
        ("response", "text/html; charset=iso-8859-1", page.replace("The ", "Th\xe9 ").encode("latin-1")),
        ("response", "image/png", b"\x89PNG"),
        ("response", "text/html", b"<html>" + b"x" * 20_000),
        ("response", "text/html", b"<p>\xff\xfe\xfd"),
    ]
    archive(tmp_path / "b.warc.gz", records)
    found, left_out = texts_of("warc", tmp_path, "b.warc.gz", most=2000)
    assert len(found) == 1 and "Home Login" not in found[0]
    assert all(line in found[0] for line in prose(2, 3).split("\n") if not line.startswith("The "))
    assert left_out == {"not HTML": 1, "too long": 1, "not UTF-8": 1}


# Which files.


def test_the_plan_reads_no_file_twice(tmp_path: Path, prose: Prose) -> None:
    raw = tmp_path / "raw"
    (raw / "node_modules").mkdir(parents=True)
    (raw / "a.py").write_text("x = 1\n")
    (raw / "b.py").write_text("x = 1\n")
    (raw / "c.py").write_text("y = 1\n")
    (raw / "node_modules" / "d.js").write_text("z = 1\n")
    (raw / "e.bin").write_bytes(b"\0")
    (raw / "f.py").write_bytes(b"")
    config = CorpusConfig(name="t", sources={"code": CorpusSource(path=str(raw), format="code")})
    found = plan(config)
    assert [name for task in found.tasks for name, _ in task.files] == ["a.py", "c.py"]
    assert found.left_out["code"] == {
        "copy of another file": 1, "hidden or vendored": 1, "not source code by its name": 1, "empty file": 1,
    }  # fmt: skip
    with pytest.raises(UserError, match="no file matches glob"):
        plan(CorpusConfig(name="t", sources={"code": CorpusSource(path=str(raw), glob="*.xyz")}))


def test_a_large_file_of_lines_is_cut_into_tasks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' * 1000)
    config = CorpusConfig(
        name="t", sources={"a": CorpusSource(path=str(tmp_path))}, part_bytes=4096, max_document_bytes=1024
    )
    spans = [span for task in plan(config).tasks for _, span in task.files]
    assert spans == [(0, 4096), (4096, 8192), (8192, 12288), (12288, 14000)]
    reader = corpus_read.make("jsonl", str(tmp_path), 1024, "{text}")
    ids = []
    for reader.span in spans:
        ids += [d.id for d in reader.read_file("a.jsonl")]
    assert ids == [f"a.jsonl#{14 * n}" for n in range(1000)]


# Scores and filters.


def test_scores_tell_mathematics_code_and_prose_apart(prose: Prose) -> None:
    math = (
        r"Let \(x^2 + y^2 = z^2\). Then $\frac{a}{b} \leq \sqrt{c}$, \[ \sum_{i=1}^n i = \frac{n(n+1)}{2} \]"
    )
    code = "import os\n\ndef f(x):\n    y = x + 1\n    return y\n\nclass A:\n    def g(self):\n        pass\n"
    m, c, p = scores(math), scores(code), scores(prose(0))
    assert m.math > 0.8 > 0.2 > p.math and c.code > 0.8 > 0.3 > max(m.code, p.code)
    assert (m.whole, c.whole, p.whole) == (1, 1, 1)
    assert scores(math.replace(r"\)", "")).whole < 1 and scores(math.replace("}$", "}")).whole < 1
    flat = "\n".join(line.strip() for line in code.split("\n"))
    assert scores(flat).whole == 0  # each of the three blocks lost its body


def rules(**changes: object) -> tuple[CorpusSource, CorpusConfig]:
    source = CorpusSource(path=".", **changes)  # type: ignore[arg-type]
    return source, CorpusConfig(name="t", sources={"a": source}, mask=["email", "ip", "phone", "card"])


def test_each_filter_gives_its_reason(prose: Prose) -> None:
    rule = Filter(*rules(), None)
    assert rule(prose(1)).why is None
    assert rule(prose(1, 2)).why == "gopher_quality: gopher_short_doc"
    assert str(rule(prose(1, 3) + "\n\n" + "\n\n".join([prose(2, 1)] * 9)).why).startswith(
        "gopher_repetition: dup_para"
    )
    assert rule("m" * 3000).why and rule("  \n ").why == "no words"
    assert str(rule("\n".join(prose(n, 1)[:-1] for n in range(12))).why) == "fineweb: line_punct_ratio"
    assert Filter(*rules(filters=[]), None)("m" * 3000).why is None


def test_the_fast_filters_decide_as_datatrove(prose: Prose) -> None:
    """Texts on both sides of each threshold: prose with more and more of it repeated or spoilt."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    words, rng, seen = Words(), random.Random(0), Counter[str]()
    pairs = [(GopherQualityFilter, FastQuality), (GopherRepetitionFilter, FastRepetition)]
    filters = [(slow(language=words), fast(language=words)) for slow, fast in pairs]
    spoils = ["#", "...", " - x", "• ", "1 2 3", "zzzzzzzzzzzzzzzzzz", "a", "\n\n", "…\n", "of the", "ä ö"]
    for n in range(600):
        text = prose(n, rng.randint(1, 12))
        spoil = rng.choice([*spoils, prose(n, 1), prose(n, 1)[: rng.randint(5, 40)]])
        pieces = text.split(" ")
        for _ in range(rng.randint(0, 40)):
            pieces.insert(rng.randrange(len(pieces) + 1), spoil)
        text = rng.choice([" ", "\n"] if n % 5 == 0 else [" "]).join(pieces)
        for slow, fast in filters:
            document = Document(text=text, id="")
            expected = slow.filter(document)
            assert fast.filter(document) == expected, (n, text)
            seen[str(expected)] += 1
    assert seen["True"] > 200 and len(seen) > 12, seen


def test_language(prose: Prose) -> None:
    german = "Das Wetter ist heute schön, und wir gehen mit den Kindern in den Wald, um Pilze zu suchen. " * 3
    english = (
        "The weather is nice today and we are going to the forest with the children to look for mushrooms. "
        * 3
    )
    rule = Filter(*rules(language=["de"], filters=[]), None)
    assert rule(german).why is None and rule(english).why == "language"
    assert Filter(*rules(language=["de", "en"], filters=[]), None)(english).why is None


def test_personal_data_are_masked_and_counted() -> None:
    rule = Filter(*rules(filters=[]), None)
    text = (
        "Write to jane.doe@mail.test or +49 170 1234567 or (555) 123-4567; host 8.8.8.8 and 10.0.0.1; card "
        "4111 1111 1111 1111, order 4111 1111 1111 1112; pi is 3.14159265358979, 2 + 2 = 4."
    )
    done = rule(text)
    assert done.masked == {"email": 1, "ip": 1, "phone": 2, "card": 1}
    for gone in ("jane", "170 1234567", "123-4567", "8.8.8.8", "4111 1111 1111 1111"):
        assert gone not in done.text
    for left in ("10.0.0.1", "4111 1111 1111 1112", "3.14159265358979, 2 + 2 = 4"):
        assert left in done.text
    assert rule(done.text).text == done.text


# Near-duplicates.


def test_near_duplicates_are_found_across_parts_and_the_first_is_kept(tmp_path: Path, prose: Prose) -> None:
    config = minhash(Dedup(), seed=0)
    parts = [
        [prose(n) for n in range(20)],
        [prose(5) + " One more.", prose(100), "so it is"],
        [prose(5), "so it is"],
    ]
    for rank, texts in enumerate(parts):
        sign(iter(texts), tmp_path / "signatures", rank, config)
    for bucket in range(config.num_buckets):
        match(tmp_path / "signatures", tmp_path / "pairs", bucket, config)
    removed = group(tmp_path / "pairs", [len(p) for p in parts], tmp_path)
    assert np.flatnonzero(removed).tolist() == [20, 23, 24]


def test_blocks_change_no_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prose: Prose) -> None:
    signature = Signature(str(tmp_path), minhash(Dedup(), 0))
    shingles = signature.get_shingles(prose("x", 100))
    assert len(shingles) < SHINGLES
    whole = signature.get_signature(shingles)
    monkeypatch.setattr("onebase.pretrain.corpus_dedup.SHINGLES", 100)
    assert signature.get_signature(shingles) == whole


# Evaluations.


def test_a_problem_in_a_text_is_found_whatever_its_dress(tmp_path: Path, prose: Prose) -> None:
    problems = tmp_path / "test.jsonl"
    question = "A farmer has 12 hens and each hen lays 3 eggs per day; how many eggs are there after a week?"
    short = "How many legs have seven dogs and one hen?"
    rows = [
        f'{{"problem": "{q}", "answer": "1"}}\n'
        for q in (question, short, "What is 2 + 2?", "1 2 3 4 5 6 7 8 9 10 11")
    ]
    problems.write_text("".join(rows))
    section = Decontaminate.model_validate({"sources": [{"path": str(problems)}]})
    build(section, 0, tmp_path / "index")
    index = Index(tmp_path / "index")
    assert [(s.problems, s.not_looked_for) for s in index.suites] == [(4, 2)]
    rule = Filter(*rules(filters=[]), index)
    dressed = question.upper().replace("12", "15").replace(";", " -")
    for inside in (question, dressed, short):
        assert rule(f"{prose(1)}\n{inside}\n{prose(2)}").why == f"evaluation: {problems}"
    for clean in (prose(1), "What is 2 + 2?" * 5, question[:40], " ".join(map(str, range(50)))):
        assert rule(clean).why is None


def test_the_evaluations_of_a_recipe(tmp_path: Path) -> None:
    found = sources_of(Decontaminate(recipes=["laptop"]))
    assert {(s.world, s.split) for s in found} >= {("chain", "heldout"), ("addition", "heldout")}
    assert all(s.split != "train" for s in found)


def test_documents_are_counted_once() -> None:
    from onebase.pretrain.corpus_filter import tally

    counts: Counter[str] = Counter()
    rule = Filter(*rules(filters=[]), None)
    tally(counts, rule("mail a@b.test"))
    assert (
        counts["kept"] == 1
        and counts["masked/email"] == 1
        and counts["kept_bytes"] == len("mail email@example.com")
    )
