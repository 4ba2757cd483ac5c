"""`onebase verify`: what a verifier says about the rows of a file.

With `--gold` each row's own answer is judged: a verifier that does not give it 1 cannot read the data's
answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onebase.errors import UserError
from onebase.files import append_jsonl, read_jsonl
from onebase.wording import hint, listed


def main(
    name: str,
    data: str,
    gold: bool,
    fields: list[str],
    show: int,
    out: str | None,
    options: list[str] | None = None,
    timeout: float | None = None,
) -> int:
    """Print the table; 1 where `gold` is asked for and an answer does not score 1."""
    from rich.console import Console
    from rich.table import Table

    from onebase.recipe import Term
    from onebase.rewards import verdicts_of
    from onebase.verifiers.registry import load

    load(name)  # an unknown name is told before the data is read
    if timeout is not None and not timeout > 0:
        raise UserError(f"--timeout {timeout:g}: expected seconds, more than 0")
    term = Term(verifier=name, options=read_options(options or []), timeout=timeout)
    rows = read_rows(Path(data).expanduser(), gold, fields)
    verdicts = verdicts_of(term, [row | term.options for row in rows])
    if out:
        path = Path(out).expanduser()
        if path.exists():
            raise UserError(f"--out {path}: exists already; name another file")
        for n, v in enumerate(verdicts, 1):
            append_jsonl(
                path,
                {"row": n, "reward": v.reward, "reason": v.reason, "error": v.error, "seconds": v.seconds},
            )
    counts = count(verdicts)
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in counts:
        table.add_column(column, justify="right")
    table.add_row(*(str(value) for value in counts.values()))
    console.print(table)
    below = [(n, row, v) for n, (row, v) in enumerate(zip(rows, verdicts, strict=True), 1) if v.reward != 1.0]
    for n, row, v in below[:show]:
        told = "error" if v.error is not None else f"{v.reward:g}"
        console.print(f"\n{data}: row {n}: {told}: {v.error or v.reason}", markup=False, soft_wrap=True)
        console.print(f"  answer      {_cut(row.get('answer'))}", markup=False, style="dim", soft_wrap=True)
        console.print(
            f"  completion  {_cut(row.get('completion'))}", markup=False, style="dim", soft_wrap=True
        )
    if len(below) > show > 0:
        console.print(f"\n... and {len(below) - show} more (--show {len(below)})", style="dim")
    return 1 if gold and below else 0


def count(verdicts: list[Any]) -> dict[str, object]:
    """The table: rewards by class, errors apart, the mean over judged rows, the slowest verdicts."""
    judged = [v.reward for v in verdicts if v.reward is not None]
    seconds = sorted(v.seconds for v in verdicts)
    return {
        "rows": len(verdicts),
        "reward 1": sum(r == 1.0 for r in judged),
        "between": sum(0.0 < r < 1.0 for r in judged),
        "reward 0": sum(r == 0.0 for r in judged),
        "errors": len(verdicts) - len(judged),
        "mean reward": f"{sum(judged) / len(judged):.4f}" if judged else "none judged",
        "ms (median)": f"{1000 * seconds[len(seconds) // 2]:.2f}",
        "ms (slowest)": f"{1000 * seconds[-1]:.2f}",
    }


def read_options(texts: list[str]) -> dict[str, Any]:
    """`NAME=VALUE`, the value as YAML has it."""
    import yaml

    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"--option {text}: expected NAME=VALUE, as in policy={{percent: strict}}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--option {text}: the value is no YAML: {error}") from error
    return options


def read_rows(path: Path, gold: bool, fields: list[str]) -> list[dict[str, Any]]:
    """Rows with `completion` and `answer` as text; UserError names the row that lacks one."""
    if not path.is_file():
        beside = [str(p) for p in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file" + hint(str(path), beside))
    names: dict[str, str] = {}
    for text in fields:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise UserError(f"--field {text}: expected OURS=THEIRS, as in completion=output")
        names[ours] = theirs
    rows = []
    for n, row in enumerate(read_jsonl(path), 1):
        for ours, theirs in names.items():
            if theirs not in row:
                raise UserError(
                    f"{path}: row {n} has no field {theirs!r}, which --field names; it has: {listed(row)}"
                )
            row[ours] = row[theirs]
        if gold and "answer" in row:
            row["completion"] = row["answer"]
        for key in ("answer", "completion"):
            if key not in row:
                raise UserError(
                    f"{path}: row {n} has no field {key!r}; it has: {listed(row)}\n"
                    f"  --field {key}=NAME names another" + hint(key, row)
                )
            row[key] = row[key] if isinstance(row[key], str) else str(row[key])
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows in it")
    return rows


def _cut(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else f"{text[:70]} ... {text[-80:]}"
