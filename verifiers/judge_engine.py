"""Asks a checkpoint of ours, or any causal LM folder, through the in-process rollout engine, greedily.

The model is loaded once per process and kept.  It shares the process, and so the GPU, with what else runs
there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from onebase.verifiers.judge_endpoint import Failure

if TYPE_CHECKING:
    from onebase.rollout.engine import Engine
    from onebase.tokenizer import ChatTokenizer

SLOTS = 8  # replies generated at the same time
_TURN = threading.Lock()  # an engine has one cache: one batch at a time


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: str
    max_tokens: int = 1024
    device: str = "auto"

    def ask(self, prompts: Sequence[str]) -> list[str | Failure]:
        """One reply for each prompt.  Raises UserError where the folder holds no checkpoint."""
        from onebase.rollout.engine import Request

        with _TURN:
            engine, tokenizer, longest = _load(self.folder, self.device)
            replies: list[str | Failure] = [Failure("the prompt is empty")] * len(prompts)
            asked, requests = [], []
            for i, prompt in enumerate(prompts):
                ids = tokenizer.prompt_ids([{"role": "user", "content": prompt}])
                if len(ids) + self.max_tokens > longest:
                    told = f"a prompt of {len(ids)} tokens with max_tokens={self.max_tokens}"
                    replies[i] = Failure(f"{told} is longer than the judge reads ({longest})")
                    continue
                asked.append(i)
                requests.append(
                    Request(ids, 0, self.max_tokens, temperature=0.0, stop_ids=tokenizer.stop_ids)
                )
            for i, rollout in zip(asked, engine.generate(requests) if requests else [], strict=True):
                cut = rollout.finish_reason != "stop"
                text = tokenizer.text(rollout.completion_ids)
                replies[i] = Failure("the reply was cut off; raise max_tokens") if cut else text
            return replies


@lru_cache(maxsize=2)
def _load(folder: str, device: str) -> tuple[Engine, ChatTokenizer, int]:
    from onebase.chat import LONGEST, context_length, find
    from onebase.model import checkpoint
    from onebase.pipeline import pick_device
    from onebase.rollout.torch_engine import TorchEngine

    device = pick_device("auto") if device == "auto" else device
    model, tokenizer = checkpoint.load(find(folder), device, "bfloat16" if device == "cuda" else "float32")
    model.eval()
    longest = min(LONGEST, context_length(model))
    return TorchEngine(model, tokenizer.pad_id, SLOTS, longest), tokenizer, longest
