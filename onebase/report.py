"""report.html: one self-contained page of a run.  It reads the run's files and nothing else.

Missing files are left out, damaged ones are named: a report of a half-finished run works.  All text that came
from a model, a data set or a file is escaped; the page fetches nothing (its content policy forbids it).
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from onebase import report_charts, report_samples, report_stability
from onebase.errors import UserError
from onebase.files import atomic_write, read_jsonl
from onebase.report_charts import share_bar, short
from onebase.stage_state import read_json

EVENTS = 50  # most events shown of a stage
MARKS = ("metrics.jsonl", "made.json", "done.json", "eval.json", "events.jsonl")


def write(run_folder: Path) -> Path:
    """Write report.html into the run's folder, whole or not at all; returns its path."""
    folder = Path(run_folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no run's folder; a run makes it (onebase ls runs)")
    stages = stage_folders(folder)
    evals = {s.name: e for s in stages if (e := _evaluated(s)).get("models")}
    sections = {
        "Results": "".join(f"{_named(name, evals)}{_results(found)}" for name, found in evals.items()),
        "Curves": "".join(_curves(s) for s in stages if s.name not in evals),
        "Events": report_stability.section(stages, table, Text) + _events(stages),
        "Samples": report_samples.section(stages),
        "Recipe and versions": _made_from(folder),
    }
    shown = {title: text for title, text in sections.items() if text}
    parts = [_head(folder, stages, list(shown))]
    parts += [f'<h2 id="{_id(title)}">{title}</h2>{text}' for title, text in shown.items()]
    page = string.Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
    text = page.substitute(title=escape(f"onebase: {folder.resolve().name}"), body="\n".join(parts))
    path = folder / "report.html"
    atomic_write(path, text.encode("utf-8", "replace"))
    return path


def stage_folders(folder: Path) -> list[Path]:
    """The stages' folders in the recipe's order, then any other folder that looks like one."""
    import yaml

    order: list[str] = []
    recipe = folder / "recipe.resolved.yaml"
    if recipe.is_file():
        try:
            order = list((yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("stages") or {})
        except (yaml.YAMLError, AttributeError, ValueError):
            order = []  # the text itself is still shown at the end
    found = [s for s in folder.iterdir() if s.is_dir() and any((s / mark).is_file() for mark in MARKS)]
    place = {name: i for i, name in enumerate(order)}
    return sorted(found, key=lambda s: (place.get(s.name, len(place)), s.name))


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (UserError, OSError):
        return None


def _evaluated(stage: Path) -> dict[str, Any]:
    """An eval stage's table; of an unfinished one the models measured so far."""
    whole = _json(stage / "eval.json")
    if whole is not None:
        return whole
    parts = {path.stem: _json(path) or {} for path in sorted((stage / "models").glob("*.json"))}
    return {"models": {label: p["numbers"] for label, p in parts.items() if p.get("numbers")}}


def _named(name: str, evals: Mapping[str, Any]) -> str:
    return f"<h3>{escape(name)}</h3>" if len(evals) > 1 else ""


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def _head(folder: Path, stages: Sequence[Path], sections: Sequence[str]) -> str:
    rows = []
    for s in stages:
        done, made = _json(s / "done.json"), _json(s / "made.json") or {}
        kind = (done or {}).get("kind") or _kind(made, s.name)
        state = '<span class="good">finished</span>' if done else "begun, not finished"
        seconds = (done or {}).get("seconds")
        summary = " · ".join(f"{k} {short(v)}" for k, v in numbers((done or {}).get("summary")).items())
        rows.append([s.name, kind, Html(state), "" if seconds is None else clock(seconds), Text(summary)])
    start = _json(folder / "run.json") or {}
    hardware = start.get("hardware") or {}
    told = [str(start.get("started", ""))[:16].replace("T", " ")]
    told += [", ".join(hardware.get("gpus") or []) or f"{hardware.get('usable_cores', '?')} cores"]
    links = "".join(f'<a href="#{_id(title)}">{title.lower()}</a>' for title in sections)
    return (
        f"<h1>{escape(folder.resolve().name)}</h1>"
        f'<p class="soft">{escape(", ".join(t for t in told if t))}</p><nav>{links}</nav>'
        + table(["stage", "kind", "state", "time", "its last numbers"], rows)
    )


def _kind(made: Mapping[str, Any], name: str) -> str:
    stages = (made.get("inputs") or {}).get("stages") or {}
    return str((stages.get(name) or {}).get("kind", ""))


# -- results


def _results(found: Mapping[str, Any]) -> str:
    models: dict[str, dict[str, Any]] = found["models"]
    data = found.get("data") or {}
    sampled = data.get("samples")
    told = f"{data['problems']} held-out problems; greedy" if data else "models measured so far; greedy"
    told += f", and {sampled} sampled completions of each" if sampled else ""
    if data.get("too_long"):
        told += f"; {data['too_long']} problems left out: prompt too long"
    rows = [_model_row(label, m) for label, m in models.items()]
    heads = ["model", "greedy", "", "95 % interval", "avg", "pass", "maj", "tokens", "truncated", "thoughts"]
    heads += ["right with a thought", "right without", "no answer", "errors"]
    parts = [f'<p class="soft">{escape(told)}</p>', table(_with_k(heads, models), rows)]
    parts.append(_families(models))
    details = {label: _all_numbers(m) for label, m in models.items()}
    keys = list(dict.fromkeys(k for own in details.values() for k in own))
    every = [[label, *(own.get(k, "") for k in keys)] for label, own in details.items()]
    parts.append(f"<details><summary>all numbers</summary>{table(['model', *keys], every)}</details>")
    if found.get("sample"):
        parts.append(_sample(found["sample"]))
    return "".join(parts)


def _largest(model: Mapping[str, Any], kind: str) -> str | None:
    """The key with the largest k: pass@8 among pass@1, pass@2, ..."""
    keys = [k for k in model if k.startswith(kind + "@") and k.partition("@")[2].isdigit()]
    return max(keys, key=lambda k: int(k.partition("@")[2])) if keys else None


def _with_k(heads: list[str], models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    first: Mapping[str, Any] = next(iter(models.values()))
    return [(_largest(first, h) or h) if h in ("avg", "pass", "maj") else h for h in heads]


def _model_row(label: str, m: Mapping[str, Any]) -> list[Any]:
    greedy, ci = m.get("greedy"), m.get("ci95")
    several = [percent(m.get(_largest(m, kind) or "")) for kind in ("avg", "pass", "maj")]
    return [
        label,
        percent(greedy),
        Html(share_bar(greedy, ci) if greedy is not None else ""),
        f"{percent(ci[0])} – {percent(ci[1])}" if ci else "",
        *several,
        "" if m.get("mean_tokens") is None else f"{m['mean_tokens']:.1f}",
        *(percent(m.get(k)) for k in ("truncated", "thoughts")),
        *(percent(m.get(k)) for k in ("accuracy_with_thought", "accuracy_without_thought")),
        str(m.get("no_answer", "")),
        str(m.get("errors", 0) + m.get("errors_sampled", 0)),
    ]


def _families(models: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(f for m in models.values() for f in m.get("families") or {}))
    if len(names) < 2:
        return ""
    rows = []
    for name in names:
        cells: list[Any] = [name]
        for m in models.values():
            own = (m.get("families") or {}).get(name) or {}
            best = _largest(own, "pass")
            cells += [percent(own.get("greedy")), percent(own.get(best or "")), _tokens(own)]
        rows.append(cells)
    heads = ["family"]
    for label, m in models.items():
        heads += [label, _largest(m, "pass") or "", "tokens"]
    return f"<h3>By family</h3>{table(heads, rows)}"


def _tokens(m: Mapping[str, Any]) -> str:
    return "" if m.get("mean_tokens") is None else f"{m['mean_tokens']:.1f}"


def _all_numbers(m: Mapping[str, Any]) -> dict[str, str]:
    intervals = m.get("intervals") or {}
    out = {}
    for key, value in numbers(m).items():
        ci = intervals.get(key)
        out[key] = short(value) + (f" ({short(ci[0])} – {short(ci[1])})" if ci else "")
    return out


def _sample(sample: Mapping[str, Any]) -> str:
    parts = [f"<h3>One problem, every model</h3><pre>{escape(str(sample.get('problem', '')))}</pre>"]
    parts.append(f'<p class="soft">answer: {escape(str(sample.get("answer", "")))}</p>')
    for label, text in (sample.get("outputs") or {}).items():
        right = (sample.get("correct") or {}).get(label)
        parts.append(f'<div class="sample"><h4>{escape(str(label))} {report_samples.mark(right)}</h4>')
        parts.append(report_samples.completion(str(text), folded=False) + "</div>")
    return "".join(parts)


# -- curves, events, recipe


def _curves(stage: Path) -> str:
    try:
        drawn = report_charts.panels(read_jsonl(stage / "metrics.jsonl"))
    except UserError as error:
        drawn = f'<p class="bad">{escape(str(error))}</p>'
    return f"<h3>{escape(stage.name)}</h3>{drawn}" if drawn else ""


def _events(stages: Sequence[Path]) -> str:
    rows: list[list[Any]] = []
    for stage in stages:
        try:
            every = read_jsonl(stage / "events.jsonl")
            found = [e for e in every if e.get("kind") not in report_stability.KINDS]
        except UserError as error:
            found = [{"kind": "damaged", "why": str(error)}]
        for event in found[-EVENTS:]:
            told = " · ".join(f"{k}={v}" for k, v in event.items() if k not in ("kind", "time"))
            rows.append([stage.name, str(event.get("kind", "")), Text(told)])
        if len(found) > EVENTS:
            rows.append([stage.name, "", Text(f"and {len(found) - EVENTS} earlier ones")])
    return table(["stage", "event", "details"], rows) if rows else ""


def _made_from(folder: Path) -> str:
    parts = []
    for name in ("recipe.resolved.yaml", "run.json"):
        path = folder / name
        if path.is_file():
            text = escape(path.read_text(encoding="utf-8", errors="replace"))
            parts.append(
                f'<details open><summary>{name}</summary><div class="file"><pre>{text}</pre></div></details>'
            )
    return "".join(parts)


# -- pieces


class Html(str):
    """A cell that is markup already."""


class Text(str):
    """A cell of running text: left, wrapped."""


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(_cell(c) for c in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, Html):
        return f"<td>{value}</td>"
    if isinstance(value, Text):
        return f'<td class="text">{escape(value)}</td>'
    return f"<td>{escape(str(value))}</td>"


def numbers(found: Mapping[str, Any] | None) -> dict[str, float]:
    return {
        str(k): float(v)
        for k, v in (found or {}).items()
        if isinstance(v, int | float) and not isinstance(v, bool)
    }


def percent(share: Any) -> str:
    return f"{100 * share:.1f} %" if isinstance(share, int | float) else ""


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
