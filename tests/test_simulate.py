"""The simulation of rollout engines: nothing lost or doubled whatever fails, bounds that hold, a case by
hand, the same result for the same seed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase.cli import main
from onebase.errors import UserError
from onebase.rollout.router import DRIVER_SHARE, order_seconds
from onebase.simulate import Simulation, simulate
from onebase.simulate_lengths import groups_of, lengths_of
from onebase.simulate_parts import Fleet, Job, Outcome, enough

fleets = st.builds(
    Fleet,
    engines=st.integers(1, 5),
    slots=st.integers(1, 6),
    fixed=st.sampled_from([0.01, 0.1]),
    per_row=st.sampled_from([0.0, 0.02]),
    prefill=st.sampled_from([0.0, 0.01, 0.5]),
    pump=st.sampled_from([0.25, 1.0]),
    reply=st.sampled_from([0.0, 0.001, 0.5]),
    mtbf=st.sampled_from([0.0, 20.0, 100.0]),
    notice=st.sampled_from([0.0, 3.0]),
    restart=st.sampled_from([0.5, 4.0]),
    factor=st.sampled_from([1.0, 1.5]),
)
jobs = st.builds(
    Job,
    prompts=st.integers(1, 5),
    group_size=st.integers(1, 5),
    prompt_tokens=st.sampled_from([0, 10]),
    max_tokens=st.just(60),
    staleness=st.integers(0, 3),
    steps=st.integers(1, 6),
    train=st.sampled_from([0.001, 0.7, 10.0]),
    sync=st.sampled_from([0.0, 0.3]),
)
told = st.sampled_from(["lognormal:15:1", "pareto:4:1.1"])


def lengths(job: Job, name: str, seed: int) -> object:
    return lengths_of(name, job.prompts, job.group_size, job.max_tokens, seed)


@settings(max_examples=150, deadline=None)
@given(fleets, jobs, told, st.integers(0, 5))
def test_every_completion_once_and_every_bound(fleet: Fleet, job: Job, name: str, seed: int) -> None:
    simulation = Simulation(fleet, job, lengths(job, name, seed), seed)  # type: ignore[arg-type]
    outcome = simulation.run()
    assert len(simulation.generated) == job.steps * job.prompts * job.group_size
    assert set(simulation.generated.values()) == {1}
    assert not len(simulation.router) and not any(simulation.open.values())
    for request in simulation.requests.values():
        assert 0 <= request.step - request.version <= job.staleness
    assert 0 <= outcome.staleness_mean <= outcome.staleness_max <= job.staleness
    assert 0 <= outcome.busy <= 1 + 1e-9 and 0 <= outcome.filled <= outcome.busy + 1e-9
    assert 0 <= outcome.wait <= 1 + 1e-9 and 0 <= outcome.prefix_hits < 1
    assert outcome.steps_per_hour * (job.train + job.sync) <= 3600 + 1e-6
    if not fleet.mtbf:
        assert outcome.failures == outcome.begun_anew == 0
    # a step is asked for `staleness` steps ahead: from then on its longest completion runs
    for step in range(job.steps):
        longest = max(r.tokens for r in simulation.requests.values() if r.step == step)
        asked = simulation.came[max(0, step - job.staleness)]
        least = longest * (fleet.fixed + fleet.per_row) / simulation.rate
        assert simulation.came[step + 1] - asked >= least + job.train - 1e-6


@settings(max_examples=40, deadline=None)
@given(fleets, jobs, told, st.integers(0, 5))
def test_the_same_seed_gives_the_same_and_time_has_no_unit(
    fleet: Fleet, job: Job, name: str, seed: int
) -> None:
    """All seconds doubled, everything takes exactly twice as long: what is left of more engines being faster,
    which is not true of every case (Graham's anomalies)."""
    first = simulate(fleet, job, lengths(job, name, seed), seed)  # type: ignore[arg-type]
    assert first == simulate(fleet, job, lengths(job, name, seed), seed)  # type: ignore[arg-type]
    slow = replace(fleet, **{
        k: 2 * getattr(fleet, k)
        for k in ("fixed", "per_row", "prefill", "pump", "reply", "mtbf", "notice", "restart")
    })  # fmt: skip
    twice = simulate(
        slow, replace(job, train=2 * job.train, sync=2 * job.sync), lengths(job, name, seed), seed
    )  # type: ignore[arg-type]
    assert twice.seconds == pytest.approx(2 * first.seconds, rel=1e-9)
    for name in ("busy", "filled", "wait", "staleness_mean", "prefix_hits"):
        assert getattr(twice, name) == pytest.approx(getattr(first, name), rel=1e-9)
    assert (twice.failures, twice.begun_anew) == (first.failures, first.begun_anew)


def test_a_case_by_hand() -> None:
    """One engine, 4 completions of 50 tokens at once, everything known."""
    fleet = Fleet(1, slots=4, fixed=0.01, per_row=0.0025, prefill=0.001, pump=0.25, reply=0.0)
    job = Job(
        prompts=2, group_size=2, prompt_tokens=10, max_tokens=50, staleness=0, steps=5, train=1.0, sync=0.5
    )
    simulation = Simulation(fleet, job, lambda step: [[50, 50], [50, 50]])
    outcome = simulation.run()
    draws = 50 * (0.01 + 4 * 0.0025) + 2 * 10 * 0.001  # 1.02 s
    step = 0.5 + math.ceil(draws / 0.25) * 0.25 + 1.0  # it comes back with its fifth order
    assert outcome.seconds == pytest.approx(4 * step)
    assert outcome.steps_per_hour == pytest.approx(3600 / step)
    assert outcome.busy == pytest.approx(draws / step) and outcome.filled == pytest.approx(draws / step)
    assert outcome.wait == pytest.approx(1.25 / step)
    assert outcome.prefix_hits == 0.5 and outcome.tokens_per_second == pytest.approx(200 / step)
    assert outcome.staleness_max == 0 and outcome.longest == pytest.approx(0.625)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_behind_a_slow_trainer_rollouts_are_as_old_as_they_may_be(staleness: int) -> None:
    job = Job(prompts=4, group_size=2, max_tokens=50, staleness=staleness, steps=10, train=1000.0)
    outcome = simulate(Fleet(2, slots=4), job, lengths_of("lognormal:20:0.5", 4, 2, 50, 0))
    assert outcome.staleness_mean == staleness == outcome.staleness_max
    assert outcome.wait < 0.01 or not staleness


def test_a_failure_costs_time_and_nothing_else() -> None:
    job = Job(prompts=8, group_size=4, max_tokens=200, staleness=0, steps=8, train=1.0, sync=0.1)
    drawn = lengths_of("lognormal:80:0.8", 8, 4, 200, 0)
    calm = Simulation(Fleet(2, slots=8), job, drawn)
    rough = Simulation(Fleet(2, slots=8, mtbf=8.0, notice=1.0, restart=2.0), job, drawn)
    before, after = calm.run(), rough.run()
    assert after.failures > 3 and after.begun_anew > 3 and after.seconds > before.seconds
    assert [r.tokens for r in calm.requests.values()] == [r.tokens for r in rough.requests.values()]


def test_one_driver_keeps_up_with_many_engines() -> None:
    assert order_seconds(0.25, 10) == 0.25 and order_seconds(0.25, 1000) == 1000 * DRIVER_SHARE
    fleet = Fleet(1024, reply=1e-3)
    assert fleet.engines * fleet.reply / fleet.cycle < 0.3 and fleet.order / fleet.cycle > 0.99
    slow = Fleet(100, reply=0.01)
    assert slow.cycle == pytest.approx(1.0) and slow.order == pytest.approx(0.4)


def test_enough_is_the_first_number_from_which_on_it_holds() -> None:
    def at(engines: int, wait: float) -> Outcome:
        return Outcome(engines, 1, 1, 1, 1, 1, wait, 0, 0, 0, 0, 0, 1, 0)

    assert enough([at(1, 0.5), at(2, 0.04), at(4, 0.2), at(8, 0.01), at(16, 0.05)]) == 8
    assert enough([at(1, 0.5), at(2, 0.06)]) is None


# -- lengths


def test_distributions_are_what_they_say() -> None:
    flat = [n for group in lengths_of("pareto:100:1.5", 2000, 4, 10**6, 0)(0) for n in group]
    assert min(flat) >= 100
    for factor in (2, 4):
        share = sum(n > 100 * factor for n in flat) / len(flat)
        assert share == pytest.approx(factor**-1.5, rel=0.1)
    groups = lengths_of("lognormal:500:1", 2000, 4, 10**6, 0)(0)
    logs = [[math.log(n) for n in g] for g in groups]
    mean = sum(map(sum, logs)) / 8000
    total = sum((x - mean) ** 2 for g in logs for x in g) / 8000
    between = sum((sum(g) / 4 - mean) ** 2 for g in logs) / 2000
    assert mean == pytest.approx(math.log(500), abs=0.1) and total == pytest.approx(1, rel=0.1)
    assert between == pytest.approx(0.5 + 0.5 / 4, rel=0.1)
    assert all(1 <= n <= 30 for g in lengths_of("lognormal:500:1", 50, 4, 30, 0)(0) for n in g)


def test_lengths_depend_on_seed_and_step_alone() -> None:
    def draw(seed: int, step: int) -> list[list[int]]:
        return lengths_of("lognormal:500:1", 3, 4, 9999, seed)(step)

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2) != draw(1, 3) and draw(1, 2) != draw(2, 2)


