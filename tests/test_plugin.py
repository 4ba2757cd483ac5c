"""A verifier's plug-in: written by `onebase new`, tested as written, installed by pip from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebase.cli import main
from onebase.errors import UserError
from onebase.new_verifier import check_name, write
from onebase.verifiers import golden
from onebase.verifiers.golden import cases, fault, hostile_faults
from onebase.verifiers.registry import builtin_names, load

ROOT = Path(__file__).resolve().parent.parent
IN_A_WORKER = """
import os, sys
from onebase.verifiers.pool import VerifierPool
from onebase.verifiers.registry import load, plugins

assert plugins()["capital_city"].dist.name == "onebase-capital-city"
assert load("capital_city")("<think>?</think>paris", "Paris").reward == 1.0
rows = [{"completion": text, "answer": "Paris", "more": 1} for text in ("Paris", "Rome")]
with VerifierPool(workers=1) as pool:
    assert [v.reward for v in pool.run("capital_city", rows)] == [1.0, 0.0]
assert os.path.dirname(sys.modules["capital_city"].__file__) == sys.argv[1]
"""


def python(*words: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    before = [str(path)] if path else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*before, str(ROOT)])}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the plug-in into; its source is gone."""
    folder = tmp_path_factory.mktemp("plugin")
    where = write("capital_city", folder)
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=where)
    assert done.returncode == 0 and "9 passed" in done.stdout, done.stdout + done.stderr
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(folder / "site")]
    done = python("-m", "pip", "install", *options, str(where), cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.rmtree(where)
    return folder / "site"


def test_an_installed_plugin_is_found_by_name_in_workers_too(site: Path, tmp_path: Path) -> None:
    done = python("-c", IN_A_WORKER, str(site), cwd=tmp_path, path=site)
    assert done.returncode == 0, done.stderr


def test_the_command_line_knows_it(site: Path, tmp_path: Path) -> None:
    rows = [{"completion": "Paris", "answer": "Paris"}, {"completion": "Rome", "answer": "Paris"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = python("-m", "onebase", "verify", "capital_city", "rows.jsonl", cwd=tmp_path, path=site)
    assert done.returncode == 0, done.stderr
    assert "row 2: 0: 'Rome' is not 'Paris'" in done.stdout and "0.5000" in done.stdout
    done = python("-m", "onebase", "verify", "capital_city", "rows.jsonl", "--gold", cwd=tmp_path, path=site)
    assert done.returncode == 0, done.stdout + done.stderr
    done = python("-m", "onebase", "ls", "verifiers", cwd=tmp_path, path=site)
    assert "capital_city" in done.stdout
    done = python("-m", "onebase", "new", "verifier", "capital_city", cwd=tmp_path, path=site)
    assert done.returncode == 2 and "an installed plug-in has that name (capital_city:verify)" in done.stderr


def test_options_of_a_term_can_be_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"completion": "\\boxed{10}", "answer": "10\\%"}) + "\n")
    assert main(["verify", "math_answer", str(path)]) == 0
    assert "row 1: 0" not in capsys.readouterr().out
    assert main(["verify", "math_answer", str(path), "--option", "policy={percent: strict}"]) == 0
    assert "row 1: 0" in capsys.readouterr().out
    assert main(["verify", "regex", str(path), "--timeout", "20"]) == 0
    for wrong, words in [
        (["--option", "policy"], "expected NAME=VALUE"),
        (["--option", "a={"], "no YAML"),
        (["--timeout", "0"], "more than 0"),
    ]:
        assert main(["verify", "math_answer", str(path), *wrong]) == 2
        assert words in capsys.readouterr().err


