"""The contract and the ways to name a verifier."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from onebase.errors import UserError
from onebase.verifiers.base import Verdict, as_verdict, tally
from onebase.verifiers.registry import builtin_names, is_inline, load


def test_verdict_is_reward_or_error():
    assert Verdict(1, "yes").reward == 1.0 and Verdict(None, "no", error="late").error == "late"
    for bad in [dict(reward=None), dict(reward=1.0, error="both"), dict(reward=1.1), dict(reward=-0.1)]:
        with pytest.raises(ValueError):
            Verdict(reason="", **bad)
    with pytest.raises(ValueError):
        Verdict(float("nan"), "")
    assert as_verdict(0.5).reward == 0.5 and as_verdict(True).reward == 1.0
    with pytest.raises(TypeError):
        as_verdict("1")


def test_tally_counts_errors_apart():
    counted = tally([Verdict(1.0, ""), Verdict(0.0, ""), Verdict(None, "", error="late")])
    assert counted == {"judged": 2, "mean_reward": 0.5, "errors": 1}


def test_builtins_load():
    assert {"math_answer", "format_think", "random_reward", "number", "choice"} <= set(builtin_names())
    assert not {"base", "registry", "pool", "math_parse"} & set(builtin_names())
    assert is_inline("math_answer") and not is_inline("regex") and not is_inline("a.py:b")
    for name in builtin_names():
        assert callable(load(name))


def test_file_and_mistakes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def score(completion, answer, **row):\n    return float(answer in completion)\n")
    assert load(f"{path}:score")("a b", "a") == 1.0
    with pytest.raises(UserError, match="did you mean 'score'"):
        load(f"{path}:scor")
    with pytest.raises(UserError, match="no file"):
        load(f"{tmp_path}/other.py:score")
    with pytest.raises(UserError, match="did you mean 'math_answer'"):
        load("math_answr")
    path.write_text("def score(completion, answer, **row):\n    return 0.0\n")
    assert load(f"{path}:score")("a b", "a") == 1.0, "a file is read once in a process"
    narrow = tmp_path / "narrow.py"
    narrow.write_text("def score(completion, answer): return 1.0\n")
    with pytest.raises(UserError, match=r"\(completion, answer\) has no \*\*row"):
        load(f"{narrow}:score")
    latin = tmp_path / "latin.py"
    text = "# -*- coding: latin-1 -*-\ndef score(**row): return float('é' == chr(233))\n"
    latin.write_bytes(text.encode("latin-1"))
    assert load(f"{latin}:score")() == 1.0
    latin.with_name("broken.py").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        load(f"{tmp_path}/broken.py:score")
    bad = tmp_path / "bad.py"
    bad.write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match="nothing_of_that_name"):
        load(f"{bad}:score")


def test_entry_point_of_another_package(tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text("def verify(completion, answer, **row):\n    return 0.25\n")
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[onebase.verifiers]\ntheirs = their_package:verify\nmissing = their_package:nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("theirs")("x", "y") == 0.25
    with pytest.raises(UserError, match="'missing'.*their_package:nothing of their-package 1.0"):
        load("missing")
    with pytest.raises(UserError, match="'theirs'"):
        load("their")


def test_import_is_light():
    code = (
        "import sys, time; start = time.process_time()\n"
        "from onebase.verifiers import math_answer\n"
        "assert math_answer.verify('\\\\boxed{1/2}', '0.5').reward == 1.0\n"
        "import onebase.verifiers.pool_worker\n"
        "names = 'torch vllm sympy numpy transformers datasets pydantic ray rich'.split()\n"
        "heavy = [m for m in names if m in sys.modules]\n"
        "print(time.process_time() - start, heavy)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, _, modules = out.strip().partition(" ")
    assert float(seconds) < 1.0 and modules == "[]", out


def test_examples_in_the_docs_run():
    text = (Path(__file__).parent.parent / "docs" / "verifiers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, "docs/verifiers.md", "exec"), {})
