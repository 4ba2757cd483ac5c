"""The data sets of the package reasoning-gym and their own scoring, run in the sandbox.

`rows` makes problems as data rows; `verify` has the row's problem made again and asks the data set's
`score_answer`, both inside the sandbox.  A row's `entry` says which problem it is: JSON with dataset, seed,
size, index and config, all that a problem is a function of.  The answer is the text of the last <answer> tag
behind the thought, else of the last \\boxed, else all of it.  All or nothing: 1 for the package's full score;
with `partial=True` the score itself, which many data sets give to wrong answers, too.

Why a sandbox, and what an answer that is code comes to: `reasoning_gym_inside.py`.  Less isolation than
`demand` (sandbox.DEMAND) is an error; so is a problem that the installed version makes differently.  An
answer that takes its scoring over the CPU or memory limit gets 0.

Needs the extra `reasoning-gym`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from typing import Any

from onebase.errors import UserError
from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.math_extract import answer_part
from onebase.verifiers.sandbox import DEMAND, Limits, Outcome, Sandbox, SandboxError

WALL_SECONDS = 120.0  # the first row waits for the sandbox, which imports the package
MEMORY_MB = 8192  # address space, the sandbox's included
WORKERS = 4
INSIDE = "onebase.verifiers.reasoning_gym_inside"
LIMITS = Limits(cpu_seconds=6.0, wall_seconds=60.0, memory_mb=2048)
MAKING = Limits(cpu_seconds=100.0, wall_seconds=300.0, memory_mb=4096, output_bytes=256 << 20)
CHUNK = 20  # problems made in one run
NO_GOLD = "(no answer is known; answers are scored)"
_LONGEST = 20_000  # characters of an answer


def rows(dataset: str, *, seed: int = 0, size: int = 500, **config: Any) -> Iterator[dict[str, Any]]:
    """`size` problems of a data set; `config` are its own settings.  Raises UserError for wrong ones."""
    job = {"dataset": dataset, "seed": seed, "size": size, "config": config}
    sandbox = _sandbox(())  # nothing is demanded: no text of a model is near
    for start in range(0, size, CHUNK):
        indices = list(range(start, min(size, start + CHUNK)))
        made = _make(sandbox, job, indices)
        if isinstance(made, str):
            raise UserError(f"reasoning-gym, data set {dataset!r}: {made}")
        for index, item in zip(indices, made, strict=True):
            gold = item["gold"] if isinstance(item["gold"], str) and item["gold"] else NO_GOLD
            entry = json.dumps(job | {"index": index})
            yield {"problem": item["question"], "answer": gold, "family": dataset, "entry": entry}


def source_rows(spec: str, split: str = "train", stop: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a recipe's source `hub: reasoning_gym:SPEC`.  SPEC is a data set with its settings behind
    it, as in `n_queens?n=6&min_remove=2`; every name of a split is a seed of its own.  Pitfall: data sets
    with few problems repeat some of them in other splits."""
    dataset, _, query = spec.partition("?")
    config: dict[str, Any] = {}
    for setting in filter(None, query.split("&")):
        key, equals, value = setting.partition("=")
        if not (key and equals):
            raise UserError(f"reasoning_gym:{spec}: {setting!r}: expected NAME=VALUE, joined by &")
        try:
            config[key] = json.loads(value)
        except ValueError:
            config[key] = value
    seed = int.from_bytes(hashlib.blake2b(split.encode(), digest_size=4).digest(), "big")
    yield from rows(dataset, seed=seed, size=500 if stop is None else stop, **config)


def verify(
    completion: str,
    answer: str = "",
    *,
    entry: str | None = None,
    partial: bool = False,
    demand: Sequence[str] = DEMAND,
    prefilled: bool = False,
    **row: Any,
) -> Verdict:
    part = answer_part(completion, prefilled)
    if part.text is None or not part.text.strip():
        return Verdict(0.0, part.how or "no text after the thought")
    given = shown_answer(part.text)
    if len(given) > _LONGEST:
        return Verdict(0.0, f"the answer has {len(given)} characters; at most {_LONGEST} are scored")
    return _score(given, str(answer), entry, partial, demand)


def gold_problem(answer: str, *, entry: str | None = None, **row: Any) -> str | None:
    """Why a row cannot be scored: its entry cannot be read or made, or its own answer is not scored 1."""
    verdict = _score(str(answer), str(answer), entry, False, row.get("demand", DEMAND))
    if verdict.reward is None:
        return str(verdict.error).removeprefix("gold: ")
    return None if verdict.reward == 1.0 or answer == NO_GOLD else f"its own answer: {verdict.reason}"


