"""When a search stops: its limits, what it has spent of them, and whether a work unit still fits."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from autopeft.records import TrialRecord

Ending = Literal["trials", "time", "steps", "exhausted", "converged"]

ENDINGS = {
    "trials": "all trials are done",
    "time": "the time is over",
    "steps": "the optimiser steps are used up",
    "exhausted": "nothing new in the space fits the budget",
    "converged": "nothing that the engine finds is expected to improve the front by as much as was asked for",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: after so many candidates begun or optimiser steps taken, both counted over all sittings, or so many
    seconds of this one.

    Attributes:
        gain: Share of the front's volume that the engine must expect to gain, or the search has converged; 0 to go on.
        reserved: Records -> seconds that are kept for what comes after the search.
    """

    trials: int | None
    seconds: float | None
    steps: int | None = None
    gain: float = 0.0
    reserved: Callable[[Sequence[TrialRecord]], float] = lambda records: 0.0


def typical_seconds(records: Sequence[TrialRecord]) -> float:
    """Give the seconds that a whole training usually takes; 0 before one is complete."""
    seconds = [r.seconds for r in records if r.state == "complete"]
    return statistics.median(seconds) if seconds else 0.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """The steps of a work unit: from `first` to `last`."""

    first: int
    last: int

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.last - self.first


class Ledger:
    """What a search has spent, and what is under way.

    Args:
        steps: Optimiser steps of a whole training.
        records: Those of earlier sittings.
    """

    def __init__(self, limits: Limits, *, steps: int, records: Iterable[TrialRecord]) -> None:
        self._limits = limits
        self._begun: set[int] = set()
        self._spent_steps = 0
        self._under_way: dict[int, Stretch] = {}
        self._seconds: dict[Stretch, list[float]] = defaultdict(list)
        for record in records:
            self._spent_steps += record.steps
            if record.state != "stopped":
                self._begun.add(record.number)
            if record.state in ("complete", "paused") and len(record.rungs) <= 1:
                last = record.rungs[0].step if record.rungs else steps
                self._seconds[Stretch(0, last)].append(record.seconds)

    @property
    def all_begun(self) -> bool:
        """Whether as many candidates as asked for have been begun."""
        return self._limits.trials is not None and len(self._begun) >= self._limits.trials

    def bars(self, stretch: Stretch, *, seconds_left: float, together: int) -> Ending | None:
        """Say which limit keeps a work unit from being begun; None if it would be within all, as far as one can tell.

        Of units that a worker is given together none ends before all do, and an outcome tells one's part of that time.
        """
        if not stretch.first and self.all_begun:
            return "trials"
        planned = sum(other.steps for other in self._under_way.values()) + stretch.steps
        if self._limits.steps is not None and self._spent_steps + planned > self._limits.steps:
            return "steps"
        given = len(self._under_way) % together + 1
        return None if given * self._expected_seconds(stretch) < seconds_left else "time"

    def begin(self, number: int, stretch: Stretch) -> None:
        """Note that a work unit is under way."""
        self._begun.add(number)
        self._under_way[number] = stretch

    def end(self, record: TrialRecord, *, seconds: float, steps: int) -> None:
        """Note how a work unit ended, its own time, and the steps that it took."""
        stretch = self._under_way.pop(record.number)
        self._spent_steps += steps
        if record.state == "stopped":
            self._begun.discard(record.number)
        if record.state in ("complete", "paused"):
            self._seconds[stretch].append(seconds)

    def _expected_seconds(self, stretch: Stretch) -> float:
        """Tell from units of the same steps, or else from the pace of all, how long one will take."""
        if stretch in self._seconds:
            return statistics.median(self._seconds[stretch])
        paces = [s / max(1, other.steps) for other, seconds in self._seconds.items() for s in seconds]
        return statistics.median(paces) * stretch.steps if paces else 0.0
