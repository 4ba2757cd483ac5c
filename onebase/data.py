"""From a recipe's sources to packed training rows and to problems.  Everything is a function of (seed,
index).

    Source -> rows (dicts)  -> documents (ids, mask) -> packed rows of `length` tokens -> Batch of a step

The k-th packed row of a source and the batch of a step can be made alone, in any order, so that a resume goes
on with exactly the batches that a run without a break would have had.  Rows of several sources alternate by
weight. Worlds are unlimited; other sources start over in a new order when they end.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from onebase import worlds
from onebase.errors import UserError
from onebase.recipe import Source
from onebase.rows import chat_row, file_rows, problem_row
from onebase.tokenizer import ChatTokenizer, Think

PERIOD = 1024  # rows after which the alternation of sources repeats
DOCUMENTS = 256  # most documents of one packed row
Mode = Literal["pretrain", "sft"]


@dataclass(slots=True)
class Batch:
    """Packed rows.  All tensors are [B, T]."""

    ids_BT: Tensor
    trained_BT: Tensor
    """True where the token is to be predicted (padding and, in SFT, prompts are not)."""
    position_BT: Tensor
    """Counts from 0 in each document."""
    document_BT: Tensor
    """Number of the document in the row, from 0; -1 is padding."""

    def to(self, device: torch.device | str) -> Batch:
        device = torch.device(device)
        return Batch(
            *(sent(t, device) for t in (self.ids_BT, self.trained_BT, self.position_BT, self.document_BT))
        )


def sent(t: Tensor, device: torch.device) -> Tensor:
    """`t` on the device; a GPU takes it from pinned memory, so that the host does not wait."""
    if device.type == "cuda" and t.device.type == "cpu":
        return t.contiguous().pin_memory().to(device, non_blocking=True)
    return t.to(device)


Document = tuple[list[int], list[int]]  # ids and trained mask
PackedRow = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def pack(documents: Sequence[Document], length: int, pad_id: int) -> PackedRow:
    """One row from documents that fit together into `length` tokens."""
    ids = np.full(length, pad_id, dtype=np.int64)
    trained = np.zeros(length, dtype=bool)
    position = np.zeros(length, dtype=np.int64)
    document = np.full(length, -1, dtype=np.int64)
    at = 0
    for n, (doc, mask) in enumerate(documents):
        end = at + len(doc)
        assert end <= length, f"{end=} {length=}"
        ids[at:end], trained[at:end] = doc, mask
        position[at:end], document[at:end] = np.arange(len(doc)), n
        at = end
    return ids, trained, position, document


class Packed(Protocol):
    """A source as an endless sequence of packed rows."""

    def row(self, k: int) -> PackedRow: ...


class WorldRows:
    """Generated problems as documents, in the styles of the source; row k takes problems from its own
    range."""

    def __init__(
        self,
        source: Source,
        tokenizer: ChatTokenizer,
        length: int,
        seed: int,
        mode: Mode,
        think: Think,
        prompt_loss: bool,
    ) -> None:
        assert source.world is not None
        self.source, self.tokenizer, self.length, self.seed = source, tokenizer, length, seed
        self.whole, self.think = mode == "pretrain" and prompt_loss, think
        self.names, self.weights = list(source.styles), list(source.styles.values())

    def document(self, index: int) -> Document:
        s = self.source
        assert s.world is not None
        problem = worlds.problem(s.world, split=s.split, seed=self.seed, index=index, difficulty=s.difficulty)
        style = random.Random(f"{self.seed}/{index}").choices(self.names, self.weights)[0]
        answer = world_answer(problem, style)
        messages = [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": answer}]
        ids, mask = self.tokenizer.conversation(messages, self.think)
        return ids, [1] * len(ids) if self.whole else mask

    def row(self, k: int) -> PackedRow:
        chosen: list[Document] = []
        room, misses = self.length, 0
        for j in range(DOCUMENTS):
            ids, mask = self.document(k * DOCUMENTS + j)
            if len(ids) > self.length:
                raise UserError(
                    f"world {self.source.world}: a document of {len(ids)} tokens does not fit into a row of "
                    f"{self.length}; raise batch.length or lower the difficulty"
                )
            if len(ids) <= room:
                chosen.append((ids, mask))
                room -= len(ids)
            else:
                misses += 1
            if misses >= 4 or room < 8:
                break
        return pack(chosen, self.length, self.tokenizer.pad_id)


def world_answer(problem: worlds.Problem, style: str) -> str:
    """The assistant's text: the answer at once, or a trace in think tags before it."""
    # The box is what base models know from their corpus; it also gives direct answers one first token.
    answer = problem.answer if problem.family == "code" else f"\\boxed{{{problem.answer}}}"
    if style == "direct":
        return answer
    if style not in problem.thoughts:
        raise UserError(
            f"world {problem.family} has no style {style!r}; allowed: direct, {', '.join(problem.thoughts)}"
        )
    return f"<think>{problem.thoughts[style]}</think>{answer}"


