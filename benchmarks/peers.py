"""The engines that users have instead: plain Optuna with its constraint, and Ray Tune's OptunaSearch as documented.

They train with whatever counts steps: on paper (`engines.py`) and for real (`live.py`). All are treated well: the
learning rate is relative to the method, the space's conditions are asked define-by-run, and plain Optuna asks before
it trains. On Ray Tune a configuration that cannot be built (a block that does not divide a layer, nothing trained) is
found out by an error, which costs the start-up of a trial, a ninth of a training here; measured
(`trials_per_hour.py`), it is more than a short training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState

from autopeft.candidates import Candidate
from autopeft.errors import TrialError
from autopeft.problem import Problem
from autopeft.search.codec import decoded, suggest
from autopeft.space import Space

START_UP = 9
"""What part of a training a trial costs that cannot be built."""

DRAWS = 400
"""Infeasible draws in a row after which an engine is given up."""

REDUCTION = 3
"""ASHAScheduler stops all but one in so many at a rung, and rungs lie this factor apart."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Spent(Exception):
    """No steps are left."""


class Trainer(Protocol):
    """Trains candidates of a problem, and counts the steps."""

    @property
    def problem(self) -> Problem:
        """What is searched; what is above its budget can be trained, and counts for nothing."""
        ...

    @property
    def reference(self) -> Sequence[float]:
        """Objectives that are worth nothing, smaller is better."""
        ...

    @property
    def full(self) -> int:
        """Steps of a whole training."""
        ...

    def pay(self, steps: int) -> None:
        """Take steps from what is left.

        Raises:
            Spent: If there are not so many.
        """
        ...

    def train(self, candidate: Candidate, *, first: int = 0, last: int | None = None) -> tuple[float, ...]:
        """Train a candidate on from step `first` to `last`, by default from the start to the end, and pay for it.

        Returns:
            Its objectives at `last`, smaller is better, the held-out loss first.

        Raises:
            Spent: If there are not so many steps.
            TrialError: If the training failed.
        """
        ...


Engine = Callable[[Trainer, int], None]
"""Searches with a trainer until its steps are spent; the last argument is the seed."""


# --- plain Optuna ----------------------------------------------------------------------------------------------------


def draw(trial: optuna.Trial, space: Space) -> Candidate:
    """Let a trial of plain Optuna choose a configuration, define-by-run: what is not active is not drawn."""
    values: dict[str, Any] = {}
    for parameter in space:
        if all(values.get(name) in allowed for name, allowed in parameter.when.items()):
            value = suggest(trial, parameter)
            values[parameter.name] = decoded(parameter, value)
    return space.complete(values)


def constrained(sampler: Callable[[int], BaseSampler]) -> Engine:
    """Make an engine of a sampler that knows constraints: the logarithm of parameters over the budget.

    An infeasible draw is told as complete with the reference's values and its violation, and costs no steps.
    """

    def engine(trainer: Trainer, seed: int) -> None:
        problem = trainer.problem
        study = optuna.create_study(directions=["minimize"] * len(problem.objectives), sampler=sampler(seed))
        infeasible = 0
        while infeasible < DRAWS:
            trial = study.ask()
            candidate = draw(trial, problem.space)
            violation = _violation(problem, candidate)
            trial.set_constraint("budget", violation)
            if violation > 0:
                infeasible += 1
                study.tell(trial, list(trainer.reference))
                continue
            infeasible = 0
            study.tell(trial, list(trainer.train(candidate)))

    return engine


def _violation(problem: Problem, candidate: Candidate) -> float:
    """Say how far a configuration is from what can be searched; <= 0 if it is feasible."""
    if not problem.refusal(candidate):
        return 0.0
    cost = problem.cost(candidate)
    assert cost is not None
    assert problem.parameter_limit is not None
    over = math.log(max(1, cost.trainable_params) / problem.parameter_limit)
    return over if over > 0 else 1.0


# --- Ray Tune as documented ------------------------------------------------------------------------------------------


def optunasearch(trainer: Trainer, seed: int) -> None:
    """OptunaSearch(metric=[loss, params, memory], mode=["min"] * 3), which makes TPESampler(seed) and no constraint.

    A configuration that cannot be built, or fails, is told FAIL, of which TPE learns nothing: it may propose it again.
    """
    directions = ["minimize"] * len(trainer.problem.objectives)
    study = optuna.create_study(directions=directions, sampler=TPESampler(seed=seed))
    for trial, candidate in _buildable(study, trainer):
        try:
            study.tell(trial, list(trainer.train(candidate)))
        except TrialError:
            study.tell(trial, state=TrialState.FAIL)


def optunasearch_asha(trainer: Trainer, seed: int) -> None:
    """OptunaSearch(metric="loss", mode="min") with ASHAScheduler: a scheduler knows one metric only.

    Its grace period is a ninth of the horizon. What it stops is told as complete, with the last loss that it had, as
    OptunaSearch does.
    """
    study = optuna.create_study(direction="minimize", sampler=TPESampler(seed=seed))
    full = trainer.full
    milestones = (full // REDUCTION**2, full // REDUCTION, full)
    asha = Asha(milestones[:-1])
    for trial, candidate in _buildable(study, trainer):
        at, loss = 0, math.inf
        try:
            for milestone in milestones:
                loss, at = trainer.train(candidate, first=at, last=milestone)[0], milestone
                if at < full and not asha.goes_on(at, loss):
                    break
        except TrialError:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, loss)


def _buildable(study: optuna.Study, trainer: Trainer) -> Iterator[tuple[optuna.Trial, Candidate]]:
    """Ask for what can be trained, if there were no budget; anything else fails for the price of its start-up."""
    unlimited = replace(trainer.problem, parameter_limit=None)
    while True:
        trial = study.ask()
        candidate = draw(trial, unlimited.space)
        if unlimited.refusal(candidate):
            trainer.pay(trainer.full // START_UP)
            study.tell(trial, state=TrialState.FAIL)
        else:
            yield trial, candidate


class Asha:
    """Ray Tune's ASHAScheduler in its default form: stop at a rung what is below its best 1/reduction so far.

    As in `ray.tune.schedulers.async_hyperband`: one bracket; the cutoff is a percentile of what was at the rung
    before, and the first that reaches it goes on. There is no way back for what was stopped.

    Args:
        milestones: Steps of the rungs, rising; at the last a training ends anyhow.
    """

    def __init__(self, milestones: Sequence[int]) -> None:
        self._losses: dict[int, list[float]] = {milestone: [] for milestone in milestones}

    def goes_on(self, milestone: int, loss: float) -> bool:
        """Tell whether a training may go on after a rung, and remember it."""
        before = self._losses[milestone]
        # Ray takes the (1 - 1/reduction) percentile of rewards, which are losses with the other sign.
        cutoff = np.percentile(before, 100 / REDUCTION) if before else math.inf
        before.append(loss)
        return bool(loss <= cutoff)


PEERS: dict[str, Engine] = {
    "nsga2": constrained(lambda seed: NSGAIISampler(seed=seed, population_size=16)),
    "tpe": constrained(lambda seed: TPESampler(seed=seed)),
    "optunasearch": optunasearch,
    "optunasearch-asha": optunasearch_asha,
}
"""Engine by name."""
