"""`onebase corpus` from raw files to a pretrain stage: what is kept, what is left out, resume, damage."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from onebase import cli, pipeline, recipe_loader
from onebase.errors import UserError
from onebase.pretrain import corpus, corpus_config, corpus_steps, corpus_tokens
from onebase.pretrain.corpus_shards import open_corpus, parts_of, verify
from onebase.tokenizer import ChatTokenizer

Prose = Callable[..., str]
CONFIG = """
name: demo
sources:
  web: {path: raw/text, weight: 3}
  rows: {path: raw/rows, template: "{q}\\n{a}", filters: []}
  code: {path: raw/code, format: code, filters: []}
tokenizer: {vocab_size: 400}
heldout: 0.2
decontaminate: {sources: [{path: raw/test.jsonl}]}
max_document_bytes: 4096
part_bytes: 16384
"""
QUESTION = "A farmer has 12 hens and each hen lays 3 eggs per day; how many eggs are there after a week?"
TINY = (
    "model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, kv_lora_rank: 8, "
    "qk_nope_head_dim: 4, qk_rope_head_dim: 4, v_head_dim: 4, intermediate_size: 32, "
    "moe_intermediate_size: 8, n_routed_experts: 4, "
    "num_experts_per_tok: 2}"
)


def make_raw(folder: Path, prose: Prose) -> Path:
    """Sixty texts, rows in four formats, code, one problem of an evaluation, and what is not fit."""
    raw = folder / "raw"
    for name in ("text", "rows", "code"):
        (raw / name).mkdir(parents=True)
    for n in range(60):
        (raw / "text" / f"{n:03d}.txt").write_text(prose(n))
    text = raw / "text"
    (text / "a_copy.txt").write_text(prose(7))
    (text / "a_near_copy.txt").write_text(prose(8) + "\nOne more line it is.")
    (text / "b_empty.txt").write_bytes(b"")
    (text / "b_binary.txt").write_bytes(b"ab\0cd" * 50)
    (text / "b_latin.txt").write_bytes(b"caf\xe9 au lait " * 50)
    (text / "b_test.txt").write_text(f"{prose('q', 5)}\n{QUESTION}\n{prose('r', 5)}")
    rows = [json.dumps({"q": f"Question {n}?", "a": prose(f"row {n}", 3)}) + "\n" for n in range(40)]
    (raw / "rows" / "a.jsonl").write_text(
        "".join(rows[:20]) + '{"q": "m", "a": "' + "m" * 3000 + '"}\nno json\n'
    )
    (raw / "rows" / "b.jsonl.gz").write_bytes(gzip.compress("".join(rows[20:30]).encode()))
    (raw / "rows" / "c.jsonl.zst").write_bytes(zstandard.compress("".join(rows[30:]).encode()))
    for n in range(5):
        (raw / "code" / f"{n}.py").write_text(f"# {prose(n, 1)}\ndef f(x):\n    return x + {n}\n")
    (raw / "test.jsonl").write_text(json.dumps({"problem": QUESTION, "answer": "252"}) + "\n")
    (folder / "c.yaml").write_text(CONFIG)
    return raw


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prose: Prose) -> Path:
    monkeypatch.chdir(tmp_path)
    make_raw(tmp_path, prose)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, prose: Prose) -> Path:
    """A folder with the raw files and the finished corpus, for tests that only look."""
    folder = tmp_path_factory.mktemp("made")
    make_raw(folder, prose)
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert cli.main(["corpus", "c.yaml", "--out", "out", "--workers", "2", "--verify"]) == 0
    finally:
        os.chdir(here)
    return folder


def prepare(out: str = "out", workers: int = 1, **kwargs: Any) -> Path:
    corpus.prepare(corpus_config.load("c.yaml"), Path(out), workers, **kwargs)
    return Path(out)


def tokens_of(out: Path, split: str = "train") -> dict[str, list[int]]:
    found = open_corpus(out)
    return {
        p.name: [int(i) for s in p.shards for i in np.fromfile(out / f"{s.path}.tokens", dtype=found.dtype)]
        for p in found.parts[split]
    }


def content(out: Path) -> dict[str, str]:
    """Digest of every file that a corpus consists of, without the key of its sources' times of change."""
    key = json.loads((out / "index.json").read_text())["made_from"].encode()
    files = [p for p in sorted(out.rglob("*")) if p.is_file() and p.name != ".lock" and "work" not in p.parts]
    return {
        str(p.relative_to(out)).replace(key.decode(), "KEY"): hashlib.sha256(
            p.read_bytes().replace(key, b"KEY")
        ).hexdigest()
        for p in files
    }


