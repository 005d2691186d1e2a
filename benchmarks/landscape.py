"""What engines are compared on: trainings that cost steps on paper, and the volume that what they found dominates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from recorded import Recorded
from surrogate import Surrogate

from autopeft.pareto import hypervolume, on_front
from autopeft.problem import Problem
from autopeft.records import Candidate, Measurement, WorkUnit

Array = NDArray[np.float64]


class Spent(Exception):
    """No steps are left."""


@dataclass(frozen=True, slots=True)
class Landscape:
    """A search problem whose trainings are predicted.

    Attributes:
        problem: With a budget; what is above it can be trained, and counts for nothing.
        reference: ``(3,)``: what an untrained model, the whole budget and the largest memory come to; see `scores`.
        ideal: ``(3,)``: the best of each objective that was recorded.
    """

    problem: Problem
    surrogate: Surrogate
    reference: Array
    ideal: Array

    def scores(self, losses: Sequence[float], params: Sequence[int], memory: Sequence[int]) -> Array:
        """Give objectives, smaller is better, in which the reference is (1, 1, 1) and the ideal (0, 0, 0).

        Parameters and memory by their logarithm: twice as much is one step, however much it is.
        """
        points = np.stack([np.asarray(losses), np.log(params), np.log(memory)], axis=1)
        return np.asarray((points - self.ideal) / (self.reference - self.ideal), dtype=np.float64)


def make_landscape(recorded: Recorded, surrogate: Surrogate, *, share: float) -> Landscape:
    """Pose a search over the recorded space on bases of 32 and 16 bits, as a CPU has it.

    Args:
        share: Budget as a share of the base's parameters, the head on top.
    """
    problem = recorded.problem(share=share, bits=(32, 16))
    rows = recorded.complete
    within = rows[rows["trainable_params"] <= problem.parameter_limit]
    largest = float(np.log(rows["memory_bytes"].quantile(0.98)))
    return Landscape(
        problem,
        surrogate,
        np.array([recorded.untrained["loss"], np.log(problem.parameter_limit), largest]),
        np.array(
            [
                float(np.stack(within["curve_loss"].to_list())[:, -1].min()),
                np.log(within["trainable_params"].min()),
                np.log(within["memory_bytes"].min()),
            ]
        ),
    )


@dataclass(slots=True)
class Trainer:
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

    def losses(self, candidate: Candidate) -> dict[int, float]:
        """Give what is measured at each rung; who looks at a rung pays for its steps."""
        curve = self.landscape.surrogate.noisy_curve(candidate, seed=self.seed)
        return dict(zip(self.landscape.surrogate.rungs, curve.tolist(), strict=True))

    def finish(self, candidate: Candidate, *, feasible: bool = True) -> tuple[float, int, int]:
        """Note that a training has come to its end; gives loss, parameters and memory."""
        loss = self.losses(candidate)[self.full]
        if feasible:
            self.finished.append((self.spent, candidate, loss))
        cost = self.landscape.problem.cost(candidate)
        assert cost is not None
        return loss, cost.trainable_params, self.landscape.surrogate.memory_bytes(candidate)

    def train(self, candidate: Candidate, *, feasible: bool = True) -> tuple[float, int, int]:
        """Train a candidate to the end."""
        self.pay(self.full)
        return self.finish(candidate, feasible=feasible)

    def points(self, steps: int) -> Array:
        """Give the front that a search has found by so many steps, ``(n, 3)``: chosen as measured, valued as it is.

        What is on the front is decided by what the engine saw, noise and all; it counts with its noiseless loss.
        """
        done = [(candidate, loss) for at, candidate, loss in self.finished if at <= steps]
        if not done:
            return np.zeros((0, 3))
        landscape = self.landscape
        params = [c.trainable_params for candidate, _ in done if (c := landscape.problem.cost(candidate)) is not None]
        memory = [landscape.surrogate.memory_bytes(candidate) for candidate, _ in done]
        seen = landscape.scores([loss for _, loss in done], params, memory)
        true = landscape.scores([landscape.surrogate.curve(candidate)[-1] for candidate, _ in done], params, memory)
        return np.asarray(true[on_front(seen)])

    def volume(self, steps: int) -> float:
        """Give the hypervolume of that front, in the box between reference and ideal."""
        return hypervolume(self.points(steps), np.ones(3))


class PaperRunner:
    """A Runner for autopeft's own loop, whose trainings are those of a Trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def run(self, unit: WorkUnit) -> Measurement:
        """Give the measurement of a work unit."""
        loss, params, memory = self._trainer.train(unit.candidate)
        return Measurement(
            quality=loss, trainable_params=params, memory_bytes=memory, steps=unit.steps, metrics={"loss": loss}
        )
