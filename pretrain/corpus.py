"""`onebase corpus CONFIG.yaml --out FOLDER`: raw files become a folder of tokens that a pretrain stage trains
on.

    plan      which files, in which tasks                        corpus_plan
    suites    n-grams of the evaluations                         corpus_decontaminate
    read      datatrove's readers and filters, masks             corpus_read, corpus_filter, corpus_scores
    dedup     near-duplicates by MinHash                         corpus_dedup
    tokens    tokenizer, repeats of ids, shards                  corpus_tokens, corpus_repeats
    card      index.json, card.json, card.md                     corpus_shards, corpus_card

Every step is made of tasks that are done or not done (corpus_steps); a run that was killed, or whose disk
filled, goes on with the same command.  A step's folder is named by a digest of all that decides its content:
another configuration or other files make it anew, and only it and what follows.

Memory: one document per worker and what its filters need (bounded by `max_document_bytes`), one part's
signatures, the evaluations' n-grams; 8 bytes a document in a mapped file.  Only the lists of files and of
shards grow.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebase.errors import UserError
from onebase.files import atomic_write, settle_all
from onebase.pretrain import corpus_card
from onebase.pretrain.corpus_config import CorpusConfig
from onebase.pretrain.corpus_shards import SPLITS, Part, Shard, open_corpus, part_dict, verify, write_index

VERSION = 1  # of what the steps make: raised when the same configuration would give another corpus
LONG_RUN = re.compile(r"(\S{1000})\S+|(\s{1000})\s+")
"""A word's rest that the tokenizer is not trained on: its trainer's time grows with the square of a word."""
Job = tuple[Callable[..., None], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Made:
    """One part of kept text."""

    source: str
    file: Path
    first: int
    """Number of its first document in the whole corpus."""
    documents: int


def main(
    path: str, out: str, overrides: Sequence[str], workers: int, keep_work: bool = False, check: bool = False
) -> int:
    """The verb.  Returns the exit code."""
    from onebase.pipeline import lock
    from onebase.pretrain.corpus_config import load

    config = load(path, overrides)
    _need_packages()
    folder = Path(out).expanduser()
    with lock(folder, "name another folder: --out OTHER"):
        prepare(config, folder, workers, keep_work)
        if check:
            verify(open_corpus(folder))
            say("every shard holds what was written")
    return 0


def prepare(config: CorpusConfig, out: Path, workers: int = 1, keep_work: bool = False) -> None:
    """Make the corpus in `out`, or what of it is missing."""
    with Workers(workers) as pool:
        _prepare(config, out, pool, keep_work)


def _prepare(config: CorpusConfig, out: Path, workers: Workers, keep_work: bool) -> None:
    from onebase.pretrain import corpus_decontaminate as decontaminate
    from onebase.pretrain import corpus_steps as steps
    from onebase.pretrain.corpus_plan import as_json, plan

    found = plan(config)
    work = out / "work"
    suites = ""
    if sources := decontaminate.sources_of(config.decontaminate):
        suites_key = _key(VERSION, config.decontaminate, config.seed, sources, _stats(sources))
        suites = str(work / f"suites-{suites_key}")
    texts = {"tokenizer", "dedup", "repeats", "heldout", "name"}
    read_key = _key(VERSION, config.model_dump(mode="json", exclude=texts), found.digest, suites)
    dedup_key = _key(read_key, config.dedup.model_dump(mode="json"))
    token_key = _key(dedup_key, config.model_dump(mode="json"), _tokenizer_stat(config))
    if _finished(out, token_key):
        say(f"{out}: prepared already from the same files and configuration")
        return
    read, dedup, shards = work / f"read-{read_key}", work / f"dedup-{dedup_key}", out / "shards" / token_key
    _remove_others(work, {read.name, dedup.name, Path(suites).name if suites else ""})
    if suites and not Path(suites).is_dir():
        decontaminate.build(config.decontaminate, config.seed, Path(suites))
    tasks = as_json(found.tasks)
    run_tasks(
        "read",
        [
            (read / f"{n:05d}", (steps.read, (t, config, suites, read / f"{n:05d}")))
            for n, t in enumerate(tasks)
        ],
        workers,
        read,
    )
    parts = _parts(read, tasks)
    if not parts:
        corpus_card.write(out, config, found, read, [], suites, None)
        raise UserError(f"{out}: nothing is kept: {corpus_card.reasons(out)}\n  see {out / 'card.md'}")
    if config.dedup.enabled:
        _dedup(config, parts, dedup, workers)
    tokenizer = _make_tokenizer(config, out, parts, token_key)
    where = str(dedup) if config.dedup.enabled else None
    jobs: list[tuple[Path, Job]] = []
    for n, part in enumerate(parts):
        target = shards / f"{n:05d}"
        arguments = (
            part.file,
            part.first,
            part.documents,
            Path(where) if where else None,
            str(tokenizer),
            config,
        )
        jobs.append((target, (steps.shard, (*arguments, target, f"shards/{token_key}/{n:05d}"))))
    for target, _ in jobs:
        if target.is_dir() and not _whole(target, tokenizer):
            shutil.rmtree(target)
    run_tasks("tokens", jobs, workers, shards)
    _write(config, out, found, read, parts, shards, suites, tokenizer, token_key)
    _remove_others(out / "shards", {token_key})
    if not keep_work:
        shutil.rmtree(work, ignore_errors=True)


def _dedup(config: CorpusConfig, parts: list[Made], folder: Path, workers: Workers) -> None:
    from onebase.pretrain import corpus_steps as steps

    done = folder / "done"
    signs = [
        (done / f"sign-{n:05d}", (steps.sign_part, (p.file, n, config, folder))) for n, p in enumerate(parts)
    ]
    run_tasks("signatures", signs, workers, folder)
    matches = [
        (done / f"match-{b:03d}", (steps.match_bucket, (b, config, folder)))
        for b in range(config.dedup.buckets)
    ]
    run_tasks("buckets", matches, workers, folder)
    groups: list[tuple[Path, Job]] = [
        (done / "group", (steps.group_all, ([p.documents for p in parts], folder)))
    ]
    run_tasks("groups", groups, workers, folder)


class Workers:
    """Processes that do the jobs of all steps; with one worker the jobs are done here."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool: Any = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def do(self, jobs: Sequence[Job]) -> None:
        """All jobs; the first error, after those under way have ended."""
        if self.count <= 1 or (len(jobs) <= 1 and self.pool is None):
            for function, arguments in jobs:
                function(*arguments)
            return
        from concurrent.futures.process import BrokenProcessPool

        waiting = [self._pool().submit(function, *arguments) for function, arguments in jobs]
        try:
            for future in waiting:
                future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most likely for memory; use fewer --workers or a lower "
                "max_document_bytes"
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def _pool(self) -> Any:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        from onebase.pretrain.corpus_steps import start_worker

        if self.pool is None:
            context = multiprocessing.get_context("spawn")  # threads of tokenizers do not survive a fork
            self.pool = ProcessPoolExecutor(self.count, context, start_worker, (os.getpid(),))
        return self.pool


