"""The ladder: which paused trial is worth going on with. Asynchronous successive halving over several objectives.

A trial pauses at every rung. It goes on once it is among the best 1/eta of those that got there so far; nobody waits
for a rung to fill (ASHA, arXiv:1810.05934). Which are best is not the loss alone, or the large would push the small
ones out: they are taken front by front of (held-out loss so far, the other objectives), and of a front one by one what
adds most volume to those taken. Volumes are counted in ranks, so neither units nor a loss that is far off matter.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autopeft.candidates import Candidate
from autopeft.pareto import hypervolume, on_front
from autopeft.records import RungResult

ETA = 3
"""Of so many trials at a rung, one goes on."""
_CORNER = 2.0
"""Reference point of the volumes; ranks go from 0 to 1, and as far away the ends of a front count for much."""


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


class Ladder:
    """The rungs of a search, and who stands where.

    Args:
        rungs: Steps at which trials pause, ascending; without the end of a training, where nobody does.

    Raises:
        ValueError: If the rungs do not ascend from 1.
    """

    def __init__(self, rungs: Sequence[int] = (), *, eta: int = ETA) -> None:
        if list(rungs) != sorted({*rungs}) or any(step < 1 for step in rungs):
            raise ValueError(f"rungs {list(rungs)} do not ascend from 1")
        self._steps, self._eta = tuple(rungs), eta
        self._reached: dict[int, dict[int, Standing]] = {step: {} for step in rungs}
        self._paused: dict[int, Standing] = {}
        self._best_at: dict[int, list[int]] = {}  # until another one gets there

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
            self._best_at.pop(standing.result.step, None)
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
        if len(self._best_at.get(step, ())) < room:
            self._best_at[step] = best_of([[s.result.loss, *s.result.costs] for s in everyone], room)
        waits = {s.number for s in waiting}
        return [everyone[i] for i in self._best_at[step][:room] if everyone[i].number in waits]


def best_of(losses: ArrayLike, count: int) -> list[int]:
    """Choose rows front by front, and of a front one by one what adds most volume to those chosen of it.

    So the few that are chosen are spread over the front: its middle, its ends, and what lies between.

    Args:
        losses: ``(n_trials, n_objectives)``, finite; smaller is better. Only their order counts.

    Returns:
        At most `count` rows, best first; of equal ones the earlier.

    >>> best_of([[9, 9], [1, 7], [2, 5], [3, 4], [5, 2], [7, 1]], 4)
    [3, 1, 5, 2]
    """
    points = np.asarray(losses, dtype=np.float64)
    ranks = np.stack([_ranks(column) for column in points.T], axis=1)
    chosen: list[int] = []
    left = np.arange(len(ranks))
    while len(left) and len(chosen) < count:
        members = left[on_front(ranks[left])]
        chosen += members[_spread(ranks[members], count - len(chosen))].tolist()
        left = np.setdiff1d(left, members)
    return chosen


def _spread(points: NDArray[np.float64], count: int) -> list[int]:
    """Choose points of one front greedily by the volume that they add to those chosen.

    What a point adds only sinks as others are chosen, so most need not be computed again (Minoux, 1978).
    """
    if points.shape[1] == 1:  # all are equal
        return list(range(len(points)))[:count]
    chosen: list[int] = []
    heap = [(-_added(points[i], points[:0]), i) for i in range(len(points))]
    heapq.heapify(heap)
    while heap and len(chosen) < count:
        _, i = heapq.heappop(heap)
        now = (-_added(points[i], points[chosen]), i)
        if heap and heap[0] < now:
            heapq.heappush(heap, now)
        else:
            chosen.append(i)
    return chosen


def _added(point: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Give the volume between a point and the corner that no other dominates."""
    corner = np.full(len(point), _CORNER)
    whole = float(np.prod(corner - point))
    taken = hypervolume(np.maximum(others, point), corner) if len(others) else 0.0
    return round(whole - taken, 12)  # equal is what differs by rounding alone


def _ranks(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each value's place among the different ones, from 0 to 1."""
    different, places = np.unique(column, return_inverse=True)
    return places / max(1, len(different) - 1)
