"""The ladder: which paused trial is worth going on with. Asynchronous successive halving over several objectives.

A trial pauses at every rung. It goes on once it is among the best 1/eta of those that got there so far; nobody waits
for a rung to fill (ASHA, arXiv:1810.05934). Which are best is not the loss alone, or the large would push the small
ones out: they are ranked by fronts of (held-out loss so far, the other objectives), and within a front by the volume
that each alone dominates (as in SMS-EMOA, doi:10.1016/j.ejor.2006.08.008), counted in ranks, so that neither units nor
a loss that is far off weigh anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from autopeft.pareto import on_front
from autopeft.records import Candidate, RungResult

ETA = 3
"""Of so many trials at a rung, one goes on."""
_CORNER = 1.1
"""Reference point of the volumes; ranks go from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a trial stands at a rung.

    Attributes:
        start: Whether it is one of the configurations that a space starts with: what all others are compared with, so
            it always goes on.
    """

    number: int
    candidate: Candidate
    result: RungResult
    start: bool = False


Scorer = Callable[[Sequence[Standing]], ArrayLike]
"""Paused trials of one rung -> what going on with each is worth, ``(n_paused,)``; larger is better."""


class Ladder:
    """The rungs of a search, and who stands where.

    Args:
        rungs: Steps at which trials pause, ascending; without the end of a training, where nobody does.
        scorer: Says which paused trials to go on with, in place of the ranking here: as many of the best as keeps those
            that went on from a rung at 1/eta of those that got there.

    Raises:
        ValueError: If the rungs do not ascend from 1.
    """

    def __init__(self, rungs: Sequence[int] = (), *, eta: int = ETA, scorer: Scorer | None = None) -> None:
        if list(rungs) != sorted({*rungs}) or any(step < 1 for step in rungs):
            raise ValueError(f"rungs {list(rungs)} do not ascend from 1")
        self._steps, self._eta, self._scorer = tuple(rungs), eta, scorer
        self._reached: dict[int, dict[int, Standing]] = {step: {} for step in rungs}
        self._paused: dict[int, Standing] = {}

    @property
    def paused(self) -> Sequence[Standing]:
        """Who waits, in the order of their numbers."""
        return [self._paused[number] for number in sorted(self._paused)]

    def after(self, step: int) -> int | None:
        """Give the rung that comes after some steps; None for the end of the training."""
        return next((rung for rung in self._steps if rung > step), None)

    def reach(self, standing: Standing, *, pauses: bool = True) -> None:
        """Note that a trial has reached a rung, and whether it waits there; steps that are no rung are let be."""
        if (at := self._reached.get(standing.result.step)) is not None:
            at[standing.number] = standing
        self._paused.pop(standing.number, None)
        if pauses:
            self._paused[standing.number] = standing

    def promote(self, *, may: Callable[[Standing], bool] = lambda _: True, closing: bool = False) -> Standing | None:
        """Give the next trial to go on with, which no longer waits then; None if none is worth it yet.

        Configurations of the start come first, then those of the highest rung.

        Args:
            may: Whether there is time and room to go on with one.
            closing: Whether no trial will be begun any more: of few at a rung, the best goes on as well.
        """
        due = [s for s in self.paused if s.start]
        for step in reversed(self._steps):
            due += self._best(step, closing=closing)
        chosen = next((standing for standing in due if may(standing)), None)
        if chosen is not None:
            del self._paused[chosen.number]
        return chosen

    def _best(self, step: int, *, closing: bool) -> list[Standing]:
        """Give the paused trials of a rung that are among the best there, best first."""
        everyone = list(self._reached[step].values())
        waiting = [s for s in everyone if (at := self._paused.get(s.number)) is not None and at.result.step == step]
        room = -(-len(everyone) // self._eta) if closing else len(everyone) // self._eta
        if not waiting or not room:
            return []
        if self._scorer is not None:
            gone = sum(s.number not in self._paused and not s.start for s in everyone)
            return _by(np.asarray(self._scorer(waiting), dtype=np.float64), waiting)[: max(0, room - gone)]
        points = [[s.result.loss, *s.result.costs] for s in everyone]
        return [s for s in _by(worth(points), everyone)[:room] if s in waiting]


def worth(losses: ArrayLike) -> NDArray[np.float64]:
    """Rank points by fronts, and within a front by the volume that each alone dominates.

    Args:
        losses: ``(n_trials, n_objectives)``, finite; smaller is better.

    Returns:
        ``(n_trials,)``; larger is better: less the number of the front, plus a share of 1 of its volume.

    >>> worth([[1, 9], [5, 5], [6, 4], [9, 9]]).argsort()[::-1].tolist()
    [2, 1, 0, 3]
    """
    points = np.asarray(losses, dtype=np.float64)
    ranks = np.stack([_ranks(column) for column in points.T], axis=1)
    if ranks.shape[1] == 1:
        return -ranks[:, 0]
    corner = np.full(points.shape[1], _CORNER)
    values = np.zeros(len(points))
    left, number = np.arange(len(points)), 0
    while len(left):
        members = left[on_front(ranks[left])]
        alone = moocore.hv_contributions(ranks[members], ref=corner)
        values[members] = np.asarray(alone) / (2 * np.prod(corner)) - number
        left, number = np.setdiff1d(left, members), number + 1
    return values


def _ranks(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each value's place among the different ones, from 0 to 1."""
    different, places = np.unique(column, return_inverse=True)
    return places / max(1, len(different) - 1)


def _by(values: NDArray[np.float64], standings: Sequence[Standing]) -> list[Standing]:
    """Sort by value, largest first; of equal ones the earlier trial."""
    order = sorted(range(len(standings)), key=lambda i: (-values[i], standings[i].number))
    return [standings[i] for i in order]