def test_a_plugin_that_cannot_be_imported_names_its_package(site: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(site, broken)
    (broken / "capital_city.py").write_text("import a_module_that_is_not_there\n")
    code = "from onebase.verifiers.registry import load; load('capital_city')"
    done = python("-c", code, cwd=tmp_path, path=broken)
    assert "UserError" in done.stderr, done.stderr
    for words in ("capital_city:verify of onebase-capital-city 0.1.0 cannot be loaded", "is_not_there"):
        assert words in done.stderr, done.stderr
    assert "pip uninstall onebase-capital-city" in done.stderr


def test_two_packages_with_one_name_are_told(site: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice"
    shutil.copytree(site, twice)
    (info,) = twice.glob("onebase_capital_city*.dist-info")
    other = twice / "other_cities-2.0.dist-info"
    shutil.copytree(info, other)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-cities\nVersion: 2.0\n")
    code = "from onebase.verifiers.registry import load; load('capital_city')"
    done = python("-c", code, cwd=tmp_path, path=twice)
    assert "declared by several installed packages" in done.stderr, done.stderr
    assert "onebase-capital-city 0.1.0" in done.stderr and "other-cities 2.0" in done.stderr


# -- what `onebase new` refuses


def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "verifier", "unit_price"]) == 0
    assert "pip install unit_price" in capsys.readouterr().out
    (tmp_path / "unit_price" / "unit_price.py").write_text("mine")
    assert main(["new", "verifier", "unit_price"]) == 2
    assert "exists already; nothing was written" in capsys.readouterr().err
    assert (tmp_path / "unit_price" / "unit_price.py").read_text() == "mine"
    assert main(["new", "verifier", "unit_price", "--dir", "deeper/still"]) == 0
    assert load("deeper/still/unit_price/unit_price.py:verify")("A", "a").reward == 1.0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unit-price", "did you mean: unit_price"),
        ("1st", "no name for a Python module"),
        ("class", "no name for a Python module"),
        ("_mine", "no name for a Python module"),
        ("", "no name for a Python module"),
        ("../up", "did you mean: up"),
        ("größe", "no name for a Python module"),
        ("math_answer", "a built-in verifier has that name"),
        ("json", "a module of that name is installed"),
        ("pytest", "a module of that name is installed"),
    ],
)
def test_names_that_are_none_or_taken(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        write(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=12))
def test_a_name_that_passes_is_a_modules(name: str) -> None:
    try:
        check_name(name)
    except UserError:
        return
    assert name.isidentifier() and name.isascii() and name not in builtin_names()


# -- golden files


def test_a_golden_file_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    good = {"kind": "accepted", "completion": "a", "answer": "b", "row": {"n": 1}}
    path.write_text(json.dumps(good) + "\n\n")
    assert cases(path) == [good] and golden.row_of(good) == {"n": 1, "completion": "a", "answer": "b"}
    for line, words in [
        ("{", "golden.jsonl:2: not JSON"),
        ('{"kind": "acepted"}', "did you mean: accepted"),
        ("[]", "kind None"),
        ('{"kind": "rejected", "completion": "x"}', "needs answer"),
        ('{"kind": "value", "completion": "x", "answer": "y"}', "needs reward"),
    ]:
        path.write_text(json.dumps(good) + "\n" + line + "\n")
        with pytest.raises(UserError, match=words):
            cases(path)


def test_a_wrong_verdict_is_a_fault() -> None:
    case = {"kind": "accepted", "completion": "a", "answer": "b"}
    assert fault(lambda **row: 1.0, case) is None
    assert "reward 1 was due" in str(fault(lambda **row: 0.0, case))
    assert "raised: KeyError" in str(fault(lambda **row: {}["x"], case))
    assert fault(lambda **row: 1 / 0, case | {"kind": "error"}) is None
    assert "an error was due" in str(fault(lambda **row: 1.0, case | {"kind": "error"}))
    assert fault(lambda **row: 0.25, case | {"kind": "value", "reward": 0.25}) is None
    assert fault(lambda **row: 0.25, case | {"kind": "adversarial"}) is not None


def test_hostile_completions_find_what_breaks(tmp_path: Path) -> None:
    path = tmp_path / "weak.py"
    path.write_text("def verify(completion, answer, **row):\n    return float(int(completion[:9]) == 1)\n")
    found = hostile_faults(f"{path}:verify")
    assert any(text.startswith("nothing: raised: ValueError") for text in found)
    assert not any(text.startswith("a megabyte of digits") for text in found)


@pytest.mark.parametrize(
    "name", ["choice", "format_think", "language", "math_answer", "number", "repetition"]
)
def test_built_ins_bear_hostile_completions(name: str) -> None:
    assert hostile_faults(name, wall_seconds=5, answer="B" if name == "choice" else "1") == []
