"""Rewards as data: the rule of `combine`, who is judged, gold answers before a run, a step's metrics."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase import gold, recipe_loader
from onebase.data import Problems
from onebase.errors import UserError
from onebase.recipe import Grpo, Source, Term
from onebase.rewards import Scored, combine, correctness, named, opened, outcomes, score, weight_at
from onebase.stage import StageRun
from onebase.verifiers.base import Verdict, failed

JUDGE = """
import os
from onebase.verifiers.base import Verdict, failed

def verify(completion, answer, fail_on="", log="", **row):
    if log:
        with open(log, "a") as file:
            file.write(completion + "\\n")
    if fail_on and fail_on in completion:
        return failed("cannot read it")
    right = completion.rpartition("</think>")[2].strip() == answer
    return Verdict(float(right), "compared", details={"thought": "</think>" in completion})

def polite(completion, answer, **row):
    return Verdict(float("please" in completion), "looked for the word")
"""


@pytest.fixture
def judge(tmp_path: Path) -> str:
    (tmp_path / "judge.py").write_text(JUDGE)
    return f"{tmp_path / 'judge.py'}:verify"


def terms_of(*texts: str) -> list[Term]:
    return [Term(verifier="v", name=name, **json.loads(rest or "{}")) for name, _, rest in map(split, texts)]


def split(text: str) -> tuple[str, str, str]:
    return text.partition(" ")


# -- the rule


def test_weights_caps_gates_and_schedules_add_up() -> None:
    verdicts = {
        "math": Verdict(1.0, "", details={"parsed": True}),
        "form": Verdict(1.0, ""),
        "length": Verdict(0.4, ""),
    }
    terms = named(
        terms_of(
            "math",
            'form {"weight": 0.2, "gate": "math.parsed", "schedule": [[0, 0], [10, 1], [99, 1], [100, 0]]}',
            'length {"weight": -0.5, "cap": 0.2, "gate": "math"}',
        )
    )
    got = [combine(terms, verdicts, step) for step in (0, 5, 10, 99, 100, 1000)]
    assert got == pytest.approx([0.9, 1.0, 1.1, 1.1, 0.9, 0.9])
    verdicts["math"] = Verdict(0.0, "", details={"parsed": True})
    assert combine(terms, verdicts, 50) == pytest.approx(0.2), "length is behind a closed gate"
    verdicts["math"] = Verdict(0.0, "", details={})
    assert combine(terms, verdicts, 50) == 0.0, "a detail that is not there is not true"


def test_which_errors_take_the_reward_away() -> None:
    terms = named(terms_of("a", 'b {"gate": "a"}', 'c {"gate": "b"}', 'watched {"weight": 0}'))
    error, yes, no = failed("timeout: late"), Verdict(1.0, ""), Verdict(0.0, "")
    assert combine(terms, {"a": yes, "b": yes, "c": yes, "watched": error}) == 3.0
    assert combine(terms, {"a": no, "b": error, "c": error, "watched": yes}) == 0.0, "closed from a on"
    assert combine(terms, {"a": yes, "b": no, "c": error, "watched": yes}) == 1.0
    assert combine(terms, {"a": yes, "b": yes, "c": error, "watched": yes}) is None
    assert combine(terms, {"a": yes, "b": error, "c": no, "watched": yes}) is None
    assert combine(terms, {"a": error, "b": no, "c": no, "watched": yes}) is None
    late = named(terms_of("a", 'b {"schedule": [[9, 0], [10, 1]]}'))
    assert [combine(late, {"a": yes, "b": error}, step) for step in (9, 10)] == [1.0, None]
    detail = named(terms_of('a {"weight": 0}', 'b {"gate": "a.parsed"}'))
    gate = Verdict(None, "", error="timeout: late", details={"parsed": True})
    assert combine(detail, {"a": gate, "b": yes}) is None, "an error's details decide nothing"


verdicts_st = st.one_of(
    st.builds(
        Verdict,
        st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        st.just("r"),
        details=st.fixed_dictionaries({}, optional={"d": st.booleans()}),
    ),
    st.just(failed("timeout: late")),
)


@st.composite
def lists_of_terms(draw: Any) -> list[Term]:
    count = draw(st.integers(1, 5))
    order = draw(st.permutations(range(count)))  # a gate looks back in some order, so there is no circle
    terms: dict[int, Term] = {}
    for turn, i in enumerate(order):
        gate = draw(st.sampled_from([None, *(f"t{j}{d}" for j in order[:turn] for d in ("", ".d"))]))
        steps = sorted(draw(st.sets(st.integers(0, 20), max_size=3)))
        terms[i] = Term(
            verifier="v",
            name=f"t{i}",
            weight=draw(st.sampled_from([0.0, 1.0, -0.5, 0.1])),
            cap=draw(st.sampled_from([None, 0.25, 1.0])),
            gate=gate,
            schedule=[(s, draw(st.sampled_from([0.0, 0.5, 1.0]))) for s in steps],
        )
    return [terms[i] for i in range(count)]


@settings(max_examples=300, deadline=None)
@given(lists_of_terms(), st.data(), st.integers(0, 25))
def test_the_rule_holds_for_every_list_of_terms(terms: list[Term], data: Any, step: int) -> None:
    by_name = named(terms)
    verdicts = {name: data.draw(verdicts_st) for name in by_name}
    reward = combine(by_name, verdicts, step)
    open_ = {name: opened(by_name, name, verdicts) for name in by_name}
    weights = {name: weight_at(term, step) for name, term in by_name.items()}
    needed = [name for name in by_name if weights[name] and open_[name] is not False]
    assert (reward is None) == any(open_[n] is None or verdicts[n].reward is None for n in needed)
    if reward is not None:
        parts = [weights[n] * min(verdicts[n].reward or 0, by_name[n].cap or 1) for n in needed]
        assert reward == pytest.approx(sum(parts))
        assert abs(reward) <= sum(abs(w) for w in weights.values()) + 1e-9
    # what is neither counted nor looked at by a gate may say anything
    looked_at = {term.gate.removesuffix(".d") for term in terms if term.gate is not None}
    for name in by_name:
        if name not in needed and name not in looked_at:
            for other in (Verdict(1.0, ""), failed("killed: no")):
                assert combine(by_name, verdicts | {name: other}, step) == reward
    # verdicts behind a gate that is not open are never read
    asked = {n: v for n, v in verdicts.items() if open_[n]}
    assert combine(by_name, asked, step) == reward


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(-2, 2)), max_size=4), st.integers(0, 60))
def test_a_schedule_goes_through_its_points(points: list[tuple[int, float]], step: int) -> None:
    points = sorted({s: (s, share) for s, share in points}.values())
    term = Term(verifier="v", weight=2.0, schedule=points)
    for at, share in points:
        assert weight_at(term, at) == pytest.approx(2 * share)
    shares = [share for _, share in points] or [1.0]
    assert 2 * min(shares) - 1e-9 <= weight_at(term, step) <= 2 * max(shares) + 1e-9
    if points and step >= points[-1][0]:
        assert weight_at(term, step) == pytest.approx(2 * points[-1][1])


# -- who is judged


def test_rewards_are_weighted_gated_and_lost_on_errors(judge: str, tmp_path: Path) -> None:
    polite, log = judge.replace("verify", "polite"), tmp_path / "log"
    rows = [{"answer": "1"}] * 4
    texts = ["1", "please</think>1", "please", "broken please"]
    terms = [
        Term(verifier=judge, options={"fail_on": "broken"}),
        Term(verifier=polite, weight=0.25, gate=judge),
        Term(verifier=judge, weight=0.5, gate=f"{judge}.thought", options={"log": str(log)}),
    ]
    got = score(rows, texts, terms)
    assert [s.reward for s in got] == [1.0, 1.75, 0.0, None]
    assert [s.correct for s in got] == [True, True, False, False]
    assert [s.judged for s in got] == [True, True, True, False]
    assert [list(s.verdicts) for s in got[:3]] == [[judge, polite], [judge, polite, f"{judge}#2"], [judge]]
    assert log.read_text() == "please</think>1\n", "nobody is asked behind a closed gate"


def test_the_first_term_is_always_judged(judge: str) -> None:
    polite = judge.replace("verify", "polite")
    terms = [Term(verifier=judge, gate="manners"), Term(verifier=polite, name="manners", weight=0)]
    got = score([{"answer": "1"}] * 3, ["1", "please</think>1", "please</think>2"], terms)
    assert [s.reward for s in got] == [0.0, 1.0, 0.0]
    assert [s.correct for s in got] == [True, True, False]
    assert [list(s.verdicts) for s in got] == [[judge, "manners"]] * 3, "in the recipe's order"
    only = score([{"answer": "1"}], ["1"], correctness(terms))
    assert only[0].reward == 1.0 and list(only[0].verdicts) == [judge]


def test_the_step_reaches_the_weights(judge: str) -> None:
    terms = [Term(verifier=judge, schedule=[(0, 0.0), (4, 1.0)])]
    assert [score([{"answer": "1"}], ["1"], terms, step)[0].reward for step in (0, 1, 9)] == [0.0, 0.25, 1.0]


def test_a_terms_own_timeout_moves_an_inline_verifier_to_a_process() -> None:
    term = Term(verifier="math_answer", timeout=20, workers=1)
    assert score([{"answer": "4"}], ["\\boxed{4}"], [term])[0].reward == 1.0
    slow = Term(verifier="regex", timeout=0.5, workers=1)
    (got,) = score([{"answer": "(a+)+c"}], ["a" * 60 + "b"], [slow])
    assert got.reward is None and (got.first.error or "").startswith("timeout: over 0.5 s")


def test_terms_are_checked() -> None:
    with pytest.raises(UserError, match="at least one term"):
        score([{}], ["x"], [])
    form = Term(verifier="format_think")
    with pytest.raises(UserError, match="did you mean: format_think"):
        score([{}], ["x"], [form, Term(verifier="format_think", gate="format_thin")])
    got = score([{}], ["x"], [form, Term(verifier="format_think", weight=2)])
    assert list(got[0].verdicts) == ["format_think", "format_think#2"]
    with pytest.raises(UserError, match="in a circle: a -> b -> a"):
        named(terms_of('a {"gate": "b"}', 'b {"gate": "a"}'))
    with pytest.raises(UserError, match="term 0 has that name"):
        named([form, Term(verifier="length", name="format_think")])


# -- in a recipe

RECIPE = """\
name: small
stages:
  zero:
    kind: grpo
    init: some/model
    data:
      - {path: problems.jsonl}
    steps: 5
    rewards:
      - {verifier: math_answer, options: {policy: {percent: strict}}}
      - verifier: format_think
        weight: 0.2
        gate: math_answer.parsed
        schedule: [[0, 1.0], [50, 0.0]]
        cap: 0.5
      - {verifier: regex, name: box, timeout: 2.5, workers: 3, gate: format_think, options: {answer: x}}
