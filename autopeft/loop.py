"""The search: ask the study, place the work, write down what came of it. It receives all three and decides only when
to stop."""

from __future__ import annotations

import math
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from autopeft.errors import AllTrialsFailedError, InfeasibleError, OutOfTimeError
from autopeft.execute.protocol import Executor
from autopeft.finals import baseline, kept
from autopeft.labels import describe
from autopeft.pareto import front
from autopeft.problem import Problem
from autopeft.records import Outcome, TrialRecord, WorkUnit
from autopeft.search.study import Proposal, Study
from autopeft.store import RunDirectory, adapter_dir
from autopeft.units import show_bytes
from autopeft.view import View

Ending = Literal["trials", "time", "exhausted"]

ENDINGS = {
    "trials": "all trials are done",
    "time": "the time is over",
    "exhausted": "nothing new in the space fits the budget",
}
SAME_FAILURES = 5
"""The search gives up when the first trials of a sitting, this many, all failed for the same reason."""
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: after so many trained candidates, counted over all sittings, or so many seconds of this one.

    Attributes:
        reserved: Records -> seconds that are kept for what comes after the search.
    """

    trials: int | None
    seconds: float | None
    reserved: Callable[[Sequence[TrialRecord]], float] = lambda records: 0.0


def search(
    problem: Problem,
    study: Study,
    executor: Executor,
    store: RunDirectory,
    view: View,
    *,
    limits: Limits,
    steps: int,
    seed: int,
    saves_adapters: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Ending:
    """Search until a limit is reached or nothing new is feasible.

    A record is written before the study is told, so that a kill at any moment loses no result and counts none twice.

    Raises:
        AllTrialsFailedError: If no trial was complete at the end, or the first ones all failed alike.
        InfeasibleError: If nothing could be proposed, or every trial was beyond a limit.
        OutOfTimeError: If the time ran out before one was complete.
    """
    start = clock()
    deadline = math.inf if limits.seconds is None else start + limits.seconds
    running: dict[int, Proposal] = {}
    sitting: list[TrialRecord] = []
    exhausted = False
    points, compared = front(store.records, problem.objectives), baseline(store.records, problem.objectives)

    def settle(outcome: Outcome) -> None:
        nonlocal points, compared
        record = judge(problem, running.pop(outcome.trial), outcome, seed=seed)
        store.append(record)
        study.tell(record)
        points = front([*points, record], problem.objectives)  # what is dominated once stays so
        compared = baseline([*compared, record], problem.objectives)
        if record.state == "complete" and saves_adapters:
            store.keep_adapters(kept([*points, *compared], problem.objectives))
        view.finished(record, points)
        sitting.append(record)
        _stop_if_hopeless(sitting)

    while True:
        while (
            not exhausted
            and len(running) < executor.capacity
            and _may_start(store.records, len(running), limits, deadline - clock(), together=executor.together)
        ):
            with interrupts_deferred():
                proposal = study.ask()
            if proposal is None:
                exhausted = True
                break
            running[proposal.number] = proposal
            executor.submit(work_unit(problem, proposal, steps=steps, seed=seed, saves_adapter=saves_adapters))
            view.proposed(proposal.number, describe(proposal.candidate))
        if not running:
            break
        for outcome in executor.wait(min(_POLL_SECONDS, max(0.0, deadline - clock()))):
            with interrupts_deferred():
                settle(outcome)
        if clock() >= deadline:
            for number in list(running):
                settle(Outcome(number, "stopped", reason="the time was over before it was done"))
            break
    return _ending(store.records, limits, exhausted=exhausted)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let what is being written down be written: Ctrl-C takes effect at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda got, frame: pending.append(got))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if pending:
        raise KeyboardInterrupt


def work_unit(problem: Problem, proposal: Proposal, *, steps: int, seed: int, saves_adapter: bool) -> WorkUnit:
    """Make the work unit of a proposal: the whole training, judged on the validation split."""
    return WorkUnit(
        trial=proposal.number,
        candidate=proposal.candidate,
        steps=steps,
        seed=seed,
        data_seed=seed,
        plan=problem.plan(proposal.candidate),
        head_params=problem.anatomy.head_params if problem.anatomy else 0,
        adapter_dir=adapter_dir(proposal.number) if saves_adapter else "",
    )


def judge(problem: Problem, proposal: Proposal, outcome: Outcome, *, seed: int) -> TrialRecord:
    """Make the record of a trial: its objectives if it is complete and within the limits, else the reason."""
    cost, measurement = problem.cost(proposal.candidate), outcome.measurement
    if measurement is not None and cost is not None:
        measurement = replace(measurement, predicted_bytes=cost.memory_bytes)
    record = TrialRecord(
        number=proposal.number,
        state=outcome.state,
        candidate=proposal.candidate,
        seed=seed,
        cost=cost,
        plan=problem.plan(proposal.candidate),
        measurement=measurement,
        reason=outcome.reason,
        traceback=outcome.traceback,
        worker=outcome.worker,
        seconds=outcome.seconds,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        exhausted_bytes=outcome.exhausted_bytes,
    )
    if outcome.state != "complete" or measurement is None:
        return record
    if problem.memory_limit_bytes is not None and measurement.memory_bytes > problem.memory_limit_bytes:
        peak, limit = show_bytes(measurement.memory_bytes), show_bytes(problem.memory_limit_bytes)
        return replace(record, state="infeasible", reason=f"its peak memory, {peak}, is more than {limit}")
    trained, most = measurement.trainable_params, problem.parameter_limit
    if most is not None and trained > most:
        return replace(record, state="infeasible", reason=f"it trained {trained:,} parameters, more than {most:,}")
    values = {}
    for objective in problem.objectives:
        try:
            value = float(objective.measure(measurement))
        except Exception as error:  # noqa: BLE001 - the user's own function: its fault is this trial's
            why = f"objective {objective.name}: {type(error).__name__}: {error}"
            return replace(record, state="failed", reason=why, traceback=traceback.format_exc())
        if not math.isfinite(value):
            return replace(record, state="failed", reason=f"objective {objective.name} is {value}, not a number")
        values[objective.name] = value
    return replace(record, values=values)


def _trained(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials that count: those that were trained, whatever came of it."""
    return [r for r in records if r.state in ("complete", "failed", "infeasible")]


