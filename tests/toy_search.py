"""A search over a toy: a formula in place of training, in a folder that can be searched again and again."""

from __future__ import annotations

from pathlib import Path

from autopeft.execute.local import LocalExecutor
from autopeft.execute.protocol import run_isolated
from autopeft.limits import Limits
from autopeft.loop import search
from autopeft.objectives import Objective
from autopeft.problem import Problem
from autopeft.search.storage import sqlite_url
from autopeft.search.study import Study
from autopeft.space_file import parse_space
from autopeft.store import RunDirectory
from autopeft.work import Measurement

SPACE = {"parameters": {"x": {"low": 0.0, "high": 1.0}, "kind": {"choices": ["a", "b"]}}}
FEW = {"parameters": {"x": {"ordinal": [1, 2, 3]}, "kind": {"choices": ["a", "b"]}}}
QUALITY = Objective("quality", "maximize", "", lambda m: m.quality)


class Quiet:
    """A view that shows nothing."""

    def __getattr__(self, name):
        return lambda *args: None


class Runner:
    """Gives a measurement by formula; what is asked of it is kept."""

    def __init__(self, measure=None):
        self.units = []
        self._measure = measure or (lambda unit: Measurement(float(unit.candidate["x"]), 10, 1000, steps=unit.steps))

    def run(self, unit):
        self.units.append(unit)
        return self._measure(unit)


class Several:
    """An executor of several workers: outcomes come in the other order, a few at once."""

    capacity, together = 3, 1

    def __init__(self, runner):
        self.runner, self.units, self.most = runner, [], 0

    def submit(self, unit):
        self.units.append(unit)
        self.most = max(self.most, len(self.units))

    def wait(self, timeout_seconds):
        units, self.units = self.units[1:], self.units[:1]
        if not units:
            units, self.units = self.units, []
        return [run_isolated(self.runner, [unit])[0] for unit in reversed(units)]

    def close(self):
        self.units.clear()


def make_run(folder: Path):
    """Give a function that searches in a folder; called again it goes on. It gives (ending, records)."""

    def run(
        runner=None,
        *,
        space=SPACE,
        trials=None,
        seconds=None,
        steps_total=None,
        rungs=(),
        objectives=(QUALITY,),
        clock=None,
        executor=LocalExecutor,
        store=RunDirectory,
        sampler="random",
        **limits,
    ):
        problem = Problem(parse_space(space), objectives, **limits)
        runner = runner or Runner()
        with store(folder) as directory:
            study = Study(
                problem,
                url=sqlite_url(folder / "study.db"),
                sampler=sampler,
                seed=0,
                records=directory.records,
                rungs=rungs,
            )
            made = LocalExecutor(lambda: runner) if executor is LocalExecutor else executor(runner)
            ending = search(
                problem,
                study,
                made,
                directory,
                Quiet(),
                limits=Limits(trials, seconds, steps_total),
                steps=7,
                seed=3,
                saves_adapters=False,
                **({"clock": clock} if clock else {}),
            )
            return ending, list(directory.records)

    return run
