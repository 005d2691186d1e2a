"""Candidates of a problem as rows of numbers: features for a model, and what is known of their losses beforehand.

To count a candidate and to lay it out is much of what a proposal costs, successive proposals look at much the same
ones, and a long search looks at all its trials each time; so what is computed of a candidate is remembered for a while,
and what is computed of a trial for good.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.candidates import Candidate
from autopeft.problem import Problem
from autopeft.search.engine import Observed
from autopeft.search.features import Features
from autopeft.search.surrogate import Array


@dataclass(frozen=True, slots=True)
class InRows:
    """Candidates, and what is computed of each.

    Attributes:
        x: ``(n_candidates, n_columns)``: features.
        exact: ``(n_candidates, n_objectives)``: what is known beforehand of the losses. An objective that says nothing
            is the trained parameters, or none at all: the trials tell whether it is.
    """

    candidates: list[Candidate]
    x: Array
    exact: Array


class CandidateRows:
    """Makes rows of a problem's candidates.

    Attributes:
        kernel: The kernel that goes with the features.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._features = Features(problem.space, with_cost=problem.is_counted)
        self.kernel = self._features.kernel
        self._counted: dict[Hashable, int] = {}
        self._computed: dict[Candidate, tuple[Array, Array]] = {}
        self._trials: dict[int, Candidate] = {}
        # Half as long as what is computed with: a long search keeps a row a trial, and features are a few levels.
        self._x = np.empty((0, len(self._features.names)), dtype=np.float32)
        self._exact = np.empty((0, len(problem.objectives)))

    def of(self, candidates: list[Candidate]) -> InRows:
        """Compute what is told of candidates; what was computed stays until it is forgotten."""
        if new := [c for c in dict.fromkeys(candidates) if c not in self._computed]:
            costs = self.costs(new)
            rows = zip(self._features.of(new, costs), self._known(new, costs), strict=True)
            self._computed.update(zip(new, rows, strict=True))
        x, exact = np.empty((len(candidates), self._x.shape[1])), np.empty((len(candidates), self._exact.shape[1]))
        for i, candidate in enumerate(candidates):
            x[i], exact[i] = self._computed[candidate]
        return InRows(candidates, x, exact)

    def of_trials(self, trials: Sequence[Observed]) -> tuple[Array, Array]:
        """Give features and exact losses of trials."""
        at = self.places(trials)
        return self.features_at(at), self.exact_at(at)

    def places(self, trials: Sequence[Observed]) -> NDArray[np.int64]:
        """Give where the rows of trials are kept, ``(n_trials,)``; of those that are new they are computed."""
        # By number, which is quick to look up; a sampler of plain Optuna may be used for several studies.
        new = [t for t in trials if self._trials.get(t.number) != t.candidate]
        if new:
            self._make_room(max(t.number for t in new) + 1)
            read = self.of([t.candidate for t in new])
            at = [t.number for t in new]
            self._x[at], self._exact[at] = read.x, read.exact
            self._trials.update((t.number, t.candidate) for t in new)
        return np.array([t.number for t in trials], dtype=np.int64)

    def features_at(self, places: NDArray[np.int64]) -> Array:
        """Give the features that are kept there, ``(n_places, n_columns)``."""
        return self._x[places].astype(np.float64)

    def exact_at(self, places: NDArray[np.int64]) -> Array:
        """Give the exact losses that are kept there, ``(n_places, n_objectives)``."""
        return self._exact[places]

    def _make_room(self, count: int) -> None:
        if count > len(self._x):
            more = max(64, count, 3 * len(self._x) // 2) - len(self._x)
            self._x = np.concatenate([self._x, np.zeros((more, self._x.shape[1]), dtype=np.float32)])
            self._exact = np.concatenate([self._exact, np.zeros((more, self._exact.shape[1]))])

    def features(self, candidates: Sequence[Candidate]) -> Array:
        """Give the features of candidates, ``(n_candidates, n_columns)``."""
        return self._features.of(candidates, self.costs(candidates))

    def _known(self, candidates: Sequence[Candidate], costs: Array) -> Array:
        counted = costs if self._problem.is_counted else np.full(len(candidates), np.nan)
        columns = [
            counted if o.known is None else np.array([o.known_loss(c) for c in candidates])
            for o in self._problem.objectives
        ]
        return np.stack(columns, axis=1)

    def costs(self, candidates: Sequence[Candidate]) -> Array:
        """Give the trained parameters of candidates, ``(n_candidates,)``; zeros where nobody can tell."""
        if not self._problem.is_counted:
            return np.zeros(len(candidates))
        head = self._problem.head_params
        return np.array([self.adapter_params(c) + head for c in candidates], dtype=np.float64)

    def adapter_params(self, candidate: Candidate) -> int:
        """Count once what is asked for several times: to lower into the budget, as a feature, as an objective."""
        key = self._problem.counted_by(candidate)
        if key not in self._counted:
            self._counted[key] = self._problem.adapter_params(candidate)
        return self._counted[key]

    def forget(self) -> None:
        """Forget what is no trial's, or a long search would keep every candidate that it ever looked at."""
        self._counted.clear()
        self._computed.clear()