def test_every_document_is_there_once_or_has_its_reason(made: Path, prose: Prose) -> None:
    out = made / "out"
    found = open_corpus(out)
    verify(found)
    tokenizer = found.tokenizer
    texts: dict[str, list[str]] = {}
    for split in ("train", "heldout"):
        for name, ids in tokens_of(out, split).items():
            assert not ids or ids[-1] == tokenizer.document_end_id
            marks = [-1, *(n for n, i in enumerate(ids) if i == tokenizer.document_end_id)]
            texts.setdefault(name, []).extend(
                tokenizer.decode(ids[a + 1 : b]) for a, b in zip(marks, marks[1:], strict=False)
            )
    assert sorted(texts["web"]) == sorted(prose(n) for n in range(60))  # the copies come later by name
    assert sorted(texts["rows"]) == sorted(f"Question {n}?\n{prose(f'row {n}', 3)}" for n in range(40))
    assert len(texts["code"]) == 5
    card = json.loads((out / "card.json").read_text())
    web, rows = card["sources"]["web"], card["sources"]["rows"]
    assert web["files_left_out"] == {"copy of another file": 1, "empty file": 1}
    assert web["skipped"] == {"binary": 1, "not UTF-8": 1}
    assert web["dropped"] == {"evaluation: raw/test.jsonl": 1, "near-duplicate": 1}
    assert rows["skipped"] == {"not JSON": 1} and list(rows["dropped"]) == ["repeats: period 1"]
    assert rows["documents_read"] == 41 == rows["documents_train"] + rows["documents_heldout"] + 1
    assert card["evaluations"][0]["documents_dropped"] == 1
    assert 0 < web["tokens_heldout"] < web["tokens_train"]
    table = (out / "card.md").read_text()
    assert "| web | document | near-duplicate | 1 |" in table and "| raw/test.jsonl | 1 | 0 | " in table
    assert not (out / "work").exists()


def test_documents_file_says_where_each_ends(made: Path) -> None:
    found = open_corpus(made / "out")
    for part in found.parts["train"]:
        for shard in part.shards:
            ids = np.fromfile(made / "out" / f"{shard.path}.tokens", dtype=found.dtype)
            ends = np.fromfile(made / "out" / f"{shard.path}.documents", dtype=np.uint64)
            marks = np.flatnonzero(ids == found.tokenizer.document_end_id) + 1
            assert ends.tolist() == marks.tolist() and len(ends) == shard.documents


def test_workers_and_runs_give_the_same_corpus(folder: Path, made: Path) -> None:
    once = prepare("one", workers=1)
    assert content(once) == content(made / "out")
    before = {p: p.stat().st_mtime_ns for p in once.rglob("*") if p.is_file()}
    prepare("one")  # finished: nothing is written
    assert before == {p: p.stat().st_mtime_ns for p in once.rglob("*") if p.is_file()}


def recipe(folder: Path, stages: str) -> Any:
    file = folder / "recipe.yaml"
    file.write_text(f"name: r\nruns: {folder}/runs\nhardware: cpu\n{TINY}\nstages:\n{stages}")
    return recipe_loader.load(file)