class ListRows:
    """A finite list of documents, packed once (first fit over lengths in falling order), in a new order each
    epoch."""

    def __init__(
        self, documents: Sequence[Document], length: int, pad_id: int, seed: int, where: str
    ) -> None:
        if not documents:
            raise UserError(f"{where}: no rows")
        self.documents, self.length, self.pad_id, self.seed = documents, length, pad_id, seed
        self.bins = first_fit([len(d[0]) for d in documents], length)

    def row(self, k: int) -> PackedRow:
        epoch, i = divmod(k, len(self.bins))
        chosen = self.bins[epoch_order(len(self.bins), self.seed, epoch, i)]
        return pack([self.documents[d] for d in chosen], self.length, self.pad_id)


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices grouped so that each group's lengths sum to at most `room`: longest first, into the fullest
    group that still has room (best fit decreasing)."""
    bins: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(room + 1)]  # free space -> bins with exactly that space
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        n = lengths[i]
        assert n <= room, f"document {i} has {n} tokens, {room=}"
        space = next((s for s in range(n, room + 1) if by_space[s]), None)
        if space is None:
            bins.append([i])
            by_space[room - n].append(len(bins) - 1)
        else:
            b = by_space[space].pop()
            bins[b].append(i)
            by_space[space - n].append(b)
    return bins


class TokenRows:
    """Windows of one long token file (plain text), in a new order each epoch.  No window overlaps another."""

    def __init__(self, tokens: np.ndarray, length: int, document_end: int, seed: int, where: str) -> None:
        self.count = len(tokens) // length
        if not self.count:
            raise UserError(f"{where}: {len(tokens)} tokens are less than one row of {length}")
        self.tokens, self.length, self.end, self.seed = tokens, length, document_end, seed

    def row(self, k: int) -> PackedRow:
        epoch, i = divmod(k, self.count)
        start = epoch_order(self.count, self.seed, epoch, i) * self.length
        ids = np.asarray(self.tokens[start : start + self.length], dtype=np.int64)
        ends = ids == self.end
        document = np.concatenate([[0], ends[:-1].cumsum()])
        first = np.concatenate([[True], ends[:-1]])
        start_of = np.maximum.accumulate(np.where(first, np.arange(self.length), 0))
        return ids, np.ones(self.length, dtype=bool), np.arange(self.length) - start_of, document


def epoch_order(count: int, seed: int, epoch: int, i: int) -> int:
    """Place i of a pseudo-random permutation of range(count), without holding it: a Feistel network over the
    next even power of two, walked until it falls inside (cycle walking; Black and Rogaway, 2002)."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    key = random.Random(f"{seed}/{epoch}").getrandbits(64)
    while True:
        left, right = i >> half, i & mask
        for r in range(4):
            h = (right * 0x9E3779B1 + (key >> (16 * r)) + r) & 0xFFFFFFFF
            h = ((h ^ (h >> 15)) * 0x85EBCA6B) & 0xFFFFFFFF
            left, right = right, left ^ ((h >> 8) & mask)
        i = (left << half) | right
        if i < count:
            return i


class Mixture:
    """Rows of several sources by weight; `batch(step)` is a pure function of the seed and the step."""

    def __init__(self, parts: Sequence[Packed], weights: Sequence[float], seed: int) -> None:
        self.parts = parts
        share = np.array(weights, dtype=np.float64) / sum(weights)
        counts = np.floor(share * PERIOD).astype(int)
        for i in np.argsort(counts - share * PERIOD)[: PERIOD - counts.sum()]:
            counts[i] += 1
        self.pattern = np.repeat(np.arange(len(parts)), np.maximum(counts, 1))
        np.random.default_rng(seed).shuffle(self.pattern)
        hits = self.pattern[:, None] == np.arange(len(parts))
        self.before = np.concatenate([np.zeros((1, len(parts)), int), hits.cumsum(0)])

    def row(self, n: int) -> PackedRow:
        turn, at = divmod(n, len(self.pattern))
        part = self.pattern[at]
        return self.parts[part].row(int(turn * self.before[-1, part] + self.before[at, part]))

    def batch(self, step: int, rows: int, chosen: Iterable[int] | None = None) -> Batch:
        """The step's rows, or the chosen ones of them."""
        made = [self.row(step * rows + r) for r in (range(rows) if chosen is None else chosen)]
        return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*made, strict=True)))


