"""The page at its boundary: a run's folder in, one HTML file out."""

from __future__ import annotations

import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onebase import jsonl_zst, report, report_charts, report_samples
from onebase.errors import UserError

EVIL = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\" & $body"


class Page(html.parser.HTMLParser):
    """Tags in order, open tags at the end, visible text; asserts that tags are closed in order."""

    VOID = {"meta", "br", "img", "line", "circle", "polyline", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes {self.open[-3:]}"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words += data


def read(path: Path) -> Page:
    page = Page(path.read_text())
    assert page.open == []
    return page


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def numbers(greedy: float) -> dict[str, Any]:
    return {
        "greedy": greedy,
        "ci95": [max(0, greedy - 0.1), min(1, greedy + 0.1)],
        "mean_tokens": 12.5,
        "truncated": 0.05,
        "avg@8": greedy,
        "pass@1": greedy,
        "pass@8": min(1, greedy + 0.2),
        "maj@8": greedy,
        "intervals": {"pass@8": [0.1, 0.9]},
        "no_answer": 3,
        "errors": 1,
        "errors_sampled": 2,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with everything in it, as the stages write it."""
    folder = tmp_path / "demo"
    for stage, kind in (("base", "pretrain"), ("zero", "grpo"), ("table", "eval")):
        (folder / stage).mkdir(parents=True)
        done = {"kind": kind, "summary": {"loss": 1.25}, "seconds": 75.0, "finished": "2026"}
        (folder / stage / "done.json").write_text(json.dumps(done))
    (folder / "recipe.resolved.yaml").write_text("name: demo\nstages:\n  base: {}\n  zero: {}\n  table: {}\n")
    (folder / "run.json").write_text(json.dumps({"started": "2026-01-01T10:00", "packages": {"torch": "2"}}))
    steps = range(1, 501)
    lines(folder / "base/metrics.jsonl", [{"step": s, "time": 1, "loss": 5 / s, "odd_one": s} for s in steps])
    lines(
        folder / "zero/metrics.jsonl",
        [{"step": s, "reward": s / 50, "completion_tokens": 3.0 + s, "entropy": None} for s in range(1, 51)],
    )
    lines(folder / "zero/events.jsonl", [{"kind": "skipped", "time": 1.0, "why": EVIL}])
    rollouts = [
        {
            "prompt": f"problem {n}",
            "completion": f"<think>{EVIL} thinking {n}</think>{n}",
            "reward": n % 2,
            "verdicts": {"math_answer": {"reward": n % 2, "error": None, "reason": "compared"}},
            "kept": True,
            "why": "trained",
            "finish_reason": "stop",
            "tokens": 5,
        }
        for n in range(30)
    ]
    (folder / "zero/rollouts").mkdir()
    (folder / "zero/rollouts/step_000010.jsonl.zst").write_bytes(jsonl_zst.pack([{"prompt": "old step"}]))
    (folder / "zero/rollouts/step_000050.jsonl.zst").write_bytes(jsonl_zst.pack(rollouts))
    families = {"families": {"chain": numbers(0.3), "addition": numbers(0.6)}}
    sample = {"problem": EVIL, "answer": "7", "outputs": {"base": EVIL, "R1": f"<think>{EVIL}</think>7"}}
    found = {
        "models": {"base": numbers(0.25) | families, "R1 <b>": numbers(0.91) | families},
        "sample": sample | {"correct": {"base": False, "R1": True}},
        "data": {"problems": 64, "samples": 8, "too_long": 2},
    }
    (folder / "table/eval.json").write_text(json.dumps(found))
    samples = [
        {
            "model": model,
            "kind": kind,
            "problem": f"{kind} {n}",
            "answer": str(n),
            "family": "chain" if n % 3 else "addition",
            "completion": EVIL if n == 0 else f"<think>steps</think>{n}",
            "correct": n % 4 == 0,
            "tokens": 4,
            "finish_reason": "length" if n == 1 else "stop",
        }
        for model in ("base", "R1 <b>")
        for kind in ("greedy", "sampled")
        for n in range(12)
    ]
    (folder / "table/samples.jsonl.zst").write_bytes(jsonl_zst.pack(samples))
    return folder


def test_the_page_has_every_section(run: Path) -> None:
    path = report.write(run)
    page = read(path)
    assert path == run / "report.html"
    for word in ("25.0 %", "91.0 %", "By family", "chain", "skipped", "torch", "name: demo", "1:15"):
        assert word in page.words, word
    assert page.words.count("alert('x')") >= 4, "a model's text is shown as it is"
    assert page.words.index("base") < page.words.index("zero") < page.words.index("table")


def test_text_of_models_is_never_markup(run: Path) -> None:
    page = read(report.write(run))
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert" not in (run / "report.html").read_text()


def test_the_page_fetches_nothing(run: Path) -> None:
    page = read(report.write(run))
    urls = [v for name, v in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert urls and all((v or "").startswith("#") for v in urls)
    text = (run / "report.html").read_text()
    assert "@import" not in text and "url(" not in text and "default-src 'none'" in text


def test_twenty_samples_right_and_wrong_from_every_pool(run: Path) -> None:
    text = (report.write(run)).read_text()
    section = text[text.index('id="samples"') :]
    assert section.count('<div class="sample">') == 20
    assert section.count('class="good">right') >= 5 and section.count('class="bad">wrong') >= 5
    for word in ("table: base, greedy", "table: R1 &lt;b&gt;, greedy", "zero: rollouts of step 50"):
        assert word in section, word
    assert "old step" not in text and "sampled 3" not in text and "cut at the limit" in section
    assert '<details class="thought"><summary>' in section


def test_curves_known_and_unknown(run: Path) -> None:
    text = report.write(run).read_text()
    curves = text[text.index('id="curves"') : text.index('id="events"')]
    for word in ("<b>loss</b>", "<b>reward</b>", "<b>completion tokens</b>", "other (1)", "<b>odd_one</b>"):
        assert word in curves, word
    assert "entropy" not in curves, "a key with no finite number has no panel"


@pytest.mark.parametrize(
    "gone",
    ["recipe.resolved.yaml", "run.json", "base/metrics.jsonl", "table/eval.json", "table/samples.jsonl.zst"],
)
@pytest.mark.parametrize("how", ["missing", "damaged", "empty"])
def test_missing_or_damaged_files_do_not_stop_it(run: Path, gone: str, how: str) -> None:
    if how == "missing":
        (run / gone).unlink()
    else:
        (run / gone).write_bytes(b"\xff{[: not\nthis\n" if how == "damaged" else b"")
    page = read(report.write(run))
    assert "base" in page.words and "Events" in page.words
    if how == "damaged" and gone.endswith(("metrics.jsonl", "zst")):
        assert Path(gone).name in page.words, "damage is told"


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    read(report.write(folder))
    lines(folder / "base/metrics.jsonl", [{"step": 1, "loss": 3.0}])
    page = read(report.write(folder))
    assert "begun, not finished" in page.words and "loss" in page.words
    with pytest.raises(UserError, match="nowhere"):
        report.write(tmp_path / "nowhere")


def test_an_unfinished_evaluation_shows_its_models(run: Path) -> None:
    (run / "table/eval.json").unlink()
    (run / "table/models").mkdir()
    (run / "table/models/base.json").write_text(json.dumps({"key": "x", "numbers": numbers(0.77)}))
    assert "77.0 %" in read(report.write(run)).words


# -- curves


points = st.lists(
    st.tuples(st.integers(0, 5000), st.floats(-1e12, 1e12) | st.sampled_from([math.nan, math.inf])),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@example([(0, 5e-324)], "")
@given(points, st.text(max_size=10))
def test_any_numbers_make_a_figure_inside_its_frame(given_points: Any, key: str) -> None:
    rows = [{"step": s, key: v} for s, v in given_points]
    text = report_charts.panels(rows)
    if key in ("step", "time") or all(not math.isfinite(v) for v in dict(given_points).values()):
        return
    page = Page(text)
    assert page.open == []
    for found in re.findall(r'points="([^"]+)"', text):
        for x, y in (map(float, p.split(",")) for p in found.split()):
            assert report_charts.LEFT - 1 <= x <= report_charts.RIGHT + 1
            assert report_charts.TOP - 1 <= y <= report_charts.BOTTOM + 1


def test_a_step_written_twice_counts_once() -> None:
    rows = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "loss": 3.0}, {"loss": 9.0}]
    assert report_charts.series_of(rows) == {"loss": [(1.0, 5.0), (2.0, 3.0)]}


def test_axis_labels_tell_values_apart() -> None:
    text = report_charts.panel("ratio", {"ratio_max": [(1.0, 1.00001), (2.0, 1.00004)]})
    labels = re.findall(r'text-anchor="end">([^<]+)<', text)
    assert len(labels) >= 2 and len(set(labels)) == len(labels)
    nothing = report_charts.panel("truncated", {"truncated": [(1.0, 0.0), (2.0, 0.0)]})
    assert "-" not in "".join(re.findall(r'text-anchor="end">([^<]+)<', nothing)), "a share is not below 0"


def test_thinning_keeps_the_mean_and_smoothing_keeps_lines() -> None:
    line = [(float(i), 2.0 * i) for i in range(10_000)]
    few = report_charts.thinned(line)
    assert len(few) <= report_charts.MOST_POINTS and few[-1] == line[-1]
    assert all(y == pytest.approx(2 * x) for x, y in few)
    assert all(y == pytest.approx(2 * x) for x, y in report_charts.smoothed(line))


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 6))
def test_ticks_are_round_few_and_inside(low: float, width: float, about: int) -> None:
    if low + width == low or width < abs(low) * 1e-6:
        return
    found = report_charts.ticks(low, low + width, about)
    assert len(found) <= about + 2
    assert all(low - width * 1e-6 <= t <= low + width * (1 + 1e-6) for t in found)


# -- samples


def test_thoughts_apart_whatever_the_tags() -> None:
    show = report_samples.completion
    assert show("plain") == "<pre>plain</pre>"
    assert "no answer" in show("<think>a</think>") and "not closed" in show("<think>a")
    assert show("a</think>b").index("a</pre></details>") < show("a</think>b").index("<pre>b</pre>")
    assert "&lt;think&gt;" in show("<think>x<think>y</think>z"), "a second tag stays visible"
    assert "more characters" in show("x" * (report_samples.LONGEST + 5))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 9)), max_size=30))
def test_varied_keeps_each_problem_once(rows: list[tuple[str, bool, int]]) -> None:
    made = [{"family": f, "correct": c, "problem": str(n)} for f, c, n in rows]
    found = report_samples.varied(made)
    assert sorted(r["problem"] for r in found) == sorted({str(n) for _, _, n in rows})
    if len({r["correct"] for r in found}) == 2:
        assert found[0]["correct"] is False and found[1]["correct"] is True
