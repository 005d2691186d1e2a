"""What engines are compared on: trainings that cost steps on paper, and the volume that what they found dominates.

A training that pauses at a rung and goes on shows the losses of one curve, whose noise belongs to candidate and seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from peers import Spent
from recorded import Recorded
from surrogate import Surrogate

from autopeft.candidates import Candidate
from autopeft.pareto import hypervolume, on_front
from autopeft.problem import Problem
from autopeft.work import Measurement, WorkUnit

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Landscape:
    """A search problem whose trainings are predicted.

    Attributes:
        problem: With a budget; what is above it can be trained, and counts for nothing.
        reference: ``(3,)``: loss of the untrained model, the whole budget, and the largest memory that was recorded.
        ideal: ``(3,)``: the best of each objective that was recorded.
    """

    problem: Problem
    surrogate: Surrogate
    reference: Array
    ideal: Array

    def scores(self, points: Array, *, linear: bool = False) -> Array:
        """Give objectives, smaller is better, in which the reference is (1, 1, 1) and the ideal (0, 0, 0).

        Args:
            points: ``(n, 3)``: loss, parameters, bytes.
            linear: Take parameters and memory as they are, not by their logarithm, in which twice as much is one step,
                however much it is: the one scale cares most for the best, the other for the smallest.
        """
        at, best, worst = (values if linear else _by_ratio(values) for values in (points, self.ideal, self.reference))
        return np.asarray((at - best) / (worst - best), dtype=np.float64)


def _by_ratio(points: Array) -> Array:
    return np.concatenate([points[..., :1], np.log(points[..., 1:])], axis=-1)


def make_landscape(recorded: Recorded, surrogate: Surrogate, *, share: float) -> Landscape:
    """Pose a search over the recorded space on bases of 32 and 16 bits, as a CPU has it.

    Args:
        share: Budget as a share of the base's parameters, the head on top.
    """
    problem = recorded.problem(share=share, bits=(32, 16))
    rows = recorded.complete
    within = rows[rows["trainable_params"] <= problem.parameter_limit]
    losses = np.stack(within["curve_loss"].to_list())[:, -1]
    return Landscape(
        problem,
        surrogate,
        np.array([recorded.untrained["loss"], problem.parameter_limit, within["memory_bytes"].max()]),
        np.array([losses.min(), within["trainable_params"].min(), within["memory_bytes"].min()]),
    )


@dataclass(slots=True)
class PaperTrainer:
    """Trains candidates of one search on paper, and keeps the account.

    Attributes:
        limit: Steps that there are in all.
        finished: Feasible trainings that came to their end: (steps spent by then, candidate, loss as measured).
    """

    landscape: Landscape
    seed: int
    limit: int
    spent: int = 0
    finished: list[tuple[int, Candidate, float]] = field(default_factory=list)

    @property
    def problem(self) -> Problem:
        """What is searched."""
        return self.landscape.problem

    @property
    def reference(self) -> list[float]:
        """Objectives that are worth nothing."""
        return [float(value) for value in self.landscape.reference]

    @property
    def full(self) -> int:
        """Steps of a whole training."""
        return self.landscape.surrogate.rungs[-1]

    def pay(self, steps: int) -> None:
        """Take steps from what is left.

        Raises:
            Spent: If there are not so many.
        """
        if self.spent + steps > self.limit:
            raise Spent
        self.spent += steps

    def train(self, candidate: Candidate, *, first: int = 0, last: int | None = None) -> tuple[float, int, int]:
        """Train a candidate on from one rung to another, by default from the start to the end.

        What is above the budget can be trained, and counts for nothing.

        Returns:
            Loss as measured at `last`, parameters, bytes.
        """
        at = last or self.full
        self.pay(at - first)
        curve = self.landscape.surrogate.noisy_curve(candidate, seed=self.seed)
        loss = float(curve[self.landscape.surrogate.rungs.index(at)])
        cost = self.problem.cost(candidate)
        assert cost is not None
        assert self.problem.parameter_limit is not None
        if at == self.full and cost.trainable_params <= self.problem.parameter_limit:
            self.finished.append((self.spent, candidate, loss))
        return loss, cost.trainable_params, self.landscape.surrogate.memory_bytes(candidate)

    def front(self, steps: int) -> Array:
        """Give the front that a search has found by so many steps, ``(n, 3)``: loss, parameters, bytes.

        What is on the front is decided by what the engine saw, noise and all; it counts with its noiseless loss.
        """
        done = [(candidate, loss) for at, candidate, loss in self.finished if at <= steps]
        if not done:
            return np.zeros((0, 3))
        seen, true = [], []
        for candidate, loss in done:
            cost = self.landscape.problem.cost(candidate)
            assert cost is not None
            known = (cost.trainable_params, self.landscape.surrogate.memory_bytes(candidate))
            seen.append((loss, *known))
            true.append((float(self.landscape.surrogate.curve(candidate)[-1]), *known))
        return np.array(true, dtype=np.float64)[on_front(seen)]

    def volume(self, steps: int, *, linear: bool = False) -> float:
        """Give the hypervolume of that front, in the box between reference and ideal."""
        return hypervolume(self.landscape.scores(self.front(steps), linear=linear), np.ones(3))

    def best(self, steps: int) -> float:
        """Give the lowest loss of that front; the untrained model's while there is none."""
        return float(min([self.landscape.reference[0], *self.front(steps)[:, 0]]))


class PaperRunner:
    """A Runner for autopeft's own loop, whose trainings are those of a PaperTrainer."""

    def __init__(self, trainer: PaperTrainer) -> None:
        self._trainer = trainer

    def run(self, unit: WorkUnit) -> Measurement:
        """Give the measurement of a work unit, which pays for its own steps only."""
        loss, params, memory = self._trainer.train(unit.candidate, first=unit.first, last=unit.steps)
        return Measurement(
            quality=loss, trainable_params=params, memory_bytes=memory, steps=unit.steps, metrics={"loss": loss}
        )
