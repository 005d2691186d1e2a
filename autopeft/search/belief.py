"""What the trials so far say of all candidates: known costs, models of the rest, the front to improve on.

Volumes are measured on the scale on which people compare: parameters, bytes and seconds by ratio, so by their
logarithm; quality as it is. What is far worse than the front is compressed, for how bad a bad configuration is
exactly interests nobody, and one diverged training would stretch the scale of all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.objectives import Objective
from autopeft.pareto import is_ratio_cost, on_front, quality_objective
from autopeft.search.acquisition import Boxes
from autopeft.search.surrogate import Array, GaussianProcess, Kernel, condition, fit_hyperparameters

FITTED = 192
"""Trials that hyperparameters are learned from at most."""

CONDITIONED = 512
"""Trials that predictions are made from at most."""

_WIDE = 100.0
"""A cost of any unit whose values lie this factor apart is compared by ratio, too."""

_DOUBT = 0.5
"""Deviation of what a failure is taken to say, in deviations of the results."""


@dataclass(frozen=True, slots=True)
class Results:
    """Trials as rows of numbers.

    Attributes:
        numbers: ``(n_done,)``: the trials' numbers, rising.
        known: ``(n_objectives,)``: which objectives are the cost that is counted beforehand.
        x: ``(n_done, n_columns)``: features of what has results.
        losses: ``(n_done, n_objectives)``, finite, smaller is better.
        costs: ``(n_done,)``: the trained parameters as counted beforehand.
        failed, running: Features of what failed, and of what is under way; with the costs of the latter.
    """

    numbers: tuple[int, ...]
    known: NDArray[np.bool_]
    x: Array
    losses: Array
    costs: Array
    failed: Array
    running: Array
    running_costs: Array


class Scale:
    """The scale on which improvement of an objective is measured; smaller is better on it, too."""

    def __init__(self, objective: Objective, losses: Array, front: NDArray[np.bool_], *, is_quality: bool) -> None:
        positive = objective.goal == "minimize" and bool((losses > 0).all())
        wide = positive and not is_quality and losses.max() > _WIDE * losses.min()
        self._log = positive and (is_ratio_cost(objective) or wide)
        plain = np.log(losses) if self._log else losses
        best = float(plain.min())
        self._worth = max(float(plain[front].max()), float(np.quantile(plain, 0.25))) - best
        self._fence = best + 2 * self._worth

    def __call__(self, losses: Array) -> Array:
        """Turn losses, smaller is better, into scaled ones."""
        plain = np.log(np.maximum(losses, 1e-300)) if self._log else losses
        if self._worth <= 0:
            return plain
        beyond = np.maximum(plain - self._fence, 0.0) / self._worth
        return np.asarray(np.minimum(plain, self._fence) + self._worth * np.log1p(beyond))


class Hyperparameters:
    """Those of each objective's model, learned anew whenever there is a sixteenth more to learn from.

    They depend on the first so many results only, so that a resumed search has the same ones.
    """

    def __init__(self, objectives: Sequence[Objective], kernel: Kernel) -> None:
        self._objectives, self._kernel = objectives, kernel
        self._known: dict[tuple[int, tuple[int, ...]], Array] = {}

    def of(self, j: int, results: Results) -> Array:
        """Give the hyperparameters of an objective's model."""
        n = len(results.numbers)
        n -= n % max(1, n // 16)
        key = (j, results.numbers[:n])
        if key not in self._known:
            losses = results.losses[:n]
            on = on_front(losses)
            rows = chosen_rows(on, FITTED)
            scale = _scales(self._objectives, losses, on)[j]
            self._known = {k: v for k, v in self._known.items() if k[0] != j}
            self._known[key] = fit_hyperparameters(self._kernel, results.x[:n][rows], scale(losses[rows, j]))
        return self._known[key]


def _scales(objectives: Sequence[Objective], losses: Array, on: NDArray[np.bool_]) -> list[Scale]:
    quality = quality_objective(objectives)
    return [Scale(o, losses[:, j], on, is_quality=o is quality) for j, o in enumerate(objectives)]


class Belief:
    """What is believed of every candidate, given results.

    Attributes:
        models: By objective; None where it is the cost that is known.
        front: ``(n_points, n_objectives)``: scaled, what is there to improve on, as the models see it without noise.
    """

    def __init__(
        self, objectives: Sequence[Objective], kernel: Kernel, results: Results, hyperparameters: Hyperparameters
    ) -> None:
        quality = list(objectives).index(quality_objective(objectives))
        on = on_front(results.losses)
        self._scales = _scales(objectives, results.losses, on)
        scaled = np.stack([scale(column) for scale, column in zip(self._scales, results.losses.T, strict=True)], axis=1)
        rows = chosen_rows(on, CONDITIONED)
        self.models: list[GaussianProcess | None] = []
        for j, target in enumerate(scaled.T):
            if results.known[j]:
                self.models.append(None)
                continue
            theta = hyperparameters.of(j, results)
            failed = results.failed if j == quality else results.failed[:0]
            x = np.concatenate([results.x[rows], failed])
            y = np.concatenate([target[rows], np.full(len(failed), target.max())])
            noise = np.concatenate([np.zeros(len(rows)), np.full(len(failed), (_DOUBT * target.std()) ** 2)])
            model = condition(kernel, theta, x, y, noise=noise)
            if len(results.running):
                # What is under way will turn out as expected: nothing is learned but that it need not be tried again.
                x, y = np.concatenate([x, results.running]), np.concatenate([y, model.predict(results.running)[0]])
                model = condition(kernel, theta, x, y, noise=np.concatenate([noise, np.zeros(len(results.running))]))
            self.models.append(model)
        means, _ = self.predict(
            np.concatenate([results.x, results.running]), np.concatenate([results.costs, results.running_costs])
        )
        self.front = means
        # Even the worst of the front dominates something, or the ends of the front would be worth nothing.
        worst = np.maximum(means[on_front(means)].max(axis=0), np.median(means, axis=0))
        span = worst - means.min(axis=0)
        self._boxes = Boxes(means, worst + 0.1 * np.where(span > 0, span, 1.0))

    def predict(self, x: Array, costs: Array) -> tuple[Array, Array]:
        """Give scaled means and deviations, ``(n_candidates, n_objectives)`` each; a known value has no deviation."""
        means, deviations = [], []
        for model, scale in zip(self.models, self._scales, strict=True):
            mean, deviation = (scale(costs), np.zeros(len(costs))) if model is None else model.predict(x)
            means.append(mean)
            deviations.append(deviation)
        return np.stack(means, axis=1), np.stack(deviations, axis=1)

    def score(self, x: Array, costs: Array) -> Array:
        """Give the logarithm of the expected hypervolume improvement, ``(n_candidates,)``."""
        return self._boxes.log_improvement(*self.predict(x, costs))


def chosen_rows(on_front: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """Choose rows to learn from: all while they are few, then the front's and others spread evenly over time."""
    if len(on_front) <= most:
        return np.arange(len(on_front))
    front, others = np.flatnonzero(on_front)[:most], np.flatnonzero(~on_front)
    spread = np.linspace(0, len(others) - 1, max(0, most - len(front))).round().astype(np.int64)
    return np.unique(np.concatenate([front, others[spread]]))
