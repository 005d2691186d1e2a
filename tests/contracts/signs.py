"""Decompositions as another device does them: equally right, with other signs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, linalg

_svd, _qr, _eigh, _svd_lowrank = linalg.svd, linalg.qr, linalg.eigh, torch.svd_lowrank


def _signs(n: int) -> Tensor:
    """Give -1, 1, -1 ...: which columns a library turns around is its own choice."""
    return torch.tensor([-1.0, 1.0]).repeat(n)[:n]


def _other_svd(matrix: Tensor, **options: bool) -> torch.return_types.linalg_svd:
    left, values, right = (x.clone() for x in _svd(matrix, **options))
    n = values.shape[-1]
    left[..., :n] *= _signs(n)
    right[..., :n, :] *= _signs(n)[:, None]
    return torch.return_types.linalg_svd((left, values, right))


def _other_qr(matrix: Tensor, **options: str) -> torch.return_types.linalg_qr:
    q, r = _qr(matrix, **options)
    return torch.return_types.linalg_qr((q * _signs(q.shape[-1]), r * _signs(r.shape[-2])[:, None]))


def _other_eigh(matrix: Tensor, **options: str) -> torch.return_types.linalg_eigh:
    values, vectors = _eigh(matrix, **options)
    return torch.return_types.linalg_eigh((values, vectors * _signs(vectors.shape[-1])))


def _other_svd_lowrank(matrix: Tensor, **options: int) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = _svd_lowrank(matrix, **options)
    return left * _signs(left.shape[-1]), values, right * _signs(right.shape[-1])


@contextmanager
def other_signs() -> Iterator[None]:
    """Let torch decompose with other signs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linalg, "svd", _other_svd)
        patch.setattr(linalg, "qr", _other_qr)
        patch.setattr(linalg, "eigh", _other_eigh)
        patch.setattr(torch, "svd_lowrank", _other_svd_lowrank)
        yield
