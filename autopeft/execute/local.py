"""Runs work units one after the other in this process: for debugging, for machines without Ray, for custom runners."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable

from autopeft.execute.protocol import ResidentRunner, Runner, run_isolated
from autopeft.work import Outcome, WorkUnit


class LocalExecutor:
    """An Executor of one worker; `wait` does the work.

    Args:
        together: Units that the runner is given at once; with more than one it must be a GroupRunner.
    """

    def __init__(self, make_runner: Callable[[], Runner], *, together: int = 1) -> None:
        self.capacity = self.together = together
        self._runner = ResidentRunner(make_runner)
        self._units: deque[WorkUnit] = deque()

    def submit(self, unit: WorkUnit) -> None:
        """Queue a work unit."""
        self._units.append(unit)

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Run the oldest queued units to their end, however long that takes."""
        if not self._units:
            return []
        return run_isolated(self._runner, [self._units.popleft() for _ in range(min(self.capacity, len(self._units)))])

    def close(self) -> None:
        """Forget what is queued, and undo `gc.freeze`, by which a runner makes collections short."""
        self._units.clear()
        gc.unfreeze()  # this process is the user's: what is garbage there must not stay for good
