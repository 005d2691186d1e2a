"""One sitting of a run: study, executor, search and finalists put together, until a limit, an error or Ctrl-C."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace

from autopeft.assembly import Assembly
from autopeft.confirm import confirm, reserve
from autopeft.errors import RequestError
from autopeft.execute.function import TrainFunction
from autopeft.finals import kept
from autopeft.labels import show_prior
from autopeft.limits import ENDINGS, Ending, Limits
from autopeft.loop import search
from autopeft.pareto import front
from autopeft.plain import digest
from autopeft.request import SearchRequest
from autopeft.result import Result
from autopeft.search.storage import sqlite_url
from autopeft.search.study import Study
from autopeft.store import RunDirectory
from autopeft.view import View
from autopeft.workers import make_executor


def run_sitting(
    run: RunDirectory, request: SearchRequest, assembly: Assembly, view: View, *, runner: TrainFunction | str | None
) -> Result:
    """Search in a run directory, and leave it with its front and report whatever happens.

    Raises:
        AutopeftError: Of the kind that says what is wrong.
    """
    problem, info = assembly.problem, assembly.info
    if info.anatomy is None and runner is None:
        raise RequestError("runner: this run was made by a custom runner; resume it from Python with `runner=`")
    with run:
        try:
            ending = _search_in(run, request, assembly, view, runner=runner)
        except KeyboardInterrupt:
            view.closed(f"interrupted; nothing is lost: go on by `autopeft resume {run.path}`")
            raise
        finally:
            if runner is None:
                run.sweep(kept(run.records, problem.objectives))
                run.sweep_states()
            report = Result(run.path).report() if run.records else None
        result = Result(run.path)
        view.closed(f"{ENDINGS[ending]}; {len(result.front)} on the front; report: {report}")
    return result


def _search_in(
    run: RunDirectory, request: SearchRequest, assembly: Assembly, view: View, *, runner: TrainFunction | str | None
) -> Ending:
    """Search in a run directory that is held; study and executor are closed at the end, however it comes."""
    problem, info = assembly.problem, assembly.info
    for note in run.notes:
        view.note(note)
    # Trials, steps and time may be others in this sitting.
    limited = {"trials": request.trials, "time": request.time, "steps_total": request.steps_total}
    sitting = replace(info, request={**info.request, **limited})
    view.started(sitting, run.records, front(run.records, problem.objectives))
    for note in (*info.data.get("notes", ()), *map(show_prior, info.prior)):
        view.note(note)
    if info.anatomy is not None:
        from autopeft.trial.prepared import read_prepared

        read_prepared(run.path / "data")  # damage is told here, not by every worker
    url = request.storage or sqlite_url(run.path / "study.db")
    # In a storage that is shared, folder and time tell a run's study from others, even from one of the same folder.
    of_run = f"autopeft-{run.path.absolute().name}-{digest([info.created_at, info.request])}"
    name = "autopeft" if request.storage is None else of_run
    # What a function of the caller's own does with a few steps of a training, only the caller knows.
    rungs = () if runner is not None and request.rungs == "auto" else request.pauses
    study = Study(
        problem, url=url, sampler=request.sampler, seed=request.seed, records=run.records, name=name, rungs=rungs
    )
    start, seconds = time.monotonic(), request.time_seconds
    with closing(study), closing(make_executor(request, info, run.path, runner=runner)) as executor:
        limits = Limits(request.trials, seconds, request.steps_total, request.until_converged or 0.0)
        if seconds is not None and request.final_seeds:
            kept = reserve(problem, seeds=request.final_seeds, at_once=executor.capacity, seconds=seconds)
            limits = replace(limits, reserved=kept)
        ending = search(
            problem,
            study,
            executor,
            run,
            view,
            limits=limits,
            steps=request.steps,
            seed=request.seed,
            saves_adapters=runner is None,
        )
        if request.final_seeds:
            confirm(
                problem,
                executor,
                run,
                view,
                metric=request.metric_for(info.data["task"]),
                splits=("test", "validation") if "test" in info.data["rows"] else ("validation",),
                seeds=[request.seed + 1 + n for n in range(request.final_seeds)],
                steps=request.steps,
                deadline=math.inf if seconds is None else start + seconds,
            )
    return ending
