"""The report on stability, before all other events: updates that were skipped, returns to an earlier state
with their reasons, the losses they took back, and the largest attention logits. Reads events.jsonl,
rolled_back.jsonl and metrics.jsonl of each stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from onebase.errors import UserError
from onebase.files import read_jsonl
from onebase.report_charts import panel, series_of, short

KINDS = ("skipped", "rollback", "spike", "preempted")
"""Events that are told here."""
SHOWN = 20  # most skipped updates listed of a stage
Table = Callable[[Sequence[str], Sequence[Sequence[Any]]], str]


def section(stages: Sequence[Path], table: Table, text: Callable[[str], str]) -> str:
    """HTML of all stages with something to tell; `table` and `text` (a cell of running text) are the
    report's."""
    parts = []
    for stage in stages:
        found = [e for e in _rows(stage / "events.jsonl") if e.get("kind") in KINDS]
        told = [_counts(found), _returns(found, table, text), _taken_back(stage)]
        told += [_skipped(found, table, text), _logits(_rows(stage / "metrics.jsonl"), table)]
        if any(told):
            parts.append(f"<h3>{escape(stage.name)}</h3>{''.join(told)}")
    return "".join(parts)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return read_jsonl(path)
    except UserError:
        return []  # told under Events and Curves


def _counts(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    of = {kind: [e for e in found if e["kind"] == kind] for kind in KINDS}
    bad = sum(e.get("why") == "not finite" for e in of["skipped"])
    words = [
        f"{len(of['skipped'])} updates skipped" + (f" ({bad} not finite)" if bad else ""),
        f"{len(of['rollback'])} returns to an earlier state",
    ]
    if of["spike"]:
        words.append(f"{len(of['spike'])} spikes without a state to return to")
    if of["preempted"]:
        words.append(f"ended by SIGTERM {len(of['preempted'])} times")
    return f'<p class="soft">{escape("; ".join(words))}</p>'


def _returns(found: Sequence[Mapping[str, Any]], table: Table, text: Callable[[str], str]) -> str:
    rows: list[list[Any]] = []
    for e in found:
        if e["kind"] in ("rollback", "spike"):
            places = "-".join(str(n) for n in e.get("batches") or [])
            rate = "" if e.get("lr_factor") is None else short(float(e["lr_factor"]))
            told = [e.get("step", ""), e.get("to", "none"), places, rate]
            rows.append([*map(str, told), text(str(e.get("why", "")))])
    heads = ["at step", "back to", "batches left out", "learning rate times", "why"]
    return table(heads, rows) if rows else ""


def _taken_back(stage: Path) -> str:
    by_return: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(stage / "rolled_back.jsonl"):
        by_return.setdefault(f"return {row.get('rollback', '?')}", []).append(row)
    curves = {name: series_of(rows).get("loss", []) for name, rows in by_return.items()}
    curves = {name: points for name, points in curves.items() if points}
    return f'<div class="panels">{panel("loss taken back", curves)}</div>' if curves else ""


def _skipped(found: Sequence[Mapping[str, Any]], table: Table, text: Callable[[str], str]) -> str:
    skipped = [e for e in found if e["kind"] == "skipped"]
    if not skipped:
        return ""
    rows = []
    for e in skipped[-SHOWN:]:
        numbers = [_number(e.get(key)) for key in ("loss", "grad_norm")]
        rows.append([str(e.get("step", "")), *numbers, text(str(e.get("why", "")))])
    more = f'<p class="soft">and {len(skipped) - SHOWN} earlier ones</p>' if len(skipped) > SHOWN else ""
    return table(["skipped at step", "loss", "gradient norm", "why"], rows) + more


def _number(value: Any) -> str:
    return short(float(value)) if isinstance(value, int | float) else "not finite"


def _logits(rows: Sequence[Mapping[str, Any]], table: Table) -> str:
    """The last measured maxima, layer by layer."""
    last = next((r for r in reversed(rows) if isinstance(r.get("attention_logits"), list)), None)
    if last is None:
        return ""
    lines = []
    for n, heads in enumerate(last["attention_logits"]):
        known = [(v, h) for h, v in enumerate(heads) if isinstance(v, int | float)]
        if known:
            top, head = max(known)
            lines.append([str(n), short(float(top)), str(head), short(sum(v for v, _ in known) / len(known))])
    heads = ["layer", "largest attention logit", "in head", "mean over heads"]
    summary = f"attention logits at step {escape(str(last.get('step', '?')))}"
    return f"<details><summary>{summary}</summary>{table(heads, lines)}</details>" if lines else ""
