"""Runners for the tests, which workers import by the name of this module; and how to wait for their outcomes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autopeft.candidates import Candidate
from autopeft.errors import OutOfMemoryTrialError, TrialError
from autopeft.execute.protocol import Executor
from autopeft.work import Measurement, Outcome, WorkerSpec, WorkUnit

SPEC = WorkerSpec("tiny_runner:Runner")


class Runner:
    """Does what the candidate says."""

    def __init__(self) -> None:
        self.units = 0

    def run(self, unit: WorkUnit) -> Measurement:
        self.units += 1
        value = unit.candidate.values
        if (sleep := value.get("sleep")) is not None:
            time.sleep(float(sleep))
        match value.get("do"):
            case "raise":
                raise ZeroDivisionError("on purpose")
            case "nan":
                return Measurement(quality=float("nan"))
            case "trial error":
                raise TrialError("the realised adapter is another one")
            case "out of memory":
                raise OutOfMemoryTrialError("in step 1", peak_bytes=3 * 2**30)
            case "exit":
                sys.exit(3)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die once":
                marker = Path(str(value["marker"]))
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "meet":
                meet(Path(str(value["folder"])), unit.trial)
        metrics = {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "units": self.units,
            "threads": int(os.environ["OMP_NUM_THREADS"]) if "OMP_NUM_THREADS" in os.environ else 0,
            "here": float(Path.cwd() == Path(str(value.get("cwd", "/")))),
        }
        return Measurement(quality=unit.steps / 10, trainable_params=7, metrics=metrics, curve=((1, 0.5), (2, 0.25)))


def meet(folder: Path, me: int) -> None:
    """Come back once a second one is here at the same time."""
    (folder / str(me)).touch()
    deadline = time.monotonic() + 20
    while len(list(folder.iterdir())) < 2:
        if time.monotonic() > deadline:
            raise TrialError("nobody came")
        time.sleep(0.02)


class Together(Runner):
    """Says of each unit how many it was run with; one that raises is alone with its error."""

    def run_together(self, units: Sequence[WorkUnit]) -> list[Measurement | Exception]:
        found: list[Measurement | Exception] = []
        for unit in units:
            try:
                measurement = self.run(unit)
                found.append(replace(measurement, metrics={**measurement.metrics, "together": len(units)}))
            except Exception as error:  # noqa: BLE001
                found.append(error)
        return found


class Unbuildable(Runner):
    def __init__(self) -> None:
        raise RuntimeError("no such model")


class Searching(Runner):
    """What a worker does that imports a script without a main guard: it starts a search itself."""

    def __init__(self) -> None:
        from autopeft.execute.ray_tune import RayTuneExecutor

        RayTuneExecutor(spec=SPEC, workers=1)


def good(candidate: Candidate, steps: int) -> Measurement:
    return Measurement(quality=float(candidate["x"]) * steps)


def bare_number(candidate: Candidate, steps: int) -> float:
    return 0.5


def unit(trial: int = 0, **values: str | int | float) -> WorkUnit:
    return WorkUnit(trial=trial, candidate=Candidate(values or {"x": 1}), steps=5, seed=0)


def drain(executor: Executor, count: int, *, seconds: float = 60) -> list[Outcome]:
    """Wait for so many outcomes, and make sure that no more come than that; in order of the trials."""
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + seconds
    while len(outcomes) < count and time.monotonic() < deadline:
        outcomes += executor.wait(1.0)
    outcomes += executor.wait(0.0)
    assert len(outcomes) == count, outcomes
    return sorted(outcomes, key=lambda outcome: outcome.trial)
