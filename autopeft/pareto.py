"""The Pareto front: which trials no other trial beats, the named picks on it, and how much of the space it covers."""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from autopeft.objectives import Objective
from autopeft.records import TrialRecord

_RATIO_UNITS = frozenset({"parameters", "bytes", "s"})
"""Units of costs in which twice as much is one step, however much it is: their logarithm goes into the knee."""


def on_front(losses: ArrayLike) -> NDArray[np.bool_]:
    """Mark the rows that no other row dominates; of equal rows, all are kept.

    Args:
        losses: ``(n_trials, n_objectives)``, finite; smaller is better.

    Returns:
        Mask, ``(n_trials,)``.

    Raises:
        ValueError: If it is not such a table, or a value is not finite; failed trials must be dropped before.

    >>> on_front([[1, 3], [2, 2], [2, 3], [1, 3]]).tolist()
    [True, True, False, True]
    """
    points = _checked(losses)
    if not len(points):
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=np.bool_)


def hypervolume(losses: ArrayLike, reference: ArrayLike) -> float:
    """Give the volume that the rows dominate up to the reference point; a row that is nowhere below it adds nothing.

    Args:
        losses: ``(n_trials, n_objectives)``, finite; smaller is better.
        reference: ``(n_objectives,)``, finite.

    Raises:
        ValueError: If a value is not finite, or the shapes do not fit.

    >>> hypervolume([[1, 3], [2, 2]], [4, 4])
    5.0
    """
    points, corner = _checked(losses), np.asarray(reference, dtype=np.float64)
    if corner.shape != points.shape[1:] or not np.isfinite(corner).all():
        raise ValueError(f"reference {corner.tolist()} is not {points.shape[1]} finite numbers")
    below = points[(points < corner).all(axis=1)]
    return float(moocore.hypervolume(below, ref=corner)) if len(below) else 0.0


def knee(losses: ArrayLike, *, weights: ArrayLike | None = None) -> int:
    """Give the row of the front nearest to the ideal point, each objective of the front scaled to [0, 1].

    The ideal point is the best of the front in every objective at once; the distance is Euclidean. An objective in
    which the front does not differ counts for nothing; of equally near rows the first is given. An objective that
    spans orders of magnitude must come as its logarithm, or its large values decide alone.

    Args:
        losses: ``(n_trials, n_objectives)``, finite, at least one row; smaller is better. Dominated rows have no say.
        weights: ``(n_objectives,)``; what the squared distance in an objective counts, by default 1.

    Raises:
        ValueError: If there is no row, or a value is not finite.

    >>> knee([[0.0, 10.0], [1.0, 1.0], [10.0, 0.0]])
    1
    """
    points = _checked(losses)
    if not len(points):
        raise ValueError("no trials, so no knee")
    rows = np.flatnonzero(on_front(points))
    front_points = points[rows]
    low, high = front_points.min(axis=0), front_points.max(axis=0)
    # Halved before the subtraction: the width of a column may be beyond the largest float.
    width = high / 2 - low / 2
    scaled = (front_points / 2 - low / 2) / np.where(width > 0, width, 1.0)
    importance = np.ones(points.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    return int(rows[np.argmin((scaled**2 * importance).sum(axis=1))])


def losses_of(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], *, log_costs: bool = False
) -> NDArray[np.float64]:
    """Give the values of complete records so that smaller is better, ``(n_records, n_objectives)``.

    Args:
        records: Complete trials; each has a value for each objective.
        objectives: The columns, in order.
        log_costs: Give counts, bytes and seconds as their logarithm where all of them are positive.
    """
    table = np.array([[o.loss(r.values[o.name]) for o in objectives] for r in records], dtype=np.float64)
    table = table.reshape(len(records), len(objectives))
    if log_costs:
        for column, objective in enumerate(objectives):
            if is_ratio_cost(objective) and (table[:, column] > 0).all():
                table[:, column] = np.log(table[:, column])
    return table


def is_ratio_cost(objective: Objective) -> bool:
    """Tell whether an objective is a cost that people compare by ratio: parameters, bytes, seconds."""
    return objective.goal == "minimize" and objective.unit in _RATIO_UNITS


def quality_objective(objectives: Sequence[Objective]) -> Objective:
    """Give the objective that says how good a configuration is: "quality", or else the first."""
    return next((o for o in objectives if o.name == "quality"), objectives[0])


def size_objective(objectives: Sequence[Objective]) -> Objective | None:
    """Give the objective that says how small one is: "params", or else the first other one that is minimised."""
    quality = quality_objective(objectives)
    costs = [o for o in objectives if o is not quality and o.goal == "minimize"]
    return next((o for o in costs if o.name == "params"), costs[0] if costs else None)


def completed(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Keep the complete records that have a value for every objective."""
    return [r for r in records if r.state == "complete" and all(o.name in r.values for o in objectives)]


def front(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Give the complete records that no other dominates, best quality first.

    Raises:
        ValueError: If a complete record holds a value that is not finite.
    """
    done = completed(records, objectives)
    mask = on_front(losses_of(done, objectives)).tolist()
    quality = quality_objective(objectives)
    order = [quality, *(o for o in objectives if o is not quality)]
    kept = [record for record, keep in zip(done, mask, strict=True) if keep]
    return sorted(kept, key=lambda record: _rank(record, order))


def picks(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> dict[str, int]:
    """Name the trials of the front that answer the usual questions: name -> trial number.

    "best" has the best quality. "knee" is the best compromise (see `knee`): counts, bytes and seconds by their
    logarithm, and quality weighs as much as all other objectives together. "smallest" trains the fewest parameters or,
    where those are no objective, has the lowest cost; it is missing where nothing but quality is asked for. Ties go to
    the better in the remaining objectives, then to the earlier trial. Several names may mean one trial; without a
    complete trial there are none.
    """
    points = front(records, objectives)
    if not points:
        return {}
    size, quality = size_objective(objectives), quality_objective(objectives)
    weights = [1.0 if o is quality else 1 / (len(objectives) - 1) for o in objectives]
    compromise = points[knee(losses_of(points, objectives, log_costs=True), weights=weights)]
    named = {"best": points[0].number, "knee": compromise.number}
    if size is not None:
        order = [size, quality, *(o for o in objectives if o is not size and o is not quality)]
        named["smallest"] = min(points, key=lambda record: _rank(record, order)).number
    return named


def _rank(record: TrialRecord, order: Sequence[Objective]) -> tuple[float, ...]:
    return (*(o.loss(record.values[o.name]) for o in order), record.number)


def _checked(losses: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(losses, dtype=np.float64)
    if points.ndim != 2 or not points.shape[1]:
        raise ValueError(f"losses of shape {points.shape} are not (n_trials, n_objectives)")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise ValueError(
            f"row {bad[0]} is {points[bad[0]].tolist()}: every loss must be finite; drop failed trials before"
        )
    return points
