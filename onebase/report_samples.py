"""Raw samples for the report: what models wrote, the thought folded, all of it escaped.

From the evaluation (greedy completions of every model) and from the last rollouts of every stage that has
some.  Of each pool wrong and right ones alternate, over the families in turn: a reader sees failures too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from onebase import jsonl_zst
from onebase.errors import UserError
from onebase.tokenizer import END_THINK, THINK

COUNT = 20
LONGEST = 20_000  # characters shown of one text
READ = 20_000  # rows read of one file


def section(stages: Sequence[Path]) -> str:
    """Twenty samples (fewer where there are fewer), evenly from the pools."""
    pools, notes = _pools(stages)
    chosen: list[tuple[str, Mapping[str, Any]]] = []
    mixed = [[(name, row) for row in varied(rows)] for name, rows in pools.items()]
    for turn in zip_longest(*mixed):
        chosen += [one for one in turn if one is not None]
    order = {name: i for i, name in enumerate(pools)}
    chosen = sorted(chosen[:COUNT], key=lambda one: order[one[0]])
    parts = [f'<p class="bad">{escape(note)}</p>' for note in notes]
    before = None
    for name, row in chosen:
        if name != before:
            parts.append(f"<h3>{escape(name)}</h3>")
            before = name
        parts.append(one_sample(row))
    return "".join(parts)


def _pools(stages: Sequence[Path]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Rows by where they come from, and what could not be read."""
    pools: dict[str, list[dict[str, Any]]] = {}
    notes: list[str] = []
    for stage in stages:
        samples = stage / "samples.jsonl.zst"
        last = sorted((stage / "rollouts").glob("step_*.jsonl.zst"))[-1:]
        for path in [samples] if samples.is_file() else last:
            try:
                rows = jsonl_zst.read(path, most=READ)
            except UserError as error:
                notes.append(str(error))
                continue
            for row in rows:
                if row.get("kind", "greedy") != "greedy":
                    continue
                where = f"{stage.name}: {row['model']}, greedy" if "model" in row else _step(stage, path)
                pools.setdefault(where, []).append(row)
    return pools, notes


def _step(stage: Path, path: Path) -> str:
    number = "".join(c for c in path.name if c.isdigit()).lstrip("0") or "0"
    return f"{stage.name}: rollouts of step {number}"


def varied(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows in an order whose first few differ: in turn by (family, right or wrong), no problem twice."""
    bins: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    seen: set[str] = set()
    for row in rows:
        problem = str(row.get("problem", row.get("prompt", "")))
        if problem not in seen:
            seen.add(problem)
            bins.setdefault((str(row.get("family")), is_right(row) is True), []).append(row)
    keys = sorted(bins, key=lambda k: (k[1], k[0]))
    half = [k for k in keys if not k[1]], [k for k in keys if k[1]]
    in_turn = [k for pair in zip_longest(*half) for k in pair if k is not None]
    return [row for turn in zip_longest(*(bins[k] for k in in_turn)) for row in turn if row is not None]


def is_right(row: Mapping[str, Any]) -> bool | None:
    """Whether the answer was right (of rollouts: by the first verdict); None where that is not known."""
    if "correct" in row:
        return row["correct"]
    first = next(iter((row.get("verdicts") or {}).values()), None) or {}
    reward = first.get("reward")
    return None if reward is None else reward >= 1.0


def mark(right: bool | None) -> str:
    if right is None:
        return '<span class="soft">not judged</span>'
    return '<span class="good">right</span>' if right else '<span class="bad">wrong</span>'


def one_sample(row: Mapping[str, Any]) -> str:
    told = [f"answer {row['answer']}"] if row.get("answer") is not None else []
    told += [f"{row['tokens']} tokens"] if row.get("tokens") is not None else []
    told += ["cut at the limit"] if row.get("finish_reason") == "length" else []
    told += [f"reward {row['reward']:g}"] if isinstance(row.get("reward"), int | float) else []
    told += [str(row["why"])] if row.get("why") else []
    for name, verdict in (row.get("verdicts") or {}).items():
        said = (verdict or {}).get("error") or (verdict or {}).get("reason")
        told += [f"{name}: {said}"] if said else []
    problem = str(row.get("problem", row.get("prompt", "")))
    return (
        f'<div class="sample"><pre>{_cut(problem)}</pre>'
        f'<p class="soft">{mark(is_right(row))} · {escape(" · ".join(told))}</p>'
        f"{completion(str(row.get('completion', '')))}</div>"
    )


def completion(text: str, folded: bool = True) -> str:
    """A completion: text before a thought (rare), the thought in a fold, the answer."""
    thought, closed, answer = text.partition(END_THINK)
    if not closed and THINK not in text:
        return f"<pre>{_cut(text.strip()) or '(nothing)'}</pre>"
    before, _, inner = thought.partition(THINK) if THINK in thought else ("", "", thought)
    parts = [f"<pre>{_cut(before.strip())}</pre>"] if before.strip() else []
    length = f"{len(inner)} characters" + ("" if closed else ", not closed")
    parts.append(
        f'<details class="thought"{"" if folded else " open"}><summary>thought ({length})</summary>'
        f"<pre>{_cut(inner.strip())}</pre></details>"
    )
    if closed:
        parts.append(f"<pre>{_cut(answer.strip()) or '(no answer)'}</pre>")
    return "".join(parts)


def _cut(text: str) -> str:
    """Escaped, and not longer than the page can bear."""
    rest = len(text) - LONGEST
    return escape(text[:LONGEST]) + (f"\n… {rest} more characters" if rest > 0 else "")
