"""Problem: all that the engine may know of what it searches: a bound space, exact costs, a budget, objectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from random import Random

from autopeft.anatomy import Anatomy
from autopeft.budget import project, smallest
from autopeft.candidates import AdapterPlan, BaseFormat, Candidate, Cost, Recipe, Scalar
from autopeft.domains import Choices
from autopeft.errors import InfeasibleError, RequestError
from autopeft.methods import METHODS
from autopeft.objectives import Objective
from autopeft.plain import digest
from autopeft.plans import adapter_params, plan_of, unfit
from autopeft.recipe import CUSTOMARY, conflict, conflict_with, recipe_of
from autopeft.records import Prior
from autopeft.space import Space
from autopeft.units import show_bytes, show_count, show_percent

_DRAWS = 400
"""Configurations drawn at random before a space is taken for one in which nothing fits."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is searched.

    Attributes:
        space: Bound to the model.
        anatomy: The model; None with a custom runner.
        own_cost: With a custom runner: candidate -> trained parameters, where that is known.
        parameter_limit: Most trained parameters, head included; None for no limit.
        memory_limit_bytes: Most peak memory; None for no limit.
        recipe: How every candidate is trained that does not say otherwise; its learning rate is not used.
        base: How the base is held likewise; None for the checkpoint's bits.
        predicted_bytes: Plan -> predicted peak memory of its training; None where nothing predicts it.
        prior: What earlier runs say of candidates of this one.
    """

    space: Space
    objectives: tuple[Objective, ...]
    anatomy: Anatomy | None = None
    own_cost: Callable[[Candidate], int] | None = None
    parameter_limit: int | None = None
    memory_limit_bytes: int | None = None
    recipe: Recipe = CUSTOMARY
    base: BaseFormat | None = None
    predicted_bytes: Callable[[AdapterPlan], int] | None = None
    prior: tuple[Prior, ...] = ()

    def plan(self, candidate: Candidate) -> AdapterPlan | None:
        """Give the adapter that a candidate means; None with a custom runner."""
        return None if self.anatomy is None else self._plan(candidate, self.anatomy)

    def _plan(self, candidate: Candidate, anatomy: Anatomy) -> AdapterPlan:
        return plan_of(candidate, anatomy, recipe=self.recipe, base=self.base)

    def cost(self, candidate: Candidate) -> Cost | None:
        """Count exactly what a candidate trains, and predict its memory; None where a custom runner does not say."""
        if self.own_cost is not None:
            return Cost(self._own_count(candidate))
        if self.anatomy is None:
            return None
        plan = self._plan(candidate, self.anatomy)
        predicted = 0 if self.predicted_bytes is None else self.predicted_bytes(plan)
        return Cost(plan.adapter_params, self.anatomy.head_params, predicted)

    @property
    def is_counted(self) -> bool:
        """Whether it is known how many parameters a candidate trains; with a custom runner it need not be."""
        return self.own_cost is not None or self.anatomy is not None

    @property
    def head_params(self) -> int:
        """What every candidate trains beside its adapter."""
        return self.anatomy.head_params if self.anatomy else 0

    def adapter_params(self, candidate: Candidate) -> int:
        """Count the parameters of a candidate's adapter, and predict no memory; 1 where nobody can tell."""
        if self.own_cost is not None:
            return self._own_count(candidate)
        return 1 if self.anatomy is None else adapter_params(candidate, self.anatomy)

    def counted_by(self, candidate: Candidate) -> Hashable:
        """Give those of a candidate's values that decide `adapter_params`: with a cost function all of them."""
        if self.own_cost is not None or self.anatomy is None:
            return candidate
        own = f"{candidate['method']}."
        return tuple(said for said in candidate.values.items() if said[0] == "method" or said[0].startswith(own))

    def _own_count(self, candidate: Candidate) -> int:
        """Ask the user's own cost function.

        Raises:
            RequestError: If it fails, or gives anything but a whole number of parameters.
        """
        assert self.own_cost is not None
        try:
            counted: object = self.own_cost(candidate)
        except Exception as error:
            raise RequestError(f"cost: {type(error).__name__}: {error}, for {candidate.written_out}") from error
        number = float(counted) if isinstance(counted, Real) else math.nan
        if not math.isfinite(number) or number < 0 or number != math.floor(number):
            raise RequestError(
                f"cost: {counted!r} is no number of parameters, for {candidate.written_out}; "
                "return a whole number, 0 or more"
            )
        return int(number)

    @property
    def _adapter_limit(self) -> int:
        """What the budget leaves for the adapter; without a budget, more than any adapter has."""
        if self.parameter_limit is None:
            return 2**62
        return self.parameter_limit - (self.anatomy.head_params if self.anatomy else 0)

    def fit(self, candidate: Candidate, *, count: Callable[[Candidate], int] | None = None) -> Candidate | None:
        """Give the candidate, lowered into the budget if need be; None if that is not possible.

        Args:
            count: `adapter_params`, of a caller that remembers what it gave.
        """
        return project(self.space, candidate, count=count or self.adapter_params, limit=self._adapter_limit)

    def _unfit(self, candidate: Candidate) -> str:
        """Say why a candidate cannot be trained whatever its size."""
        if self.anatomy is None:
            return ""
        method = METHODS[str(candidate["method"])]
        if method.reference and self.parameter_limit is not None:
            return f"{method.name} is a reference to compare with, and not for a budget; search it with --budget none"
        recipe = recipe_of(candidate, self.recipe, learning_rate=0.0)
        if reason := unfit(candidate, self.anatomy, self.base):
            return reason
        if reason := conflict(recipe, task=self.anatomy.task):
            return reason
        uncommon = recipe.packing or recipe.gradient_checkpointing
        return conflict_with(recipe, self._plan(candidate, self.anatomy).configs) if uncommon else ""

    def smallest(self) -> tuple[Candidate, int] | None:
        """Find the smallest configuration that can be trained, and the parameters of its adapter."""
        return smallest(self.space, count=lambda c: 0 if self._unfit(c) else self.adapter_params(c))

    def refusal(self, candidate: Candidate, *, margin: float = 1.0) -> str:
        """Say why a candidate cannot be trained; "" if it can. No training is needed to know.

        Args:
            margin: What predicted memory is multiplied with before it is held against the limit.
        """
        if reason := self._unfit(candidate):
            return reason
        params = self.adapter_params(candidate)
        if params == 0:
            return "it trains nothing"
        if params > self._adapter_limit:
            return f"{show_count(params)} adapter parameters are more than the {show_count(self._adapter_limit)} left"
        return self._too_much_memory(candidate, margin=margin)

    def _too_much_memory(self, candidate: Candidate, *, margin: float = 1.0) -> str:
        limit = self.memory_limit_bytes
        if limit is None or self.predicted_bytes is None or self.anatomy is None:
            return ""
        needed = self.predicted_bytes(self._plan(candidate, self.anatomy)) * margin
        return "" if needed <= limit else f"it is predicted to need {show_bytes(needed)}, more than {show_bytes(limit)}"

    def identity(self, candidate: Candidate) -> str:
        """Give what makes two candidates the same training: equal plans are duplicates whatever their values."""
        plan = self.plan(candidate)
        return candidate.key if plan is None else digest(plan.to_dict())

    def check_feasible(self) -> None:
        """Make sure that something in the space fits.

        Raises:
            RequestError: If what is said of the training of all candidates contradicts itself.
            InfeasibleError: Naming the smallest configuration and its size.
        """
        self._check_recipe()
        self._check_references()
        self._check_weights()
        if (one := next(chain(self.starts(), self._drawn()), None)) is None:
            # Only now: on a large space the smallest takes seconds to find.
            self._check_smallest()
        for objective in self.objectives:
            if objective.known is not None and one is not None:
                objective.known_loss(one)
        self._check_memory()

    def starts(self) -> Iterator[Candidate]:
        """Give the configurations to start with that can be trained within the parameter budget."""
        for start in self.space.start:
            fitted = self.fit(self.space.complete(start))
            if fitted is not None and not self._unfit(fitted):
                yield fitted

    def _drawn(self) -> Iterator[Candidate]:
        """Give what fits of some configurations at random; there may be more that is smaller than any size allows."""
        random = Random(0)
        for _ in range(_DRAWS):
            fitted = self.fit(self.space.draw(random))
            if fitted is not None and not self._unfit(fitted):
                yield fitted

    def last_resort(self) -> Iterator[Candidate]:
        """Give the smallest configuration, which on a large space takes seconds to find: only when it is asked for."""
        if (found := self.smallest()) is not None:
            yield found[0]

    def _check_smallest(self) -> None:
        found = self.smallest()
        if found is None:
            first = self.space.complete(self.space.start[0] if self.space.start else {})
            why = self._unfit(first) or "it trains nothing"
            on = "" if self.anatomy is None else " on this model"
            raise InfeasibleError(f"space: nothing in it can be trained{on}; for one, {why}. Allow more")
        candidate, params = found
        if params <= self._adapter_limit:
            return
        head = self.anatomy.head_params if self.anatomy else 0
        needed = params + head
        share = f" ({show_percent(needed / self.anatomy.base_params)} of the model)" if self.anatomy else ""
        with_head = f", {show_count(head)} of them in the new task head" if head else ""
        what = ", ".join(f"{k}={v}" for k, v in candidate.values.items() if _tells(v))
        raise InfeasibleError(
            f"budget: {self.parameter_limit:,} parameters; the smallest configuration found here needs {needed:,}"
            f"{share}{with_head}: {what}. Raise --budget to at least {needed}, or choose a space with smaller methods."
        )

    def _check_memory(self) -> None:
        """Make sure that the memory is predicted to hold some configuration: one to start with, or the smallest."""
        if self.memory_limit_bytes is None or self.predicted_bytes is None or self.anatomy is None:
            return
        least: int | None = None
        for candidate in chain(self.starts(), self.last_resort()):
            needed = self.predicted_bytes(self._plan(candidate, self.anatomy))
            if needed <= self.memory_limit_bytes:
                return
            least = needed if least is None else min(least, needed)
        raise InfeasibleError(
            f"memory: {show_bytes(self.memory_limit_bytes)}; with {self.recipe.batch_size} rows a step the leanest "
            f"configuration here is predicted to need {show_bytes(least or 0)}. Raise --memory, lower --batch-size or "
            "--max-length, or use --gradient-accumulation-steps or --gradient-checkpointing (autopeft estimate tells "
            "what fits)."
        )

    def _check_recipe(self) -> None:
        free = {p.name for p in self.space} & {"batch_size", "gradient_accumulation_steps", "packing"}
        if self.anatomy is not None and not free and (why := conflict(self.recipe, task=self.anatomy.task)):
            raise RequestError(why)

    def _check_references(self) -> None:
        """Make sure that nobody waits for references that a budget forbids."""
        method = next((p.domain for p in self.space if p.name == "method"), None)
        if self.parameter_limit is None or self.anatomy is None or not isinstance(method, Choices):
            return
        if found := [str(name) for name in method.values if METHODS[str(name)].reference]:
            raise RequestError(
                f"budget: {', '.join(found)} are references to compare with, and never under a budget; give --budget "
                "none, or a space without them"
            )

    def _check_weights(self) -> None:
        """Make sure that the frozen weights alone fit the memory; all else comes on top of them."""
        if self.anatomy is None or self.memory_limit_bytes is None:
            return
        bits = next((p.domain for p in self.space if p.name == "bits"), None)
        own = self.anatomy.dtype_bits if self.base is None else self.base.bits
        fewest = min(map(int, bits.values)) if isinstance(bits, Choices) else own
        weights = self.anatomy.base_params * fewest // 8
        if weights > self.memory_limit_bytes:
            raise InfeasibleError(
                f"memory: {show_bytes(self.memory_limit_bytes)} do not hold the model's weights, "
                f"{show_bytes(weights)} at {fewest} bits. Raise --memory, or choose a space with fewer bits."
            )


def _tells(value: Scalar) -> bool:
    return value != 0 and value is not False