def base(out: Path, steps: int = 4, more: str = "") -> str:
    return (
        f"  base:\n    kind: pretrain\n    data: [{{corpus: {out}}}]\n"
        f"    heldout: [{{corpus: {out}, split: heldout}}]\n    steps: {steps}\n"
        f"    batch: {{rows: 4, length: 64}}\n    checkpoint_every: 2\n    eval_every: 2\n{more}"
    )


def losses(run: Path) -> list[float]:
    lines = (run / "base" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]


def test_a_pretrain_stage_trains_on_it_and_resumes_on_the_same_batches(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.run(recipe(tmp_path / "..", base(made / "out")), quiet=True)
    summary = json.loads((whole / "base" / "done.json").read_text())["summary"]
    assert 0 < summary["bits_per_byte"] < 20
    saved = ChatTokenizer.load(str(whole / "base" / "checkpoint"))
    assert saved.size == open_corpus(made / "out").tokenizer.size
    # broken off behind the state of step 2
    from onebase.pretrain import train as stage

    real, calls = stage.forward_backward, []

    def breaks(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(stage, "forward_backward", breaks)
    again = recipe(tmp_path, base(made / "out"))
    with pytest.raises(BaseException):  # noqa: B017 whatever the pipeline makes of it
        pipeline.run(again, quiet=True)
    monkeypatch.setattr(stage, "forward_backward", real)
    assert losses(pipeline.run(again, quiet=True)) == losses(whole)


def test_a_model_with_another_vocabulary_is_refused(made: Path, tmp_path: Path) -> None:
    other = "  zero:\n    kind: pretrain\n    data: [{world: chain}]\n    steps: 1\n    batch: {rows: 2}\n"
    stages = other + base(made / "out", more="    init: zero\n")
    with pytest.raises(UserError, match=r"made with another vocabulary \(400 entries\) than\s+the model's"):
        pipeline.run(recipe(tmp_path, stages), quiet=True)


def test_two_corpora_of_different_tokenizers_are_refused(made: Path, folder: Path) -> None:
    (folder / "c.yaml").write_text(CONFIG.replace("400", "390"))
    other = prepare("other")
    stages = base(made / "out").replace("data: [", f"data: [{{corpus: {folder / other}}}, ")
    with pytest.raises(UserError, match="different tokenizers"):
        pipeline.run(recipe(folder, stages), quiet=True)


def test_only_pretraining_takes_it_and_only_a_whole_one(made: Path, tmp_path: Path) -> None:
    sft = f"  s:\n    kind: sft\n    init: {made}\n    data: [{{corpus: {made / 'out'}}}]\n    steps: 1\n"
    with pytest.raises(UserError, match="a sft stage cannot use it"):
        recipe(tmp_path, sft)
    with pytest.raises(UserError, match=r"recipe.yaml:\d+: stages.base.data.0.corpus.*no prepared corpus"):
        recipe(tmp_path, base(tmp_path))
    with pytest.raises(UserError, match="split 'ood'"):
        recipe(tmp_path, base(made / "out").replace("heldout}", "ood}"))


# Damage.


def test_a_shard_that_is_cut_short_or_changed_is_told(folder: Path) -> None:
    out = prepare()
    shard = parts_of(open_corpus(out), "train")[0].shards[0]
    file = out / f"{shard.path}.tokens"
    data = file.read_bytes()
    file.write_bytes(data[:-2])
    with pytest.raises(
        UserError, match=rf"train.tokens: has {len(data) - 2} bytes, {len(data)} are expected"
    ):
        open_corpus(out)
    file.write_bytes(data[:10] + bytes([data[10] ^ 1]) + data[11:])
    with pytest.raises(UserError, match="content is not what was written"):
        verify(open_corpus(out))
    prepare()  # the index is there and lengths are right; a damaged one is made anew below
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        open_corpus(out)
    prepare()  # makes it again
    assert file.read_bytes() == data


def test_a_shard_listed_twice_is_told(folder: Path) -> None:
    out = prepare()
    index = json.loads((out / "index.json").read_text())
    shards = index["splits"]["train"][0]["shards"]
    shards.append(shards[0])
    (out / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="one is a copy"):
        open_corpus(out)
    (out / "index.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_corpus(out)


def test_equal_shards_of_different_files_are_read_once(folder: Path) -> None:
    rows = (folder / "raw" / "rows" / "b.jsonl.gz").read_bytes()
    (folder / "raw" / "rows" / "d.jsonl").write_bytes(gzip.decompress(rows))
    (folder / "c.yaml").write_text(CONFIG + "dedup: {enabled: false}\n")
    config = corpus_config.load("c.yaml", ["part_bytes=4096"])
    corpus.prepare(config, Path("out"))
    dropped = json.loads(Path("out/card.json").read_text())["sources"]["rows"]["dropped"]
    seen = tokens_of(Path("out"))["rows"] + tokens_of(Path("out"), "heldout")["rows"]
    documents = seen.count(open_corpus("out").tokenizer.document_end_id)
    assert documents + dropped.get("copy of another shard", 0) == 50  # forty rows, ten of them twice


# Resume.


@pytest.mark.parametrize("step", ["read", "sign_part", "match_bucket", "group_all", "shard"])
def test_a_step_that_breaks_off_keeps_what_is_done(
    step: str, folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(corpus_steps, step), []

    def breaks(*args: Any) -> None:
        calls.append(args)
        if len(calls) == (1 if step == "group_all" else 3):
            raise RuntimeError("broken off")
        real(*args)

    monkeypatch.setattr(corpus_steps, step, breaks)
    with pytest.raises(RuntimeError, match="broken off"):
        prepare()
    assert not (folder / "out" / "index.json").exists()
    with pytest.raises(UserError, match="its preparation is not finished"):
        open_corpus("out")
    again: list[Any] = []
    monkeypatch.setattr(corpus_steps, step, lambda *args: (again.append(args), real(*args)))
    prepare()
    assert not {str(a[-1]) for a in again if step == "read"} & {str(a[-1]) for a in calls[:-1]}
    assert len(again) <= 20 and content(folder / "out") == content(made / "out")


@pytest.mark.slow
def test_kill_at_any_moment_then_the_same_command(folder: Path, made: Path) -> None:
    rng = random.Random(0)
    command = [sys.executable, "-m", "onebase", "corpus", "c.yaml", "--out", "out", "--workers", "2"]
    for _ in range(3):
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert running.stderr is not None
        running.stderr.readline()  # it reads
        time.sleep(rng.uniform(0, 4))
        running.kill()  # workers end with it
        running.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert content(folder / "out") == content(made / "out")


def test_another_setting_keeps_the_steps_before_it(folder: Path) -> None:
    prepare(keep_work=True)
    read = {p: p.stat().st_mtime_ns for p in (folder / "out/work").glob("read-*/*/counts.json")}
    corpus.prepare(corpus_config.load("c.yaml", ["tokenizer.vocab_size=380"]), Path("out"), keep_work=True)
    assert read and read == {
        p: p.stat().st_mtime_ns for p in (folder / "out/work").glob("read-*/*/counts.json")
    }
    assert open_corpus("out").tokenizer.size == 380 and len(list((folder / "out/shards").iterdir())) == 1
    (folder / "raw/text/new.txt").write_text((folder / "raw/text/001.txt").read_text().replace("the", "some"))
    prepare(keep_work=True)
    assert read.keys().isdisjoint((folder / "out/work").glob("read-*/*/counts.json"))


@pytest.mark.parametrize("where", ["text", "tokens"])
def test_a_disk_that_fills_up(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    owner: Any = corpus_steps._Parts if where == "text" else corpus_tokens._Split
    real, calls = owner.add, []

    def full(self: Any, *args: Any) -> None:
        calls.append(1)
        if len(calls) == 50:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, *args)

    monkeypatch.setattr(owner, "add", full)
    with pytest.raises(UserError, match=r"the disk is full(.|\n)*of \d+ tasks are done and kept"):
        prepare()
    monkeypatch.setattr(owner, "add", real)
    prepare()
    assert content(folder / "out") == content(made / "out")


def test_a_real_limit_on_files_is_a_full_disk(folder: Path, made: Path) -> None:
    code = (
        "import resource, sys; from onebase.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16500, -1));"
        "sys.exit(main(['corpus', 'c.yaml', '--out', 'out', '--workers', '1', '--set', 'part_bytes=65536']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "limit on file sizes" in done.stderr and "done and kept" in done.stderr
    assert "Traceback" not in done.stderr and "step tokens: " in done.stderr
    prepare()
    assert content(folder / "out") == content(made / "out")


# Bad input.


@pytest.mark.slow
def test_a_line_of_two_gigabytes_is_passed_over_in_bounded_memory(folder: Path) -> None:
    for name, head, tail in (("a.jsonl", b'{"text": "', b'"}\n'), ("b.txt", b"x", b"\n")):
        (folder / "big").mkdir(exist_ok=True)
        with open(folder / "big" / name, "wb") as f:
            f.write(head)
            f.seek(2 << 30)  # a hole: zero bytes that take no room
            f.write(tail + b'{"text": "behind it"}\n')
    with open(folder / "big" / "c.txt", "wb") as f:
        for _ in range(40):
            f.write(b"x" * (1 << 20))  # one line without a place to cut, of 40 MB
    (folder / "c.yaml").write_text(
        "name: big\nsources: {big: {path: big, filters: []}}\ntokenizer: {vocab_size: 300}\n"
        "repeats: {most: 1000000000}\n"
    )
    code = (
        "import resource, sys; from onebase.cli import main;"
        "code = main(['corpus', 'c.yaml', '--out', 'out', '--workers', '1']);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 900, f"{done.stdout} MB"
    big = json.loads(Path("out/card.json").read_text())["sources"]["big"]
    assert big["skipped"] == {"binary": 1, "too long": 1} and big["files_cut"] == 1
    assert big["documents_read"] == 41


def test_nothing_kept_says_why(folder: Path) -> None:
    (folder / "c.yaml").write_text("name: t\nsources: {a: {path: raw/code}}\n")
    with pytest.raises(UserError, match=r"nothing is kept: \d gopher_repetition: top_\d_gram"):
        prepare()
    assert "gopher_repetition: top_" in Path("out/card.md").read_text()


def test_faults_of_the_configuration_have_their_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.yaml").write_text(
        "name: t\nsources:\n  a: {path: raw/text, weigth: 2}\n"
        "  b: {path: raw/text, filters: [goper_quality]}\nseed: 1.5\n"
    )
    assert cli.main(["corpus", "c.yaml", "--out", "out"]) == 2
    told = capsys.readouterr().err
    assert "c.yaml:3: sources.a.weigth: unknown key" in told and "did you mean: weight" in told
    assert "c.yaml:4: sources.b.filters.0" in told and "gopher_quality" in told and "c.yaml:5: seed" in told
    (folder / "c.yaml").write_text(
        "name: t\nsources: {a: {path: raw/txt}}\ndecontaminate: {recipes: [lapto]}\n"
    )
    assert cli.main(["corpus", "c.yaml", "--out", "out"]) == 2
    told = capsys.readouterr().err
    assert "c.yaml:2: sources.a.path" in told and "c.yaml:3: decontaminate.recipes.0" in told
    assert cli.main(["corpus", "absent.yaml", "--out", "out"]) == 2 and not Path("out").exists()


def test_a_given_tokenizer_is_used(folder: Path, made: Path) -> None:
    (folder / "c.yaml").write_text(
        CONFIG.replace("{vocab_size: 400}", f"{{path: {made / 'out' / 'tokenizer'}}}")
    )
    prepare()
    assert tokens_of(folder / "out") == tokens_of(made / "out")
    (folder / "c.yaml").write_text(CONFIG.replace("{vocab_size: 400}", "{path: raw/code}"))
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        prepare("other")