def run_tasks(name: str, jobs: Sequence[tuple[Path, Job]], workers: Workers, kept: Path) -> None:
    """Do the jobs whose mark (a folder or a file) is not there yet.  UserError of the first that fails; what
    is done stays done."""
    kept.mkdir(parents=True, exist_ok=True)
    settle_all(kept)
    open_jobs = [job for mark, job in jobs if not mark.exists()]
    before = f", {len(jobs) - len(open_jobs)} done before" if len(open_jobs) < len(jobs) else ""
    say(f"{name}: {len(jobs)} tasks{before}")
    try:
        workers.do(open_jobs)
    except UserError as error:
        whole = sum(mark.exists() for mark, _ in jobs)
        raise UserError(
            f"{error}\n  step {name}: {whole} of {len(jobs)} tasks are done and kept in {kept}; "
            "the same command goes on from there"
        ) from error


def _parts(read: Path, tasks: list[dict[str, Any]]) -> list[Made]:
    parts: list[Made] = []
    first = 0
    for n, task in enumerate(tasks):
        folder = read / f"{n:05d}"
        for p, documents in enumerate(_json(folder / "counts.json")["parts"]):
            parts.append(Made(task["source"], folder / f"{p:03d}.jsonl.zst", first, documents))
            first += documents
    return parts


def _make_tokenizer(config: CorpusConfig, out: Path, parts: list[Made], key: str) -> Path:
    """The folder of the tokenizer: the one given, copied, or one trained on the kept text."""
    from onebase.files import atomic_folder
    from onebase.pretrain.corpus_steps import part_texts
    from onebase.tokenizer import ChatTokenizer, train

    folder = out / "tokenizer"
    mark = folder / "made_from"
    if mark.is_file() and mark.read_text(encoding="utf-8") == key:
        return folder
    if config.tokenizer.path is not None:
        made = ChatTokenizer.load(config.tokenizer.path)
    else:
        total = sum(s.weight for s in config.sources.values())

        def sample() -> Any:
            for name, source in config.sources.items():
                mine = [p for p in parts if p.source == name]
                quota = config.tokenizer.sample_bytes * source.weight / total / max(1, len(mine))
                for part in mine:
                    left = quota
                    for text in part_texts(part.file):
                        yield LONG_RUN.sub(r"\1\2", text)
                        if (left := left - len(text)) <= 0:
                            break

        size = config.tokenizer.sample_bytes
        say(f"tokenizer: {config.tokenizer.vocab_size} entries from {size} characters, or all that there are")
        made = train(sample(), config.tokenizer.vocab_size)
    with atomic_folder(folder) as aside:
        made.save(aside)
        (aside / "made_from").write_text(key, encoding="utf-8")
    return folder


