"""Packing: short texts share a row of a causal language model, and do not see each other.

Positions start anew with each text. By that transformers' masks know where one ends (`find_packed_sequence_indices`),
and a text is computed as if it were alone; so the loss of a batch stays what it is unpacked, with less padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autopeft.trial.prepared import IGNORED

_TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Most difference of logits, as a share of their size, that is rounding."""


def pack(
    texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], *, length: int, pad_id: int
) -> dict[str, Tensor]:
    """Make a batch of packed rows: the longest texts first, each into the first row that has room.

    Args:
        length: Most tokens of a row.

    Returns:
        `input_ids`, `labels` and `position_ids`, ``(rows, length of the longest row)``; there is no attention mask.
    """
    bins: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        at = next((b for b, room in enumerate(free) if room >= len(texts[i])), len(bins))
        if at == len(bins):
            bins.append([])
            free.append(length)
        bins[at].append(i)
        free[at] -= len(texts[i])
    width = length - min(free)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for members, room in zip(bins, free, strict=True):
        gap = room - min(free)
        # The first token of a text follows nothing of its own. Each padding token is a text of one token.
        said = [label for i in members for label in (IGNORED, *labels[i][1:])]
        rows["input_ids"].append([token for i in members for token in texts[i]] + [pad_id] * gap)
        rows["labels"].append(said + [IGNORED] * gap)
        rows["position_ids"].append([place for i in members for place in range(len(texts[i]))] + [0] * gap)
    assert all(len(row) == width for column in rows.values() for row in column)
    return {name: torch.tensor(column) for name, column in rows.items()}


def keeps_texts_apart(model: Any) -> bool:
    """Tell whether a causal language model computes packed texts as if each were alone; tried on two of them."""
    device, vocabulary = model.device, model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(vocabulary, (n,), generator=draw).tolist() for n in (6, 5)]
    rows = pack(texts, texts, length=11, pad_id=0)
    with torch.inference_mode():
        packed = model(input_ids=rows["input_ids"].to(device), position_ids=rows["position_ids"].to(device)).logits
        alone = torch.cat([model(input_ids=torch.tensor([ids], device=device)).logits for ids in texts], dim=1)
    return bool((packed - alone).abs().max() <= _TOLERANCES[alone.dtype] * alone.abs().max())
