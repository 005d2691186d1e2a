"""SAMPLERS by name, and the wrapper that makes any of them propose only new, feasible candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from autopeft.candidates import Candidate, Scalar
from autopeft.domains import Real, Whole, ends
from autopeft.problem import Problem
from autopeft.registry import Table
from autopeft.search.codec import decoded, distributions, encode
from autopeft.search.engine import Observed
from autopeft.search.engine_sampler import EngineSampler
from autopeft.search.known_cost import KnownCost
from autopeft.search.nehvi import Nehvi
from autopeft.space import Space

ENGINE_DRAWS, RANDOM_DRAWS = 16, 64
"""Draws of the engine, each some ten milliseconds, and then at random, before a space is taken for exhausted."""

IDENTITY = "identity"
"""User attribute of an Optuna trial: what makes two trials the same training."""


ENUMERATED = 4096
"""Most candidates of a space that is gone through one by one once draws find nothing new."""


_STATES: Mapping[TrialState, Literal["complete", "failed", "running", "paused"]] = {
    TrialState.COMPLETE: "complete", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.PRUNED: "paused",
}  # fmt: skip
"""What a trial's state means to an engine; what did not fit the memory, or was stopped, says nothing of quality.

What waits at a rung is running to Optuna, and under way to an engine: it may go on whenever more get there."""


class SpaceExhausted(Exception):
    """No candidate could be found that is new and feasible."""


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=8)


SAMPLERS: Table[Callable[[int], BaseSampler]] = Table(
    {
        "known-cost": lambda seed: EngineSampler(KnownCost, seed=seed),
        "autopeft": lambda seed: EngineSampler(Nehvi, seed=seed),
        "tpe": _tpe,
        "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=16),
        "random": lambda seed: RandomSampler(seed=seed),
    }
)
"""Engine by name: seed -> Optuna sampler."""


class FeasibleSampler(BaseSampler):
    """Lets an engine draw, lowers the draw into the budget, and draws again while it is refused or was tried before.

    Each trial has its own random state, made of the seed and the trial's number: a resumed search proposes what the
    uninterrupted one would have, and a redraw never repeats itself.

    Attributes:
        margin: What predicted memory is multiplied with; the study keeps it up to date.
    """

    def __init__(self, problem: Problem, engine: Callable[[int], BaseSampler], *, seed: int) -> None:
        self._problem, self._engine, self._seed = problem, engine, seed
        self._distributions = distributions(problem.space)
        self._parameters = {p.name: p for p in problem.space}
        made = engine(seed)
        self._whole = made.on(problem) if isinstance(made, EngineSampler) else None
        self._seen: dict[int, Observed] = {}
        self.margin = 1.0

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Claim every parameter: `sample_relative` gives the whole configuration at once."""
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a configuration.

        Raises:
            SpaceExhausted: If none was found that is new and feasible.
        """
        trials = study.get_trials(deepcopy=False)
        known = {t.user_attrs.get(IDENTITY) for t in trials}

        def accepts(candidate: Candidate) -> bool:
            # The identity first: a limit of memory can make the refusal take seconds.
            is_new = self._problem.identity(candidate) not in known
            return is_new and not self._problem.refusal(candidate, margin=self.margin)

        if self._whole is not None:
            others = [seen for t in trials if t.number != trial.number and (seen := self._observed(t)) is not None]
            found = self._whole.propose(others, number=trial.number, accepts=accepts)
            if found is not None:
                return encode(self._problem.space, found)
        state = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
        drawing = [(RandomSampler(seed=state), RANDOM_DRAWS)]
        if self._whole is None:
            drawing.insert(0, (self._engine(state), ENGINE_DRAWS))
        for engine, draws in drawing:
            together = engine.infer_relative_search_space(study, trial)
            for _ in range(draws):
                drawn = self._draw(engine, study, trial, together)
                candidate = self._problem.fit(drawn)
                if candidate is not None and accepts(candidate):
                    return encode(self._problem.space, candidate)
        return encode(self._problem.space, self._left_over(accepts, state))

    def _observed(self, trial: FrozenTrial) -> Observed | None:
        """Read a trial for an engine that proposes whole configurations; None if it tells nothing.

        What has ended is read once: each proposal looks at every trial.
        """
        seen = self._seen.get(trial.number)
        if seen is not None and seen.state != "running":
            return seen
        if not trial.params or trial.state not in _STATES:
            return None
        if trial.state is TrialState.PRUNED and not trial.intermediate_values:
            return None
        candidate = (
            seen.candidate
            if seen
            else Candidate({name: decoded(self._parameters[name], value) for name, value in trial.params.items()})
        )
        results = tuple(trial.values or ())
        seen = Observed(trial.number, _STATES[trial.state], candidate, results, trial.intermediate_values)
        self._seen[trial.number] = seen
        return seen

    @property
    def expected_gain(self) -> float | None:
        """What the last proposal was expected to add to the front, as a share of its volume; None if unknown."""
        return self._whole.expected_gain if isinstance(self._whole, KnownCost) else None

    def _left_over(self, accepts: Callable[[Candidate], bool], state: int) -> Candidate:
        """Find what draws have missed in a small space, where most of them are known by now.

        Raises:
            SpaceExhausted: If there is nothing, or the space is not small.
        """
        everything = every_candidate(self._problem.space, most=ENUMERATED)
        drawn = (everything[i] for i in np.random.default_rng(state).permutation(len(everything)))
        # Under a budget that hardly allows anything, all draws may be too large.
        for left in chain(drawn, self._problem.last_resort()):
            candidate = self._problem.fit(left)
            if candidate is not None and accepts(candidate):
                return candidate
        raise SpaceExhausted

    def _draw(
        self, engine: BaseSampler, study: optuna.Study, trial: FrozenTrial, together: dict[str, BaseDistribution]
    ) -> Candidate:
        """Draw one configuration, parents before what depends on them; what is not active is not drawn.

        Args:
            together: The parameters that the engine draws with regard to one another; the others it draws singly.
        """
        values: dict[str, Scalar] = {}
        while level := [p for p in self._problem.space if p.name not in values and p.is_active(values)]:
            joint = {p.name: together[p.name] for p in level if p.name in together}
            relative = engine.sample_relative(study, trial, joint) if joint else {}
            for parameter in level:
                value = relative.get(parameter.name)
                if value is None:
                    value = engine.sample_independent(study, trial, parameter.name, self._distributions[parameter.name])
                values[parameter.name] = decoded(parameter, value)
        return self._problem.space.complete(values)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: every parameter is in the relative space."""
        raise AssertionError(f"{param_name} was not drawn")

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Let the engine do its book-keeping."""
        self._engine(self._seed).after_trial(study, trial, state, values)


def every_candidate(space: Space, *, most: int) -> list[Candidate]:
    """Give every candidate of a bound space; none if there are more than so many, or a parameter is continuous."""
    partial: list[dict[str, Scalar]] = [{}]
    for parameter in space:
        grown: list[dict[str, Scalar]] = []
        for values in partial:
            if not parameter.is_active(values):
                grown.append(values)
                continue
            domain = parameter.domain
            if isinstance(domain, Real) or (isinstance(domain, Whole) and domain.high - domain.low >= most):
                return []
            listed = tuple(range(domain.low, domain.high + 1)) if isinstance(domain, Whole) else ends(domain)
            grown += [{**values, parameter.name: value} for value in listed]
        partial = grown
        if len(partial) > most:
            return []
    return [space.complete(values) for values in partial]