def _write(
    config: CorpusConfig,
    out: Path,
    found: Any,
    read: Path,
    parts: list[Made],
    shards: Path,
    suites: str,
    tokenizer: Path,
    key: str,
) -> None:
    """The index and the card.  A shard that holds the very tokens of another is left out and counted."""
    from onebase.pretrain.corpus_tokens import dtype_of
    from onebase.pretrain.shards import vocabulary_digest
    from onebase.tokenizer import ChatTokenizer

    loaded = ChatTokenizer.load(str(tokenizer))
    said = [_json(shards / f"{n:05d}" / "shard.json") for n in range(len(parts))]
    seen: set[str] = set()
    splits: dict[str, list[Part]] = {split: [] for split in SPLITS}
    for name, source in config.sources.items():
        for split in SPLITS:
            mine: list[Shard] = []
            for part, told in zip(parts, said, strict=True):
                shard = Shard(**told["shards"][split])
                if part.source != name or not shard.tokens:
                    continue
                if shard.digest in seen:
                    told["counts"]["dropped/copy of another shard"] = shard.documents
                    continue
                seen.add(shard.digest)
                mine.append(shard)
            splits[split].append(Part(name, source.weight, tuple(mine)))
    if not any(p.tokens for p in splits["train"]):
        raise UserError(f"{out}: no token is left for training; see the reasons in {shards}/*/shard.json")
    index = {
        "name": config.name,
        "made_from": key,
        "dtype": dtype_of(loaded).name,
        "vocabulary": vocabulary_digest(loaded),
        "splits": {split: [part_dict(p) for p in splits[split]] for split in SPLITS},
    }
    told_by_source = [(part.source, told["counts"]) for part, told in zip(parts, said, strict=True)]
    corpus_card.write(out, config, found, read, told_by_source, suites, (splits, loaded.size))
    atomic_write(out / "index.json", write_index(out, index))
    open_corpus(out)
    tokens = {split: sum(p.tokens for p in splits[split]) for split in SPLITS}
    say(f"{out}: {tokens['train']} tokens to train on, {tokens['heldout']} held out; see card.md")


def _whole(shard: Path, tokenizer: Path) -> bool:
    """Whether a finished shard's token files are still as long as they were."""
    from onebase.pretrain.corpus_tokens import dtype_of
    from onebase.tokenizer import ChatTokenizer

    size = dtype_of(ChatTokenizer.load(str(tokenizer))).itemsize
    try:
        told = _json(shard / "shard.json")["shards"]
        return all((shard / f"{s}.tokens").stat().st_size == told[s]["tokens"] * size for s in SPLITS)
    except (OSError, ValueError, KeyError):
        return False


def _finished(out: Path, key: str) -> bool:
    try:
        return _json(out / "index.json")["made_from"] == key and bool(open_corpus(out))
    except (OSError, ValueError, KeyError, UserError):
        return False


def _key(*values: Any) -> str:
    def plain(value: Any) -> Any:
        return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)

    return hashlib.sha256(json.dumps(values, default=plain, sort_keys=True).encode()).hexdigest()[:12]


def _stats(sources: Sequence[Any]) -> list[Any]:
    """Sizes and times of the evaluations' files."""
    found: list[Any] = []
    for source in sources:
        if source.path is not None:
            root = Path(source.path)
            files = [root] if root.is_file() else sorted(p for p in root.glob(source.glob) if p.is_file())
            found += [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return found


def _tokenizer_stat(config: CorpusConfig) -> list[Any]:
    file = Path(config.tokenizer.path or "") / "tokenizer.json"
    return [file.stat().st_size, file.stat().st_mtime_ns] if config.tokenizer.path and file.is_file() else []


def _remove_others(folder: Path, names: set[str]) -> None:
    """What an earlier configuration left."""
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.name not in names:
            shutil.rmtree(other, ignore_errors=True)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _need_packages() -> None:
    from importlib.util import find_spec

    missing = [
        m
        for m in ("datatrove", "orjson", "warcio", "fasttext", "trafilatura", "xxhash")
        if find_spec(m) is None
    ]
    if missing:
        raise UserError(f"onebase corpus needs {', '.join(missing)}: pip install 'onebase[corpus]'")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
