"""What an engine is that proposes whole configurations of a Problem, and what it sees of the trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from autopeft.candidates import Candidate
from autopeft.problem import Problem

STARTUP = 6
"""Results before there is a model; until then candidates are drawn."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A trial as an engine sees it.

    Attributes:
        state: "running" also while it waits at a rung; "paused" if it was cut off after a part of its training.
        values: By objective, as measured; empty but for a complete trial.
        partial: Step -> held-out loss there, smaller is better.
    """

    number: int
    state: Literal["complete", "failed", "running", "paused"]
    candidate: Candidate
    values: tuple[float, ...] = ()
    partial: Mapping[int, float] = field(default_factory=dict)


class Engine(Protocol):
    """Proposes candidates of one problem; made of the problem and a seed."""

    def propose(
        self, trials: Sequence[Observed], *, number: int, accepts: Callable[[Candidate], bool]
    ) -> Candidate | None:
        """Give the best candidate that is accepted; None if the engine finds none.

        The same seed, number and trials give the same candidate, whatever was proposed before.

        Args:
            trials: All trials of the study but the one that is to be proposed.
            number: The number of that one.
            accepts: Whether a candidate is new and can be trained; asked of the best only, for it may take long.
        """


class MakeEngine(Protocol):
    """What makes an engine."""

    def __call__(self, problem: Problem, *, seed: int) -> Engine:
        """Give the engine for a problem."""
