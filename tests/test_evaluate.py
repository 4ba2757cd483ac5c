"""The eval stage at its boundary: a fake engine whose answers are known, and one real tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase import evaluate, jsonl_zst
from onebase.errors import UserError
from onebase.log import RunLog
from onebase.measures import answer_part, plain, vote
from onebase.recipe import Recipe, Sampling, Term
from onebase.rewards import Scored
from onebase.rollout.engine import Request, Rollout
from onebase.rollout.groups import ScoredRollout
from onebase.stage import StageRun
from onebase.tokenizer import ChatTokenizer, train
from onebase.verifiers.base import Verdict, failed

JUDGE = """
from onebase.verifiers.base import Verdict, failed

def verify(completion, answer, fail_on="", **row):
    if fail_on and fail_on in completion:
        return failed("cannot read it")
    return Verdict(float(completion.rpartition("</think>")[2].strip() == answer), "compared")
"""
Answer = Callable[[str, Request], str]


class FakeEngine:
    """Answers every request by a function of its prompt's text; "…" at the end stands for a cut."""

    def __init__(self, tokenizer: ChatTokenizer, answer: Answer) -> None:
        self.tokenizer, self.answer, self.calls = tokenizer, answer, 0

    def generate(self, requests: list[Request], on_done: Any = None) -> list[Rollout]:
        self.calls += 1
        out = []
        for r in requests:
            text = self.answer(self.tokenizer.decode(r.prompt_ids), r)
            cut = text.endswith("…")
            ids = self.tokenizer.conversation(
                [{"role": "user", "content": ""}, {"role": "assistant", "content": text.rstrip("…")}]
            )[0][len(self.tokenizer.prompt_ids([{"role": "user", "content": ""}])) :]
            ids = ids[:-1] if cut else ids
            reason: Any = "length" if cut else "stop"
            out.append(Rollout(r.prompt_ids, ids, [0.0] * len(ids), reason, 0, r.seed))
        return out

    def load_weights(self, version: int, tensors: Any) -> None: ...

    def fingerprint(self) -> dict[str, float]:
        return {}


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return train(["what is 1 + 2 please", "twice 3", "odd or even"], 300)


@pytest.fixture
def judge(tmp_path: Path) -> str:
    (tmp_path / "judge.py").write_text(JUDGE)
    return f"{tmp_path / 'judge.py'}:verify"


