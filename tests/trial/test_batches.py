"""Batches: the shared order of training, padding, and evaluation by length."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

from autopeft.candidates import Recipe
from autopeft.trial import batches as batches_module
from autopeft.trial.batches import (
    TrainBatches,
    collate,
    evaluation_batches,
    rows_by_length,
    train_parts,
    typical_length,
)
from autopeft.trial.prepared import Prepared, fingerprint


def make_prepared(n=10, task="causal-lm", *, longest=None) -> Prepared:
    """Rows of 1 to n tokens, or to `longest`; row i holds the tokens i * 100 + j."""
    ids = [[i * 100 + j for j in range(1 + i * 7 % (longest or n))] for i in range(n)]
    columns = {"row": list(range(1, n + 1)), "input_ids": ids}
    if task == "causal-lm":
        columns |= {"labels": [[-100, *row[1:]] for row in ids], "answer_bytes": [len(row) for row in ids]}
    else:
        columns |= {"label": [i % 3 for i in range(n)], "token_type_ids": [[1] * len(row) for row in ids]}
    table = pa.table(columns)
    tables = {"train": table, "validation": table}
    return Prepared("x", task, table, table, None, (), 9, 128, {}, (), fingerprint(tables, ()))


def train_batch(prepared, step, *, rows, seed):
    (batch,) = train_parts(prepared, step, recipe=Recipe(1.0, batch_size=rows), seed=seed)
    return batch


def rows_of(batch):
    return [int(ids[0]) // 100 for ids in batch["input_ids"]]


def test_every_pass_reads_every_row_once_in_its_own_order():
    prepared = make_prepared()
    read = [row for step in range(20) for row in rows_of(train_batch(prepared, step, rows=3, seed=1))]
    assert len(read) == 60
    passes = [read[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(order) == list(range(10)) for order in passes)
    assert len({tuple(order) for order in passes}) == 6


def test_a_batch_depends_on_seed_and_step_alone():
    prepared = make_prepared()
    late = train_batch(prepared, 7, rows=4, seed=3)
    for step in range(7):
        train_batch(prepared, step, rows=4, seed=3)
    again = train_batch(prepared, 7, rows=4, seed=3)
    assert all(torch.equal(late[name], again[name]) for name in late)
    others = [rows_of(train_batch(prepared, 7, rows=4, seed=seed)) for seed in range(5)]
    assert len({tuple(order) for order in others}) > 1


def lengths_of(prepared, order):
    lengths = [len(ids) for ids in prepared.train["input_ids"].to_pylist()]
    return [lengths[row] for row in order]


def tokens_padded(lengths, rows):
    return sum(rows * max(lengths[at : at + rows]) for at in range(0, len(lengths), rows))


def make_long(n=400):
    """Rows of 1 to 40 tokens, in an order of its own; row i begins with the token i * 100."""
    return make_prepared(n, longest=40)


def test_rows_of_like_length_share_a_batch():
    prepared = make_long()
    read = [row for step in range(100) for row in rows_of(train_batch(prepared, step, rows=4, seed=1))]
    assert sorted(read) == list(range(400))
    lengths = lengths_of(prepared, read)
    least = tokens_padded(sorted(lengths), 4)
    at_random = np.mean([tokens_padded(np.random.default_rng(i).permutation(lengths), 4) for i in range(20)])
    assert tokens_padded(lengths, 4) < 1.1 * least < 0.8 * at_random
    # Of the first quarter of a pass, which is one window, the lengths are those of rows drawn at random.
    assert abs(np.mean(lengths[:100]) - np.mean(lengths)) < 4 * np.std(lengths) / 10


def test_passes_have_other_batches():
    prepared = make_long()
    read = [frozenset(rows_of(train_batch(prepared, step, rows=4, seed=1))) for step in range(200)]
    assert len(set(read[:100]) & set(read[100:])) < 5


def test_batches_that_lie_on_the_border_of_passes_leave_no_row_out():
    prepared = make_prepared(100, longest=40)
    read = [row for step in range(100) for row in rows_of(train_batch(prepared, step, rows=3, seed=1))]
    assert all(sorted(read[at : at + 100]) == list(range(100)) for at in (0, 100, 200))


def test_a_short_training_reads_what_a_long_one_begins_with():
    recipe = Recipe(0.1, batch_size=4)
    short = TrainBatches(make_long()).first(30, recipe, seed=2)
    long = TrainBatches(make_long()).first(100, recipe, seed=2)
    for few, many in zip(short, long, strict=False):
        assert all(torch.equal(few[0][name], many[0][name]) for name in few[0])


def test_rows_of_a_step_do_not_depend_on_parts_cut_and_packing():
    prepared = make_long()
    for step in (0, 17, 60):
        (plain,) = train_parts(prepared, step, recipe=Recipe(0.1, batch_size=8), seed=2)
        parts = train_parts(
            prepared, step, recipe=Recipe(0.1, batch_size=8, gradient_accumulation_steps=2, max_length=9), seed=2
        )
        assert [row for part in parts for row in rows_of(part)] == rows_of(plain)
        (packed,) = train_parts(prepared, step, recipe=Recipe(0.1, batch_size=8, packing=True), seed=2)
        starts = packed["input_ids"][(packed["position_ids"] == 0) & (packed["input_ids"] != prepared.pad_id)]
        assert sorted(token // 100 for token in starts.tolist()) == sorted(rows_of(plain))


def test_sources_and_targets_count_both():
    table = pa.table({
        "row": range(1, 33),
        "input_ids": [[i * 100] * (1 + i % 2) for i in range(32)],
        "labels": [[5] * (30 if i % 4 < 2 else 3) for i in range(32)],
        "answer_bytes": [1] * 32,
    })  # fmt: skip
    prepared = Prepared("x", "seq2seq-lm", table, table, None, (), 9, 128, {}, (), "")
    widths = [train_batch(prepared, step, rows=2, seed=0)["labels"].shape[1] for step in range(16)]
    assert widths.count(3) >= 6  # of 16 rows with short targets; in each of four windows one may have to share


def test_the_usual_length_is_what_a_row_takes_with_its_padding():
    prepared = make_long()
    batches = [train_batch(prepared, step, rows=4, seed=0) for step in range(100)]
    taken = np.mean([batch["input_ids"].shape[1] for batch in batches])
    assert typical_length(prepared, 4) == pytest.approx(taken, abs=0.5)


def test_a_batch_larger_than_the_data():
    batch = train_batch(make_prepared(n=3), 0, rows=8, seed=0)
    assert sorted(Counter(rows_of(batch)).values()) == [2, 3, 3]


def test_each_seed_has_its_own_order():
    recipe, kept = Recipe(0.1, batch_size=4), TrainBatches(make_long())
    read = {seed: [rows_of(part) for (part,) in kept.first(6, recipe, seed=seed)] for seed in (1, 2, 1)}
    assert read[1] != read[2]
    assert read[2] == [rows_of(train_batch(make_long(), step, rows=4, seed=2)) for step in range(6)]


def test_batches_are_made_once_until_there_is_no_room(monkeypatch):
    prepared, made = make_prepared(), []
    real = batches_module.train_parts
    monkeypatch.setattr(batches_module, "train_parts", lambda *a, **k: made.append(a[1]) or real(*a, **k))
    (one,) = real(prepared, 0, recipe=Recipe(0.0, batch_size=10), seed=1)  # every step has all ten rows
    monkeypatch.setattr(batches_module, "_KEPT_BYTES", 3 * sum(tensor.nbytes for tensor in one.values()))
    kept = TrainBatches(prepared)
    recipe = Recipe(0.5, batch_size=10)
    for _ in range(2):
        read = [rows_of(part) for (part,) in kept.first(5, recipe, seed=1)]
        assert read == [rows_of(train_batch(prepared, step, rows=10, seed=1)) for step in range(5)]
    assert made == [0, 1, 2, 3, 4, 3, 4]
    assert [rows_of(part) for (part,) in kept.first(5, recipe, seed=1)[1:3]] == read[1:3]


@pytest.mark.parametrize(("multiple_of", "width"), [(1, 8), (8, 8), (5, 10)])
def test_padding_is_on_the_right_and_masked(multiple_of, width):
    batch = collate(make_prepared().train, [1, 3], pad_id=9, multiple_of=multiple_of)  # rows of 8 and 2 tokens
    assert batch["input_ids"].shape == batch["labels"].shape == (2, width)
    assert batch["attention_mask"].tolist() == [[1] * 8 + [0] * (width - 8), [1] * 2 + [0] * (width - 2)]
    assert batch["input_ids"][1].tolist() == [300, 301] + [9] * (width - 2)
    assert batch["labels"][1].tolist() == [-100, 301] + [-100] * (width - 2)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_classes_have_one_label_a_row_and_token_types():
    batch = collate(make_prepared(task="text-classification").train, [1, 3], pad_id=0)
    assert batch["labels"].tolist() == [1, 0]
    assert batch["token_type_ids"].tolist() == batch["attention_mask"].tolist()


def test_evaluation_reads_each_row_once_with_little_padding():
    prepared = make_prepared()
    batches = list(evaluation_batches(prepared, "validation", batch_size=4))
    assert sorted(row for batch in batches for row in rows_of(batch)) == list(range(10))
    assert [batch["input_ids"].shape[1] for batch in batches] == [10, 6, 2]


def test_long_rows_go_in_smaller_batches():
    batches = list(evaluation_batches(make_prepared(), "validation", batch_size=4, max_tokens=12))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [
        (1, 10), (1, 9), (1, 8), (1, 7), (2, 6), (3, 4), (1, 1),
    ]  # fmt: skip


def test_source_and_target_are_padded_apart():
    ids, labels = [[1, 2, 3], [4]], [[5], [6, 7, 8, 9]]
    batch = collate(pa.table({"row": [1, 2], "input_ids": ids, "labels": labels}), [0, 1], pad_id=0, multiple_of=2)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[5, -100, -100, -100], [6, 7, 8, 9]]


def test_long_targets_go_in_smaller_batches_too():
    table = pa.table({"row": [1, 2, 3], "input_ids": [[1]] * 3, "labels": [[1] * 6, [1] * 4, [1]]})
    prepared = Prepared("x", "seq2seq-lm", table, table, None, (), 9, 128, {}, (), "")
    batches = list(evaluation_batches(prepared, "validation", batch_size=4, max_tokens=8))
    assert [tuple(batch["labels"].shape) for batch in batches] == [(1, 6), (2, 4)]


@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [1, 5, 2]), (2, [1, 2, 2, 1, 2])])
def test_rows_of_one_length_share_a_batch(batch_size, sizes):
    lengths = [3, 3, 2, 3, 9, 2, 3, 3]
    groups = list(rows_by_length(lengths, batch_size=batch_size, equal=True))
    assert [len(group) for group in groups] == sizes
    assert all(len({lengths[i] for i in group}) == 1 for group in groups)
    assert sorted(i for group in groups for i in group) == list(range(8))


def test_a_source_keeps_its_end_where_a_candidate_cuts_it_and_a_target_does_not():
    table = pa.table({"row": [1], "input_ids": [[5, 6, 7, 8, 1]], "labels": [[4, 5, 6, 1]], "answer_bytes": [9]})
    prepared = Prepared("x", "seq2seq-lm", table, table, None, (), 0, 128, {}, (), "", closing=1)
    (batch,) = train_parts(prepared, 0, recipe=Recipe(1.0, batch_size=1, max_length=3), seed=0)
    assert batch["input_ids"].tolist() == [[5, 6, 1]]
    assert batch["labels"].tolist() == [[4, 5, 6]]
