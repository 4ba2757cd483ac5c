"""`onebase new verifier NAME`: a plug-in to start from, with its golden cases, its test and its package.

    NAME/NAME.py          the verifier
    NAME/golden.jsonl     completions and what they are worth
    NAME/test_NAME.py     runs them, and hostile ones
    NAME/pyproject.toml   the entry point by which an installed package's verifier is found
    NAME/README.md

It works as written: `pytest`, `pip install .`, `onebase verify`.
"""

from __future__ import annotations

import importlib.util
import keyword
import sys
from pathlib import Path

from onebase.errors import UserError
from onebase.verifiers.registry import GROUP, builtin_names, plugins
from onebase.wording import listed

VERIFIER = '''\
"""{title}: the answer part of a completion is the gold answer, blanks and capitals aside.

Replace this with what your verifier pays for.
"""

from onebase.verifiers.base import Verdict, failed


def verify(completion: str, answer: str, **row: object) -> Verdict:
    """Reward 1 or 0; an error where the gold answer is none.  `row` has the data row's other fields."""
    if not answer.strip():
        return failed("gold: it is empty")
    said = completion.rpartition("</think>")[2].strip()  # never look for the answer inside the thought
    same = said.casefold() == answer.strip().casefold()
    return Verdict(float(same), f"{{said[:80]!r}} {{'is' if same else 'is not'}} {{answer[:80]!r}}")
'''

GOLDEN = """\
{"kind": "accepted", "answer": "Paris", "completion": "Paris"}
{"kind": "accepted", "answer": "Paris", "completion": "<think>France, so it is Paris.</think> paris\\n"}
{"kind": "rejected", "answer": "Paris", "completion": "Rome"}
{"kind": "rejected", "answer": "Paris", "completion": ""}
{"kind": "adversarial", "answer": "Paris", "completion": "<think>Paris</think>"}
{"kind": "adversarial", "answer": "Paris", "completion": "Paris or Rome"}
{"kind": "adversarial", "answer": "Paris", "completion": "<think>x</think>Paris</think>Rome"}
{"kind": "error", "answer": " ", "completion": "Paris"}
"""

TEST = '''\
"""The golden cases of {name}, and completions that are there to break it."""

from pathlib import Path

import pytest

from onebase.verifiers.golden import cases, fault, hostile_faults
from onebase.verifiers.registry import load

HERE = Path(__file__).parent
NAME = f"{{HERE / '{name}.py'}}:verify"


@pytest.mark.parametrize("case", cases(HERE / "golden.jsonl"), ids=lambda case: case["completion"][:30])
def test_golden(case):
    assert fault(load(NAME), case) is None


def test_nothing_that_a_model_writes_breaks_it():
    assert hostile_faults(NAME, wall_seconds=10, answer="Paris") == []
'''

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "onebase-{dashed}"
version = "0.1.0"
description = "The verifier {name} for onebase"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["onebase"]

[project.entry-points."{group}"]
{name} = "{name}:verify"

[tool.setuptools]
py-modules = ["{name}"]
"""

README = """\
# {name}

A verifier for onebase.

    pytest                                             # golden cases and hostile completions
    onebase verify {name}.py:verify rows.jsonl         # rows with `completion` and `answer`
    onebase verify {name}.py:verify rows.jsonl --gold  # does every row's own answer score 1?
    pip install .                                      # from then on its name is {name}

In a recipe:

    rewards: [{{verifier: {name}}}]

Add a line to golden.jsonl for every completion that was paid and should not have been. RL finds every hole.
"""


def main(name: str, folder: str) -> int:
    """Write the plug-in; returns the exit code."""
    where = write(name, Path(folder).expanduser())
    print(
        f"{where}: {listed(sorted(p.name for p in where.iterdir()))}\n"
        f"  try it:   cd {where} && pytest\n"
        f"  use it:   rewards: [{{verifier: {where / name}.py:verify}}]\n"
        f"  ship it:  pip install {where}, then its name is {name}"
    )
    return 0


def write(name: str, folder: Path) -> Path:
    """The plug-in's folder below `folder`.  Raises UserError for a name that is none or taken."""
    check_name(name)
    where = folder / name
    if where.exists():
        raise UserError(f"{where}: exists already; nothing was written\n  give another name, or --dir")
    dashed, title = name.replace("_", "-"), name.replace("_", " ").capitalize()
    texts = {
        f"{name}.py": VERIFIER.format(title=title),
        "golden.jsonl": GOLDEN,
        f"test_{name}.py": TEST.format(name=name),
        "pyproject.toml": PYPROJECT.format(name=name, dashed=dashed, group=GROUP),
        "README.md": README.format(name=name),
    }
    where.mkdir(parents=True)
    for file, text in texts.items():
        (where / file).write_text(text, encoding="utf-8")
    return where


def check_name(name: str) -> None:
    """It becomes a module, a package and an entry point, and must shadow none of those that are there."""
    told = ""
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or name.startswith("_"):
        told = "no name for a Python module\n  allowed: letters, digits and _, as in unit_price"
        word = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_")
        if word.isidentifier() and not keyword.iskeyword(word):
            told += f"\n  did you mean: {word}"
    elif name in builtin_names():
        told = "a built-in verifier has that name\n  built-in: " + listed(builtin_names())
    elif name in plugins():
        told = f"an installed plug-in has that name ({plugins()[name].value})"
    elif name in sys.stdlib_module_names or getattr(importlib.util.find_spec(name), "origin", None):
        told = "a module of that name is installed; two would shadow each other"
    if told:
        raise UserError(f"new verifier {name}: {told}")
