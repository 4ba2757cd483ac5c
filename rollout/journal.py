"""One file of rollouts per step, for people and for audits: rollouts/step_N.jsonl.zst."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from onebase.files import atomic_write
from onebase.rollout.groups import ScoredRollout


def write(folder: Path, step: int, rollouts: Sequence[ScoredRollout], fate: Sequence[str]) -> None:
    """`fate[i]` is 'trained' or why rollout i was dropped."""
    import zstandard

    lines = []
    for r, why in zip(rollouts, fate, strict=True):
        o = r.rollout
        verdicts = {
            n: {"reward": v.reward, "error": v.error, "reason": v.reason, "seconds": round(v.seconds, 6)}
            for n, v in r.scored.verdicts.items()
        }
        record = {
            "prompt": r.row["problem"],
            "answer": r.row["answer"],
            "family": r.row.get("family"),
            "completion": r.text,
            "reward": r.scored.reward,
            "verdicts": verdicts,
            "kept": why == "trained",
            "why": why,
            "finish_reason": o.finish_reason,
            "tokens": len(o.completion_ids),
            "weight_versions": o.versions,
            "seed": o.seed,
            "completion_ids": o.completion_ids,
            "logp_rollout": [round(x, 5) for x in o.logp_rollout],
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    data = zstandard.ZstdCompressor(level=3).compress(("\n".join(lines) + "\n").encode())
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"step_{step:06d}.jsonl.zst", data)
