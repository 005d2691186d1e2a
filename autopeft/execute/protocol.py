"""The two seams of execution, and the one place where a trial's failure is kept apart from the search."""

from __future__ import annotations

import importlib
import math
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol, cast

from autopeft.errors import OutOfMemoryTrialError, TrialError
from autopeft.records import Measurement, Outcome, WorkerSpec, WorkUnit
from autopeft.units import show_bytes


class Runner(Protocol):
    """Trains what a work unit asks for; lives in a worker, keeps what is dear (the base model) between units."""

    def run(self, unit: WorkUnit) -> Measurement:
        """Do the work; any exception is this trial's failure."""
        ...


class Executor(Protocol):
    """Places work units on workers. It decides nothing: what to run and what it means is the caller's."""

    @property
    def capacity(self) -> int:
        """How many work units can be under way at once."""
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
        if self._runner is None:
            self._runner = self._make()
        return self._runner.run(unit)


def run_isolated(runner: Runner, unit: WorkUnit) -> Outcome:
    """Run a work unit; whatever goes wrong becomes an outcome with its reason and traceback."""
    worker, start = f"{socket.gethostname()}:{os.getpid()}", time.monotonic()

    def outcome(**fields: Any) -> Outcome:
        return Outcome(trial=unit.trial, worker=worker, seconds=time.monotonic() - start, **fields)

    try:
        measurement = runner.run(unit)
        if not math.isfinite(measurement.quality):
            return outcome(state="failed", measurement=None, reason=f"quality is {measurement.quality}, not a number")
        return outcome(state="complete", measurement=measurement)
    except OutOfMemoryTrialError as error:
        seen = f"out of memory; peak seen {show_bytes(error.peak_bytes)}: {error}"
        return outcome(state="infeasible", reason=seen, exhausted_bytes=max(1, error.peak_bytes))
    except TrialError as error:
        return outcome(state="failed", reason=str(error), traceback=traceback.format_exc())
    except Exception as error:  # noqa: BLE001 - the one place where a trial is isolated from the search
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return outcome(state="failed", reason=reason, traceback=traceback.format_exc())
