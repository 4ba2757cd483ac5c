"""The model card of a folder that a real (tiny) model was saved into."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from onebase import card
from onebase.model import checkpoint
from onebase.model.config import ModelConfig
from onebase.model.transformer import Transformer, init_weights
from onebase.recipe import Recipe
from onebase.tokenizer import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "checkpoint"
    model = Transformer(
        ModelConfig(vocab_size=304, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    )
    init_weights(model, 0, None)
    checkpoint.save(path, model, train(["one two three"], 300))
    return path


def recipe(base_init: str | None = None) -> Recipe:
    words = {"data": [{"world": "chain", "styles": {"direct": 9, "trace": 1}}], "steps": 1500}
    return Recipe.model_validate(
        {
            "name": "demo",
            "stages": {
                "base": {"kind": "pretrain", "init": base_init, **words},
                "v3": {"kind": "sft", "init": "base", **words},
                "r1": {
                    "kind": "grpo",
                    "init": "v3",
                    "rewards": [{"verifier": "math_answer"}, {"verifier": "format_think", "weight": 0.1}],
                    **words,
                },
            },
        }
    )


def test_the_card_tells_what_the_folder_is(folder: Path) -> None:
    made = recipe()
    path = card.write(folder, recipe=made, stage="r1", summary={"reward": 0.91}, data=made.stages["r1"].data)
    text = path.read_text()
    _, front, body = text.split("---\n", 2)
    assert path.name == "README.md" and yaml.safe_load(front)["license"] == "apache-2.0"
    for word in (
        "`base` → `v3` → `r1`",
        "1,500 steps",
        "0.1 × format_think",
        "reward | 0.91",
        "`chain`, 100 %",
    ):
        assert word in body, word
    assert "trace 1" in body and "Apache-2.0." in body


def test_parameters_are_those_of_the_file(folder: Path) -> None:
    model, _ = checkpoint.load(folder)
    config = checkpoint.read_config(folder)
    own = [(n, p.numel()) for n, p in model.state_dict().items() if not n.startswith("mtp.")]
    whole, active = card.parameters(folder, config)
    assert whole == sum(count for _, count in own)
    experts = sum(count for n, count in own if ".experts." in n)
    assert active == whole - experts * 3 // 4, "2 of 8 experts see a token"


def test_weights_of_others_keep_their_licence(folder: Path, tmp_path: Path) -> None:
    for init, named in (("someone/some-base", "someone/some-base"), (str(tmp_path), tmp_path.name)):
        made = recipe(init)
        text = card.write(
            folder, recipe=made, stage="base", summary={}, data=made.stages["base"].data
        ).read_text()
        assert "license: other" in text and f"derive from `{named}`" in text
        assert ("base_model:" in text) == (init == "someone/some-base")
        assert str(tmp_path) not in text, "a user's paths stay out of what is given away"


def test_the_code_in_the_card_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe()
    text = card.write(folder, recipe=made, stage="v3", summary={}, data=made.stages["v3"].data).read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder)
    exec(code[1].replace("max_new_tokens=256", "max_new_tokens=3"), {})