"""
FAULTS = [
    ("gate: math_answer.parsed", "gate: math_answr", "gate", ["rewards.1.gate", "did you mean: math_answer"]),
    ("gate: format_think", "gate: box", "box, timeout", ["rewards.2.gate", "not another of this stage's"]),
    ("gate: math_answer.parsed", "gate: box", "gate: box", ["rewards.1.gate", "circle: format_think -> box"]),
    ("name: box", "name: format_think", "regex", ["rewards.2.name", "term 1 has that name"]),
    ("name: box", "name: a box", "a box", ["rewards.2.name", "letters, digits"]),
    ("[[0, 1.0], [50, 0.0]]", "[[50, 1.0], [0, 0.0]]", "format_think", ["must rise", "[50, 0]"]),
    ("[[0, 1.0], [50, 0.0]]", "[[0, 1.0], [50]]", "schedule", ["rewards.1.schedule.1"]),
    ("cap: 0.5", "cap: 0", "cap", ["rewards.1.cap", "greater than 0"]),
    ("timeout: 2.5", "timout: 2.5", "timout", ["unknown key", "did you mean: timeout"]),
    ("workers: 3", "workers: 0", "workers", ["rewards.2.workers", "greater than 0"]),
    ("    kind: grpo", "    kind: grpo\n    bad_gold: dorp", "dorp", ["'refuse' or 'drop'", "mean: drop"]),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"problem": f"{n} + 1", "answer": str(n + 1)} for n in range(30)]
    rows[7]["answer"], rows[9]["answer"], rows[20]["answer"] = "\\frac{", "@@ ##", "{{{"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "problems.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_terms_are_data_in_the_recipe(folder: Path) -> None:
    (folder / "r.yaml").write_text(RECIPE)
    recipe = recipe_loader.load("r.yaml")
    again = folder / "again.yaml"
    again.write_text(recipe_loader.dump(recipe))
    assert recipe_loader.load(again) == recipe
    stage = recipe.stages["zero"]
    assert isinstance(stage, Grpo)
    assert list(named(stage.rewards)) == ["math_answer", "format_think", "box"]
    assert stage.rewards[1].schedule == [(0, 1.0), (50, 0.0)] and stage.rewards[2].timeout == 2.5


@pytest.mark.parametrize(("old", "new", "mark", "words"), FAULTS, ids=[f"{n}" for n in range(len(FAULTS))])
def test_faults_have_their_place(folder: Path, old: str, new: str, mark: str, words: list[str]) -> None:
    text = RECIPE.replace(old, new, 1)
    (folder / "r.yaml").write_text(text)
    line = next(n for n, shown in enumerate(text.splitlines(), 1) if mark in shown)
    with pytest.raises(UserError) as caught:
        recipe_loader.load("r.yaml")
    told = str(caught.value)
    assert f"r.yaml:{line}" in told, told
    assert all(word in told for word in words), told


def test_only_a_stage_with_steps_has_a_schedule(folder: Path) -> None:
    text = RECIPE.replace("kind: grpo", "kind: reject_sample").replace("steps: 5", "problems: 5")
    (folder / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=r"rewards.1.schedule: a reject_sample stage has no steps"):
        recipe_loader.load("r.yaml")


# -- gold answers


def run_of(folder: Path, **settings: Any) -> StageRun:
    given = {"rewards": [Term(verifier="math_answer")], "data": [Source(path="problems.jsonl")]} | settings
    stage = Grpo(kind="grpo", steps=1, init="x", **given)
    events: list[dict[str, Any]] = []
    log = SimpleNamespace(event=lambda kind, **fields: events.append({"kind": kind, **fields}))
    own = folder / "own"
    own.mkdir(exist_ok=True)
    recipe: Any = SimpleNamespace(seed=0, stages={}, runs=str(folder))
    run = StageRun(recipe, "zero", stage, own, "x", {"zero": own}, log, "cpu")  # type: ignore[arg-type]
    run.extra["events"] = events
    return run


def test_bad_gold_is_refused_with_its_rows(folder: Path) -> None:
    run = run_of(folder)
    with pytest.raises(UserError) as caught:
        gold.check(run, run.stage.data)
    told = str(caught.value)
    assert "3 of 30 rows" in told and "problems.jsonl, row 7: math_answer: gold: " in told, told
    assert "row 9:" in told and "row 20:" in told and "stages.zero.bad_gold=drop" in told
    assert "answer   \\frac{" in told and "problem  7 + 1" in told
    some = run_of(folder, data=[Source(path="problems.jsonl", rows=(8, 12))])
    with pytest.raises(UserError, match="1 of 4 rows.*\n.*row 9:"):
        gold.check(some, some.stage.data)


def test_bad_gold_is_dropped_where_the_recipe_says_so(folder: Path) -> None:
    run = run_of(folder, bad_gold="drop")
    found = gold.check(run, run.stage.data)
    assert run.extra["events"] == [
        {"kind": "gold_dropped", "rows": 3, "of": 30, "first": "problems.jsonl, row 7"}
    ]
    problems = gold.keep_problems(Problems(run.stage.data, 0, {}), found)
    answers = {problems.item(n)["answer"] for n in range(200)}
    assert len(answers) == 27 and not answers & {"\\frac{", "@@ ##", "{{{"}
    assert len(gold.keep([{"problem": "7 + 1", "answer": a} for a in ("\\frac{", "8")], found)) == 1


def test_the_answer_is_kept_until_something_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(folder, bad_gold="drop")
    before = gold.check(run, run.stage.data)
    calls: list[int] = []
    look = gold.look
    monkeypatch.setattr(gold, "look", lambda *a: calls.append(1) or look(*a))
    assert gold.check(run, run.stage.data) == before and not calls
    rows = (folder / "problems.jsonl").read_text().splitlines()
    (folder / "problems.jsonl").write_text("\n".join(rows[:9]) + "\n")
    assert len(gold.check(run, run.stage.data).bad) == 1 and len(calls) == 1
    terms = [Term(verifier="math_answer", options={"policy": {"percent": "strict"}})]
    gold.check(run_of(folder, bad_gold="drop", rewards=terms), run.stage.data)
    assert len(calls) == 2


def test_rows_that_any_completion_would_fail_on_are_bad_gold(folder: Path, judge: str) -> None:
    run = run_of(folder, rewards=[Term(verifier=judge, options={"fail_on": "1"})])
    with pytest.raises(UserError, match=r"10 of 30 rows.*\n.*row 0: .*cannot read it"):
        gold.check(run, run.stage.data)


def test_no_gold_no_question(folder: Path, judge: str, tmp_path: Path) -> None:
    (tmp_path / "dear.py").write_text(
        "gold_problem = None\ndef verify(completion, **row): raise AssertionError('asked')\n"
    )
    run = run_of(folder, rewards=[Term(verifier=f"{tmp_path / 'dear.py'}:verify"), Term(verifier="length")])
    assert gold.check(run, run.stage.data).bad == []
    alone = run_of(folder, rewards=[Term(verifier=f"{tmp_path / 'dear.py'}:verify")])
    assert gold.check(alone, [Source(path="nowhere.jsonl")]).rows == 0, "not even read"


def test_worlds_are_asked_about_a_few_rows_only(folder: Path) -> None:
    run = run_of(folder, rewards=[Term(verifier="worlds")], data=[Source(world="chain")])
    found = gold.check(run, run.stage.data)
    assert found.rows == gold.OF_A_WORLD and not found.bad
    wrong = run_of(folder, rewards=[Term(verifier="number")], data=[Source(world="path")], bad_gold="drop")
    with pytest.raises(UserError, match="world path, row 0: number: gold"):
        gold.check(wrong, wrong.stage.data)


def test_a_gate_on_a_detail_that_no_verdict_has_is_told(folder: Path) -> None:
    terms = [Term(verifier="math_answer"), Term(verifier="format_think", gate="math_answer.parsd")]
    run = run_of(folder, rewards=terms, bad_gold="drop")
    with pytest.raises(UserError, match=r"rewards.1.gate: .*no verdict of math_answer has a detail 'parsd'"):
        gold.check(run, run.stage.data)
    fine = [terms[0], Term(verifier="format_think", gate="math_answer.parsed")]
    gold.check(run_of(folder, rewards=fine, bad_gold="drop"), run.stage.data)


def test_a_dry_run_tells_it(folder: Path) -> None:
    (folder / "r.yaml").write_text(RECIPE)
    (line,) = gold.plan_lines(recipe_loader.load("r.yaml"), ["zero"])
    assert line.startswith("zero: bad gold: 3 of 30 rows")


# -- metrics


def test_outcomes_count_every_class_apart() -> None:
    def of(*verdicts: Verdict | None) -> Scored:
        names = ("first", "second")
        return Scored(0.0, {n: v for n, v in zip(names, verdicts, strict=True) if v is not None})

    right, wrong = Verdict(1.0, "", seconds=0.5), Verdict(0.0, "", details={"class": "unparsed"})
    got = outcomes(
        [
            of(right, Verdict(1.0, "")),
            of(right, Verdict(0.5, "", details={"class": "not a word"})),
            of(wrong, None),
            of(wrong, Verdict(1.0, "")),
            of(failed("timeout: late"), Verdict(1.0, "")),
            of(failed("gold: none"), failed("what happened")),
            of(failed("gold: none"), failed("killed: exit 9")),
            of(Verdict(0.25, "", seconds=3.5), failed("killed: exit 9")),
        ]
    )
    assert got == {
        "verdict.first.right": 0.25,
        "verdict.first.wrong": 0.25,
        "verdict.first.class.unparsed": 0.25,
        "verdict.first.partial": 0.125,
        "verdict.first.error": 0.375,
        "verdict.first.error.timeout": 0.125,
        "verdict.first.error.gold": 0.25,
        "verdict.first.seconds": 4.5 / 8,
        "verdict.first.seconds_max": 3.5,
        "verdict.second.right": 0.375,
        "verdict.second.wrong": 0.0,
        "verdict.second.partial": 0.125,
        "verdict.second.error": 0.375,
        "verdict.second.unasked": 0.125,
        "verdict.second.error.other": 0.125,
        "verdict.second.error.killed": 0.25,
        "verdict.second.unlike_first": pytest.approx(2 / 3),
        "verdict.second.seconds": 0.0,
        "verdict.second.seconds_max": 0.0,
    }
    assert outcomes([]) == {}


def test_a_gated_cost_is_relative_to_the_correct_of_its_group() -> None:
    """The shortest correct completion of each group earns the term, the longest nothing, wrong ones
    nothing."""
    terms = [
        Term(verifier="math_answer"),
        Term(verifier="length", weight=0.5, gate="math_answer", options={"cost": "range"}),
    ]
    cases = [  # group, tokens, right
        (0, 10, True), (0, 30, True), (0, 20, True), (0, 5, False),
        (1, 100, True), (1, 200, True), (1, 50, False),
    ]  # fmt: skip
    rows = [{"problem": "", "answer": "4", "group": g, "n_tokens": n} for g, n, _ in cases]
    texts = ["\\boxed{4}" if right else "\\boxed{5}" for _, _, right in cases]
    got = [scored.reward for scored in score(rows, texts, terms)]
    assert got == pytest.approx([1.5, 1.0, 1.25, 0.0, 1.5, 1.0, 0.0])
    assert not any("group_tokens" in row for row in rows)


def test_a_verifier_of_batches_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from onebase.verifiers import judge as judging

    asked: list[int] = []

    def verify_batch(rows: Any) -> list[Verdict]:
        asked.append(len(rows))
        return [Verdict(float(row["completion"] == "yes"), "as told") for row in rows]

    monkeypatch.setattr(judging, "verify_batch", verify_batch)
    rows = [{"problem": "?", "answer": "yes"}] * 3
    got = score(rows, ["yes", "no", "yes"], [Term(verifier="judge", options={"url": "http://127.0.0.1:1"})])
    assert [scored.reward for scored in got] == [1.0, 0.0, 1.0] and asked == [3]
