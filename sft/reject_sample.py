"""Rejection sampling: draw completions from a checkpoint, keep the verified ones as SFT rows (R1, section
2.3.3).

Of each problem at most `keep` correct completions stay, the shortest first and no two alike.  Rows appear
whole in rows.jsonl: problem, answer, completion, family, tokens.
"""

from __future__ import annotations

import json

from onebase import gold
from onebase.data import problem_rows
from onebase.errors import UserError
from onebase.files import atomic_write
from onebase.model import checkpoint
from onebase.recipe import RejectSample
from onebase.rollout.groups import ScoredRollout, prompt_ids, sample_groups
from onebase.rollout.torch_engine import TorchEngine
from onebase.stage import StageRun

CHUNK = 256  # problems between two looks at the clock


def main(run: StageRun) -> dict[str, float]:
    stage: RejectSample = run.stage
    assert run.init is not None
    found = gold.check(run, stage.data)  # before a model is loaded
    each = -(-stage.problems // len(stage.data))
    rows = gold.keep(problem_rows(stage.data, run.seed, each, run.folders)[: stage.problems], found)
    model, tokenizer = checkpoint.load(run.init, run.device, run.recipe.dtype)
    model.eval()
    rows = [r for r in rows if len(prompt_ids(tokenizer, r, stage.sampling)) <= stage.max_prompt]
    engine = TorchEngine(model, tokenizer.pad_id, stage.slots, stage.max_prompt + stage.sampling.max_tokens)
    kept: list[dict[str, object]] = []
    drawn = right = solved = 0
    for at in range(0, len(rows), CHUNK):
        part = rows[at : at + CHUNK]
        groups = (stage.samples, stage.sampling, stage.rewards, run.seed, at)
        rollouts, seconds = sample_groups(engine, tokenizer, part, *groups)
        good = [r for r in rollouts if _accepted(r, stage)]
        drawn, right = drawn + len(rollouts), right + len(good)
        chosen = _shortest(good, stage.keep)
        solved += len({r.prompt for r in chosen})
        kept += [_row(r) for r in chosen]
        tokens = sum(len(r.rollout.completion_ids) for r in rollouts)
        done = at + len(part)
        metrics = {
            "kept": float(len(kept)),
            "accepted_share": right / drawn,
            "solved_share": solved / done,
            "tokens_per_second": tokens / seconds["seconds_generate"],
            **seconds,
        }
        run.log.step(done, len(rows), metrics, ("kept", "accepted_share", "tokens_per_second"))
    if not kept:
        raise UserError(
            f"stage {run.name}: none of {drawn} completions reached the threshold {stage.threshold}. "
            "Use an easier source, more samples, or a better init."
        )
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept)
    atomic_write(run.folder / "rows.jsonl", text)
    return {"rows": float(len(kept)), "accepted_share": right / drawn, "solved_share": solved / len(rows)}


def _accepted(r: ScoredRollout, stage: RejectSample) -> bool:
    if r.rollout.finish_reason != "stop" or r.scored.reward is None or r.scored.reward < stage.threshold:
        return False
    return not stage.require_think or ("<think>" in r.text and "</think>" in r.text)


def _shortest(good: list[ScoredRollout], keep: int) -> list[ScoredRollout]:
    """At most `keep` of each problem, in the problems' order."""
    by_prompt: dict[int, list[ScoredRollout]] = {}
    for r in sorted(good, key=lambda r: len(r.rollout.completion_ids)):
        mine = by_prompt.setdefault(r.prompt, [])
        if len(mine) < keep and all(r.text != m.text for m in mine):
            mine.append(r)
    return [r for p in sorted(by_prompt) for r in by_prompt[p]]


def _row(r: ScoredRollout) -> dict[str, object]:
    return {
        "problem": r.row["problem"],
        "answer": r.row["answer"],
        "completion": r.text,
        "family": r.row.get("family"),
        "tokens": len(r.rollout.completion_ids),
    }