def test_lengths_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "r1" / "rollouts"
    folder.mkdir(parents=True)
    rows = [("a", 3), ("a", 5), ("b", 70), ("b", 90)]
    text = "\n".join(json.dumps({"prompt": p, "tokens": n}) for p, n in rows)
    (folder / "step_000001.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(text.encode()))
    for root in (tmp_path, tmp_path / "r1"):
        assert list(groups_of(str(root))) == [[3, 5], [70, 90]]
    groups = lengths_of(str(tmp_path), 50, 2, 80, 0)(0)
    assert {tuple(g) for g in groups} == {(3, 5), (70, 80)}
    assert {n for g in lengths_of(str(tmp_path), 50, 3, 80, 0)(0) for n in g} == {3, 5, 70, 80}
    (folder / "step_000002.jsonl.zst").write_bytes(b"no zstd")
    with pytest.raises(UserError, match=r"step_000002\.jsonl\.zst: not a run's rollouts"):
        list(groups_of(str(tmp_path)))


# -- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--simulate", "--engines", "4,1", "--prompts", "4", "--group-size", "2", "--steps", "5",
             "--slots", "4", "--train", "30", "--lengths", "pareto:100:2",
             "--json", str(tmp_path / "out.json")]  # fmt: skip
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "from 1 engines on the trainer waits for at most 5%" in first
    wrote = json.loads((tmp_path / "out.json").read_text())
    assert [o["engines"] for o in wrote["outcomes"]] == [1, 4] and wrote["enough"] == 1
    assert wrote["job"]["prompts"] == 4 and wrote["fleet"]["slots"] == 4
    main(words)
    assert capsys.readouterr().out.splitlines()[:-1] == first.splitlines()[:-1]
    assert main([*words, "--train", "0"]) == 0
    assert "the trainer starves" in capsys.readouterr().out


def test_the_command_takes_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", "smoke", "--simulate", "--engines", "1", "--steps", "3", "--lengths", "pareto:4:1"])
        == 0
    )
    out = capsys.readouterr().out
    assert "4 prompts x 4 completions" in out and "at most 16" in out and "16 slots" in out
    assert main(["plan", "smoke"]) == 0
    assert "smoke: the plan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a recipe, or add --simulate"),
        (["--simulate", "--engines", "many"], "--engines many: numbers with commas"),
        (["--simulate", "--engines", "0"], "at least 1"),
        (["--simulate", "--lengths", "pareto:1"], "two numbers are needed"),
        (["--simulate", "--lengths", "lognormal:-1:1"], "must be above 0"),
        (["--simulate", "--lengths", "nowhere"], "no such distribution"),
        (["--simulate", "--engines", "1", "--slots", "0"], "slots=0: at least 1"),
        (["--simulate", "--engines", "1", "--mtbf", "10"], "must live at least twice as long"),
        (["smoke", "--simulate", "--stage", "base"], "no GRPO stage"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert said in capsys.readouterr().err