def shown_answer(text: str) -> str:
    """The text of the last <answer> tag, else of the last \\boxed, else all."""
    if tags := re.findall(r"<answer>((?:[^<]|<(?!/?answer>))*)</answer>", text):
        return tags[-1].strip()
    start = text.rfind("\\boxed{")
    depth = 0
    for i in range(start + 6, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 7 : i].strip()
    return text.strip()


def _score(given: str, answer: str, entry: str | None, partial: bool, demand: Sequence[str]) -> Verdict:
    try:
        made = _problem(str(entry), tuple(demand))
        if isinstance(made, str):
            return failed(f"gold: {made}")
        if answer != NO_GOLD and made["gold"] != answer:
            return failed("gold: the installed reasoning-gym makes another problem from this entry")
        job = json.loads(str(entry)) | {"entry": made["entry"], "answer": given}
        run = _sandbox(tuple(demand)).start(entry=f"{INSIDE}:score", payload=json.dumps(job).encode())
        outcome = run.wait()
    except SandboxError as error:
        return failed("infrastructure: " + " ".join(str(error).split())[:600])
    return _verdict(outcome, partial)


def _verdict(outcome: Outcome, partial: bool) -> Verdict:
    lines = _lines(outcome)
    details = {"layers": list(outcome.layers)}
    if len(lines) < 2:
        # RLIMIT_CPU ends a process by SIGKILL where its soft limit was ignored.
        over = outcome.how in ("cpu", "memory") or outcome.cpu_seconds > 0.9 * LIMITS.cpu_seconds
        how = f"{outcome.how} {outcome.code}, {outcome.cpu_seconds:.1f} s of CPU"
        if lines and over:
            return Verdict(0.0, f"scoring this answer ran over its limits ({how})", details=details)
        return failed(f"infrastructure: the scoring ended early ({how}): {_complaint(outcome)}")
    told = json.loads(lines[1])
    if "score" not in told:
        why = told.get("raised") or "not evaluated: " + told["refused"]
        return Verdict(0.0, " ".join(f"cannot be scored: {why}".split()), details=details)
    score = told["score"]
    if not 0.0 <= score <= 1.0:
        return failed(f"infrastructure: the data set's score is {score}")
    reward = score if partial else float(score == 1.0)
    return Verdict(reward, f"the data set scores {score:g}", details=details)


@lru_cache(maxsize=64)
def _problem(entry: str, demand: tuple[str, ...]) -> dict[str, Any] | str:
    """Question, gold and entry of a row, or why there is none.  Kept, because a group's completions ask for
    the same one and some take seconds to make."""
    try:
        job = json.loads(entry)
        job = {key: job[key] for key in ("dataset", "seed", "size", "index", "config")}
    except (ValueError, KeyError, TypeError) as error:
        return f"the row field entry is not what `rows` writes: {error}"
    made = _make(_sandbox(demand), job, [job["index"]])
    return made if isinstance(made, str) else made[0]


def _make(sandbox: Sandbox, job: dict[str, Any], indices: list[int]) -> list[dict[str, Any]] | str:
    payload = json.dumps(job | {"indices": indices}).encode()
    outcome = sandbox.start(entry=f"{INSIDE}:make", payload=payload, limits=MAKING).wait()
    lines = _lines(outcome)
    if outcome.how != "exit" or outcome.code or len(lines) != len(indices):
        return f"the problem cannot be made ({outcome.how} {outcome.code}): {_complaint(outcome)}"
    return [json.loads(line) for line in lines]


def _lines(outcome: Outcome) -> list[str]:
    return outcome.stdout.decode("utf-8", "replace").split("\n")[:-1]


def _complaint(outcome: Outcome) -> str:
    return outcome.stderr.decode("utf-8", "replace").strip().split("\n")[-1][:200]


@lru_cache(maxsize=2)
def _sandbox(demand: tuple[str, ...]) -> Sandbox:
    """One for the process; the package is imported in it once."""
    _installed()
    return Sandbox(LIMITS, demand, preload=(INSIDE,), packages=_packages("reasoning-gym"))


def _installed() -> None:
    try:
        distribution("reasoning-gym")
    except PackageNotFoundError as error:
        raise UserError(
            "verifier 'reasoning_gym' needs the package reasoning-gym\n"
            "  install it: pip install 'onebase[reasoning-gym]'"
        ) from error


def _packages(name: str) -> list[str]:
    """Names to import of a distribution and of all that it requires, which differ from the distributions'."""
    todo, wanted = [name], set()
    while todo:
        found = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if found in wanted:
            continue
        try:
            needs = distribution(found).requires or []
        except PackageNotFoundError:
            continue  # for another platform or Python
        wanted.add(found)
        todo += [m.group() for n in needs if "extra ==" not in n and (m := re.match(r"[\w.-]+", n))]
    of_import = packages_distributions()
    return sorted(
        p
        for p, owners in of_import.items()
        if any(re.sub(r"[-_.]+", "-", o).lower() in wanted for o in owners)
    )
