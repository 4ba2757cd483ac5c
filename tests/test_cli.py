"""The command line: fast help, exit codes, and what each verb prints."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from onebase import doctor, files, ls, plan, schema_text, summary, verify
from onebase.cli import VERBS, main
from onebase.errors import UserError
from onebase.model.config import ModelConfig
from onebase.recipe_loader import load, stage_kinds

ROWS = [
    {"completion": "<think>a</think>b", "answer": "b"},
    {"completion": "b", "answer": "b"},
    {"completion": "<think>never closed", "answer": "b"},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for row in ROWS:
        files.append_jsonl(tmp_path / "rows.jsonl", row)
    return tmp_path


def test_help_is_fast_and_light() -> None:
    times = []  # of the processor: help waits for nothing, and a busy machine must not fail this
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "onebase", "--help"], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0 and all(verb in done.stdout for verb in VERBS)
    assert min(times) < 0.3, times
    for words in (["--help"], ["run", "--help"], ["nonsense"]):
        code = (
            f"import sys; from onebase.cli import main; main({words});"
            "print([m for m in ('torch', 'pydantic', 'transformers', 'rich', 'yaml') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"usage: onebase {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rnu"], "did you mean: run"),
        (["run", "no_such"], "no such recipe file"),
        (["run"], "RECIPE"),
        (["run", "laptop", "--frsh"], "--frsh"),
        (["verify", "format_thnk", "rows.jsonl"], "did you mean"),
        (["verify", "format_think", "row.jsonl"], "did you mean: rows.jsonl"),
        (["verify", "format_think", "rows.jsonl", "--field", "answer=anser"], "row 1 has no field 'anser'"),
        (["verify", "format_think", "rows.jsonl", "--field", "answer"], "expected OURS=THEIRS"),
        (["ls", "recipe"], "did you mean: recipes"),
        (["cp", "nothing", "here"], "neither a shipped recipe nor a stage"),
        (["cp", "mine.yaml", "rows.jsonl"], "overwrites nothing"),
        (["schema", "--text", "grop"], "did you mean: grpo"),
        (["chat", "nowhere"], "no such folder"),
        (["eval", "x/y", "--data", "chian"], "did you mean: chain"),
        (["eval", "x/y"], "--data"),
        (["eval", "a=x/y", "a=x/z", "--data", "chain"], "given twice"),
    ],
)
def test_wrong_input_is_told_without_a_traceback(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    (folder / "mine.yaml").write_text("name: x\n")
    assert main(words) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err


def test_verify_counts_and_shows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "format_think", "rows.jsonl", "--out", "v.jsonl"]) == 0
    out = capsys.readouterr().out
    head, numbers = out.splitlines()[:2]
    assert head.split("  ")[0] == "rows" and numbers.split()[:5] == ["3", "1", "0", "2", "0"]
    assert "row 2: 0:" in out and "never closed" in out
    assert [v["reward"] for v in files.read_jsonl(folder / "v.jsonl")] == [1.0, 0.0, 0.0]
    assert main(["verify", "format_think", "rows.jsonl", "--out", "v.jsonl"]) == 2


def test_verify_gold_judges_the_answers_themselves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "judge.py").write_text(
        "def score(completion, answer, **row):\n    return float(completion == answer and answer != '7')\n"
    )
    files.append_jsonl(folder / "good.jsonl", {"gold": 5})
    assert main(["verify", "judge.py:score", "good.jsonl", "--gold", "--field", "answer=gold"]) == 0
    files.append_jsonl(folder / "good.jsonl", {"gold": 7})
    assert main(["verify", "judge.py:score", "good.jsonl", "--gold", "--field", "answer=gold"]) == 1
    assert "row 2: 0" in capsys.readouterr().out


def test_verify_counts_errors_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "judge.py").write_text(
        "def score(completion, answer, **row):\n    raise ValueError('planted')\n"
    )
    assert main(["verify", "judge.py:score", "rows.jsonl"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:5] == ["3", "0", "0", "0", "3"] and "planted" in out


def test_verify_rows_refused() -> None:
    with pytest.raises(UserError, match="no such file"):
        verify.read_rows(Path("nowhere.jsonl"), False, [])


def test_cp_recipe_and_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.yaml").write_text("name: x\n")
    assert main(["cp", "mine.yaml", "copy.yaml"]) == 0
    assert (folder / "copy.yaml").read_text() == "name: x\n"
    stage = folder / "runs" / "laptop" / "r1"
    with files.atomic_folder(stage / "checkpoint") as made:
        (made / "config.json").write_text("{}")
    assert main(["cp", "laptop/r1", "given"]) == 0
    assert (folder / "given" / "config.json").read_text() == "{}"
    assert main(["cp", "runs/laptop/r1", "given"]) == 0  # into the folder that is there
    assert (folder / "given" / "r1" / "config.json").is_file()


def test_ls(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0 and "no runs yet" in capsys.readouterr().out
    run = folder / "runs" / "small"
    files.atomic_write(
        run / "recipe.resolved.yaml", "stages:\n  b: {kind: pretrain}\n  a: {kind: sft}\n  c: {kind: eval}\n"
    )
    files.atomic_write(run / "b" / "made.json", "{}")
    files.atomic_write(run / "b" / "done.json", json.dumps({"summary": {"loss": 1.25}}))
    files.atomic_write(run / "a" / "made.json", "{}")
    files.append_jsonl(run / "a" / "metrics.jsonl", {"step": 7})
    assert ls.runs(folder / "runs") == [
        ("small", "b", "pretrain", "finished", "loss 1.25"),
        ("", "a", "sft", "at step 7", ""),
        ("", "c", "eval", "not begun", ""),
    ]
    for what, word in (
        ("runs", "finished"),
        ("runs/small", "at step 7"),
        ("verifiers", "format_think"),
        ("worlds", "chain"),
    ):
        assert main(["ls", what]) == 0
        assert word in capsys.readouterr().out
    assert main(["ls", "recipes"]) == 0


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["stages"] and schema["additionalProperties"] is False
    for kind in ["recipe", "model", *stage_kinds()]:
        text = schema_text.text(kind)
        assert text.startswith(f"{kind}: ")
    assert "group_size" in schema_text.text("grpo") and "Completions of a prompt." in schema_text.text("grpo")
    assert "lr                     number (> 0), default 0.0001" in schema_text.text("sft")
    assert "lr                     number (> 0), default 1e-06" in schema_text.text("grpo")


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    out = capsys.readouterr().out
    assert code == (1 if "\nbad" in out else 0)
    assert "matmul on CPU" in out and "torch" in out and "vllm" in out


@pytest.mark.parametrize(
    ("window", "have", "fits"),
    [
        (">=0.24,<0.33", "0.24.0", True),
        (">=0.24,<0.33", "0.33", False),
        (">=0.24,<0.33", "0.9.2", False),
        (">=2.11", "2.13.0+cpu", True),
        (">=2.11", "2.9", False),
        ("", "1", True),
        ("==2.1", "2.1.0", True),
    ],
)
def test_version_windows(window: str, have: str, fits: bool) -> None:
    assert doctor.allows(window, have) is fits


def test_doctor_tells_what_is_missing_or_too_old() -> None:
    assert doctor.package("no-such-package-of-ours>=1", needed=True).state == "bad"
    assert doctor.package("no-such-package-of-ours>=1", needed=False).state == "note"
    old = doctor.package("pydantic>=99", needed=True)
    assert old.state == "bad" and ">=99" in old.advice


def test_summary_table_and_thoughts() -> None:
    from rich.console import Console

    row = {
        "greedy": 0.5,
        "pass@4": 0.75,
        "mean_tokens": 33.2,
        "truncated": 0.01,
        "ci95": [0.4, 0.6],
        "families": {},
    }
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(summary.table({"base": row, "R1": row}))
    text = console.export_text()
    assert "pass@4" in text and "75.0 %" in text and "40.0 % - 60.0 %" in text
    thought = summary.apart("<think>so [b]it[/b] is</think>The answer: 4")
    assert thought.plain == "so [b]it[/b] is\nThe answer: 4"
    assert [(s.start, s.end, str(s.style)) for s in thought.spans] == [(0, 15, "dim italic")]
    assert summary.apart("4").plain == "4" and not summary.apart("4").spans
    assert "cut off while thinking" in summary.apart("<think>on and on").plain
    assert summary.apart("a</think>b").plain == "a\nb"  # think: open, the mark stands in the prompt


CONFIGS = [
    ModelConfig(num_nextn_predict_layers=0),
    ModelConfig(num_nextn_predict_layers=0, q_lora_rank=24, attention_bias=True, tie_word_embeddings=True),
    ModelConfig(num_nextn_predict_layers=0, first_k_dense_replace=3, num_hidden_layers=3, n_shared_experts=2),
    ModelConfig(
        num_nextn_predict_layers=0, n_routed_experts=16, n_group=4, topk_group=2, num_experts_per_tok=3
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_are_those_of_transformers(config: ModelConfig) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    hf = AutoConfig.for_model(**config.to_hf(bos_token_id=0, eos_token_id=1, pad_token_id=2, dtype="float32"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf)
    total, active = plan.parameters(config)
    assert total == sum(p.numel() for p in model.parameters())
    moe = max(0, config.num_hidden_layers - config.first_k_dense_replace)
    unused = (config.n_routed_experts - config.num_experts_per_tok) * 3 * config.hidden_size
    assert total - active == moe * unused * config.moe_intermediate_size


@pytest.mark.parametrize("config", [c.model_copy(update={"num_nextn_predict_layers": 1}) for c in CONFIGS])
def test_parameters_are_those_of_our_model(config: ModelConfig) -> None:
    from onebase.model.transformer import Transformer

    assert plan.parameters(config)[0] == sum(p.numel() for p in Transformer(config).parameters())


def test_deepseek_v3_has_its_published_size() -> None:
    """671 B in all and 37 B active (arXiv 2412.19437, abstract), 14 B more for multi-token prediction."""
    v3 = ModelConfig(
        vocab_size=129280,
        hidden_size=7168,
        num_hidden_layers=61,
        num_attention_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate_size=18432,
        first_k_dense_replace=3,
        moe_intermediate_size=2048,
        n_routed_experts=256,
        num_experts_per_tok=8,
        n_group=8,
        topk_group=4,
        num_nextn_predict_layers=0,
    )
    total, active = plan.parameters(v3)
    assert round(total / 1e9) == 671 and 36 <= active / 1e9 <= 38.5


def test_plan_counts_tokens(folder: Path) -> None:
    (folder / "r.yaml").write_text(
        """\
