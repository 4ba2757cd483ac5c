"""Rows, packing and the order of data: functions of (seed, step), documents masked from each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase import tokenizer as tok
from onebase.data import (
    ListRows,
    Mixture,
    Problems,
    TokenRows,
    epoch_order,
    first_fit,
    mixture,
    pack,
    problem_rows,
)
from onebase.errors import UserError
from onebase.recipe import Source
from onebase.train.step import shift


@pytest.fixture(scope="module")
def tokenizer() -> tok.ChatTokenizer:
    return tok.train(["5+9=4 mod 10 reverse,drop 1234567890"] * 20, 320)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_first_fit_places_every_document_once_and_never_overfills(lengths: list[int]) -> None:
    bins = first_fit(lengths, 40)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= 40 for b in bins)
    # two bins that would fit into one are never left over
    loads = sorted(sum(lengths[i] for i in b) for b in bins)
    assert len(loads) < 2 or loads[0] + loads[1] > 40


@given(st.integers(1, 3000), st.integers(0, 5), st.integers(0, 3))
@settings(max_examples=40)
def test_epoch_order_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(count, seed, epoch, i) for i in range(count)) == list(range(count))


def test_epoch_order_changes_with_seed_and_epoch() -> None:
    orders = {tuple(epoch_order(500, s, e, i) for i in range(500)) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_pack_counts_positions_and_documents() -> None:
    ids, trained, position, document = pack([([5, 6, 7], [0, 1, 1]), ([8, 9], [0, 1])], 7, 0)
    assert ids.tolist() == [5, 6, 7, 8, 9, 0, 0]
    assert trained.tolist() == [False, True, True, False, True, False, False]
    assert position.tolist() == [0, 1, 2, 0, 1, 0, 0]
    assert document.tolist() == [0, 0, 0, 1, 1, -1, -1]


@pytest.mark.parametrize("depth", [1, 2])
def test_shift_never_crosses_documents_or_padding(depth: int) -> None:
    ids, trained, _, document = (
        torch.from_numpy(a)[None] for a in pack([([5, 6, 7], [0, 1, 1]), ([8, 9, 4], [1, 1, 1])], 8, 0)
    )
    target, mask = shift(ids, trained, document, depth)
    pairs = [(int(ids[0, t]), int(target[0, t])) for t in range(8) if mask[0, t]]
    assert pairs == ([(5, 6), (6, 7), (8, 9), (9, 4)] if depth == 1 else [(5, 7), (8, 4)])


def test_shift_drops_the_wrapped_around_end() -> None:
    ids = torch.arange(6)[None]
    one = torch.ones_like(ids, dtype=torch.bool)
    _, mask = shift(ids, one, torch.zeros_like(ids))
    assert mask.tolist() == [[True] * 5 + [False]]


def test_a_batch_is_a_function_of_seed_and_step(tokenizer: tok.ChatTokenizer, tmp_path: Path) -> None:
    sources = [Source(world="chain", weight=3), Source(world="addition", styles={"direct": 1, "steps": 1})]
    make = lambda seed: mixture(sources, tokenizer, 96, seed, "pretrain", "free", {}, tmp_path)  # noqa: E731
    first, again, other = make(0), make(0), make(1)
    late = first.batch(7, 4)
    for step in range(3):
        first.batch(step, 4)
    assert torch.equal(late.ids_BT, again.batch(7, 4).ids_BT)
    assert not torch.equal(late.ids_BT, other.batch(7, 4).ids_BT)
    assert not torch.equal(late.ids_BT, again.batch(8, 4).ids_BT)


def test_sources_alternate_by_weight_and_no_row_repeats() -> None:
    class Numbered:
        def __init__(self, base: int) -> None:
            self.base = base

        def row(self, k: int) -> tuple[np.ndarray, ...]:
            one = np.full(2, self.base + k)
            return one, one > 0, one, one

    mixed = Mixture([Numbered(0), Numbered(10_000)], [3, 1], seed=0)  # type: ignore[list-item]
    seen = [int(mixed.row(n)[0][0]) for n in range(4096)]
    assert len(set(seen)) == 4096
    assert sum(s >= 10_000 for s in seen) == 1024
    assert sorted(s for s in seen if s < 10_000) == list(range(3072))  # none is skipped


def test_sft_trains_the_answer_and_its_end_only(tokenizer: tok.ChatTokenizer, tmp_path: Path) -> None:
    mixed = mixture(
        [Source(world="chain", styles={"steps": 1})], tokenizer, 128, 0, "sft", "free", {}, tmp_path
    )
    batch = mixed.batch(0, 1)
    target, mask = shift(batch.ids_BT, batch.trained_BT, batch.document_BT)
    first = batch.document_BT[0] == 0
    text = tokenizer.decode(target[0][mask[0] & first].tolist())
    assert text.startswith("<think>") and text.endswith("<|end|>") and "mod" not in text


def test_think_open_leaves_the_opening_tag_to_the_prompt(
    tokenizer: tok.ChatTokenizer, tmp_path: Path
) -> None:
    mixed = mixture(
        [Source(world="chain", styles={"steps": 1})], tokenizer, 128, 0, "sft", "open", {}, tmp_path
    )
    batch = mixed.batch(0, 1)
    target, mask = shift(batch.ids_BT, batch.trained_BT, batch.document_BT)
    assert tokenizer.think_id not in target[0][mask[0]].tolist()
    assert tokenizer.end_think_id in target[0][mask[0]].tolist()


def test_token_rows_restart_positions_at_document_ends() -> None:
    tokens = np.array([3, 4, 9, 5, 9, 6, 7, 8, 1, 1], dtype=np.uint16)
    rows = TokenRows(tokens, 4, document_end=9, seed=0, where="x")
    seen = {tuple(rows.row(k)[0].tolist()): rows.row(k) for k in range(2)}
    _, _, position, document = seen[(3, 4, 9, 5)]
    assert position.tolist() == [0, 1, 2, 0] and document.tolist() == [0, 0, 0, 1]


def test_rows_of_files_are_renamed_cut_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"question": f"q{i}", "answer": f"so #### {i}"}) + "\n" for i in range(9))
    )
    fields = {"problem": "question"}
    source = Source(path=str(file), fields=fields, answer_after="####", rows=(2, 5), prompt="Say: {problem}!")
    rows = problem_rows([source], 0, 10, {})
    assert sorted(r["answer"] for r in rows) == ["2", "3", "4"]
    assert {r["problem"] for r in rows} == {"Say: q2!", "Say: q3!", "Say: q4!"}
    with pytest.raises(UserError, match="row 0: no field 'questoin'"):
        problem_rows([Source(path=str(file), fields={"problem": "questoin"})], 0, 1, {})
    with pytest.raises(UserError, match="no such file"):
        problem_rows([Source(path=str(tmp_path / "none.jsonl"))], 0, 1, {})
    file.write_text('{"problem": "a", "answer": "1"}\n{"problem": "b", "ans')
    with pytest.raises(UserError, match="rows.jsonl"):
        problem_rows([Source(path=str(file))], 0, 5, {})


def test_problems_are_random_access_and_follow_weights() -> None:
    sources = [Source(world="chain", weight=1), Source(world="addition", weight=3)]
    problems = Problems(sources, 0, {})
    families = [problems.item(n)["family"] for n in range(1024)]
    assert families.count("addition") == 768
    assert problems.item(700) == Problems(sources, 0, {}).item(700)


def test_finite_problems_appear_once_per_epoch(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"problem": f"q{i}", "answer": str(i)}) + "\n" for i in range(10)))
    problems = Problems([Source(path=str(file))], 0, {})
    for epoch in range(3):
        assert sorted(int(problems.item(epoch * 10 + i)["answer"]) for i in range(10)) == list(range(10))


def test_list_rows_cover_every_document_each_epoch() -> None:
    documents = [([i] * n, [1] * n) for i, n in enumerate([3, 5, 2, 4, 4], start=1)]
    rows = ListRows(documents, 6, 0, 0, "x")
    n = len(rows.bins)
    ids = sorted(int(i) for k in range(n) for i in np.unique(rows.row(k)[0]) if i)
    assert ids == [1, 2, 3, 4, 5]
