"""The engine: a Gaussian process on what only training tells, exact costs for the rest, and the best of a pool.

A proposal is the candidate, of a pool that is feasible by construction, with the largest expected improvement: of the
front's hypervolume, costs by ratio or by difference, or of the best quality, in turn. Trained parameters are an exact
function of a candidate, so that they are no belief but a number; so is any other objective whose `known` has been right
in every trial. Nothing is kept between proposals that cannot be computed anew from the trials, so a resumed search goes
on as it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random

import numpy as np
from threadpoolctl import ThreadpoolController

from autopeft.candidates import Candidate
from autopeft.pareto import on_front
from autopeft.problem import Problem
from autopeft.search.belief import CONDITIONED, TURNS, Aim, Belief, Hyperparameters, Results, chosen_rows
from autopeft.search.engine import STARTUP, Observed
from autopeft.search.pool import Pool
from autopeft.search.prior import EarlierRuns
from autopeft.search.rows import CandidateRows, InRows
from autopeft.search.surrogate import Array

_PARENTS = 24
_LOT = 32
"""Proposals that share fresh candidates, and the mutations of each parent."""


@dataclass(frozen=True, slots=True)
class Options:
    """What can be switched off, to see what it is worth.

    Attributes:
        known_costs: Take exact costs as known, not as one more thing to learn.
        mutations: Put mutations of the front, and then of the best of the pool, beside the fresh candidates.
        fresh: How many fresh candidates some proposals share; each draws an eighth as many of its own beside them.
        mutants: How many mutations are in a pool.
        rounds: How often there are mutations.
    """

    known_costs: bool = True
    mutations: bool = True
    fresh: int = 200
    mutants: int = 300
    rounds: int = 3


ALL_PARTS = Options()


_on_one_thread = ThreadpoolController().wrap(limits=1, user_api="blas")
"""The matrices are small, and the workers train on the cores meanwhile: more threads only wait for each other."""


class KnownCost:
    """Proposes candidates of one problem."""

    def __init__(self, problem: Problem, *, seed: int, options: Options = ALL_PARTS) -> None:
        self._problem, self._seed, self._options = problem, seed, options
        self.rows = rows = CandidateRows(problem)
        self._pool = Pool(problem, count=rows.adapter_params)
        self._lot: tuple[int, InRows] | None = None
        self._earlier = EarlierRuns(problem, rows.kernel, rows=rows.features, costs=rows.costs)
        self._hyperparameters = Hyperparameters(problem.objectives, rows.kernel)
        self.expected_gain: float | None = None
        """What the last proposal was expected to gain, as a share of what its aim has by now: the front's volume by
        ratio or by difference, or the best quality above what is worth nothing; None without a model."""

    @_on_one_thread
    def propose(
        self, trials: Sequence[Observed], *, number: int, accepts: Callable[[Candidate], bool]
    ) -> Candidate | None:
        """Give the best candidate that is accepted; see `Engine`."""
        random = Random(f"{self._seed} {number}")
        done, results = self._results(trials)
        if len(done) < STARTUP:
            spread = self._spread(self._pool.fresh(32, random), [trial.candidate for trial in trials])
            return next((c for c in chain(self._earlier.elite[:STARTUP], spread) if accepts(c)), None)
        drawn = self._drawn(number)
        belief = self._believe(results, aim=TURNS[number % len(TURNS)], drawn=drawn)
        others = self._pool.fresh(self._options.fresh // 8, random)
        candidates = drawn.candidates + others
        scores = np.concatenate([self._score(belief, drawn), self._score(belief, self.rows.of(others))])
        parents = [done[belief.rows[i]] for i in np.flatnonzero(on_front(belief.front[: len(belief.rows)]))]
        each, met = self._options.mutants // self._options.rounds, set(candidates)
        for _ in range(self._options.rounds if self._options.mutations else 0):
            mutants = self._pool.mutants(parents, each, seed=self._lot_seed(number))
            new = [c for c in mutants if c not in met]  # who stays a parent has the same children again
            met.update(new)
            candidates, scores = candidates + new, np.concatenate([scores, self._score(belief, self.rows.of(new))])
            parents = [candidates[i] for i in np.argsort(-scores, kind="stable")[:_PARENTS]]
        best = next((i for i in np.argsort(-scores, kind="stable") if accepts(candidates[i])), None)
        self.expected_gain = None if best is None else belief.share(scores[best])
        return None if best is None else candidates[best]

    def _spread(self, drawn: list[Candidate], begun: Sequence[Candidate]) -> list[Candidate]:
        """Order first candidates so that their costs differ most, by ratio: chance may leave out a whole end."""
        costs = np.log1p(self.rows.costs(drawn))
        met = np.log1p(self.rows.costs(begun)) if begun else np.array([0.0])  # the first is the dearest
        far = np.abs(costs[:, None] - met).min(axis=1)
        return [drawn[i] for i in np.argsort(-far, kind="stable")]

    def _believe(self, results: Results, *, aim: Aim, drawn: InRows | None = None) -> Belief:
        problem = self._problem
        return Belief(
            problem.objectives,
            self.rows.kernel,
            results,
            self._hyperparameters,
            aim=aim,
            most=self._most(drawn),
        )

    def _most(self, drawn: InRows | None) -> Array:
        """Give the most that losses may be, where that is known: the budget, or what is met among fresh candidates."""
        limit = self._problem.parameter_limit
        fresh = drawn.exact[: len(drawn.candidates) - len(self._earlier.elite)] if drawn else np.empty((0, 0))
        met = fresh.max(axis=0) if len(fresh) else np.full(len(self._problem.objectives), np.inf)
        counted = np.inf if limit is None else float(limit)
        return np.where([o.known is None for o in self._problem.objectives], counted, met)

    def _score(self, belief: Belief, of: InRows) -> Array:
        return belief.score(of.x, of.exact) if of.candidates else np.zeros(0)

    def _drawn(self, number: int) -> InRows:
        """Give fresh candidates, the same ones for some proposals: to draw them is much of what a proposal costs."""
        lot = number // _LOT
        if self._lot is None or self._lot[0] != lot:
            self.rows.forget()
            fresh = self._pool.fresh(self._options.fresh, Random(self._lot_seed(number)))
            self._lot = lot, self.rows.of(fresh + self._earlier.elite)
        return self._lot[1]

    def _lot_seed(self, number: int) -> str:
        return f"{self._seed} lot {number // _LOT}"

    def _results(self, trials: Sequence[Observed]) -> tuple[list[Candidate], Results]:
        """Read the trials: the candidates that have results, and all as rows of numbers."""
        complete = [trial for trial in trials if trial.state == "complete"]
        failed = [trial for trial in trials if trial.state == "failed"]
        unfinished = [
            trial for trial in trials if trial.state == "running" or (trial.state == "paused" and trial.partial)
        ]
        unfinished = _kept(unfinished, CONDITIONED // 2)
        objectives = self._problem.objectives
        values = np.array([trial.values for trial in complete], dtype=np.float64)
        losses = values.reshape(len(complete), len(objectives)) * [o.loss(1.0) for o in objectives]
        at = self.rows.places(complete)
        exact = self.rows.exact_at(at)
        begun, begun_exact = self.rows.of_trials(unfinished)
        is_known = [bool(np.allclose(*pair, rtol=1e-9, atol=0)) for pair in zip(losses.T, exact.T, strict=True)]
        return [trial.candidate for trial in complete], Results(
            known=np.array(is_known) & self._options.known_costs,
            x=lambda rows: self.rows.features_at(at[rows]),
            losses=losses,
            exact=exact,
            failed=self.rows.of_trials(failed)[0],
            partial=[trial.partial for trial in complete],
            unfinished=begun,
            unfinished_exact=begun_exact,
            unfinished_partial=[trial.partial for trial in unfinished],
            running=np.array([trial.state == "running" for trial in unfinished], dtype=np.bool_),
            guess=self._earlier.guess(self.rows.features_at(at)) if self._problem.prior else np.empty((len(at), 0)),
            earlier=self._earlier.x,
            earlier_guess=self._earlier.own_guess,
        )


def _kept(unfinished: list[Observed], most: int) -> list[Observed]:
    """Keep not too many: what is training for the first time, what came farthest, of what waits at the first rung an
    even choice."""
    if len(unfinished) <= most:
        return unfinished
    training = [trial for trial in unfinished if not trial.partial]
    shown = sorted((trial for trial in unfinished if trial.partial), key=lambda t: (max(t.partial), t.number))
    has_passed = np.array([max(trial.partial) > max(shown[0].partial) for trial in shown], dtype=np.bool_)
    chosen = chosen_rows(has_passed, max(1, most - len(training)))
    return sorted([*training, *(shown[i] for i in chosen)], key=lambda trial: trial.number)