name: p
stages:
  base: {kind: pretrain, data: [{world: chain}], steps: 10, batch: {rows: 8, length: 64, accumulate: 4}}
  zero:
    kind: grpo
    init: base
    data: [{world: chain}]
    steps: 5
    prompts: 4
    group_size: 2
    updates: 3
    sampling: {max_tokens: 16}
    rewards: [{verifier: random_reward}]
  table:
    kind: eval
    models: {base: base, zero: zero, other: owner/model}
    data: [{world: chain}, {world: addition}]
    problems: 10
    samples: 1
    sampling: {max_tokens: 16}
    rewards: [{verifier: random_reward}]
"""
    )
    recipe = load(folder / "r.yaml")
    rows = {row.name: row for row in plan.plan(recipe, flops=1e9)}
    assert (rows["base"].trained, rows["base"].generated) == (10 * 8 * 64, 0)
    assert (rows["zero"].trained, rows["zero"].generated) == (5 * 4 * 2 * 16 * 3, 5 * 4 * 2 * 16)
    assert rows["table"].generated == 3 * 2 * 10 * 2 * 16
    size = rows["base"].size
    assert size is not None and size == rows["zero"].size
    whole = load(folder / "r.yaml", ["stages.base.batch.accumulate=1"])
    assert plan.plan(whole)[0].memory > rows["base"].memory and plan.plan(whole)[0].minutes is None
    faster = {row.name: row for row in plan.plan(recipe, flops=2e9)}
    assert rows["base"].minutes == pytest.approx(2 * (faster["base"].minutes or 0))
    hub = load(folder / "r.yaml", ["stages.zero.init=owner/model"])
    assert plan.plan(hub, ["zero"])[0].size is None


@pytest.mark.parametrize("module", ["onebase", "onebase.cli"])
def test_both_modules_run(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "ls"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout, done.stderr
