"""Expected hypervolume improvement in closed form, where objectives are Gaussian and independent, or known exactly.

What the front leaves undominated is cut into boxes. In one box, the volume that a candidate would add is a product
over the objectives of ``E[max(0, high - max(low, y))]``, and for a Gaussian y each factor is a difference of two
expected improvements (Yang et al., arXiv:1904.12672; Zhao et al., arXiv:1812.07692). An objective that
is known has no variance, and its factor is the length itself. So a pool is scored exactly, without samples, however
many of its objectives are learned.

All is done by logarithms: where a candidate is almost surely no improvement the sum would be 0, its logarithm still
tells which is the least hopeless (Ament et al., arXiv:2310.20708).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr, ndtr

from autopeft.pareto import on_front

Array = NDArray[np.float64]

_CHUNK = 2_000_000
"""Numbers held at once for one objective: candidates times boxes."""


class Boxes:
    """What a front leaves to improve on, and what a candidate is expected to add to it.

    Attributes:
        low, high: ``(n_boxes, n_objectives)``; disjoint boxes that no point of the front dominates, up to the
            reference. A box without a lower end has -inf there.
    """

    def __init__(self, front: Array, reference: Array) -> None:
        """Cut what is left into boxes.

        Args:
            front: ``(n_points, n_objectives)``, finite, smaller is better; dominated rows do no harm.
            reference: ``(n_objectives,)``, finite: what is not below it counts for nothing.
        """
        below = front[(front < reference).all(axis=1)]
        self.low, self.high = _cut(below[on_front(below)], reference)
        # Boxes share their sides: an objective has far fewer intervals than there are boxes.
        sides = np.stack([self.low, self.high], axis=2)
        self._sides = [np.unique(sides[:, j], axis=0, return_inverse=True) for j in range(len(reference))]

    def log_improvement(self, means: Array, deviations: Array) -> Array:
        """Give the logarithm of each candidate's expected hypervolume improvement; -inf where there is none.

        Args:
            means, deviations: ``(n_candidates, n_objectives)``; a deviation of 0 is a known value.

        Returns:
            ``(n_candidates,)``.
        """
        step = max(1, _CHUNK // max(1, len(self.low)))
        scores = [np.zeros(0)]
        for first in range(0, len(means), step):
            rows = slice(first, first + step)
            total = np.zeros((len(means[rows]), len(self.low)))
            for j, (ends, which) in enumerate(self._sides):
                total += log_lengths(means[rows, j], deviations[rows, j], ends[:, 0], ends[:, 1])[:, which]
            scores.append(_log_sum(total))
        return np.concatenate(scores)


def _cut(points: Array, reference: Array) -> tuple[Array, Array]:
    """Give lower and upper corners, ``(n_boxes, n_objectives)``, of the boxes that points, of which none dominates
    another, leave.

    Slices along the last objective: between two of its values, what is left is the same problem with one objective
    less, posed by the points before.
    """
    last = reference[-1]
    if len(reference) == 1:
        return np.array([[-np.inf]]), np.array([[min([last, *points[:, 0]])]])
    points = points[np.argsort(points[:, -1], kind="stable")]
    if len(reference) == 2:
        # Without dominated ones, the first objective falls as the second rises: a staircase.
        steps = np.array([reference[0], *points[:, 0]])
        levels = np.array([-np.inf, *points[:, 1], last])
        return np.stack([np.full(len(steps), -np.inf), levels[:-1]], axis=1), np.stack([steps, levels[1:]], axis=1)
    lows, highs = [], []
    kept, start = points[:0, :-1], -np.inf
    for level in [*np.unique(points[:, -1]), last]:
        low, high = _cut(kept, reference[:-1])
        lows.append(np.column_stack([low, np.full(len(low), start)]))
        highs.append(np.column_stack([high, np.full(len(high), level)]))
        kept = np.concatenate([kept, points[points[:, -1] == level, :-1]])
        kept, start = np.unique(kept[on_front(kept)], axis=0), level
    return np.concatenate(lows), np.concatenate(highs)


def log_expected_improvement(z: Array) -> Array:
    """Give the logarithm of ``E[max(0, z - e)]`` for a standard normal e, without loss for very negative z.

    >>> log_expected_improvement(np.array([0.0, -50.0])).round(4).tolist()
    [-0.9189, -1258.7442]
    """
    z = np.asarray(z, dtype=np.float64)
    out = np.full(z.shape, -np.inf)
    near = z > -1
    out[near] = np.log(np.exp(-(z[near] ** 2) / 2) / np.sqrt(2 * np.pi) + z[near] * ndtr(z[near]))
    far = ~near & (z > -1e5)
    t = z[far]
    out[far] = -(t**2) / 2 - np.log(2 * np.pi) / 2 + np.log1p(t * np.sqrt(np.pi / 2) * erfcx(-t / np.sqrt(2)))
    # There the difference from 1 is 1/z^2 to all digits.
    beyond = ~near & (z <= -1e5) & np.isfinite(z)
    out[beyond] = -(z[beyond] ** 2) / 2 - np.log(2 * np.pi) / 2 - 2 * np.log(-z[beyond])
    return out


def log_lengths(mean: Array, deviation: Array, low: Array, high: Array) -> Array:
    """Give the logarithm of the expected length between `low` and `high` that lies above a Gaussian value.

    Args:
        mean, deviation: ``(n_candidates,)``; a deviation of 0 is a value that is known.
        low, high: ``(n_boxes,)``; low may be -inf.

    Returns:
        ``(n_candidates, n_boxes)``.
    """
    known = deviation <= 0
    out = np.empty((len(mean), len(low)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        at, s = mean[~known, None], deviation[~known, None]
        upper, lower = log_expected_improvement((high - at) / s), log_expected_improvement((low - at) / s)
        gap = np.minimum(lower - upper, 0.0)
        # log(1 - e^gap); for a narrow box the length itself times the chance to be below it.
        difference = np.where(gap > -1e-9, -np.inf, np.log(-np.expm1(gap)))
        narrow = np.log((high - low) / s) + log_ndtr((high - at) / s)
        out[~known] = np.log(s) + np.where(gap > -1e-9, narrow, upper + difference)
        out[known] = np.log(np.maximum(0.0, high - np.maximum(low, mean[known, None])))
    return out


def _log_sum(logs: Array) -> Array:
    """Give the logarithm of the sum of each row's exponentials."""
    most = logs.max(axis=1)
    finite = np.where(np.isfinite(most), most, 0.0)
    with np.errstate(divide="ignore"):
        return np.where(np.isfinite(most), finite + np.log(np.exp(logs - finite[:, None]).sum(axis=1)), -np.inf)
