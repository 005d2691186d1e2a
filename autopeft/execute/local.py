"""Runs work units one after the other in this process: for debugging, for machines without Ray, for custom runners."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from autopeft.execute.protocol import Runner, run_isolated
from autopeft.records import Outcome, WorkUnit


class LocalExecutor:
    """An Executor of capacity 1; `wait` does the work."""

    capacity = 1

    def __init__(self, make_runner: Callable[[], Runner]) -> None:
        self._make_runner = make_runner
        self._runner: Runner | None = None
        self._units: deque[WorkUnit] = deque()

    def submit(self, unit: WorkUnit) -> None:
        """Queue a work unit."""
        self._units.append(unit)

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Run the oldest queued unit to its end, however long that takes."""
        if not self._units:
            return []
        if self._runner is None:
            self._runner = self._make_runner()
        return [run_isolated(self._runner, self._units.popleft())]

    def close(self) -> None:
        """Forget what is queued, and the runner with its model."""
        self._units.clear()
        self._runner = None
