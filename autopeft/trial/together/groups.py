"""Which candidates of a worker are trained together, and how many at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from autopeft.anatomy import Task
from autopeft.candidates import BaseFormat, Recipe
from autopeft.errors import TrialError
from autopeft.recipe import CUSTOMARY
from autopeft.trial.adapters import Resident
from autopeft.trial.batches import Batch, largest
from autopeft.trial.checkpoint import Checkpoint, restore
from autopeft.trial.together.check import is_as_alone
from autopeft.trial.together.choice import choose_size
from autopeft.trial.together.group import computes_loss
from autopeft.trial.together.lifted import Bare
from autopeft.trial.together.streams import Stream
from autopeft.trial.together.train import Trainee, is_stacked, train_together, why_alone
from autopeft.trial.train import Learner, Training
from autopeft.work import WorkUnit

MOST = 16
"""Candidates that are ever trained together."""
_SHARED = ("batch_size", "max_length", "gradient_accumulation_steps", "packing")
"""Fields of a recipe that decide what a batch is: candidates trained together have them in common."""
Kind = tuple[BaseFormat, Recipe, bool]
"""The base's format, what a batch is, and whether the products of all candidates are stacked: these pay most."""

Way = tuple[str, bool]
"""A method, and whether its adapter has dropout: what decides how a candidate's own layers run among others."""


def _way(unit: WorkUnit) -> Way:
    assert unit.plan is not None
    drops = any(value for config in unit.plan.configs for name, value in config.items() if "dropout" in name)
    return unit.plan.method, drops


class Groups:
    """The groups of one worker; for each kind of batch it is tried once how many candidates pay."""

    def __init__(self, *, task: Task, device: str) -> None:
        self._task, self._device = task, device
        self._sizes: dict[Kind, int] = {}
        self._most: dict[Kind, int] = {}  # that memory may hold, where even the trial was too large
        self._final: set[Kind] = set()  # of which more were tried, and do not pay
        self._checked: dict[Kind, set[Way]] = {}  # that were seen to compute what they compute alone

    def first(self, units: Mapping[int, WorkUnit]) -> dict[int, WorkUnit]:
        """Give the first unit and those that can be trained with it, no more than pay: equally far, and on
        the same batches."""
        first = next(iter(units))
        if (kind := self._kind(units[first])) is None:
            return {first: units[first]}
        where = units[first].first, units[first].data_seed
        alike = [i for i, unit in units.items() if self._kind(unit) == kind and (unit.first, unit.data_seed) == where]
        return {i: units[i] for i in alike[: self._sizes[kind] if kind in self._final else self._most.get(kind, MOST)]}

    def limit(self, units: Mapping[int, WorkUnit], size: int) -> None:
        """Train no more than so many like these together from now on."""
        if (kind := self._kind(next(iter(units.values())))) is not None:
            self._sizes[kind] = size
            self._final.add(kind)

    def halve(self, units: Mapping[int, WorkUnit]) -> None:
        """Train half as many like these together, or try half as many, for memory did not hold them."""
        kind = self._kind(next(iter(units.values())))
        if kind in self._sizes:
            self.limit(units, max(1, min(self._sizes[kind], len(units)) // 2))
        elif kind is not None:
            self._most[kind] = len(units) // 2

    def train(
        self,
        units: Mapping[int, WorkUnit],
        resident: Resident,
        batches: Sequence[Sequence[Batch]],
        *,
        attach: Callable[[WorkUnit], Any],
        reusing: Callable[[Any], AbstractContextManager[None]],
        begun: Mapping[int, Checkpoint],
    ) -> Iterator[tuple[int, Any, Training | TrialError]]:
        """Train units together, or as many of the first as pay; gives nothing if none do.

        Args:
            units: Of one kind, by number; all after the same number of steps.
            batches: Those of the longest training, on the device.
            attach: Puts a unit's adapter on the resident base, and gives the model to call.
            reusing: What a candidate that is trained alone is given: the context in which frozen layers are reused.
            begun: The states to go on from, of units that do.

        Yields:
            For each unit that was trained its number, the model to call with its adapter on, and what came of it.

        Raises:
            TrialError: If they cannot be trained together after all.
            CheckpointError: If a state is that of another adapter.
        """
        kind = self._kind(next(iter(units.values())))
        assert kind is not None
        bare = Bare(resident.model)
        if kind not in self._sizes and not computes_loss(bare.model, batches[0][0], self._task):
            self.limit(units, 1)
            return
        trainees = [self._lifted(unit, resident, bare, batches, attach, begun.get(i)) for i, unit in units.items()]
        if kind not in self._final and len(units) >= 2 * self._sizes.get(kind, 1):
            size, gains = choose_size(bare, trainees, batches[0], task=self._task, device=self._device, reusing=reusing)
            self._sizes[kind] = size
            if size < max(gains):
                self._final.add(kind)
        if (size := self._sizes[kind]) == 1:
            return
        ways = {_way(unit) for unit in list(units.values())[:size]}
        if not ways <= self._checked.setdefault(kind, set()):
            if not is_as_alone(bare, trainees[:size], batches[0], task=self._task, device=self._device):
                logging.getLogger(__name__).info("together: this model computes something else for several at once")
                self.limit(units, 1)
                return
            self._checked[kind] |= ways
        trainings = train_together(
            bare, trainees[:size], parts_at=lambda step: batches[step], task=self._task, device=self._device
        )
        for i, trainee, training in zip(units, trainees, trainings, strict=False):
            trainee.lifted.put_on(bare.model)
            yield i, trainee.learner.adapted, training
            bare.strip()

    def _lifted(
        self,
        unit: WorkUnit,
        resident: Resident,
        bare: Bare,
        batches: Sequence[Sequence[Batch]],
        attach: Callable[[WorkUnit], Any],
        begun: Checkpoint | None = None,
    ) -> Trainee:
        """Attach an adapter, and lift it off the base again."""
        assert unit.plan is not None
        adapted = attach(unit)
        adapted.train()
        learner = Learner(adapted, steps=unit.whole, recipe=unit.plan.recipe, device=self._device)
        stream, measured = Stream(unit.seed, self._device), largest(batches[: unit.steps])
        trainee = Trainee(
            unit.plan, bare.lift(adapted), learner, stream, unit.steps, measured, pauses=unit.steps < unit.whole
        )
        if begun is not None:
            restore(learner, begun)
            stream.state, trainee.peak_bytes, trainee.seconds = begun.random, begun.peak_bytes, begun.seconds
        resident.detach()
        return trainee

    def _kind(self, unit: WorkUnit) -> Kind | None:
        """Give what must be equal for candidates to be trained together; None for one that cannot be."""
        assert unit.plan is not None
        if not unit.steps or why_alone(unit.plan, device=self._device):
            return None
        recipe = unit.plan.recipe
        rows = replace(CUSTOMARY, **{name: getattr(recipe, name) for name in _SHARED})
        return unit.plan.base, rows, is_stacked(unit.plan)
