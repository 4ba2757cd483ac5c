"""The score of a reward model: a sequence-classification checkpoint with one output (`num_labels=1`), as a
folder or hub id that transformers loads.

The conversation (`problem`, or `messages`) and the answer behind the thought go through the checkpoint's own
chat template; the score is the logit.  Into [0, 1] it comes by `map`:

sigmoid      1 / (1 + exp(-score)): under Bradley-Terry (the loss that such models are trained with) the
             probability of winning against an answer that scores 0
[low, high]  (score - low) / (high - low), cut at 0 and 1

`details["score"]` keeps the logit.  An answer that holds one of the tokenizer's special tokens gets 0: behind
the template it would play another turn.  Text longer than the model reads is an error.

The model is loaded once per process and kept; one worker serves a run.  `verify_batch` scores many rows in
padded batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from onebase.errors import UserError
from onebase.verifiers.base import Verdict, failed
from onebase.verifiers.math_extract import answer_part

WALL_SECONDS = 300.0  # the first row waits for the model to be loaded
MEMORY_MB = 0
WORKERS = 1
gold_problem = None  # it has no gold answer
BATCH_TOKENS = 16_384  # padded tokens of one forward pass
PARTS = ("answer", "all")
DTYPES = ("float32", "bfloat16", "float16", "float64")
THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class _Scorer:
    """A loaded checkpoint.  Compared by identity: one for each folder, precision and device."""

    model: Any
    tokenizer: Any
    longest: int
    special: tuple[str, ...]


@dataclass(slots=True)
class _Text:
    """A row that can be scored."""

    scorer: _Scorer
    ids: list[int]
    map: tuple[float, float] | None
    """None: sigmoid."""


def verify(completion: str, answer: str = "", **row: Any) -> Verdict:
    """Row options: checkpoint, problem (or messages), map, part (answer or all), dtype, device, prefilled.
    Raises UserError where the checkpoint is no reward model."""
    return verify_batch([{"completion": completion, "answer": answer, **row}])[0]


def verify_batch(rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """One Verdict for each row; rows of several checkpoints may be mixed."""
    found = [_prepared(**row) for row in rows]
    texts = [f for f in found if isinstance(f, _Text)]
    scores: dict[int, float] = {}
    for scorer in {id(text.scorer): text.scorer for text in texts}.values():
        mine = [text for text in texts if text.scorer is scorer]
        got = _scores(scorer, [text.ids for text in mine])
        scores |= {id(text): score for text, score in zip(mine, got, strict=True)}
    return [f if isinstance(f, Verdict) else _verdict(scores[id(f)], f.map) for f in found]


def _prepared(
    completion: str,
    answer: str = "",
    *,
    checkpoint: str = "",
    problem: str = "",
    messages: Sequence[Mapping[str, str]] | None = None,
    map: str | Sequence[float] = "sigmoid",
    part: str = "answer",
    dtype: str = "auto",
    device: str = "auto",
    prefilled: bool = False,
    **row: Any,
) -> _Text | Verdict:
    if not checkpoint:
        return failed("row: the reward model's folder or hub id is missing: checkpoint")
    if part not in PARTS:
        return failed(f"row: part {part!r} is unknown; allowed: {', '.join(PARTS)}")
    ends = None if map == "sigmoid" else tuple(map) if not isinstance(map, str) else ()
    if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
        return failed(f"row: map {map!r}: allowed: sigmoid, or [low, high], the scores that give 0 and 1")
    if messages is None and not problem:
        return failed("row: there is neither problem nor messages")
    scorer = _load(str(checkpoint), dtype, device)
    shown = completion
    if part == "answer":
        found = answer_part(completion, prefilled)
        if found.text is None or not found.text.strip():
            return Verdict(0.0, found.how or "no text after the thought")
        shown = found.text.strip()
    if forged := next((token for token in scorer.special if token in shown), None):
        return Verdict(0.0, f"the answer holds the special token {forged!r}")
    turns = [dict(m) for m in messages or [{"role": "user", "content": problem}]]
    turns.append({"role": "assistant", "content": shown})
    ids = scorer.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    if len(ids) > scorer.longest:
        return failed(f"row: {len(ids)} tokens, the reward model reads {scorer.longest}")
    return _Text(scorer, list(ids), None if ends is None else (float(ends[0]), float(ends[1])))


def _verdict(score: float, ends: tuple[float, float] | None) -> Verdict:
    if not math.isfinite(score):
        return failed(f"infrastructure: the reward model's score is {score}")
    if ends is None:
        reward, how = 0.5 * (1.0 + math.tanh(score / 2)), "sigmoid"
    else:
        low, high = ends
        reward, how = min(1.0, max(0.0, (score - low) / (high - low))), f"{low:g} to {high:g}"
    return Verdict(reward, f"score {score:.4g}, {how}", details={"score": score})


def _scores(scorer: _Scorer, texts: Sequence[Sequence[int]]) -> list[float]:
    """The logit of each; long beside long, so that little is padded."""
    import torch

    pad = scorer.model.config.get_text_config().pad_token_id
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    scores = [math.nan] * len(texts)
    while order:
        longest = len(texts[order[-1]])
        # Without a padding token such models read the last place, so each text goes alone.
        count = 1 if pad is None else max(1, BATCH_TOKENS // longest)
        batch, order = order[-count:], order[:-count]
        ids_BT = torch.full((len(batch), longest), 0 if pad is None else pad)
        mask_BT = torch.zeros_like(ids_BT)
        for row, i in enumerate(batch):
            ids_BT[row, : len(texts[i])] = torch.tensor(texts[i])
            mask_BT[row, : len(texts[i])] = 1
        with torch.inference_mode():
            place = scorer.model.device
            out = scorer.model(input_ids=ids_BT.to(place), attention_mask=mask_BT.to(place))
        for i, score in zip(batch, out.logits[:, 0].double().tolist(), strict=True):
            scores[i] = score
    return scores


@lru_cache(maxsize=2)
def _load(checkpoint: str, dtype: str, device: str) -> _Scorer:
    """Raises UserError where there is no sequence-classification model with one trained output."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from onebase.pipeline import pick_device

    device = pick_device("auto") if device == "auto" else device
    dtype = ("bfloat16" if device == "cuda" else "float32") if dtype == "auto" else dtype
    if dtype not in DTYPES:
        raise UserError(f"reward model: dtype {dtype!r} is unknown; allowed: auto, {', '.join(DTYPES)}")
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        labels = config.num_labels
        if labels != 1:
            raise UserError(
                f"{checkpoint}: the checkpoint has {labels} outputs or no score head; a reward model is a "
                "sequence-classification model with num_labels=1"
            )
        model, info = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{checkpoint}: no reward model can be loaded from there: {first}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{checkpoint}: {len(missing)} weights are missing, first {missing[0]}; a language model without "
            "a trained score head is no reward model"
        )
    if tokenizer.chat_template is None:
        raise UserError(f"{checkpoint}: no chat template; add chat_template.jinja to the folder")
    longest = int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 20))
    special = tuple(t for t in tokenizer.all_special_tokens if t.strip() and t not in (THINK, END_THINK))
    return _Scorer(model.to(device).eval(), tokenizer, longest, special)