@pytest.fixture
def run_of(tmp_path: Path, tokenizer: ChatTokenizer, judge: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """run_of({label: answer}, **stage settings) -> (StageRun, engines made so far by label)."""
    rows = [{"problem": f"twice {n}", "answer": str(2 * n), "family": "twice"} for n in range(6)]
    rows += [{"problem": f"next {n}", "answer": str(n + 1), "family": "next"} for n in range(4)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    made: list[str] = []
    answers: dict[str, Answer] = {}

    def load(origin: str, device: str, dtype: str) -> Any:
        return SimpleNamespace(label=Path(origin).name, eval=lambda: None), tokenizer

    def engine(model: Any, pad: int, slots: int, length: int) -> FakeEngine:
        made.append(model.label)
        return FakeEngine(tokenizer, answers[model.label])

    monkeypatch.setattr(evaluate.checkpoint, "load", load)
    monkeypatch.setattr(evaluate, "TorchEngine", engine)

    def build(models: dict[str, Answer], **settings: Any) -> tuple[StageRun, list[str]]:
        answers.update(models)
        for label in models:
            tokenizer.save(tmp_path / label)
            (tmp_path / label / "config.json").write_text("{}")
        stage = {
            "kind": "eval",
            "models": {label: str(tmp_path / label) for label in models},
            "data": [{"path": str(data)}],
            "problems": 10,
            "samples": 4,
            "rewards": [{"verifier": judge}],
        } | settings
        recipe = Recipe.model_validate({"name": "t", "runs": str(tmp_path), "stages": {"table": stage}})
        folder = tmp_path / "t" / "table"
        log = RunLog(folder, "table", 1, quiet=True)
        return StageRun(recipe, "table", recipe.stages["table"], folder, None, {}, log, "cpu"), made

    return build


def number(prompt: str) -> int:
    return int("".join(c for c in prompt if c.isdigit()))


def right(prompt: str, request: Request) -> str:
    n = number(prompt)
    return f"<think>I count</think>{2 * n if 'twice' in prompt else n + 1}"


def half(prompt: str, request: Request) -> str:
    """Greedy: right at `twice` alone, cut elsewhere.  Sampled: right for every other seed, by thinking."""
    n = number(prompt)
    if request.temperature == 0:
        return str(2 * n) if "twice" in prompt else "<think>hm…"
    good = 2 * n if "twice" in prompt else n + 1
    return f"<think>so</think>{good}" if request.seed % 2 else "99"


def test_the_table_holds_what_the_engine_answered(run_of: Any) -> None:
    run, _ = run_of({"good": right, "half": half})
    summary = evaluate.main(run)
    found = json.loads((run.folder / "eval.json").read_text())
    good, other = found["models"]["good"], found["models"]["half"]
    assert summary == {"good: greedy": 1.0, "half: greedy": pytest.approx(0.6)}
    for key in (
        "greedy",
        "avg@4",
        "pass@1",
        "pass@2",
        "pass@4",
        "maj@4",
        "thoughts",
        "accuracy_with_thought",
    ):
        assert good[key] == 1.0, key
    assert good["accuracy_without_thought"] is None and good["truncated"] == 0.0
    assert good["ci95"][1] == 1.0 and good["ci95"][0] < 1.0
    assert other["families"]["twice"]["greedy"] == 1.0 and other["families"]["next"]["greedy"] == 0.0
    assert other["families"]["next"]["truncated"] == 1.0 and other["truncated"] == pytest.approx(0.4)
    assert other["no_answer"] == 4 and other["errors"] == 0
    assert (other["accuracy_with_thought"], other["accuracy_without_thought"]) == (1.0, 0.0)
    assert other["pass@1"] == pytest.approx(other["avg@4"]) and other["pass@1"] < other["pass@4"]
    low, high = other["intervals"]["pass@4"]
    assert low <= other["pass@4"] <= high


def test_every_completion_is_kept_with_its_verdict(run_of: Any) -> None:
    run, _ = run_of({"good": right, "half": half})
    evaluate.main(run)
    rows = jsonl_zst.read(run.folder / "samples.jsonl.zst")
    assert len(rows) == 2 * 10 * (1 + 4)
    kept = [r for r in rows if r["model"] == "half" and r["kind"] == "sampled"]
    share = sum(r["correct"] for r in kept) / len(kept)
    assert share == pytest.approx(
        json.loads((run.folder / "eval.json").read_text())["models"]["half"]["avg@4"]
    )


def test_the_sample_is_a_problem_that_tells_models_apart(run_of: Any) -> None:
    run, _ = run_of({"good": right, "half": half})
    evaluate.main(run)
    sample = json.loads((run.folder / "eval.json").read_text())["sample"]
    assert sample["family"] == "next" and sample["correct"] == {"good": True, "half": False}
    assert sample["outputs"]["good"].startswith("<think>I count</think>")


def test_a_killed_run_keeps_finished_models(run_of: Any) -> None:
    def dies(prompt: str, request: Request) -> str:
        raise KeyboardInterrupt

    run, made = run_of({"good": right, "late": dies})
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(run)
    assert not (run.folder / "eval.json").exists() and made == ["good", "late"]
    run, made = run_of({"good": right, "late": half})
    evaluate.main(run)
    assert made == ["good", "late", "late"]
    assert set(json.loads((run.folder / "eval.json").read_text())["models"]) == {"good", "late"}


def test_other_settings_are_measured_again(run_of: Any) -> None:
    run, made = run_of({"good": right})
    evaluate.main(run)
    run, made = run_of({"good": right}, slots=7)
    evaluate.main(run)
    assert made == ["good"], "slots do not change the result"
    run, made = run_of({"good": right}, samples=2)
    evaluate.main(run)
    assert made == ["good", "good"]


def test_verifier_errors_are_neither_right_nor_wrong(run_of: Any, judge: str) -> None:
    def mumbles(prompt: str, request: Request) -> str:
        return "mumble" if "next" in prompt or request.seed % 3 == 0 else str(2 * number(prompt))

    terms = [{"verifier": judge, "options": {"fail_on": "mumble"}}]
    run, _ = run_of({"m": mumbles}, rewards=terms)
    evaluate.main(run)
    m = json.loads((run.folder / "eval.json").read_text())["models"]["m"]
    greedy = [r for r in jsonl_zst.read(run.folder / "samples.jsonl.zst") if r["kind"] == "greedy"]
    assert m["errors"] == sum(r["correct"] is None for r in greedy) > 0
    assert m["greedy"] == 1.0 and m["unjudged"] >= 4
    assert m["families"]["next"]["greedy"] is None and m["families"]["next"]["ci95"] is None


def test_long_prompts_are_left_out_for_every_model(run_of: Any, tokenizer: ChatTokenizer) -> None:
    lengths = [len(tokenizer.prompt_ids([{"role": "user", "content": p}])) for p in ("twice 1", "next 1")]
    assert lengths[0] != lengths[1]
    run, _ = run_of({"good": right}, max_prompt=min(lengths))
    evaluate.main(run)
    found = json.loads((run.folder / "eval.json").read_text())
    assert len(found["models"]["good"]["families"]) == 1 and found["data"]["too_long"] in (4, 6)
    assert "prompts_too_long" in (run.folder / "events.jsonl").read_text()
    run, _ = run_of({"good": right}, max_prompt=2)
    with pytest.raises(UserError, match="longer than max_prompt=2"):
        evaluate.main(run)


def test_labels_that_look_alike_have_their_own_files(tmp_path: Path) -> None:
    files = evaluate._files(tmp_path, ["R1 style", "R1/style", "R1_style", "Ürsprung"])
    assert len(set(files.values())) == 4 and all(f.parent == tmp_path for f in files.values())


def test_greedy_accuracy_asks_for_one_greedy_completion(tokenizer: ChatTokenizer, judge: str) -> None:
    seen = []

    def note(prompt: str, request: Request) -> str:
        seen.append((request.temperature, request.top_p, request.top_k))
        return right(prompt, request)

    rows = [{"problem": "twice 4", "answer": "8"}, {"problem": "twice 5", "answer": "11"}]
    got = evaluate.greedy_accuracy(
        FakeEngine(tokenizer, note), tokenizer, rows, [Term(verifier=judge)], Sampling(top_p=0.5, top_k=3)
    )
    assert got["accuracy"] == 0.5 and got["thoughts"] == 1.0 and got["tokens"] > 3
    assert seen == [(0.0, 1.0, 0)] * 2


# -- votes


def scored(text: str, answer: str, verdict: Verdict) -> ScoredRollout:
    rollout = Rollout([1], [2], [0.0], "stop", 0, 0)
    return ScoredRollout({"answer": answer}, 0, rollout, text, Scored(verdict.reward, {"v": verdict}))


@pytest.mark.parametrize(
    ("text", "answer", "voted"),
    [
        ("<think>7 or 8</think>The sum is 1,234.", "9", "1234"),
        ("<think>7", "9", None),
        ("<think>7</think>", "9", None),
        ("so \\boxed{ \\frac{1}{2} }", "1/2", "\\frac{1}{2}"),
        ("<think>x</think>a -> b\n\n a ->  c \n", "a -> c", "a->c"),
        ("no number here", "9", None),
        ("+5", "5", "5"),
    ],
)
def test_vote_without_the_verifiers_word(text: str, answer: str, voted: str | None) -> None:
    assert vote(scored(text, answer, Verdict(0.0, "no"))) == voted


def test_vote_follows_the_verifier() -> None:
    said = Verdict(1.0, "yes", details={"extracted": " 1,000 "})
    assert vote(scored("whatever 3", "1000", said)) == "1000"
    assert vote(scored("whatever 3", "1000", Verdict(0.0, "no", details={"extracted": None}))) is None
    assert vote(scored("say 3", "1", failed("gold: empty"))) == "3"


@settings(deadline=None)
@given(st.text(), st.text())
def test_answer_part_is_what_follows_the_last_closing_tag(thought: str, answer: str) -> None:
    if "<think>" in answer or "</think>" in answer:
        return
    assert answer_part(f"<think>{thought}</think>{answer}") == answer.strip()
    assert plain(answer) is None or plain(plain(answer) or "") == plain(answer) or "+" in answer


# -- files


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text()), max_size=5))
def test_packed_lines_come_back(tmp_path_factory: Any, rows: list[dict[str, str]]) -> None:
    path = tmp_path_factory.mktemp("z") / "a.jsonl.zst"
    path.write_bytes(jsonl_zst.pack(rows))
    assert jsonl_zst.read(path) == rows
    assert jsonl_zst.read(path, most=2) == rows[:2]


