"""Batches of prepared data: the train batch of a step is the same for every candidate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from autopeft.records import Split
from autopeft.trial.prepared import Prepared

Batch = dict[str, Tensor]
"""`input_ids` and `attention_mask`, ``(rows, length)``; `labels`, ``(rows,)`` or ``(rows, length)``; maybe
`token_type_ids`. All int64, padded on the right."""

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
        max_tokens: Most tokens of a batch with its padding, so that judging long rows takes no more memory than
            short ones; a longer row is a batch of its own.
    """
    table = prepared.split(split)
    lengths = pc.list_value_length(table["input_ids"]).to_numpy()
    order = np.argsort(-lengths, kind="stable").tolist()
    while order:
        rows = min(batch_size, max(1, max_tokens // int(lengths[order[0]])))
        yield collate(table, order[:rows], pad_id=prepared.pad_id, multiple_of=multiple_of)
        order = order[rows:]


def collate(table: pa.Table, indices: Sequence[int], *, pad_id: int, multiple_of: int = 1) -> Batch:
    """Make tensors of rows of a table, padded on the right to the longest of them."""
    rows = table.take(list(indices)).to_pydict()
    longest = max(len(ids) for ids in rows["input_ids"])
    width = -(-longest // multiple_of) * multiple_of
    batch = {
        "input_ids": _pad(rows["input_ids"], width, pad_id),
        "attention_mask": _pad([[1] * len(ids) for ids in rows["input_ids"]], width, 0),
        "labels": _pad(rows["labels"], width, _IGNORED) if "labels" in rows else torch.tensor(rows["label"]),
    }
    if "token_type_ids" in rows:
        batch["token_type_ids"] = _pad(rows["token_type_ids"], width, 0)
    return batch


def _pad(rows: Sequence[Sequence[int]], width: int, filler: int) -> Tensor:
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n)
