"""An engine as a sampler of any Optuna study, with or without a Problem behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autopeft.candidates import Candidate
from autopeft.domains import Choices, Domain, Ordinal, Real, Whole, middle
from autopeft.objectives import Objective
from autopeft.problem import Problem
from autopeft.search.engine import Engine, MakeEngine, Observed
from autopeft.space import Parameter, Space
from autopeft.work import Measurement

_ONE_AT_A_TIME = Lock()
"""An engine keeps what it has drawn, and Optuna may ask from several threads; a lock of its own could not be copied."""


class EngineSampler(BaseSampler):
    """Proposes what an engine does.

    In a search of ours the engine knows the Problem, conditions and costs included. In a study of plain Optuna the
    parameters that all trials share are proposed together, with nothing known beforehand, and others at random.
    """

    def __init__(self, make: MakeEngine, *, seed: int | None = None) -> None:
        self._make = make
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._random = RandomSampler(seed=seed)
        self._shared = IntersectionSearchSpace()
        self._engine: tuple[object, Engine] | None = None

    def on(self, problem: Problem) -> Engine:
        """Give the engine for a problem."""
        return self._make(problem, seed=self._seed)

    def reseed_rng(self) -> None:
        """Draw a new seed, for another process."""
        self._seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._random.reseed_rng()
        self._engine = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Give what all trials share; a parameter of one value is left out."""
        shared = self._shared.calculate(study)
        return {name: distribution for name, distribution in shared.items() if not distribution.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose values for what all trials share; nothing while too little is known."""
        if not search_space:
            return {}
        of = (tuple(search_space.items()), tuple(study.directions))
        trials = [
            observed
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and (observed := _observed(other, search_space)) is not None
        ]
        known = {observed.candidate for observed in trials}
        with _ONE_AT_A_TIME:
            if self._engine is None or self._engine[0] != of:
                self._engine = of, self.on(problem_of(search_space, study.directions))
            found = self._engine[1].propose(trials, number=trial.number, accepts=lambda c: c not in known)
        return {} if found is None else dict(found.values)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter that not all trials have at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


_STATES = {TrialState.COMPLETE: "complete", TrialState.FAIL: "failed", TrialState.RUNNING: "running"}


def _observed(trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]) -> Observed | None:
    """Read a trial of plain Optuna; None if it says nothing of these parameters."""
    if trial.state not in _STATES or not search_space.keys() <= trial.params.keys():
        return None
    candidate = Candidate({name: _snapped(d, trial.params[name]) for name, d in search_space.items()})
    values = tuple(trial.values) if trial.state is TrialState.COMPLETE else ()
    if not all(map(math.isfinite, values)):
        return None
    return Observed(trial.number, _STATES[trial.state], candidate, values)  # type: ignore[arg-type]


def _snapped(distribution: BaseDistribution, value: Any) -> Any:
    """Give a value on a grid as `domain_of` has it; Optuna's may differ in the last digit."""
    match domain_of(distribution):
        case Ordinal(values) if isinstance(distribution, FloatDistribution | IntDistribution):
            return values[round((value - distribution.low) / (distribution.step or 1))]
    return value


def problem_of(search_space: Mapping[str, BaseDistribution], directions: Sequence[StudyDirection]) -> Problem:
    """Make a problem of what a study of plain Optuna says: no conditions, no costs, objectives without a unit."""
    domains = {name: domain_of(distribution) for name, distribution in search_space.items()}
    space = Space(tuple(Parameter(name, domain, middle(domain), {}) for name, domain in domains.items()))
    objectives = tuple(
        Objective(str(i), "maximize" if d is StudyDirection.MAXIMIZE else "minimize", "", _not_measured)
        for i, d in enumerate(directions)
    )
    return Problem(space, objectives)


_GRID = 10_000
"""Steps of a grid from which it is as good as none; Optuna rounds what is proposed."""


@lru_cache(maxsize=1024)
def domain_of(distribution: BaseDistribution) -> Domain:
    """Give our form of a distribution.

    Raises:
        NotImplementedError: If it is none of Optuna's three.
    """
    match distribution:
        case CategoricalDistribution():
            return Choices(tuple(distribution.choices))
        case FloatDistribution() | IntDistribution() if distribution.step not in (None, 1) or (
            isinstance(distribution, FloatDistribution) and distribution.step is not None
        ):
            steps = round((distribution.high - distribution.low) / distribution.step)
            if steps > _GRID:
                return Real(distribution.low, distribution.high)
            return Ordinal(tuple(distribution.low + i * distribution.step for i in range(steps + 1)))
        case FloatDistribution():
            return Real(distribution.low, distribution.high, distribution.log)
        case IntDistribution():
            return Whole(distribution.low, distribution.high, distribution.log)
    raise NotImplementedError(f"{distribution} is no distribution that is known here")


def _not_measured(measurement: Measurement) -> float:
    raise AssertionError("Optuna has the values")
