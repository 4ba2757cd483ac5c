"""`onebase plan [RECIPE] [--simulate]`: what a run will cost, or how many rollout engines its trainer needs.

The simulation takes prompts, group size, longest completion, slots and staleness from the recipe's GRPO stage
where one is named; options replace them.  Seconds cannot be known beforehand: defaults are a guess, measured
ones (a run's metrics.jsonl: seconds_train, seconds_sync) belong in the options.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

from onebase.errors import UserError
from onebase.simulate import simulate
from onebase.simulate_lengths import lengths_of
from onebase.simulate_parts import Fleet, Job, Outcome, enough

ENGINES = "64,128,256,512,1024"
LENGTHS = "lognormal:1200:1.0"
STARVES = 0.05
"""Share of its time that a trainer may wait before it counts as starved."""
OPTIONS: dict[str, tuple[str, type, str]] = {
    "prompts": ("job", int, "prompts of a step"),
    "group-size": ("job", int, "completions of a prompt"),
    "prompt-tokens": ("job", int, "tokens of a prompt"),
    "max-tokens": ("job", int, "longest completion"),
    "staleness": ("job", int, "steps that the engines may work ahead"),
    "steps": ("job", int, "steps that are simulated"),
    "train": ("job", float, "seconds that the trainer works on a step"),
    "sync": ("job", float, "seconds in which an engine loads weights and proves them"),
    "slots": ("fleet", int, "completions that one engine draws at the same time"),
    "fixed": ("fleet", float, "seconds of a decoding step, however few completions run"),
    "per-row": ("fleet", float, "seconds that each running completion adds to it"),
    "prefill": ("fleet", float, "seconds per prompt token that is not cached"),
    "pump": ("fleet", float, "least seconds of an order"),
    "reply": ("fleet", float, "seconds that the driver spends on a reply"),
    "mtbf": ("fleet", float, "mean seconds between failures of one engine; 0: none"),
    "notice": ("fleet", float, "seconds until a failure is noticed"),
    "restart": ("fleet", float, "seconds from then until another engine works"),
}


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--simulate", action="store_true", help="simulate rollout engines at scale")
    p.add_argument("--stage", help="the recipe's GRPO stage (default: its first)")
    p.add_argument("--engines", default=ENGINES, help=f"numbers of engines (default {ENGINES})")
    p.add_argument(
        "--lengths", default=LENGTHS,
        help=f"lognormal:MEDIAN:SIGMA, pareto:LEAST:ALPHA, or a run's folder (default {LENGTHS})",
    )  # fmt: skip
    for name, (_, kind, told) in OPTIONS.items():
        p.add_argument(f"--{name}", type=kind, help=told)
    p.add_argument("--seed", type=int, default=0, help="of lengths and failures")
    p.add_argument("--json", metavar="FILE", help="write the results there, too")


def main(args: argparse.Namespace) -> int:
    if not args.simulate:
        if args.recipe is None:
            raise UserError("name a recipe, or add --simulate to simulate rollout engines")
        from onebase import pipeline, recipe_loader

        pipeline.run(recipe_loader.load(args.recipe, args.set), None, dry_run=True)
        return 0
    counts = _counts(args.engines)
    fleet, job = _from_recipe(args)
    given: dict[str, dict[str, Any]] = {"job": {}, "fleet": {}}
    for name, (section, _, _) in OPTIONS.items():
        field = name.replace("-", "_")
        if getattr(args, field) is not None:
            given[section][field] = getattr(args, field)
    fleet, job = replace(fleet, **given["fleet"]), replace(job, **given["job"])
    lengths = lengths_of(args.lengths, job.prompts, job.group_size, job.max_tokens, args.seed)
    outcomes, start = [], time.process_time()
    print(_setting(fleet, job, args))
    print(HEAD)
    for count in counts:
        outcomes.append(simulate(replace(fleet, engines=count), job, lengths, args.seed))
        print(_row(outcomes[-1]), flush=True)
    print(_verdict(outcomes, job))
    print(f"{time.process_time() - start:.1f} s of processor time, seed {args.seed}")
    if args.json:
        told = {
            "lengths": args.lengths,
            "seed": args.seed,
            "fleet": _plain(fleet),
            "job": _plain(job),
            "outcomes": [o.plain() for o in outcomes],
            "enough": enough(outcomes, STARVES),
        }
        with open(args.json, "w", encoding="utf-8") as f:
            f.write(json.dumps(told, indent=1) + "\n")
    return 0


def _plain(section: Any) -> dict[str, Any]:
    return {name: getattr(section, name) for name in section.__slots__ if name != "engines"}


def _counts(told: str) -> list[int]:
    try:
        counts = sorted({int(x) for x in told.split(",")})
    except ValueError:
        raise UserError(f"--engines {told}: numbers with commas between, as in {ENGINES}") from None
    if counts[0] < 1:
        raise UserError(f"--engines {told}: at least 1 is allowed")
    return counts


def _from_recipe(args: argparse.Namespace) -> tuple[Fleet, Job]:
    if args.recipe is None:
        return Fleet(1), Job()
    from onebase import recipe_loader

    recipe = recipe_loader.load(args.recipe, args.set)
    stages = {name: s for name, s in recipe.stages.items() if s.kind == "grpo"}
    name = args.stage or next(iter(stages), None)
    if name not in stages:
        from onebase.wording import listed

        raise UserError(
            f"--stage {name}: no GRPO stage of {args.recipe} has that name\n  allowed: {listed(stages)}"
        )
    stage: Any = stages[name]
    job = Job(
        prompts=stage.prompts,
        group_size=stage.group_size,
        prompt_tokens=stage.max_prompt,
        max_tokens=stage.sampling.max_tokens,
        staleness=stage.engines.staleness,
    )
    return Fleet(1, slots=stage.slots), job


def _setting(fleet: Fleet, job: Job, args: argparse.Namespace) -> str:
    failures = "no failures"
    if fleet.mtbf:
        failures = (
            f"an engine fails every {fleet.mtbf:g} s, noticed after {fleet.notice:g} s, replaced after "
            f"{fleet.restart:g} s"
        )
    return (
        f"{job.prompts} prompts x {job.group_size} completions of {args.lengths} tokens, at most "
        f"{job.max_tokens}; staleness {job.staleness}; {job.train:g} s of training, {job.sync:g} s of sync\n"
        f"an engine: {fleet.slots} slots, {fleet.fixed:g} s + {fleet.per_row:g} s a completion for a token; "
        f"{failures}"
    )


COLUMNS = (
    ("engines", lambda o: f"{o.engines}"),
    ("steps/h", lambda o: f"{o.steps_per_hour:.1f}"),
    ("tokens/s", lambda o: f"{o.tokens_per_second:,.0f}"),
    ("trainer waits", lambda o: f"{o.wait:.1%}"),
    ("busy", lambda o: f"{o.busy:.1%}"),
    ("slots filled", lambda o: f"{o.filled:.1%}"),
    ("staleness", lambda o: f"{o.staleness_mean:.2f} max {o.staleness_max}"),
    ("prefix hits", lambda o: f"{o.prefix_hits:.1%}"),
    ("failed", lambda o: f"{o.failures}"),
    ("begun anew", lambda o: f"{o.begun_anew}"),
    ("driver", lambda o: f"{o.driver:.0%}"),
)
WIDTH = 14
HEAD = "".join(f"{name:>{WIDTH}}" for name, _ in COLUMNS)


def _row(outcome: Outcome) -> str:
    return "".join(f"{show(outcome):>{WIDTH}}" for _, show in COLUMNS)


def _verdict(outcomes: list[Outcome], job: Job) -> str:
    found = enough(outcomes, STARVES)
    if found is not None:
        return f"from {found} engines on the trainer waits for at most {STARVES:.0%} of its time"
    least = min(outcomes, key=lambda o: o.wait)
    text = f"the trainer starves: it waits for {least.wait:.0%} at best, with {least.engines} engines; "
    if least.engines == max(o.engines for o in outcomes) and least.filled >= 0.3:
        return text + "try more"
    return text + (
        f"the longest completion alone takes {least.longest:.0f} s, {job.staleness + 1} steps of training "
        f"{job.train:g} s each: more staleness, a shorter max_tokens or faster engines help, not more"
    )