def test_damaged_lines_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    whole = jsonl_zst.pack([{"text": f"{n * n}\u2028"} for n in range(5000)])
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="a.jsonl.zst: "):
        jsonl_zst.read(path)
    path.write_bytes(b"not zstd at all")
    with pytest.raises(UserError, match="damaged"):
        jsonl_zst.read(path)


def test_frames_written_one_after_another_are_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "two.zst").write_bytes(jsonl_zst.pack([{"a": "1"}]) + jsonl_zst.pack([{"a": "2"}]))
    assert jsonl_zst.read(tmp_path / "two.zst") == [{"a": "1"}, {"a": "2"}]


# -- the real way, from a folder


def test_a_real_checkpoint_is_measured_twice_alike(tmp_path: Path) -> None:
    from onebase.model import checkpoint
    from onebase.model.config import ModelConfig
    from onebase.model.transformer import Transformer, init_weights

    own = train(["start 3 + 4 mod 7"], 300)
    shape = ModelConfig(vocab_size=304, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = Transformer(shape)
    init_weights(model, 0, None)
    checkpoint.save(tmp_path / "tiny", model, own)
    stage = {
        "kind": "eval",
        "models": {"tiny": str(tmp_path / "tiny")},
        "data": [{"world": "chain", "split": "heldout"}],
        "problems": 4,
        "samples": 2,
        "sampling": {"max_tokens": 6},
        "rewards": [{"verifier": "format_think"}],
    }
    found = []
    for name in ("a", "b"):
        recipe = Recipe.model_validate({"name": name, "runs": str(tmp_path), "stages": {"table": stage}})
        folder = tmp_path / name / "table"
        log = RunLog(folder, "table", 1, quiet=True)
        evaluate.main(StageRun(recipe, "table", recipe.stages["table"], folder, None, {}, log, "cpu"))
        found.append(json.loads((folder / "eval.json").read_text()))
        assert [r["greedy"] for r in found[-1]["models"].values()] == [0.0]
        assert len(jsonl_zst.read(folder / "samples.jsonl.zst")) == 12
    assert found[0]["sample"] == found[1]["sample"]
    assert 0 < found[0]["models"]["tiny"]["mean_tokens"] <= 6
