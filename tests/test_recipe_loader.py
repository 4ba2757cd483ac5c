"""A recipe is read strictly: every fault with its place, what was given, what is allowed, the nearest
name."""

# ruff: noqa: E501  (the table of faults is read line by line)

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase import yaml_places
from onebase.errors import UserError
from onebase.recipe import Recipe
from onebase.recipe_loader import dump, load, shipped

GOOD = """\
name: small
stages:
  base:
    kind: pretrain
    data:
      - {path: corpus.txt}
    steps: 10
    optim:
      lr: 1e-3
  v3:
    kind: sft
    init: base
    data:
      - {stage: picked}
    steps: 5
  zero:
    kind: grpo
    init: base
    data:
      - {path: corpus.txt}
    steps: 5
    rewards:
      - verifier: random_reward
  picked:
    kind: reject_sample
    init: zero
    data:
      - {path: corpus.txt}
    problems: 4
    rewards:
      - {verifier: random_reward}
  table:
    kind: eval
    models: {base: base, R1-Zero: zero}
    data:
      - {path: corpus.txt}
    rewards:
      - {verifier: random_reward}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "corpus.txt").write_text("text\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fault(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as told:
        load(write(folder, text), list(overrides))
    return str(told.value)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_good_recipe(folder: Path) -> None:
    recipe = load(write(folder, GOOD))
    assert list(recipe.stages) == ["base", "v3", "zero", "picked", "table"]
    assert recipe.stages["base"].optim.lr == 1e-3
    assert recipe.stages["table"].models == {"base": "base", "R1-Zero": "zero"}


# Replacement in GOOD, what stands in the line told, and words of the message.
FAULTS: list[tuple[str, str, str, list[str]]] = [
    (
        "    steps: 10",
        "    stepps: 10",
        "stepps",
        ["stages.base.stepps", "unknown key", "did you mean: steps"],
    ),
    ("    steps: 10\n", "", "  base:", ["stages.base.steps", "missing"]),
    ("    steps: 10", "    steps: ten", "ten", ["stages.base.steps", '"ten"', "integer"]),
    ("    steps: 10", "    steps: 1e3", "1e3", ["stages.base.steps", "did you mean: 1000"]),
    ("    steps: 10", '    steps: "10"', '"10"', ["stages.base.steps", "integer"]),
    ("    steps: 10", "    steps: 0", "steps: 0", ["stages.base.steps", "given 0", "greater than 0"]),
    ("    steps: 10", "    steps: true", "true", ["stages.base.steps", "given true", "integer"]),
    ("    steps: 10", "    steps: 10\n    lr: 1", "    lr: 1\n", ["unknown key", "did you mean: optim.lr"]),
    ("      lr: 1e-3", "      name: Muon", "Muon", ["'adamw' or 'muon'", "did you mean: muon"]),
    ("      lr: 1e-3", "      betas: [0.9]", "betas", ["stages.base.optim.betas", "too short"]),
    ("      lr: 1e-3", "      lr: 1e-3\n      lr: 2", "lr: 2", ["given twice", "first in line 9"]),
    ("    optim:", "    document_mask: no\n    optim:", "document_mask", ['"no"', "did you mean: false"]),
    ("kind: grpo", "kind: gprp", "gprp", ["stages.zero.kind", "did you mean: grpo", "reject_sample"]),
    ("    kind: grpo\n", "", "  zero:", ["stages.zero.kind", "missing", "pretrain"]),
    ("kind: pretrain", "kind: no", "kind: no", ["stages.base.kind", '"no"']),
    ("name: small", "name: small\nmodle: {}", "modle", ["modle: unknown key", "did you mean: model"]),
    ("name: small", "name: a/b", "a/b", ['given "a/b"', "letters"]),
    ("name: small", "name: small\nmodel: {hidden_sise: 3}", "hidden_sise", ["did you mean: hidden_size"]),
    ("name: small", "name: small\nmodel: {n_group: 3}", "n_group", ["8 experts do not make 3 groups"]),
    (
        "name: small",
        "name: s\nmodel:\n  rope_scaling: {factr: 4}",
        "factr",
        ["rope_scaling.factr", "mean: factor"],
    ),
    ("{path: corpus.txt}", "{path: corpsu.txt}", "corpsu", ["no such file", "did you mean: corpus.txt"]),
    ("{path: corpus.txt}", "{weight: 2}", "{weight", ["exactly one of world, path, hub, stage"]),
    ("{path: corpus.txt}", "{path: corpus.txt, rows: [5, 5]}", "rows", ["data.0.rows", "start < stop"]),
    (
        "{path: corpus.txt}",
        "{world: no_such_world}",
        "no_such",
        ["stages.base.data.0.world", "no such world"],
    ),
    ("{path: corpus.txt}", "{world: chain, split: tran}", "tran}", ["data.0.split", "did you mean: train"]),
    ("{path: corpus.txt}", "{world: chain, styles: {stesp: 1}}", "stesp", ["styles.stesp", "mean: steps"]),
    ("{path: corpus.txt}", "{world: chain, difficulty: [9, 3]}", "[9, 3]", ["0.difficulty", "1 to 64"]),
    ("{path: corpus.txt}", "{world: chian}", "chian", ["data.0.world", "did you mean: chain"]),
    (
        "    init: base\n    data:\n      - {stage",
        "    data:\n      - {stage",
        "  v3:",
        ["stages.v3.init", "missing"],
    ),
    ("init: zero", "init: zeroo", "zeroo", ["stages.picked.init", "no such stage", "did you mean: zero"]),
    ("init: zero", "init: table", "init: table", ["eval stages have no checkpoint", "base, v3, zero"]),
    ("init: zero", "init: ./nowhere", "nowhere", ["no such folder"]),
    ("init: zero", "init: corpus.txt", "init: corpus", ["a file; a checkpoint is a folder"]),
    ("R1-Zero: zero", "R1-Zero: zer", "R1-Zero", ["stages.table.models.R1-Zero", "did you mean: zero"]),
    ("{stage: picked}", "{stage: pickd}", "pickd", ["stages.v3.data.0.stage", "did you mean: picked"]),
    ("{stage: picked}", "{stage: base}", "stage: base", ["pretrain stages have no rows", "allowed: picked"]),
    (
        "- verifier: random_reward",
        "- verifier: randm_reward",
        "randm",
        ["no such verifier", "mean: random_reward"],
    ),
    ("- verifier: random_reward", "- verifier: v.py:score", "v.py", ["rewards.0.verifier", "no such file"]),
    (
        "- verifier: random_reward",
        "- verifier: random_reward\n        gate: format",
        "gate",
        ["stages.zero.rewards.0.gate", "not another of this stage's rewards"],
    ),
    ("init: zero", "init: v3", "  v3:", ["go in a circle: v3 -> picked -> v3", "picked needs v3"]),
    (
        "    init: base\n    data:\n      - {stage",
        "    init: v3\n    data:\n      - {stage",
        "  v3:",
        ["v3 -> v3"],
    ),
    ("    kind: eval", "    kind: eval\n    init: base", "    init: base\n    models", ["has no init"]),
    ("  v3:", "  v.3:", "v.3", ['given the name "v.3"']),
]


@pytest.mark.parametrize(("old", "new", "mark", "words"), FAULTS, ids=[f"{n}" for n in range(len(FAULTS))])
def test_fault_is_told(folder: Path, old: str, new: str, mark: str, words: list[str]) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    told = fault(folder, text)
    assert f"r.yaml:{line_of(text, mark)}: " in told, told
    for word in words:
        assert word in told, (word, told)


def test_all_faults_of_a_pass_are_told_at_once(folder: Path) -> None:
    told = fault(folder, GOOD.replace("steps: 10", "stepps: 10").replace("lr: 1e-3", "lr: -1"))
    assert (
        "stages.base.stepps" in told
        and "stages.base.optim.lr" in told
        and "stages.base.steps: missing" in told
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["a recipe is a mapping"]),
        ("- a\n", ["a recipe is a mapping"]),
        ("name: [\n", [":2: not YAML"]),
        ("name: a\n\tb: 1\n", ["not YAML"]),
        ("name: &a x\nruns: *a\nstages: {}\n", ["anchors"]),
        ("? [a]\n: 1\n", ["a key is one word"]),
        ("name: !!python/none x\n", ["YAML tag"]),
        ("name: a\nname: b\n", [":2: name is given twice, first in line 1"]),
        ("name: a\nstages: {}\n", [":2: stages", "at least 1"]),
        ("name: a\nstages:\n", [":2: stages", "given null", "section"]),
    ],
)
def test_files_that_are_no_recipe(folder: Path, text: str, words: list[str]) -> None:
    told = fault(folder, text)
    for word in words:
        assert word in told, told


def test_file_that_is_missing_or_unreadable(folder: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean: .*r\.yaml"):
        write(folder, GOOD)
        load(folder / "rr.yaml")
    with pytest.raises(UserError, match="a folder"):
        load(folder)
    (folder / "b.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load(folder / "b.yaml")


def test_folders_and_hub_ids_are_inits(folder: Path) -> None:
    (folder / "model").mkdir()
    for init in ("model", "./model", str(folder / "model"), "deepseek-ai/DeepSeek-V3"):
        assert load(write(folder, GOOD), [f"stages.v3.init={init}"]).stages["v3"].init == init


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    recipe = load(write(folder, GOOD.replace("corpus.txt", "~/corpus.txt")))
    assert recipe.stages["base"].data[0].path == str(folder / "corpus.txt")


def test_overrides(folder: Path) -> None:
    overrides = [
        "stages.base.steps=7",
        "stages.base.data.0.weight=2",
        "stages.base.batch.rows=4",  # a section that the file leaves out
        "model.rope_scaling={factor: 4}",
        "seed=3",
        "stages.v3.data=[{path: corpus.txt}]",
        "hardware=cpu",
        "stages.base.optim.lr=1e-6",
        "stages.base.data.0.answer_after=no",
    ]
    recipe = load(write(folder, GOOD), overrides)
    base = recipe.stages["base"]
    assert (base.steps, base.data[0].weight, base.batch.rows, base.optim.lr) == (7, 2.0, 4, 1e-6)
    assert recipe.model.rope_scaling is not None and recipe.model.rope_scaling.factor == 4
    assert recipe.seed == 3 and recipe.hardware == "cpu" and base.data[0].answer_after == "no"
    assert recipe.stages["v3"].data[0].path == "corpus.txt"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.base.steps=x", ["--set stages.base.steps=x: stages.base.steps", "integer"]),
        ("stages.base.stepps=1", ["--set stages.base.stepps=1", "did you mean: steps"]),
        ("stages.base.optm.lr=1", ["--set stages.base.optm.lr=1", "did you mean: optim"]),
        ("stages.bse.steps=1", ["--set stages.bse.steps=1", "stages.bse", "did you mean: base"]),
        ("stages.base.data.3.weight=1", ["a list of 1", "allowed: 0 to 0"]),
        ("stages.base.data.x.weight=1", ["a list of 1", "'x'"]),
        ("stages.base.steps.x=1", ["stages.base.steps is 10", "nothing under it"]),
        ("steps", ["expected key.key=value"]),
        ("=3", ["expected key.key=value"]),
        ("stages..steps=3", ["expected key.key=value"]),
        ("seed=[", ["--set seed=[: not YAML"]),
        ("seed=", ["seed", "given null"]),
        ("stages.base.optim={lr: -1}", ["--set stages.base.optim={lr: -1}: stages.base.optim.lr", "greater"]),
        ("hardware=gpuu", ["did you mean: gpu"]),
    ],
)
def test_bad_override_is_told_with_its_text(folder: Path, override: str, words: list[str]) -> None:
    told = fault(folder, GOOD, override)
    for word in words:
        assert word in told, told


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E6", 1e6),
        (".5", 0.5),
        ("1.", 1.0),
        ("-1_000", -1000),
        ("4_000_000", 4_000_000),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("off", "off"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_scalars(folder: Path, text: str, value: Any) -> None:
    read = yaml_places.read(write(folder, f"a: {text}\n")).data["a"]
    assert read == value and type(read) is type(value)


def test_section_given_in_part_keeps_its_stage_s_defaults(folder: Path) -> None:
    recipe = load(write(folder, GOOD), ["stages.zero.optim.warmup=5", "stages.v3.optim={clip: 2}"])
    assert (recipe.stages["zero"].optim.lr, recipe.stages["zero"].optim.weight_decay) == (1e-6, 0.0)
    assert (recipe.stages["v3"].optim.lr, recipe.stages["v3"].optim.clip) == (1e-4, 2)


def test_keys_stay_as_written(folder: Path) -> None:
    assert yaml_places.read(write(folder, "no: 1\n1: 2\ntrue: 3\n")).data == {"no": 1, "1": 2, "true": 3}


def test_resolved_yaml_gives_the_same_recipe(folder: Path) -> None:
    recipe = load(
        write(folder, GOOD), ["stages.zero.loss.cap=.inf", "stages.base.data.0.answer_after='1e-6'"]
    )
    again = load(write(folder, dump(recipe)))
    assert again == recipe
    assert dump(again) == dump(recipe)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_dump_and_read_are_inverse(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("y") / "x.yaml"
    path.write_text(yaml_places.dump(data), encoding="utf-8", newline="")
    assert yaml_places.read(path).data == data


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60), st.text(alphabet="a:1-[]{}&*!|>'\"\n \t#%?", max_size=40).map(str.encode)
    )
)
def test_any_bytes_are_read_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("y") / "x.yaml"
    path.write_bytes(raw)
    with pytest.raises(UserError) as told:
        load(path)
    assert str(path) in str(told.value)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20), st.text(max_size=10))
def test_any_override_is_applied_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: str
) -> None:
    path = tmp_path_factory.mktemp("y") / "x.yaml"
    path.write_text("name: a\nstages: {s: {kind: pretrain, data: [{hub: x}], steps: 1}}\n")
    try:
        assert isinstance(load(path, [f"{key}={value}"]), Recipe)
    except UserError as told:
        assert "--set" in str(told)


@pytest.mark.parametrize("path", shipped().values(), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(folder: Path, path: Path) -> None:
    """Where one begins from another run's checkpoint, that run has been made."""
    for stage in yaml_places.read(path).data["stages"].values():
        for name in [stage.get("init"), *stage.get("models", {}).values()]:
            if name and name.startswith("runs/"):
                (folder / name).mkdir(parents=True, exist_ok=True)
    assert isinstance(load(path), Recipe)
