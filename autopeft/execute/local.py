"""Runs work units one after the other in this process: for debugging, for machines without Ray, for custom runners."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from autopeft.execute.protocol import ResidentRunner, Runner, run_isolated
from autopeft.records import Outcome, WorkUnit


class LocalExecutor:
    """An Executor of capacity 1; `wait` does the work."""

    capacity = 1

    def __init__(self, make_runner: Callable[[], Runner]) -> None:
        self._runner = ResidentRunner(make_runner)
        self._units: deque[WorkUnit] = deque()

    def submit(self, unit: WorkUnit) -> None:
        """Queue a work unit."""
        self._units.append(unit)

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Run the oldest queued unit to its end, however long that takes."""
        if not self._units:
            return []
        return [run_isolated(self._runner, self._units.popleft())]

    def close(self) -> None:
        """Forget what is queued."""
        self._units.clear()
