"""The README's examples are what they say: the recipe loads, the verifier judges, the commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onebase import cli, recipe_loader
from onebase.verifiers.registry import load

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


ENGINES = (Path(__file__).parents[1] / "docs" / "engines.md").read_text(encoding="utf-8")


STABILITY = (Path(__file__).parents[1] / "docs" / "stability.md").read_text(encoding="utf-8")


def block(language: str, text: str = README) -> str:
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found, f"there is no {language} block"
    return found[1]


def test_the_recipe_loads(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(block("yaml"))
    recipe = recipe_loader.load(file, ["stages.base.steps=3"])
    assert list(recipe.stages) == ["base", "r1_zero"] and recipe.stages["base"].steps == 3  # type: ignore[union-attr]


def test_the_recipe_of_the_engines_page_loads(tmp_path: Path) -> None:
    (tmp_path / "my" / "checkpoint").mkdir(parents=True)
    (tmp_path / "problems.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    file = tmp_path / "engines.yaml"
    text = block("yaml", ENGINES).replace("my/checkpoint", str(tmp_path / "my" / "checkpoint"))
    file.write_text(text.replace("problems.jsonl", str(tmp_path / "problems.jsonl")))
    stage = recipe_loader.load(file, []).stages["r1_zero"]
    assert stage.engines.staleness == 1 and stage.correction.replay_routes  # type: ignore[union-attr]


def test_the_examples_of_the_stability_page_run(tmp_path: Path) -> None:
    file = tmp_path / "stable.yaml"
    file.write_text("name: stable\n" + block("yaml", STABILITY))
    stage = recipe_loader.load(file, []).stages["base"]
    assert stage.stability.qk_clip == 100 and stage.stability.rollback_lr == 0.7  # type: ignore[union-attr]
    exec(block("python", STABILITY), {})


def test_the_verifier_of_one_file_judges(tmp_path: Path) -> None:
    file = tmp_path / "shout.py"
    file.write_text(block("python"))
    verify = load(f"{file}:verify")
    assert verify("<think>so</think> YES ", "yes") == 1.0
    assert verify("yes", "yes") == 0.0


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`onebase (\w+)", README))))
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert command in capsys.readouterr().out


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
