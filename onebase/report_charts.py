"""Curves as inline SVG, from rows of metrics.jsonl.  Text in, text out; nothing is fetched."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 640, 320
LEFT, TOP, RIGHT, BOTTOM = 104, 14, 608, 280
MOST_POINTS = 200
SMOOTH_FROM = 40  # curves with more points are drawn pale, with a moving mean over them
Point = tuple[float, float]
Series = list[Point]

# Panels in their order: title, keys that share it.  Keys that stand nowhere here get a panel under "other".
PANELS: list[tuple[str, tuple[str, ...]]] = [
    ("loss", ("loss", "heldout_loss")),
    ("bits per byte", ("bits_per_byte",)),
    ("reward", ("reward",)),
    ("accuracy", ("accuracy", "eval_accuracy")),
    ("completion tokens", ("completion_tokens", "completion_tokens_p95", "eval_tokens")),
    ("thoughts and format", ("thoughts", "format")),
    ("truncated", ("truncated",)),
    ("entropy", ("entropy",)),
    ("groups with signal", ("live_groups", "groups_all_right", "kept_prompts")),
    ("router load, max over mean", ("router_load_max",)),
    ("router bias, largest", ("router_bias_max",)),
    ("gradient norm", ("grad_norm",)),
    ("robust z-scores", ("loss_z", "grad_norm_z")),
    ("updates skipped", ("skipped",)),
    ("attention logit, largest", ("attention_logit_max",)),
    ("learning rate", ("lr",)),
    ("KL to the reference", ("kl",)),
    ("importance ratio, largest", ("ratio_max",)),
    ("trainer less engine, |log-probability|", ("dlogp_mean", "dlogp_max")),
    ("tokens per second", ("tokens_per_second",)),
    ("model FLOP utilisation", ("mfu",)),
    ("seconds of a step", ("seconds_generate", "seconds_verify", "seconds_train")),
]
TINY = 1e-100
NOT_CURVES = ("step", "time")


def series_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Finite numbers by key, over the steps; of a step written twice (by a resume) the last."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        step = row.get("step")
        if not _number(step):
            continue
        for key, value in row.items():
            if key not in NOT_CURVES and _number(value):
                # what no chart can show is zero; the differences of such numbers vanish or overflow
                shown = 0.0 if abs(value) < TINY else float(value)
                found.setdefault(str(key), {})[float(step or 0)] = shown
    return {key: sorted(points.items()) for key, points in found.items()}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def panels(rows: Sequence[Mapping[str, Any]]) -> str:
    """All panels of one stage; empty where there is nothing to draw."""
    series = series_of(rows)
    shown = []
    for title, keys in PANELS:
        mine = {key: series.pop(key) for key in keys if key in series}
        if mine:
            shown.append(panel(title, mine))
    text = f'<div class="panels">{"".join(shown)}</div>' if shown else ""
    if series:
        rest = "".join(panel(key, {key: points}) for key, points in series.items())
        text += f'<details><summary>other ({len(series)})</summary><div class="panels">{rest}</div></details>'
    return text


def panel(title: str, series: Mapping[str, Series]) -> str:
    """One figure: curves over the step, the last values in its caption."""
    values = [y for points in series.values() for _, y in points]
    steps = [x for points in series.values() for x, _ in points]
    log = _wants_log(values)
    y0, y1 = _range([math.log10(v) for v in values] if log else values)
    x0, x1 = (min(steps), max(steps)) if min(steps) < max(steps) else (min(steps) - 1, max(steps) + 1)

    def place(point: Point) -> str:
        y = math.log10(point[1]) if log else point[1]
        return (
            f"{LEFT + (point[0] - x0) / (x1 - x0) * (RIGHT - LEFT):.0f},"
            f"{BOTTOM - (y - y0) / (y1 - y0) * (BOTTOM - TOP):.1f}"
        )

    lines, names = [], []
    for n, (key, points) in enumerate(series.items()):
        colour = f"c{min(n, 5)}"
        if len(points) > SMOOTH_FROM:
            raw = " ".join(place(p) for p in thinned(points))
            lines.append(f'<polyline class="raw {colour}" points="{raw}"/>')
            points = smoothed(points, log)
        drawn = thinned(points)
        at = " ".join(place(p) for p in (drawn if len(drawn) > 1 else drawn * 2))
        lines.append(f'<polyline class="{colour}" data-name="{escape(key)}" points="{at}"/>')
        label = f"{escape(key)} " if len(series) > 1 else ""
        names.append(f'<span><i class="{colour}"></i>{label}{short(series[key][-1][1])}</span>')
    frame = json.dumps([LEFT, TOP, RIGHT, BOTTOM, x0, x1, y0, y1, int(log)])
    caption = f"<b>{escape(title)}</b>{''.join(names)}" + (
        '<span class="soft">log scale</span>' if log else ""
    )
    told = escape(f"{title} over steps {short(x0)} to {short(x1)}")
    return (
        f'<figure data-frame="{frame}"><figcaption>{caption}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">'
        f"{_axes(x0, x1, y0, y1, log)}{''.join(lines)}"
        f'<line class="cross" y1="{TOP}" y2="{BOTTOM}"/></svg><div class="told"></div></figure>'
    )


def _wants_log(values: Sequence[float]) -> bool:
    """Outliers would flatten a linear curve (gradient norms, ratios)."""
    middle = sorted(values)[len(values) // 2]
    return min(values) > 0 and max(values) > 50 * middle


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high == 0:
        return 0.0, 1.0
    if low == high:
        return low - abs(low) * 0.1, high + abs(low) * 0.1
    pad = (high - low) * 0.04
    return (0.0 if 0 <= low < (high - low) * 0.3 else low - pad), high + pad


def _axes(x0: float, x1: float, y0: float, y1: float, log: bool) -> str:
    parts = []
    rows = ticks(y0, y1, 4)
    # Values that hardly differ (a ratio of 1.00001) need more digits than `short` gives.
    names = [short(10**y if log else y) for y in rows]
    if len(set(names)) < len(names) and not log:
        names = [f"{y:.9g}" for y in rows]
    for y, label in zip(rows, names, strict=True):
        at = BOTTOM - (y - y0) / (y1 - y0) * (BOTTOM - TOP)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{at:.0f}" y2="{at:.0f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 8:.0f}" text-anchor="end">{label}</text>')
    for x in ticks(x0, x1, 4):
        at = LEFT + (x - x0) / (x1 - x0) * (RIGHT - LEFT)
        parts.append(f'<text x="{at:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{short(x)}</text>')
    return "".join(parts)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Series) -> Series:
    """At most MOST_POINTS points: means of equal pieces, the last point kept."""
    n = len(points)
    if n <= MOST_POINTS:
        return points
    edges = [round(i * (n - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)]
    pieces = [points[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return [*((sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in pieces), points[-1]]


def smoothed(points: Series, log: bool = False) -> Series:
    """Mean over a window of about a twentieth of the curve, which shrinks towards both ends; with `log` the
    geometric mean, so that one outlier does not lift its whole neighbourhood."""
    half = max(1, len(points) // 40)
    total = [0.0]
    for _, y in points:
        total.append(total[-1] + (math.log(y) if log else y))
    out = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        mean = (total[i + reach + 1] - total[i - reach]) / (2 * reach + 1)
        out.append((x, math.exp(mean) if log else mean))
    return out


def short(value: float) -> str:
    """A number in few characters: 0.1234, 12.3, 4.5k, 1.2e-05."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if value == int(value):
        return str(int(value))
    return f"{value:.4g}" if size >= 1e-3 else f"{value:.2g}"


def share_bar(value: float, interval: Sequence[float] | None) -> str:
    """A share between 0 and 1 as a dot, with its interval as a line."""
    line = ""
    if interval is not None:
        low, high = (4 + 112 * x for x in interval)
        line = f'<line class="ci" x1="{low:.1f}" x2="{high:.1f}" y1="10" y2="10"/>'
    return (
        '<svg class="bar" viewBox="0 0 120 20" aria-hidden="true">'
        f'<line class="grid" x1="4" x2="116" y1="10" y2="10"/>{line}'
        f'<circle class="dot" cx="{4 + 112 * value:.1f}" cy="10" r="3.5"/></svg>'
    )
