"""What earlier runs say of candidates, as the engine takes it: doubtful observations, and where to look first.

Each earlier run is a Gaussian process on its own scores. What that makes of the candidates that have results here shows
how its scores are to be read, and how far they can be trusted (`expectation.expected_from_earlier`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from autopeft.candidates import Candidate
from autopeft.problem import Problem
from autopeft.search.rungs import best_of
from autopeft.search.surrogate import Array, GaussianProcess, Kernel, condition, fit_hyperparameters

_LEARNED = 192
"""Trials of all earlier runs together that models are learned from at most."""

_ELITE = 24
"""Of the best of the earlier runs, so many are candidates here, too."""


class EarlierRuns:
    """The trials of earlier runs as rows of numbers, and a model of each run.

    Attributes:
        x: ``(n_earlier, n_columns)``: features.
        own_guess: ``(n_earlier, n_runs)``: what the model of its own run makes of each trial; NaN for the other runs.
        elite: Of their front of score and parameters what can be trained here, the best compromises first.
    """

    def __init__(
        self,
        problem: Problem,
        kernel: Kernel,
        *,
        rows: Callable[[Sequence[Candidate]], Array],
        costs: Callable[[Sequence[Candidate]], Array],
    ) -> None:
        """Learn the models.

        Args:
            rows, costs: Features of candidates, and their trained parameters.
        """
        self._models: list[GaussianProcess] = []
        for prior in problem.prior:
            most = min(len(prior.scores), _LEARNED // len(problem.prior))
            at = np.linspace(0, len(prior.scores) - 1, most).round().astype(np.int64)
            x, scores = rows([prior.candidates[i] for i in at]), np.array([prior.scores[i] for i in at])
            self._models.append(condition(kernel, fit_hyperparameters(kernel, x, scores), x, scores))
        self.x = np.concatenate([rows([]), *(model.x for model in self._models)])
        of_run = np.repeat(np.arange(len(self._models)), [len(model.x) for model in self._models])
        self.own_guess = np.where(of_run[:, None] == np.arange(len(self._models)), self.guess(self.x), np.nan)
        self.elite = _elite(problem, costs)

    def guess(self, x: Array) -> Array:
        """Give what each run makes of candidates, ``(n_rows, n_runs)``: smaller is better, near 0 what it never met."""
        return np.stack([model.predict(x)[0] for model in self._models], axis=1) if self._models else x[:, :0]


def _elite(problem: Problem, costs: Callable[[Sequence[Candidate]], Array]) -> list[Candidate]:
    candidates = [c for prior in problem.prior for c in prior.candidates]
    scores = np.array([s for prior in problem.prior for s in prior.scores])
    best = best_of(np.stack([scores, costs(candidates)], axis=1), _ELITE) if candidates else []
    fitted = [problem.fit(candidates[i]) for i in best]
    return list(dict.fromkeys(c for c in fitted if c is not None))
