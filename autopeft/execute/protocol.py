"""The two seams of execution, and the one place where a trial's failure is kept apart from the search."""

from __future__ import annotations

import importlib
import math
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from autopeft.errors import OutOfMemoryTrialError, TrialError
from autopeft.units import show_bytes
from autopeft.work import Measurement, Outcome, WorkerSpec, WorkUnit


class Runner(Protocol):
    """Trains what a work unit asks for; lives in a worker, keeps what is dear (the base model) between units."""

    def run(self, unit: WorkUnit) -> Measurement:
        """Do the work; any exception is this trial's failure."""
        ...


class GroupRunner(Runner, Protocol):
    """A runner that can train several work units together, where it finds that this pays."""

    def run_together(self, units: Sequence[WorkUnit]) -> Sequence[Measurement | Exception]:
        """Do the work; gives for each unit what `run` would give, or the exception that it would raise."""
        ...


class Executor(Protocol):
    """Places work units on workers. It decides nothing: what to run and what it means is the caller's."""

    @property
    def capacity(self) -> int:
        """How many work units can be under way at once."""
        ...

    @property
    def together(self) -> int:
        """How many of these a worker is given at once; all of them give their outcomes when the last is done."""
        ...

    def submit(self, unit: WorkUnit) -> None:
        """Take a work unit; returns at once."""
        ...

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Give the outcomes that have come in, waiting at most this long for the first one.

        Every submitted unit gives exactly one outcome, whatever happened to its worker.
        """
        ...

    def close(self) -> None:
        """Stop the workers at once; units under way give no outcome."""
        ...


def resolve(entry: str) -> Any:
    """Import the object that "module:name" stands for."""
    module, _, name = entry.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def make_runner(spec: WorkerSpec) -> Runner:
    """Make the runner that a spec describes, in this process."""
    return cast(Runner, resolve(spec.entry)(**spec.settings))


class ResidentRunner:
    """Makes the real runner at its first unit, so that a fault in making it is that unit's outcome; then keeps it."""

    def __init__(self, make: Callable[[], Runner]) -> None:
        self._make = make
        self._runner: Runner | None = None

    def run(self, unit: WorkUnit) -> Measurement:
        """Run a work unit on the one runner."""
        return self._made().run(unit)

    def run_together(self, units: Sequence[WorkUnit]) -> Sequence[Measurement | Exception]:
        """Run work units on the one runner, which must be a GroupRunner."""
        return cast(GroupRunner, self._made()).run_together(units)

    def _made(self) -> Runner:
        if self._runner is None:
            self._runner = self._make()
        return self._runner


def run_isolated(runner: GroupRunner, units: Sequence[WorkUnit]) -> list[Outcome]:
    """Run work units, several together; whatever goes wrong becomes outcomes with their reasons and tracebacks.

    The time of units that were run together is shared out equally.
    """
    start = time.monotonic()
    try:
        results = [runner.run(units[0])] if len(units) == 1 else runner.run_together(units)
    except Exception as error:  # noqa: BLE001 - the one place where a trial is isolated from the search
        results = [error] * len(units)
    seconds = (time.monotonic() - start) / len(units)
    return [_outcome(unit, result, seconds) for unit, result in zip(units, results, strict=True)]


def _outcome(unit: WorkUnit, result: Measurement | Exception, seconds: float) -> Outcome:
    def outcome(**fields: Any) -> Outcome:
        return Outcome(trial=unit.trial, worker=f"{socket.gethostname()}:{os.getpid()}", seconds=seconds, **fields)

    if isinstance(result, Measurement):
        if math.isfinite(result.quality):
            return outcome(state="complete", measurement=result)
        return outcome(state="failed", reason=f"quality is {result.quality}, not a number")
    if isinstance(result, OutOfMemoryTrialError):
        seen = f"out of memory; peak seen {show_bytes(result.peak_bytes)}: {result}"
        return outcome(state="infeasible", reason=seen, exhausted_bytes=max(1, result.peak_bytes))
    told = "".join(traceback.format_exception(result))
    if isinstance(result, TrialError):
        return outcome(state="failed", reason=str(result), traceback=told)
    reason = f"{type(result).__name__}: {result}".strip().splitlines()[0]
    return outcome(state="failed", reason=reason, traceback=told)
