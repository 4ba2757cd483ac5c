"""The data card of a prepared corpus: what went in, what was left out and why, what is there; as JSON and
Markdown.

The same files and configuration give the same card, byte for byte: it holds no times and no machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onebase.files import atomic_write
from onebase.pretrain.corpus_config import CorpusConfig

PACKAGES = ("onebase", "datatrove", "tokenizers")
Splits = dict[str, list[Any]]


def write(
    out: Path,
    config: CorpusConfig,
    plan: Any,
    read: Path,
    shards: Iterable[tuple[str, dict[str, int]]],
    suites: str,
    made: tuple[Splits, int] | None,
) -> None:
    """`card.json` and `card.md`.  `shards` are the counts of each shard with its source; `made` the parts of
    each split and the size of the vocabulary, None where nothing was kept."""
    card = _card(config, plan, read, shards, suites, made)
    atomic_write(out / "card.json", json.dumps(card, indent=1) + "\n")
    atomic_write(out / "card.md", "\n".join(_markdown(card)) + "\n")


def reasons(out: Path) -> str:
    """In one line, why documents and files were left out."""
    total: Counter[str] = Counter()
    for source in json.loads((out / "card.json").read_text(encoding="utf-8"))["sources"].values():
        for kind in ("files_left_out", "skipped", "dropped"):
            total.update(source[kind])
    return ", ".join(f"{n} {why}" for why, n in total.most_common()) or "there was no document"


def _card(
    config: CorpusConfig,
    plan: Any,
    read: Path,
    shards: Iterable[tuple[str, dict[str, int]]],
    suites: str,
    made: tuple[Splits, int] | None,
) -> dict[str, Any]:
    counts: dict[str, Counter[str]] = {name: Counter() for name in config.sources}
    scores: dict[str, Counter[str]] = {name: Counter() for name in config.sources}
    for n, task in enumerate(plan.tasks):
        said = json.loads((read / f"{n:05d}" / "counts.json").read_text(encoding="utf-8"))
        counts[task.source].update(said["counts"])
        scores[task.source].update(said["scores"])
    for source, told in shards:
        counts[source].update(told)
    sources = {}
    for name, section in config.sources.items():
        c = counts[name]
        tokens = (
            {split: [p for p in parts if p.name == name][0] for split, parts in made[0].items()}
            if made
            else {}
        )
        kept = c["kept"] or 1
        sources[name] = {
            "path": section.path,
            "weight": section.weight,
            "filters": section.filters,
            "files": c["files"],
            "files_left_out": plan.left_out[name],
            "documents_read": c["read"],
            "bytes_read": c["read_bytes"],
            "skipped": _under(c, "skipped"),
            "dropped": _under(c, "dropped"),
            "bytes_dropped": c["dropped_bytes"],
            "files_cut": c["cut"],
            "masked": _under(c, "masked"),
            "mean_scores": {k: round(scores[name][k] / kept, 4) for k in ("math", "code", "whole")},
            **{f"documents_{s}": sum(x.documents for x in p.shards) for s, p in tokens.items()},
            **{f"bytes_{s}": p.bytes for s, p in tokens.items()},
            **{f"tokens_{s}": p.tokens for s, p in tokens.items()},
        }
    found = json.loads((Path(suites) / "suites.json").read_text(encoding="utf-8")) if suites else []
    for suite in found:
        key = f"dropped/evaluation: {suite['name']}"
        suite["documents_dropped"] = sum(c[key] for c in counts.values())
    return {
        "name": config.name,
        "vocabulary": made[1] if made else None,
        "sources": sources,
        "evaluations": found,
        "config": config.model_dump(mode="json"),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _under(counts: Counter[str], head: str) -> dict[str, int]:
    return {k.split("/", 1)[1]: n for k, n in sorted(counts.items()) if k.startswith(head + "/") and n}


def _markdown(card: dict[str, Any]) -> Iterator[str]:
    sources = card["sources"]
    weights = sum(s["weight"] for s in sources.values())
    tokens = sum(s.get("tokens_train", 0) for s in sources.values()) or 1
    yield f"# Corpus {card['name']}\n"
    masks = ", ".join(card["config"]["mask"]) or "nothing"
    yield f"Vocabulary: {card['vocabulary']} entries. Replaced by placeholders: {masks}.\n"
    columns = (
        "source, documents read, MB read, documents, MB, tokens, held out, share of tokens, share of the mix"
    )
    yield from _head(columns)
    for name, s in sources.items():
        yield (
            f"| {name} | {s['documents_read']} | {s['bytes_read'] / 1e6:.2f} "
            f"| {s.get('documents_train', 0)} | {s.get('bytes_train', 0) / 1e6:.2f} "
            f"| {s.get('tokens_train', 0)} | {s.get('tokens_heldout', 0)} "
            f"| {s.get('tokens_train', 0) / tokens:.3f} | {s['weight'] / weights:.3f} |"
        )
    yield "\n## Left out\n"
    yield from _head("source, what, why, how many")
    for name, s in sources.items():
        for kind, what in (
            ("files_left_out", "file"),
            ("skipped", "file, line or record"),
            ("dropped", "document"),
        ):
            for why, n in sorted(s[kind].items(), key=lambda item: (-item[1], item[0])):
                yield f"| {name} | {what} | {why.replace('|', '/')} | {n} |"
        if s["files_cut"]:
            most = card["config"]["max_document_bytes"]
            yield f"| {name} | file | cut into documents: longer than {most} | {s['files_cut']} |"
    yield "\n## Personal data and scores\n"
    yield from _head("source, replaced, mean score math, code, whole")
    for name, s in sources.items():
        masked = ", ".join(f"{n} {kind}" for kind, n in s["masked"].items()) or "none"
        m = s["mean_scores"]
        yield f"| {name} | {masked} | {m['math']} | {m['code']} | {m['whole']} |"
    if card["evaluations"]:
        yield "\n## Evaluations that were looked for\n"
        yield from _head(
            "evaluation, problems, not looked for (short or only numbers), n-grams, documents left out"
        )
        for e in card["evaluations"]:
            numbers = (e["problems"], e["not_looked_for"], e["ngrams"], e["documents_dropped"])
            yield f"| {e['name']} | " + " | ".join(map(str, numbers)) + " |"
    yield f"\nMade with {', '.join(f'{k} {v}' for k, v in card['versions'].items())}."


def _head(columns: str) -> Iterator[str]:
    names = columns.split(", ")
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
