"""Trains the finalists again, with other seeds, and judges them on the test split; after the search, before the
report."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from autopeft.execute.protocol import Executor
from autopeft.finals import finalists, values_of
from autopeft.labels import describe
from autopeft.limits import typical_seconds
from autopeft.loop import interrupts_deferred
from autopeft.problem import Problem
from autopeft.records import TrialRecord
from autopeft.store import RunDirectory
from autopeft.view import View
from autopeft.work import Outcome, Split, WorkUnit

_POLL_SECONDS = 0.5
LARGEST_SHARE = 1 / 3
"""Most of a search's time that is kept for its finalists."""


def reserve(problem: Problem, *, seeds: int, at_once: int, seconds: float) -> Callable[[Sequence[TrialRecord]], float]:
    """Give what tells how much of a search's time to keep for its finalists: records -> seconds.

    Args:
        at_once: How many are trained at the same time.
        seconds: The time of the search.
    """

    def reserved(records: Sequence[TrialRecord]) -> float:
        rounds = math.ceil(len(finalists(records, problem.objectives)) * seeds / at_once)
        return min(rounds * typical_seconds(records), LARGEST_SHARE * seconds)

    return reserved


def confirm(
    problem: Problem,
    executor: Executor,
    store: RunDirectory,
    view: View,
    *,
    metric: str,
    splits: Sequence[Split],
    seeds: Sequence[int],
    steps: int,
    deadline: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Train each finalist with each seed that it was not trained with yet; each is written down as it ends.

    Args:
        metric: The metric that is the quality.
        splits: What they are judged on, the first being the one that counts.
        deadline: When the time is over, on `clock`; no training begins that would not end before.

    Returns:
        Whether all were trained.
    """
    done = {(final.number, final.seed) for final in store.finals}
    chosen = finalists(store.records, problem.objectives)
    jobs = deque((r, seed) for r in chosen for seed in seeds if (r.number, seed) not in done)
    if not jobs:
        return True
    view.note(
        f"training {len(chosen)} finalists again, with {len(seeds)} other seed{'s' * (len(seeds) != 1)}, to judge them "
        f"on the {splits[0]} split"
    )
    running: dict[int, tuple[TrialRecord, int]] = {}
    while True:
        while jobs and len(running) < executor.capacity and clock() + typical_seconds(store.records) < deadline:
            record, seed = jobs.popleft()
            number = max(running, default=0) + 1
            running[number] = (record, seed)
            executor.submit(_unit(problem, record, number, seed=seed, splits=splits, steps=steps))
        if not running:
            break
        for outcome in executor.wait(min(_POLL_SECONDS, max(0.0, deadline - clock()))):
            with interrupts_deferred():
                record, seed = running.pop(outcome.trial)
                final = _final(problem, record, outcome, seed=seed, metric=metric, splits=splits)
                store.append_final(final)
            view.note(_sentence(final, splits[0]))
        if clock() >= deadline:
            break
    if left := len(jobs) + len(running):
        view.note(f"the time was over before {left} trainings of finalists; resume the run to have them too")
    return not left


def _unit(
    problem: Problem, record: TrialRecord, number: int, *, seed: int, splits: Sequence[Split], steps: int
) -> WorkUnit:
    return WorkUnit(
        trial=number,
        candidate=record.candidate,
        steps=steps,
        seed=seed,
        data_seed=seed,
        plan=problem.plan(record.candidate),
        head_params=problem.anatomy.head_params if problem.anatomy else 0,
        splits=tuple(splits),
    )


def _final(
    problem: Problem, record: TrialRecord, outcome: Outcome, *, seed: int, metric: str, splits: Sequence[Split]
) -> TrialRecord:
    final = TrialRecord(
        number=record.number,
        state=outcome.state,
        candidate=record.candidate,
        seed=seed,
        cost=record.cost,
        plan=problem.plan(record.candidate),
        measurement=outcome.measurement,
        reason=outcome.reason,
        traceback=outcome.traceback,
        worker=outcome.worker,
        seconds=outcome.seconds,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        exhausted_bytes=outcome.exhausted_bytes,
    )
    if outcome.state != "complete" or outcome.measurement is None:
        return final
    values = values_of(outcome.measurement, metric, splits)
    if wrong := {split: value for split, value in values.items() if not math.isfinite(value)}:
        return replace(final, state="failed", reason=f"{metric} is {wrong}, not a number")
    return replace(final, values=values)


def _sentence(final: TrialRecord, split: str) -> str:
    what = f"trial {final.number} again, seed {final.seed}: {describe(final.candidate)}"
    return f"{what}: {split} {final.values[split]:.4g}" if split in final.values else f"{what}: {final.reason}"
