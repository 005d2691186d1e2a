"""Batches of prepared data: the train batch of a step is the same for every candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from autopeft.candidates import Recipe
from autopeft.trial.packing import pack
from autopeft.trial.prepared import IGNORED, Prepared
from autopeft.work import Split

Batch = dict[str, Tensor]
"""`input_ids` and `attention_mask`, ``(rows, length)``; `labels`, ``(rows,)``, ``(rows, length)``, or of an
encoder-decoder ``(rows, length of the targets)``; maybe `token_type_ids`. All int64, padded on the right. In a packed
one, `position_ids` in place of the mask."""

_KEPT = 4
"""Most kinds of rows (their number, length and packing), in an order of them, whose batches are kept; a search has one,
or a few."""

_KEPT_BYTES = 2**26
"""Most bytes of one kind's batches that are kept; those of later steps are made each time."""

_WINDOW = 32
"""Batches whose rows are sorted by length among themselves. Of any so many in a row, as a short training reads them,
the lengths are those of rows drawn at random."""

_LEAST_WINDOWS = 4
"""Of a pass, if it is long enough: with one alone, every pass would have the same batches."""

_BY_TOKEN = ("input_ids", "labels", "token_type_ids")
"""Columns with a value for each token of a row."""


def train_parts(prepared: Prepared, step: int, *, recipe: Recipe, seed: int) -> list[Batch]:
    """Give the batch of a training step, in as many parts as the recipe says.

    A pure function of data, recipe, seed and step, whatever the number of steps. Every row is read once before any is
    read again; each pass has its own order, and a batch may lie on the border of two. Rows of like length share a
    batch. The rows of a step do not depend on parts, cut and packing.

    Args:
        step: From 0.
    """
    n, lengths = prepared.train.num_rows, _lengths(prepared)
    places = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
    indices = [int(_order(lengths, recipe.batch_size, seed, place // n)[place % n]) for place in places]
    length = recipe.max_length or prepared.max_length
    parts = np.array_split(indices, recipe.gradient_accumulation_steps)
    return [_train_part(prepared, part.tolist(), length, packing=recipe.packing) for part in parts]


class Steps(Sequence[list[Batch]]):
    """The batches of some steps, each in its parts; a batch is made, or fetched, when it is asked for."""

    def __init__(self, make: Callable[[int], list[Batch]], steps: range) -> None:
        self._make, self._steps = make, steps

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, at: int) -> list[Batch]: ...

    @overload
    def __getitem__(self, at: slice) -> Steps: ...

    def __getitem__(self, at: int | slice) -> list[Batch] | Steps:
        return Steps(self._make, self._steps[at]) if isinstance(at, slice) else self._make(self._steps[at])


@dataclass(slots=True)
class _Made:
    """The first batches of one kind of rows."""

    batches: list[list[Batch]] = field(default_factory=list)
    held_bytes: int = 0


class TrainBatches:
    """The train batches of a search, made once where there is room: candidates of like rows read the same ones.

    What is kept is bounded: a few kinds of rows, and of each the first so many bytes.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._made: dict[tuple[Recipe, int], _Made] = {}

    def first(self, steps: int, recipe: Recipe, *, seed: int) -> Steps:
        """Give the batches of the first steps, in the order that a seed gives; nothing may change them."""
        rows = Recipe(
            0.0,
            batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            max_length=recipe.max_length,
            packing=recipe.packing,
        )
        made = self._made.pop((rows, seed), _Made())
        while len(self._made) >= _KEPT:
            self._made.pop(next(iter(self._made)))
        self._made[rows, seed] = made
        return Steps(partial(self._parts, rows, seed, made), range(steps))

    def _parts(self, rows: Recipe, seed: int, made: _Made, step: int) -> list[Batch]:
        if step < len(made.batches):
            return made.batches[step]
        parts = train_parts(self._prepared, step, recipe=rows, seed=seed)
        size = sum(tensor.nbytes for part in parts for tensor in part.values())
        if step == len(made.batches) and made.held_bytes + size <= _KEPT_BYTES:
            made.batches.append(parts)
            made.held_bytes += size
        return parts


def largest(batches: Sequence[Sequence[Batch]]) -> int:
    """Give the step whose memory is the most; the first one has no optimiser state yet, so it is among the others."""
    sizes = [max(part["input_ids"].numel() + part["labels"].numel() for part in parts) for parts in batches]
    later = [size if step or len(sizes) == 1 else 0 for step, size in enumerate(sizes)]
    return later.index(max(later))


def typical_length(prepared: Prepared, rows: int) -> int:
    """Give the tokens that a row takes in a usual batch of so many: batches are padded to their longest."""
    order = _order(_lengths(prepared), rows, 0, 0)
    lengths = pc.list_value_length(prepared.train["input_ids"]).to_numpy()[order]
    longest = [lengths[start : start + rows].max() for start in range(0, len(lengths), rows)]
    return round(float(sum(longest)) / len(longest))


def _train_part(prepared: Prepared, indices: Sequence[int], length: int, *, packing: bool) -> Batch:
    rows = prepared.train.take(list(indices)).to_pydict()
    if length < prepared.max_length:
        # A cut answer has no end to say.
        closing = {name: 0 if name == "labels" else prepared.closing or 0 for name in _BY_TOKEN if name in rows}
        rows |= {name: cut(rows[name], length, closing=kept) for name, kept in closing.items()}
    if packing:
        return pack(rows["input_ids"], rows["labels"], length=length, pad_id=prepared.pad_id)
    return _batch(rows, pad_id=prepared.pad_id)


def cut(rows: Sequence[Sequence[int]], length: int, *, closing: int) -> list[list[int]]:
    """Cut rows to a length the way the tokenizer does: what closes a text (SEP, EOS) stays.

    >>> cut([[1, 5, 6, 7, 2], [1, 5, 2]], 4, closing=1)
    [[1, 5, 6, 2], [1, 5, 2]]
    """
    return [list(row) if len(row) <= length else [*row[: length - closing], *row[len(row) - closing :]] for row in rows]


def rows_left_empty(prepared: Prepared, length: int) -> list[int]:
    """Give the numbers of the train rows that would have nothing to train on at a length."""
    if "labels" not in prepared.train.column_names:
        return []
    labels = cut(prepared.train["labels"].to_pylist(), length, closing=0)
    numbers = prepared.train["row"].to_pylist()
    return [number for number, row in zip(numbers, labels, strict=True) if all(label == IGNORED for label in row)]


def evaluation_batches(
    prepared: Prepared, split: Split, *, batch_size: int, max_tokens: int = 4096, multiple_of: int = 1
) -> Iterator[Batch]:
    """Give all rows of a split, longest first: rows of like length share a batch, so little is padded.

    Args:
        batch_size: Most rows of a batch.
        max_tokens: Most tokens of a batch with its padding; of an encoder-decoder, on either side.
    """
    table = prepared.split(split)
    lengths = pc.list_value_length(table["input_ids"]).to_numpy()
    if "labels" in table.column_names:
        lengths = np.maximum(lengths, pc.list_value_length(table["labels"]).to_numpy())
    for rows in rows_by_length(lengths, batch_size=batch_size, max_tokens=max_tokens):
        yield collate(table, rows, pad_id=prepared.pad_id, multiple_of=multiple_of)


def rows_by_length(
    lengths: ArrayLike, *, batch_size: int, max_tokens: int = 4096, equal: bool = False
) -> Iterator[list[int]]:
    """Give the indices of rows of like length, longest first.

    Args:
        equal: Whether only rows of one length share a batch, so that nothing is padded.
        max_tokens: Most tokens of a batch with its padding, so that judging long rows takes no more memory than
            short ones; a longer row is a batch of its own.
    """
    sizes = np.asarray(lengths)
    order: list[int] = np.argsort(-sizes, kind="stable").tolist()
    while order:
        longest = int(sizes[order[0]])
        rows = min(batch_size, max(1, max_tokens // longest))
        if equal:
            rows = min(rows, int((sizes[order] == longest).sum()))
        yield order[:rows]
        order = order[rows:]


def collate(table: pa.Table, indices: Sequence[int], *, pad_id: int, multiple_of: int = 1) -> Batch:
    """Make tensors of rows of a table, padded on the right to the longest of them."""
    return _batch(table.take(list(indices)).to_pydict(), pad_id=pad_id, multiple_of=multiple_of)


def _batch(rows: Mapping[str, Any], *, pad_id: int, multiple_of: int = 1) -> Batch:
    def padded(tokens: Sequence[Sequence[int]], filler: int) -> Tensor:
        return pad(tokens, -(-max(map(len, tokens)) // multiple_of) * multiple_of, filler)

    batch = {
        "input_ids": padded(rows["input_ids"], pad_id),
        "attention_mask": padded([[1] * len(ids) for ids in rows["input_ids"]], 0),
        "labels": padded(rows["labels"], IGNORED) if "labels" in rows else torch.tensor(rows["label"]),
    }
    if "token_type_ids" in rows:
        batch["token_type_ids"] = padded(rows["token_type_ids"], 0)
    return batch


def pad(rows: Sequence[Sequence[int]], width: int, filler: int) -> Tensor:
    """Make a tensor of rows, filled up to `width` on the right."""
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


def _lengths(prepared: Prepared) -> bytes:
    """Give the int64 of what the train rows take before they are cut: tokens, and targets where these are apart."""
    columns = [name for name in ("input_ids", "labels") if name in prepared.train.column_names]
    lengths = [pc.list_value_length(prepared.train[name]).to_numpy() for name in columns]
    return np.sum(lengths, axis=0, dtype=np.int64).tobytes()


@lru_cache(maxsize=4)
def _order(lengths: bytes, rows: int, seed: int, number: int) -> NDArray[np.int64]:
    """Give the order of a pass: rows as drawn, cut into windows; in a window, batches of like length, as drawn.

    Args:
        lengths: Of the rows, as bytes, for orders are kept by them.
        rows: Of a batch.
        number: Of the pass, from 0.
    """
    sizes, draw = np.frombuffer(lengths, dtype=np.int64), np.random.default_rng([seed, number])
    order = draw.permutation(len(sizes))
    window = rows * min(_WINDOW, max(1, len(sizes) // (_LEAST_WINDOWS * rows)))
    begun = -number * len(sizes) % rows  # what the last batch of the pass before lacks
    for start in range(begun, len(sizes), window):
        drawn = order[start : start + window]
        drawn[:] = drawn[np.argsort(-sizes[drawn], kind="stable")]
        batches = drawn[: len(drawn) // rows * rows].reshape(-1, rows)
        draw.shuffle(batches)
    return order
