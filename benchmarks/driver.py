"""What a search costs beside its trainings: asks, tells, records, view, memory, report, and busy workers.

Real searches of the real driver, whose trials are not trained (`formula.py`), in two spaces: `default`, the shipped one
bound to MiniLM, and `own`, 12 numbers with a custom runner.

    growth   milliseconds a trial, and the driver's memory, at 100 ... 5,000 trials; then the report
    workers  how busy 1, 8 and 64 simulated workers are kept: trainings take recorded times on a simulated clock, on
             which the driver takes its own CPU time (not the wall: machines are shared)

    python benchmarks/driver.py --part growth
    python benchmarks/driver.py --part workers
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
from formula import Formula, assemble_case
from results import write_rows

from autopeft.execute.local import LocalExecutor
from autopeft.limits import Limits
from autopeft.loop import search
from autopeft.records import TrialRecord
from autopeft.result import Result
from autopeft.search.storage import sqlite_url
from autopeft.search.study import Study
from autopeft.store import RunDirectory
from autopeft.view import PlainView
from autopeft.work import Outcome, WorkUnit

CHECKPOINTS = (100, 200, 500, 1000, 2000, 3000, 4000, 5000)
_LAST = 50
"""Trials before a checkpoint that its figures are the mean of."""


# --- growth ----------------------------------------------------------------------------------------------------------


class Stopwatch:
    """CPU and wall seconds by name, of the trial that is under way."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give a function that is timed under a name."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.process_time(), time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.cpu[name] += time.process_time() - cpu
                self.wall[name] += time.perf_counter() - wall

        return wrapped


class Marks(PlainView):
    """The plain view; at each checkpoint it prints a row of figures, as JSON."""

    def __init__(self, watch: Stopwatch, row: dict[str, Any]) -> None:
        super().__init__(io.StringIO())
        self._watch, self._row, self._count = watch, row, 0
        self._before: dict[str, float] = {}

    def finished(self, record: TrialRecord, front: Sequence[TrialRecord]) -> None:
        """Show it; then, now and then, note where we are."""
        self._watch.timed("view", super().finished)(record, front)
        self._stream.seek(0)  # type: ignore[union-attr]
        self._stream.truncate()  # type: ignore[union-attr]
        self._count += 1
        now = {f"{name}_ms": 1000 * seconds for name, seconds in self._watch.cpu.items()}
        now |= {"cpu_ms": 1000 * time.process_time(), "wall_ms": 1000 * time.perf_counter()}
        if self._count + _LAST in CHECKPOINTS:
            self._before = now
        if self._count in CHECKPOINTS:
            spent = {name: round((value - self._before[name]) / _LAST, 2) for name, value in now.items()}
            rss = round(psutil.Process().memory_info().rss / 2**20, 1)
            row = {**self._row, "trials": self._count, "front": len(front), **spent, "rss_mib": rss}
            print(json.dumps(row), flush=True)


