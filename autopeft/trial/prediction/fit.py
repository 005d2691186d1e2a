"""A linear fit of bytes to features that knows what it has seen: it answers for combinations of its samples only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.trial.prediction.sites import Features

Sample = tuple[Features, float, Mapping[str, float]]
"""Features, rows of the batch, and quantities in bytes by name."""

_UNSEEN = 1e-6
"""Share of a sample that lies outside of all that was fitted, from which on it counts as something new."""


class NewError(Exception):
    """Something that no sample of a fit had."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A least-squares fit of bytes to features, each of which counts with and, if `by_rows`, without the batch's rows.

    Attributes:
        columns: Feature -> its first column.
        names: The quantities that are fitted.
        scale: ``(columns,)``: largest value of each, so that what is not told apart is shared out evenly.
        weights: ``(columns, quantities)``: bytes.
        seen: ``(rank, columns)``: an orthonormal basis of the scaled samples.
    """

    columns: Mapping[str, int]
    names: tuple[str, ...]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    seen: NDArray[np.float64]
    by_rows: bool

    @classmethod
    def to(cls, samples: Sequence[Sample], *, by_rows: bool = True) -> Fit:
        """Fit samples; the quantities of each are those of the first."""
        width = 2 if by_rows else 1
        features = dict.fromkeys(name for given, _, _ in samples for name in given)
        columns = {name: width * i for i, name in enumerate(features)}
        names = tuple(samples[0][2]) if samples else ()
        matrix = np.zeros((len(samples), width * len(columns)))
        for line, (given, rows, _) in zip(matrix, samples, strict=True):
            _fill(line, columns, given, rows, by_rows=by_rows)
        scale = np.maximum(np.abs(matrix).max(axis=0, initial=0.0), 1e-12)
        target = np.array([[sizes[name] for name in names] for _, _, sizes in samples]).reshape(
            len(samples), len(names)
        )
        left, values, basis = np.linalg.svd(matrix / scale, full_matrices=False)
        rank = int((values > 1e-10 * values.max(initial=0.0)).sum())
        solution = basis[:rank].T @ ((left[:, :rank].T @ target) / values[:rank, None])
        return cls(columns, names, scale, solution / scale[:, None], basis[:rank], by_rows)

    def at(self, features: Features, rows: float) -> NDArray[np.float64]:
        """Give the bytes of each quantity, ``(quantities,)``.

        Raises:
            NewError: If the features are no combination of those that were fitted.
        """
        if any(name not in self.columns for name in features):
            raise NewError
        line = np.zeros(len(self.scale))
        _fill(line, self.columns, features, rows, by_rows=self.by_rows)
        scaled = line / self.scale
        outside = scaled - self.seen.T @ (self.seen @ scaled)
        if np.linalg.norm(outside) > _UNSEEN * np.linalg.norm(scaled):
            raise NewError
        found: NDArray[np.float64] = line @ self.weights
        return found


def _fill(
    line: NDArray[np.float64], columns: Mapping[str, int], features: Features, rows: float, *, by_rows: bool
) -> None:
    for name, value in features.items():
        line[columns[name]] = value
        if by_rows:
            line[columns[name] + 1] = value * rows
