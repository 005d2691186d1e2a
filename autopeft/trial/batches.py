"""Batches of prepared data: the train batch of a step is the same for every candidate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from autopeft.records import Split
from autopeft.trial.prepared import Prepared

Batch = dict[str, Tensor]
"""`input_ids` and `attention_mask`, ``(rows, length)``; `labels`, ``(rows,)``, ``(rows, length)``, or of an
encoder-decoder ``(rows, length of the targets)``; maybe `token_type_ids`. All int64, padded on the right."""

_IGNORED = -100  # as in `tokens`, which workers do not load


def train_batch(prepared: Prepared, step: int, *, batch_size: int, seed: int, multiple_of: int = 1) -> Batch:
    """Give the batch of a training step.

    A pure function of data, seed and step. Every row is read once before any is read again; each pass has its own
    order, and a batch may lie on the border of two.

    Args:
        step: From 0.
        multiple_of: The padded length is made a multiple of this.
    """
    n = prepared.train.num_rows
    places = range(step * batch_size, (step + 1) * batch_size)
    indices = [int(_order(n, seed, place // n)[place % n]) for place in places]
    return collate(prepared.train, indices, pad_id=prepared.pad_id, multiple_of=multiple_of)


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
    rows = table.take(list(indices)).to_pydict()

    def padded(tokens: Sequence[Sequence[int]], filler: int) -> Tensor:
        return pad(tokens, -(-max(map(len, tokens)) // multiple_of) * multiple_of, filler)

    batch = {
        "input_ids": padded(rows["input_ids"], pad_id),
        "attention_mask": padded([[1] * len(ids) for ids in rows["input_ids"]], 0),
        "labels": padded(rows["labels"], _IGNORED) if "labels" in rows else torch.tensor(rows["label"]),
    }
    if "token_type_ids" in rows:
        batch["token_type_ids"] = padded(rows["token_type_ids"], 0)
    return batch


def pad(rows: Sequence[Sequence[int]], width: int, filler: int) -> Tensor:
    """Make a tensor of rows, filled up to `width` on the right."""
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n)