def _may_start(
    records: Sequence[TrialRecord], running: int, limits: Limits, seconds_left: float, *, together: int
) -> bool:
    """Tell whether another trial may start: it would be within the number, and end in time as far as one can tell.

    Of trials that a worker is given together none ends before all do, and a record tells one's part of that time.
    """
    if limits.trials is not None and len(_trained(records)) + running >= limits.trials:
        return False
    given = running % together + 1
    return given * typical_seconds(records) < seconds_left - (limits.reserved(records) if limits.seconds else 0.0)


def typical_seconds(records: Sequence[TrialRecord]) -> float:
    """Give the seconds that a training usually takes; 0 before one is complete."""
    seconds = [r.seconds for r in records if r.state == "complete"]
    return statistics.median(seconds) if seconds else 0.0


def _stop_if_hopeless(records: Sequence[TrialRecord]) -> None:
    first = records[:SAME_FAILURES]
    if len(records) == SAME_FAILURES and all(r.state == "failed" and r.reason == first[0].reason for r in first):
        why = f"{first[0].reason}\n{first[0].traceback}"
        raise AllTrialsFailedError(f"the first {SAME_FAILURES} trials failed alike: {why}")


def _ending(records: Sequence[TrialRecord], limits: Limits, *, exhausted: bool) -> Ending:
    if any(r.state == "complete" for r in records):
        if exhausted:
            return "exhausted"
        return "trials" if limits.trials is not None and len(_trained(records)) >= limits.trials else "time"
    failed = [r for r in records if r.state == "failed"]
    if failed:
        why = f"{failed[0].reason}\n{failed[0].traceback}".rstrip()
        raise AllTrialsFailedError(f"all {len(failed)} trials failed; the first: {why}")
    infeasible = [r for r in records if r.state == "infeasible"]
    if infeasible:
        peaks = [(r.measurement.memory_bytes, describe(r)) for r in infeasible if r.measurement]
        least = f" The least of it, {show_bytes(min(peaks)[0])}, was {min(peaks)[1]}." if peaks else ""
        raise InfeasibleError(
            f"all {len(infeasible)} trials were infeasible; the first: {infeasible[0].reason}.{least}"
        )
    if exhausted:
        raise InfeasibleError("space: nothing in it could be proposed within the budget; allow more")
    raise OutOfTimeError("time: it ran out before the first trial was done; raise --time, or lower --steps")
