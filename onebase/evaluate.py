"""The eval stage: every model answers the same held-out problems, once greedily and several times sampled.

    eval.json              the table: {"models": {label: numbers}, "sample": one problem, "data": settings}
    samples.jsonl.zst      every completion with its verdicts
    models/<label>.*       the same of one finished model: a run that was killed goes on with the next

A model that finished is measured again only where its weights, the problems or the settings changed.
Greedy numbers depend on batching and hardware by the logits' last digits; on equal machines they repeat.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onebase import gold, jsonl_zst
from onebase.data import problem_rows
from onebase.errors import UserError
from onebase.files import atomic_write
from onebase.measures import numbers, vote
from onebase.model import checkpoint
from onebase.recipe import Eval, Sampling, Term
from onebase.rewards import correctness
from onebase.rollout.engine import Engine
from onebase.rollout.groups import ScoredRollout, prompt_ids, sample_groups
from onebase.rollout.torch_engine import TorchEngine
from onebase.stage import StageRun
from onebase.stage_state import read_json, to_json
from onebase.tokenizer import END_THINK, ChatTokenizer

SHOWN = ("greedy", "avg@k", "mean_tokens", "truncated")


def greedy(sampling: Sampling) -> Sampling:
    return sampling.model_copy(update={"temperature": 0.0, "top_p": 1.0, "top_k": 0})


def greedy_accuracy(
    engine: Engine,
    tokenizer: ChatTokenizer,
    rows: Sequence[dict[str, Any]],
    terms: Sequence[Term],
    sampling: Sampling,
) -> dict[str, float]:
    """One greedy completion per problem, for a look at held-out problems in the middle of training.

    `accuracy` is over judged completions, 0 where none was judged; `errors` counts the others.
    """
    rollouts, _ = sample_groups(engine, tokenizer, rows, 1, greedy(sampling), correctness(terms), 0, 0)
    judged = [r for r in rollouts if r.scored.judged]
    n = max(1, len(rollouts))
    return {
        "accuracy": sum(r.scored.correct for r in judged) / max(1, len(judged)),
        "tokens": sum(len(r.rollout.completion_ids) for r in rollouts) / n,
        "truncated": sum(r.rollout.finish_reason == "length" for r in rollouts) / n,
        "thoughts": sum(END_THINK in r.text for r in rollouts) / n,
        "errors": float(len(rollouts) - len(judged)),
    }


def main(run: StageRun) -> dict[str, float]:
    from onebase.pipeline import resolve_checkpoint

    stage: Eval = run.stage
    origins = {
        label: resolve_checkpoint(run.recipe, run.folder.parent, name) for label, name in stage.models.items()
    }
    golds = gold.check(run, stage.data)  # before a model is loaded
    rows, skipped = _problems(run, stage, origins, golds)
    files = _files(run.folder / "models", list(origins))
    results: dict[str, dict[str, Any]] = {}
    for turn, (label, origin) in enumerate(origins.items()):
        key = _key(origin, stage, rows, run.recipe.dtype, run.seed)
        found = read_json(files[label].with_suffix(".json"))
        if found is None or found.get("key") != key or not files[label].is_file():
            run.log.note(f"{run.name}: {label} ({len(rows)} problems)")
            found = {"key": key, "numbers": _one_model(run, stage, label, origin, rows, files[label], turn)}
            atomic_write(files[label].with_suffix(".json"), to_json(found))
        results[label] = found["numbers"]
    atomic_write(
        run.folder / "samples.jsonl.zst",
        jsonl_zst.pack(row for path in files.values() for row in jsonl_zst.read(path)),
    )
    data = {
        "sources": [s.model_dump(mode="json", exclude_defaults=True) for s in stage.data],
        "problems": len(rows),
        "too_long": skipped,
        "bad_gold": len(golds.keys),
        "samples": stage.samples,
        "sampling": stage.sampling.model_dump(mode="json"),
        "seed": run.seed,
    }
    text = {"models": results, "sample": _sample(files), "data": data}
    atomic_write(run.folder / "eval.json", to_json(text))
    return {f"{label}: greedy": r["greedy"] for label, r in results.items() if r["greedy"] is not None}


def _problems(
    run: StageRun, stage: Eval, origins: dict[str, str], golds: gold.Found
) -> tuple[list[dict[str, Any]], int]:
    """The problems whose prompt is short enough under every model's tokenizer, so that all answer the same
    ones; and how many were not."""
    rows = gold.keep(problem_rows(stage.data, run.seed, stage.problems, run.folders), golds)
    if not rows:
        raise UserError(f"stage {run.name}: its data holds no problem")
    tokenizers = [ChatTokenizer.load(origin) for origin in dict.fromkeys(origins.values())]
    kept = [
        row
        for row in rows
        if all(len(prompt_ids(t, row, stage.sampling)) <= stage.max_prompt for t in tokenizers)
    ]
    if not kept:
        longest = max(len(prompt_ids(t, rows[0], stage.sampling)) for t in tokenizers)
        raise UserError(
            f"stage {run.name}: all {len(rows)} prompts are longer than max_prompt={stage.max_prompt}; "
            f"the first has {longest} tokens. Raise max_prompt."
        )
    if len(kept) < len(rows):
        run.log.event("prompts_too_long", count=len(rows) - len(kept), max_prompt=stage.max_prompt)
    return kept, len(rows) - len(kept)


def _one_model(
    run: StageRun,
    stage: Eval,
    label: str,
    origin: str,
    rows: list[dict[str, Any]],
    samples: Path,
    turn: int,
) -> dict[str, Any]:
    """Measure one checkpoint and write its completions; returns its row of the table."""
    model, tokenizer = checkpoint.load(origin, run.device, run.recipe.dtype)
    model.eval()
    slots = min(stage.slots, len(rows) * stage.samples)
    engine = TorchEngine(model, tokenizer.pad_id, slots, stage.max_prompt + stage.sampling.max_tokens)
    total, start = 2 * len(stage.models), time.perf_counter()
    one, first = sample_groups(engine, tokenizer, rows, 1, greedy(stage.sampling), stage.rewards, run.seed, 0)
    told = numbers(one, [], run.seed)
    told_numbers = {k: told[k] for k in ("greedy", "mean_tokens", "truncated") if told[k] is not None}
    run.log.step(2 * turn + 1, total, told_numbers | first, SHOWN)
    several, then = sample_groups(
        engine, tokenizer, rows, stage.samples, stage.sampling, stage.rewards, run.seed, 1
    )
    result = numbers(one, several, run.seed)
    tokens = sum(len(r.rollout.completion_ids) for r in [*one, *several])
    seconds = first["seconds_generate"] + then["seconds_generate"]
    result |= {
        "origin": stage.models[label],
        "tokens_per_second": tokens / seconds if seconds > 0 else None,
        "seconds": time.perf_counter() - start,
    }
    told_numbers |= {"avg@k": result[f"avg@{stage.samples}"] or 0.0}
    run.log.step(2 * turn + 2, total, told_numbers | then, SHOWN)
    if result["errors"] or result["errors_sampled"]:
        errors = result["errors"] + result["errors_sampled"]
        run.log.event("verifier_errors", model=label, count=errors, of=len(one) + len(several))
    records = [_record(label, "greedy", r) for r in one] + [_record(label, "sampled", r) for r in several]
    atomic_write(samples, jsonl_zst.pack(records))
    return result


def _key(origin: str, stage: Eval, rows: list[dict[str, Any]], dtype: str, seed: int) -> str:
    """Digest of everything that decides a model's numbers: weights (by size and time), problems, settings."""
    weights = [
        (f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(Path(origin).glob("*.safetensors"))
    ]
    settings = stage.model_dump(mode="json", exclude={"models", "slots", "checkpoint_every"})
    text = json.dumps([origin, weights, settings, rows, dtype, seed], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _files(folder: Path, labels: list[str]) -> dict[str, Path]:
    """A file name for each label's completions: readable, and different for labels that look alike."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for label in labels:
        word = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in label)[:40]
        if word != label:
            word += "-" + hashlib.sha256(label.encode()).hexdigest()[:6]
        names[label] = folder / f"{word}.zst"
    return names


def _record(label: str, kind: str, r: ScoredRollout) -> dict[str, Any]:
    verdicts = {
        name: {"reward": v.reward, "error": v.error, "reason": v.reason}
        for name, v in r.scored.verdicts.items()
    }
    return {
        "model": label,
        "kind": kind,
        "number": r.prompt,
        "problem": r.row["problem"],
        "answer": r.row["answer"],
        "family": r.row.get("family"),
        "completion": r.text,
        "correct": r.scored.correct if r.scored.judged else None,
        "vote": vote(r),
        "reward": r.scored.reward,
        "verdicts": verdicts,
        "finish_reason": r.rollout.finish_reason,
        "tokens": len(r.rollout.completion_ids),
    }


def _sample(files: dict[str, Path]) -> dict[str, Any]:
    """One problem with every model's greedy text: the first on which models differ, else the first."""
    greedy_of = {
        label: [s for s in jsonl_zst.read(path) if s["kind"] == "greedy"] for label, path in files.items()
    }
    some = next(iter(greedy_of.values()))
    differing = [i for i in range(len(some)) if len({of[i]["correct"] for of in greedy_of.values()}) > 1]
    at = differing[0] if differing else 0
    return {
        "problem": some[at]["problem"],
        "answer": some[at]["answer"],
        "family": some[at]["family"],
        "outputs": {label: of[at]["completion"] for label, of in greedy_of.items()},
        "correct": {label: of[at]["correct"] for label, of in greedy_of.items()},
    }
