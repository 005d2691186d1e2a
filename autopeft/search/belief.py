"""What the trials so far say of all candidates: known costs, models of the rest, the front to improve on.

Volumes are measured on the scale on which people compare: parameters, bytes and seconds by ratio, so by their
logarithm; quality as it is. What is far worse than the front is compressed, for how bad a bad configuration is
exactly interests nobody, and one diverged training would stretch the scale of all others.

Some compare costs by ratio, some by difference, and some ask for the best quality that a budget allows. Each of these
aims leaves much of what the others look for out of sight, so proposals take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autopeft.objectives import Objective
from autopeft.pareto import hypervolume, is_ratio_cost, on_front, quality_objective
from autopeft.search.acquisition import Boxes
from autopeft.search.expectation import expected_from_earlier, expected_from_partial
from autopeft.search.surrogate import Array, GaussianProcess, Kernel, compressed, condition, fit_hyperparameters

Aim = Literal["by ratio", "by difference", "best quality"]

TURNS: tuple[Aim, ...] = ("by ratio", "by difference", "by ratio", "best quality")
"""What successive proposals aim at."""

FITTED = 128
"""Trials that hyperparameters are learned from at most."""

CONDITIONED = 256
"""Trials that predictions are made from at most."""

_WIDE = 100.0
"""A cost of any unit whose values lie this factor apart is compared by ratio, too."""

_MOST_POINTS = 64
"""Points of a front in four or more dimensions, whose boxes grow with more than their square."""

_LEAST_CHANCE = 0.02
"""Chance of success of what is most like the failures; a failure may have had another reason."""


@dataclass(frozen=True, slots=True)
class Results:
    """Trials as rows of numbers.

    Attributes:
        known: ``(n_objectives,)``: which objectives are exact functions of a candidate.
        x: Rows of what has results -> their features, ``(n_rows, n_columns)``: of many trials few are learned from.
        losses: ``(n_done, n_objectives)``, finite, smaller is better.
        exact: ``(n_done, n_objectives)``: the losses as computed beforehand; of what is not known anything.
        failed: Features of what failed.
        partial: Of what has results: step -> held-out loss there, where it was measured.
        unfinished, unfinished_exact, unfinished_partial: The same of what is under way or has paused.
        running: ``(n_unfinished,)``: which of these are under way.
        guess: ``(n_done, n_runs)``: what each earlier run would have led one to expect of what has results.
        earlier: Features of trials of earlier runs.
        earlier_guess: ``(n_earlier, n_runs)``: what its own run makes of each; NaN for the other runs.
    """

    known: NDArray[np.bool_]
    x: Callable[[NDArray[np.int64]], Array]
    losses: Array
    exact: Array
    failed: Array
    partial: Sequence[Mapping[int, float]]
    unfinished: Array
    unfinished_exact: Array
    unfinished_partial: Sequence[Mapping[int, float]]
    running: NDArray[np.bool_]
    guess: Array
    earlier: Array
    earlier_guess: Array


class Scale:
    """The scale on which improvement of an objective is measured; smaller is better on it, too."""

    def __init__(
        self, objective: Objective, losses: Array, front: NDArray[np.bool_], *, is_quality: bool, by_ratio: bool
    ) -> None:
        positive = objective.goal == "minimize" and bool((losses > 0).all())
        wide = positive and not is_quality and losses.max() > _WIDE * losses.min()
        self._log = by_ratio and positive and (is_ratio_cost(objective) or wide)
        plain = np.log(losses) if self._log else losses
        self._best = float(plain.min())
        self._worth = max(float(plain[front].max()), float(np.quantile(plain, 0.25))) - self._best

    def __call__(self, losses: Array) -> Array:
        """Turn losses, smaller is better, into scaled ones."""
        plain = np.log(np.maximum(losses, 1e-300)) if self._log else losses
        return compressed(plain, best=self._best, worth=self._worth)


class Hyperparameters:
    """Those of each objective's model, learned anew whenever there is up to a sixteenth more to learn from.

    They depend on the first so many results only, so that a resumed search has the same ones.
    """

    def __init__(self, objectives: Sequence[Objective], kernel: Kernel) -> None:
        self._objectives, self._kernel = objectives, kernel
        self._known: dict[tuple[int, bytes], Array] = {}

    def of(self, j: int, results: Results) -> Array:
        """Give the hyperparameters of an objective's model."""
        n = len(results.losses)
        n -= n % max(1, 2 ** (n.bit_length() - 1) // 16)
        key = (j, results.losses[:n].tobytes())
        if key not in self._known:
            losses = results.losses[:n]
            on = on_front(losses)
            rows = chosen_rows(on, FITTED)
            scale = _scales(self._objectives, losses, on, by_ratio=True)[j]
            self._known = {k: v for k, v in self._known.items() if k[0] != j}
            x, target = results.x(rows), scale(losses[:, j])
            y, noise = target[rows], np.zeros(len(rows))
            if self._objectives[j] is quality_objective(self._objectives):
                expected, doubt = expected_from_earlier(results.guess[:n], target, results.earlier_guess)
                x, y, noise = _joined((x, y, noise), (results.earlier, expected, doubt))
            self._known[key] = fit_hyperparameters(self._kernel, x, y, noise=noise)
        return self._known[key]


Rows = tuple[Array, Array, Array]
"""Features, targets, and the deviations known of the targets beside the noise of all."""


def _joined(rows: Rows, others: Rows) -> Rows:
    """Put rows together, but those of which nothing can be said."""
    told = np.isfinite(others[1])
    x, y, noise = (np.concatenate([a, b[told]]) for a, b in zip(rows, others, strict=True))
    return x, y, noise


def _scales(objectives: Sequence[Objective], losses: Array, on: NDArray[np.bool_], *, by_ratio: bool) -> list[Scale]:
    quality = quality_objective(objectives)
    return [Scale(o, losses[:, j], on, is_quality=o is quality, by_ratio=by_ratio) for j, o in enumerate(objectives)]


class Belief:
    """What is believed of every candidate, given results.

    Attributes:
        models: By objective; None where it is known.
        quality: The index of the objective of quality.
        rows: Which of what has results it was learned from: all while they are few.
        front: ``(n_points, n_objectives)``: scaled, what is there to improve on, as the models see it without noise: of
            these rows, and of what is under way.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        kernel: Kernel,
        results: Results,
        hyperparameters: Hyperparameters,
        *,
        aim: Aim,
        most: Array,
    ) -> None:
        """Learn from results.

        Args:
            aim: What improvement is: the volume of the front, or the best quality alone.
            most: ``(n_objectives,)``: the most that losses may be, where that is known; else infinite.
        """
        self.quality = quality = list(objectives).index(quality_objective(objectives))
        on = on_front(results.losses)
        self._scales = _scales(objectives, results.losses, on, by_ratio=aim != "by difference")
        scaled = np.stack([scale(column) for scale, column in zip(self._scales, results.losses.T, strict=True)], axis=1)
        self.rows = rows = chosen_rows(on, CONDITIONED)
        self.models: list[GaussianProcess | None] = []
        for j, target in enumerate(scaled.T):
            if results.known[j]:
                self.models.append(None)
                continue
            theta = hyperparameters.of(j, results)
            x, y, noise = results.x(rows), target[rows], np.zeros(len(rows))
            guessed = results.running
            if j == quality:
                expected, doubt = expected_from_partial(results.partial, target, results.unfinished_partial)
                x, y, noise = _joined((x, y, noise), (results.unfinished, expected, doubt))
                guessed = guessed & np.isnan(expected)  # once is enough, and with the doubt that there is
                expected, doubt = expected_from_earlier(results.guess, target, results.earlier_guess)
                x, y, noise = _joined((x, y, noise), (results.earlier, expected, doubt))
            model = condition(kernel, theta, x, y, noise=noise)
            if guessed.any():
                # What is under way will turn out as expected: nothing is learned but that it need not be tried again.
                new = results.unfinished[guessed]
                x, y = np.concatenate([x, new]), np.concatenate([y, model.predict(new)[0]])
                model = condition(kernel, theta, x, y, noise=np.concatenate([noise, np.zeros(len(new))]))
            self.models.append(model)
        self._success = _success_model(kernel, results, rows)
        self.front = means = self._means(results)
        self._aimed = [quality] if aim == "best quality" else list(range(len(objectives)))
        reference = self._reference(np.where(results.known, most, np.inf))[self._aimed]
        self._boxes = Boxes(_thinned(means[:, self._aimed]), reference)
        self._volume = hypervolume(means[:, self._aimed], reference)

    def _means(self, results: Results) -> Array:
        """Give scaled means of the rows that were learned from, then of what is under way, without noise."""
        fitted = [
            scale(exact) if model is None else model.fitted[: len(self.rows)]
            for model, scale, exact in zip(self.models, self._scales, results.exact[self.rows].T, strict=True)
        ]
        under_way, _ = self.predict(results.unfinished[results.running], results.unfinished_exact[results.running])
        return np.concatenate([np.stack(fitted, axis=1), under_way])

    def _reference(self, most: Array) -> Array:
        """Say from where on an objective is worth nothing.

        Even the worst of the front dominates something, or the ends of the front would be worth nothing. Whatever cost
        was met may be worth its quality: behind a front of one cheap point nothing else would be. So may a known cost
        that nobody met, up to the most: what the user allows is not the first trials' to forbid.
        """
        typical = self.front.max(axis=0)
        typical[self.quality] = np.median(self.front[:, self.quality])
        worst = np.maximum(self.front[on_front(self.front)].max(axis=0), typical)
        span = worst - self.front.min(axis=0)
        reference = worst + 0.1 * np.where(span > 0, span, 1.0)
        for j in np.flatnonzero(np.isfinite(most)):
            reference[j] = max(reference[j], float(self._scales[j](most[j : j + 1])[0]))
        return np.asarray(reference)

    def predict(self, x: Array, exact: Array) -> tuple[Array, Array]:
        """Give scaled means and deviations, ``(n_candidates, n_objectives)`` each; a known value has no deviation."""
        means, deviations = [], []
        for model, scale, column in zip(self.models, self._scales, exact.T, strict=True):
            mean, deviation = (scale(column), np.zeros(len(x))) if model is None else model.predict(x)
            means.append(mean)
            deviations.append(deviation)
        return np.stack(means, axis=1), np.stack(deviations, axis=1)

    def share(self, score: float) -> float:
        """Give what a score means: the expected improvement as a share of what the front has."""
        return float(np.exp(score)) / self._volume if self._volume > 0 else np.inf

    def score(self, x: Array, exact: Array) -> Array:
        """Give the logarithm of the expected improvement, ``(n_candidates,)``; failures improve nothing."""
        means, deviations = self.predict(x, exact)
        gained = self._boxes.log_improvement(means[:, self._aimed], deviations[:, self._aimed])
        if self._success is None:
            return gained
        return np.asarray(gained + np.log(np.clip(self._success.predict(x)[0], _LEAST_CHANCE, 1)))


def _thinned(points: Array) -> Array:
    """Give a front that is not cut into too many boxes: of more than three objectives an even choice of it."""
    front = points[on_front(points)]
    if points.shape[1] <= 3 or len(front) <= _MOST_POINTS:
        return front
    order = np.argsort(front[:, 0], kind="stable")
    return front[order[np.linspace(0, len(front) - 1, _MOST_POINTS).round().astype(np.int64)]]


def _success_model(kernel: Kernel, results: Results, rows: NDArray[np.int64]) -> GaussianProcess | None:
    """Model which trainings fail, as those with far too high a learning rate; None while none did.

    A regression on 1 and 0 is a rough probability, but it is bounded below and asks for no sampling. What the
    trainings that failed would have been worth is no part of the model of quality.
    """
    if not len(results.failed):
        return None
    failed = results.failed[-len(rows) - 1 :]
    x = np.concatenate([results.x(rows), failed])
    y = np.concatenate([np.ones(len(rows)), np.zeros(len(failed))])
    half = FITTED // 2
    of_each = np.concatenate([np.arange(len(rows))[-half:], np.arange(len(rows), len(y))[-half:]])
    return condition(kernel, fit_hyperparameters(kernel, x[of_each], y[of_each]), x, y)


def chosen_rows(on_front: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """Choose rows to learn from: all while they are few, then the front's and others spread evenly over time."""
    if len(on_front) <= most:
        return np.arange(len(on_front))
    front, others = np.flatnonzero(on_front)[-most:], np.flatnonzero(~on_front)
    spread = np.linspace(0, len(others) - 1, max(0, most - len(front))).round().astype(np.int64)
    return np.unique(np.concatenate([front, others[spread]]))
