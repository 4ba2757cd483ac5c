"""What a stage tells while it runs: metrics.jsonl and events.jsonl for the report, one progress line for the
person.

    log.step(12, 400, {"loss": 2.1, "lr": 3e-4, ...}, show=("loss",))   a line of metrics.jsonl; the bar moves
    log.event("skipped_rows", count=3, file="a.jsonl")                  a line of events.jsonl, and a warning
    log.note("tokenizer: 512 entries")                                  printed only

On a terminal there is one bar per stage; elsewhere (a log file, CI) a plain line every few seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from onebase.files import append_jsonl, read_jsonl, write_jsonl

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 5.0
BAR_WIDTH = 16
SHORTER = {"tokens_per_second": "tok/s"}


class RunLog:
    """Log of one stage.  A context manager: leaving it ends the bar, so that later output is not drawn
    over."""

    def __init__(
        self, folder: Path, title: str, total: int, quiet: bool = False, silent: bool = False
    ) -> None:
        """`quiet` prints nothing; `silent` writes no files either (all processes of a group but the
        first)."""
        self.silent, quiet = silent, quiet or silent
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics_path = folder / "metrics.jsonl"
        self.events_path = folder / "events.jsonl"
        self.title = title
        self.total = total
        self.quiet = quiet
        self._start = time.monotonic()
        self._first: tuple[int, float] | None = (
            None  # step and time of this process's first step, for the time left
        )
        self._printed = -PLAIN_SECONDS
        self._console: Console | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if not quiet:
            from rich.console import Console

            self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
            if self._console.is_terminal:
                self._open_bar(self._console)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def step(self, step: int, total: int, metrics: Mapping[str, object], show: Sequence[str] = ()) -> None:
        """One finished step: every number goes to the file, those named in `show` also to the bar.

        `step` counts from 1; a number that is not finite is written as null.
        """
        row = {"step": step, "time": round(time.time(), 3)} | {k: _number(v) for k, v in metrics.items()}
        if not self.silent:
            append_jsonl(self.metrics_path, row)
        numbers = "  ".join(
            f"{SHORTER.get(key, key)} {_short(metrics[key])}" for key in show if key in metrics
        )
        if self._bar is not None and self._task is not None:
            # what does not fit is cut here: rich would squeeze the bar and the counter instead
            room = self._bar.console.width - len(self.title) - BAR_WIDTH - 2 * len(str(total)) - 15
            self._bar.update(self._task, completed=step, total=total, numbers=numbers[: max(room, 8)])
        elif not self.quiet:
            self._plain(step, total, numbers)

    def event(self, kind: str, **fields: object) -> None:
        """Something out of the ordinary that the report should show too."""
        if self.silent:
            return
        append_jsonl(self.events_path, {"kind": kind, "time": round(time.time(), 3), **fields})
        told = ", ".join(f"{key}={_short(value)}" for key, value in fields.items())
        self._print(f"warning: {kind}" + (f": {told}" if told else ""), style="yellow")

    def note(self, text: str) -> None:
        """A line for the person only."""
        self._print(text, style="dim")

    def events(self) -> int:
        """Lines in events.jsonl."""
        return len(read_jsonl(self.events_path))

    def truncate_after(self, step: int, events: int | None = None) -> None:
        """Drop metric lines behind `step`, and events behind the first `events`, which a resumed stage is
        about to write again."""
        if self.silent:
            return
        told = read_jsonl(self.events_path)
        if events is not None and events < len(told):
            write_jsonl(self.events_path, told[:events])
        rows = read_jsonl(self.metrics_path)
        kept = [row for row in rows if row.get("step", 0) <= step]
        if len(kept) < len(rows):
            write_jsonl(self.metrics_path, kept)
            self.note(f"{self.title}: goes on after step {step}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open_bar(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=BAR_WIDTH),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=console,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.title, total=self.total, numbers="")

    def _plain(self, step: int, total: int, numbers: str) -> None:
        now = time.monotonic() - self._start
        if self._first is None:
            self._first = (step, now)
        if now - self._printed < PLAIN_SECONDS and step < total:
            return
        self._printed = now
        first_step, first_time = self._first
        left = ""
        if first_step < step < total:
            left = f"  {_clock((now - first_time) / (step - first_step) * (total - step))} left"
        self._print(f"{self.title}  {step}/{total}{left}  {numbers}".rstrip())

    def _print(self, text: str, style: str = "") -> None:
        if self.quiet or self._console is None:
            return
        (self._bar.console if self._bar is not None else self._console).print(text, style=style, markup=False)


def _number(value: object) -> object:
    """Plain JSON numbers out of numpy and torch scalars."""
    item = getattr(value, "item", None)
    return item() if callable(item) else value


def _short(value: object) -> str:
    value = _number(value)
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