def mixture(
    sources: Sequence[Source],
    tokenizer: ChatTokenizer,
    length: int,
    seed: int,
    mode: Mode,
    think: Think,
    folders: dict[str, Path],
    cache: Path,
    prompt_loss: bool = True,
) -> Mixture:
    """Open the sources of a stage; text is tokenised once into `cache`."""
    parts: list[Packed] = []
    for n, source in enumerate(sources):
        if source.world is not None:
            parts.append(WorldRows(source, tokenizer, length, seed, mode, think, prompt_loss))
            continue
        if source.corpus is not None:
            from onebase.pretrain.corpus_shards import rows_of

            rows, weights = rows_of(source.corpus, source.split, tokenizer, length, seed)
            parts.append(Mixture(rows, weights, seed))  # the corpus' own weights inside this source's share
            continue
        where = source.path or source.hub or f"stage {source.stage}"
        if mode == "pretrain":
            from onebase.pretrain.shards import token_file

            tokens = token_file(source, tokenizer, cache / f"tokens_{n}", folders)
            parts.append(TokenRows(tokens, length, tokenizer.document_end_id, seed, where))
        else:
            documents = [
                tokenizer.conversation(chat_row(row, where), think) for row in file_rows(source, folders)
            ]
            fitting = [d for d in documents if len(d[0]) <= length]
            if len(fitting) < 0.5 * len(documents):
                raise UserError(
                    f"{where}: most conversations are longer than batch.length={length}; raise it"
                )
            parts.append(ListRows(fitting, length, tokenizer.pad_id, seed, where))
    return Mixture(parts, [s.weight for s in sources], seed)


def texts(sources: Sequence[Source], seed: int, folders: dict[str, Path]) -> Iterator[str]:
    """Text to train a tokenizer on: the sources in turn by weight, worlds as prompt and answer."""
    streams = [_source_texts(s, seed, folders) for s in sources]
    rng = random.Random(seed)
    live = list(range(len(streams)))
    while live:
        i = rng.choices(live, [sources[j].weight for j in live])[0]
        text = next(streams[i], None)
        if text is None:
            live.remove(i)
        else:
            yield text


def _source_texts(source: Source, seed: int, folders: dict[str, Path]) -> Iterator[str]:
    if source.world is None:
        for row in file_rows(source, folders):
            yield row.get("text") or "\n".join(m["content"] for m in chat_row(row, str(source.path)))
        return
    names, weights = list(source.styles), list(source.styles.values())
    rng = random.Random(seed)
    for p in worlds.stream(source.world, split=source.split, seed=seed, difficulty=source.difficulty):
        style = rng.choices(names, weights)[0]
        yield p.prompt
        yield world_answer(p, style)


class Problems:
    """Problems to answer: item i of a stage's sources, by weight, as rows for verifiers (`problem`, `answer`,
    ...)."""

    def __init__(self, sources: Sequence[Source], seed: int, folders: dict[str, Path]) -> None:
        self.sources, self.seed = sources, seed
        self.finite = [
            None if s.world else [problem_row(r, s) for r in file_rows(s, folders)] for s in sources
        ]
        for s, rows in zip(sources, self.finite, strict=True):
            if rows == []:
                raise UserError(f"{s.path or s.hub or s.stage}: no rows")
        order: list[int] = []
        for i, s in enumerate(sources):
            order += [i] * max(1, round(PERIOD * s.weight / sum(t.weight for t in sources)))
        random.Random(seed).shuffle(order)
        self.order = order
        self.counts = [order.count(i) for i in range(len(sources))]

    def of_source(self, i: int, k: int) -> dict[str, Any]:
        """Problem k of source i."""
        s, rows = self.sources[i], self.finite[i]
        if rows is not None:
            epoch, at = divmod(k, len(rows))
            return rows[epoch_order(len(rows), self.seed, epoch, at)]
        assert s.world is not None
        p = worlds.problem(s.world, split=s.split, seed=self.seed, index=k, difficulty=s.difficulty)
        return {
            **p.check,
            "problem": p.prompt,
            "answer": p.answer,
            "family": p.family,
            "difficulty": p.difficulty,
        }

    def item(self, n: int) -> dict[str, Any]:
        turn, at = divmod(n, len(self.order))
        i = self.order[at]
        return self.of_source(i, turn * self.counts[i] + self.order[:at].count(i))


def problem_rows(
    sources: Sequence[Source], seed: int, count: int, folders: dict[str, Path]
) -> list[dict[str, Any]]:
    """`count` different problems of each source (fewer where a file holds fewer), for evaluation."""
    problems = Problems(sources, seed, folders)
    out: list[dict[str, Any]] = []
    for i, rows in enumerate(problems.finite):
        seen: set[str] = set()
        limit = count if rows is None else min(count, len(rows))
        k = 0
        while len(seen) < limit and k < 50 * limit:
            row = problems.of_source(i, k)
            if row["problem"] not in seen:
                seen.add(row["problem"])
                out.append(row)
            k += 1
    return out