def growth(space: str, sampler: str, trials: int) -> None:
    """Search, and print a row a checkpoint; the last has the report's figures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        request, assembly = assemble_case(space, sampler, trials, folder)
        run = RunDirectory.new(folder / "run")
        run.make()
        run.begin(request, assembly.info)
        watch = Stopwatch()
        view = Marks(watch, {"space": space, "sampler": sampler})
        with run:
            study = Study(assembly.problem, url=sqlite_url(run.path / "study.db"), sampler=sampler, seed=0)
            view.started(assembly.info, [], [])
            study.ask = watch.timed("ask", study.ask)  # type: ignore[method-assign]
            study.tell = watch.timed("tell", study.tell)  # type: ignore[method-assign]
            run.append = watch.timed("record", run.append)  # type: ignore[method-assign]
            with closing(study), closing(LocalExecutor(Formula)) as executor:
                limits = Limits(trials, None)
                search(assembly.problem, study, executor, run, view, limits=limits, steps=100, seed=0)
            start = time.process_time()
            report = Result(run.path).report()
            took = time.process_time() - start
        figures = {
            "space": space,
            "sampler": sampler,
            "trials": trials,
            "report_cpu_seconds": round(took, 2),
            "report_mb": round(report.stat().st_size / 1e6, 2),
            "records_mb": round((run.path / "records.jsonl").stat().st_size / 1e6, 2),
        }
        print(json.dumps(figures), flush=True)


# --- workers ---------------------------------------------------------------------------------------------------------


class Simulated:
    """An Executor whose trainings take recorded times, on a clock that jumps to the next end while the driver waits."""

    def __init__(self, capacity: int, seconds: float) -> None:
        self.capacity, self.together = capacity, 1
        self._seconds, self._runner = seconds, Formula()
        self._jumped, self._began = 0.0, time.process_time()
        self._ends: list[tuple[float, int, WorkUnit, float]] = []
        self.busy = 0.0

    def clock(self) -> float:
        """Give the simulated time."""
        return time.process_time() - self._began + self._jumped

    def submit(self, unit: WorkUnit) -> None:
        """Begin a training; it takes between half and twice the usual time, always the same for a trial."""
        took = self._seconds * 2 ** random.Random(unit.trial).uniform(-1, 1)
        self.busy += took
        heapq.heappush(self._ends, (self.clock() + took, unit.trial, unit, took))

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Give what has ended by now, or jump to the next end."""
        if self._ends:
            self._jumped += max(0.0, self._ends[0][0] - self.clock())
        ended = []
        while self._ends and self._ends[0][0] <= self.clock():
            _, _, unit, took = heapq.heappop(self._ends)
            ended.append(Outcome(unit.trial, "complete", self._runner.run(unit), worker="simulated", seconds=took))
        return ended

    def close(self) -> None:
        """Nothing."""


def workers(count: int, seconds: float, sampler: str, trials: int) -> dict[str, Any]:
    """Search with simulated workers; the share of their time that they trained."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        request, assembly = assemble_case("default", sampler, trials, folder)
        run = RunDirectory.new(folder / "run")
        run.make()
        run.begin(request, assembly.info)
        executor = Simulated(count, seconds)
        view = PlainView(io.StringIO())
        cpu = time.process_time()
        with run:
            study = Study(assembly.problem, url=sqlite_url(run.path / "study.db"), sampler=sampler, seed=0)
            view.started(assembly.info, [], [])
            with closing(study):
                limits = Limits(trials, None)
                search(
                    assembly.problem, study, executor, run, view, limits=limits, steps=100, seed=0, clock=executor.clock
                )
        wall = executor.clock()
        return {
            "sampler": sampler,
            "workers": count,
            "trial_seconds": seconds,
            "trials": trials,
            "efficiency": round(executor.busy / (count * wall), 4),
            "simulated_hours": round(wall / 3600, 3),
            "driver_cpu_ms_per_trial": round(1000 * (time.process_time() - cpu) / trials, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["growth", "workers"], default="growth")
    parser.add_argument("--spaces", nargs="+", choices=["default", "own"], default=["default", "own"])
    parser.add_argument("--samplers", nargs="+", default=["tpe", "nsga2", "random"])
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.0, 30.0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:  # a process of its own, so that its memory is its own
        growth(args.spaces[0], args.samplers[0], args.trials)
        return
    if args.part == "growth":
        for space in args.spaces:
            for sampler in args.samplers:
                command = [sys.executable, __file__, "--only", "--spaces", space, "--samplers", sampler]
                with subprocess.Popen([*command, "--trials", str(args.trials)], stdout=subprocess.PIPE) as process:
                    assert process.stdout is not None
                    for line in process.stdout:  # written as they come: the whole takes long
                        print(line.decode().rstrip(), flush=True)
                        row = json.loads(line)
                        name = "driver_report.csv" if "report_mb" in row else "driver_growth.csv"
                        write_rows(args.out / name, [row])
                if process.returncode:
                    sys.exit(f"{space}, {sampler}: failed")
        return
    for sampler in args.samplers:
        for seconds in args.seconds:
            for count in args.workers:
                row = workers(count, seconds, sampler, min(args.trials, 30 * count + 500))
                print(row, flush=True)
                write_rows(args.out / "driver_workers.csv", [row])


if __name__ == "__main__":
    main()
