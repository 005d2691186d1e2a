"""Which parameters of the space moved the quality: a random forest, judged on trials that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.candidates import Scalar
from autopeft.records import TrialRecord
from autopeft.report.context import Context

LEAST_TRIALS = 12
MOST_TRIALS = 800
"""Trials that the forest sees at most, spread evenly over the run: more change little and take long."""

_FOLDS = 3
_REPEATS = 3
_SHOWN = 14


@dataclass(frozen=True, slots=True)
class Importances:
    """What the forest says.

    Attributes:
        rows: (parameter, share of the explained importance, 0-1), the largest first.
        n_trials: Complete trials that it rests on.
        explained: R^2 of the forest on trials that it has not seen; what it does not explain is noise or interplay.
        note: Why there are no rows, if there are none.
    """

    rows: tuple[tuple[str, float], ...]
    n_trials: int
    explained: float
    note: str = ""


def importances(context: Context) -> Importances:
    """Rank the candidates' parameters by how much worse quality is predicted when one of them is shuffled."""
    done = context.complete
    if len(done) < LEAST_TRIALS:
        return Importances((), len(done), 0.0, "Too few trials to say.")
    rows = sorted({round(i) for i in np.linspace(0, len(done) - 1, min(len(done), MOST_TRIALS))})
    chosen = [done[i] for i in rows]
    names, table = encode(chosen)
    quality = np.array([record.values[context.quality.name] for record in chosen], dtype=np.float64)
    if not names or np.ptp(quality) == 0:
        return Importances((), len(chosen), 0.0, "Nothing differs between the trials.")
    drops, explained = _shuffled(table, quality)
    if explained <= 0:
        why = (
            "The parameters do not predict the quality of trials that the forest has not seen, so no ranking is given."
        )
        return Importances((), len(chosen), explained, why)
    shares = np.clip(drops, 0, None) / max(np.clip(drops, 0, None).sum(), 1e-12)
    order = np.argsort(-shares)[:_SHOWN]
    return Importances(tuple((names[i], float(shares[i])) for i in order), len(chosen), explained)


def encode(records: list[TrialRecord]) -> tuple[list[str], NDArray[np.float64]]:
    """Turn candidates into numbers: (names of the parameters that differ, table with NaN where one is not active)."""
    names = sorted({name for record in records for name in record.candidate.values})
    columns: dict[str, list[float]] = {}
    for name in names:
        values = [record.candidate.values.get(name) for record in records]
        if len({(type(v), v) for v in values}) > 1:
            columns[name] = _numbers(values)
    table = np.array(list(columns.values()), dtype=np.float64).T.reshape(len(records), len(columns))
    return list(columns), table


def _numbers(values: list[Scalar | None]) -> list[float]:
    texts = {text: float(i) for i, text in enumerate(sorted({v for v in values if isinstance(v, str)}))}
    found = [np.nan if v is None else texts[v] if isinstance(v, str) else float(v) for v in values]
    return [v if np.isfinite(v) else np.nan for v in found]


def _shuffled(table: NDArray[np.float64], quality: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Give each column's loss of R^2 when shuffled in held-out rows, and the R^2 there; averaged over the folds."""
    from sklearn.ensemble import RandomForestRegressor  # seconds to import, and only a report needs it
    from sklearn.model_selection import KFold

    drops: list[NDArray[np.float64]] = []
    scores: list[float] = []
    draw = np.random.default_rng(0)
    for train, held_out in KFold(_FOLDS, shuffle=True, random_state=0).split(table):
        forest = RandomForestRegressor(n_estimators=60, min_samples_leaf=2, random_state=0, n_jobs=1)
        forest.fit(table[train], quality[train])
        scores.append(float(forest.score(table[held_out], quality[held_out])))
        orders = np.array([draw.permutation(len(held_out)) for _ in range(_REPEATS)])
        drops.append(shuffled_loss(forest, table[held_out], quality[held_out], orders))
    return np.mean(drops, axis=0), float(np.mean(scores))


def shuffled_loss(
    forest: Any, table: NDArray[np.float64], quality: NDArray[np.float64], orders: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Give the R^2 of a forest less what it is when a column is put in other orders, ``(n_columns,)``.

    A tree asks about few of hundreds of columns, and shuffling another one changes nothing of what it says: so each
    tree is asked about its own alone, where to ask the forest about each column would take a minute.

    Args:
        orders: ``(n_repeats, n_rows)``; each a permutation of the rows.
    """
    rows = table.astype(np.float32)  # as trees read them
    said = np.zeros(len(rows))
    changes = np.zeros((rows.shape[1], *orders.shape))
    for tree in (estimator.tree_ for estimator in forest.estimators_):
        alone = tree.predict(rows)[:, 0]
        said += alone
        for column in np.unique(tree.feature[tree.feature >= 0]):
            shuffled = np.tile(rows, (len(orders), 1))
            shuffled[:, column] = rows[orders.ravel(), column]
            changes[column] += tree.predict(shuffled)[:, 0].reshape(orders.shape) - alone
    n_trees = len(forest.estimators_)
    squares = np.mean((said / n_trees - quality) ** 2)
    shuffled_squares = np.mean(((said + changes) / n_trees - quality) ** 2, axis=2)
    drops: NDArray[np.float64] = (shuffled_squares.mean(axis=1) - squares) / np.var(quality)
    return drops
