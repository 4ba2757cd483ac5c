"""docs/data.md: its configuration, its recipe and its commands, run as they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from onebase import cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prose: Callable[..., str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("web", "code"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    for n in range(40):
        (tmp_path / "raw" / "web" / f"{n}.txt").write_text(prose(n))
        (tmp_path / "raw" / "code" / f"{n}.py").write_text(
            f"# {prose(n, 1)}\ndef f(x):\n    return x + {n}\n"
        )
    rows = [{"problem": prose(f"p{n}", 1), "solution": prose(f"s{n}", 2)} for n in range(40)]
    (tmp_path / "raw" / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "raw" / "test.jsonl").write_text(json.dumps(rows[3] | {"answer": "1"}) + "\n")
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / text.split("\n")[0].removeprefix("# ")).write_text(text)
    commands = [c.strip() for c in re.findall(r"```\n(onebase .*?)```", PAGE, re.DOTALL)]
    assert [c.split()[1] for c in commands] == ["corpus", "run"]
    for command in commands:
        assert cli.main(command.split()[1:]) == 0, command
    card = json.loads((tmp_path / "corpus" / "card.json").read_text())
    assert card["sources"]["problems"]["dropped"] == {"evaluation: raw/test.jsonl": 1}
    assert [p.name for p in (tmp_path / "corpus").iterdir() if not p.name.startswith(".")]
    assert (
        json.loads((tmp_path / "runs/from_corpus/base/done.json").read_text())["summary"]["bits_per_byte"] > 0
    )


@pytest.mark.parametrize("name", sorted(set(re.findall(r"corpus_\w+\.py", PAGE))))
def test_each_file_it_names_exists(name: str) -> None:
    assert (ROOT / "pretrain" / name).is_file()
