"""The search: ask the study, place the work, write down what came of it. It receives all three and decides only when
to stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from autopeft.errors import AllTrialsFailedError, InfeasibleError, OutOfTimeError
from autopeft.execute.protocol import Executor
from autopeft.finals import baseline, kept
from autopeft.judging import beyond_memory, judge, stretch_of, work_unit
from autopeft.labels import describe
from autopeft.limits import Ending, Ledger, Limits, Stretch
from autopeft.objectives import Objective
from autopeft.pareto import front
from autopeft.problem import Problem
from autopeft.records import TrialRecord
from autopeft.search.study import Proposal, Study
from autopeft.store import RunDirectory
from autopeft.units import show_bytes
from autopeft.view import View
from autopeft.work import Outcome

SAME_FAILURES = 5
"""The search gives up when the first trials of a sitting, this many, all failed for the same reason."""
_POLL_SECONDS = 0.5


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
    ledger = Ledger(limits, steps=steps, records=store.records)
    running: dict[int, Proposal] = {}
    sitting: list[TrialRecord] = []
    told = set[str]()  # objectives that are not what was known of them
    exhausted = False
    held: Ending | None = None  # what keeps paused trials from going on
    barred: Ending | None = None  # what keeps candidates from being begun
    points, compared = front(store.records, problem.objectives), baseline(store.records, problem.objectives)
    done = any(record.state == "complete" for record in store.records)

    def bars(proposal: Proposal | None) -> Ending | None:
        left = deadline - clock() - (limits.reserved(store.records) if limits.seconds else 0.0)
        if proposal is not None:
            stretch = stretch_of(proposal, steps)
            left = left if done else math.inf  # until something is done, what may not be in time is worth trying
        else:  # and nothing is begun beside it that could not be done
            stretch = Stretch(0, study.first_rung if study.first_rung and done else steps)
        return ledger.bars(stretch, seconds_left=left, together=executor.together)

    def may(proposal: Proposal) -> bool:
        nonlocal held
        held = bars(proposal)
        return held is None

    def choose() -> Proposal | None:
        """Give what to do next: a paused trial that is worth it, else a new one."""
        nonlocal exhausted, held, barred
        held, barred = None, "converged" if study.expected_gain < limits.gain else bars(None)
        begins = not exhausted and barred is None
        proposal = study.promote(may=may, closing=not begins and not running)
        if proposal is None and begins:
            proposal = study.ask()
            exhausted = proposal is None
            return choose() if exhausted else proposal
        return proposal

    def settle(outcome: Outcome) -> None:
        nonlocal points, compared, done
        proposal = running.pop(outcome.trial)
        before = store.record(outcome.trial)
        record = judge(problem, proposal, outcome, seed=seed, steps=steps, before=before)
        store.append(record)
        study.tell(record)
        taken = record.steps - (before.steps if before else 0)
        ledger.end(record, seconds=outcome.seconds, steps=taken)
        points = front([*points, record], problem.objectives)  # what is dominated once stays so
        compared = baseline([*compared, record], problem.objectives)
        if saves_adapters:
            store.keep_state(record)
            if record.state == "complete":
                store.keep_adapters(kept([*points, *compared], problem.objectives))
        view.finished(record, points)
        for objective in problem.objectives:
            if objective.name not in told and (why := _wrong(objective, record)):
                told.add(objective.name)
                view.note(why)
        done = done or record.state == "complete"
        if len(sitting) < SAME_FAILURES:  # no more are looked at, and records are large
            sitting.append(record)
            _stop_if_hopeless(sitting)

    while True:
        while len(running) < executor.capacity:
            with interrupts_deferred():
                proposal = choose()
            if proposal is None:
                break
            running[proposal.number] = proposal
            ledger.begin(proposal.number, stretch_of(proposal, steps))
            executor.submit(work_unit(problem, proposal, steps=steps, seed=seed, saves_adapter=saves_adapters))
            view.proposed(proposal.number, describe(proposal.candidate))
        if not running:
            break
        for outcome in executor.wait(min(_POLL_SECONDS, max(0.0, deadline - clock()))):
            with interrupts_deferred():
                settle(outcome)
        if clock() >= deadline:
            for number, proposal in list(running.items()):
                if proposal.first:
                    held = "time"  # as its last record says, it is paused
                else:
                    settle(Outcome(number, "stopped", reason="the time was over before it was done"))
            break
    return _ending(
        problem, store.records, held or ("exhausted" if exhausted else "trials" if ledger.all_begun else barred)
    )


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


def _wrong(objective: Objective, record: TrialRecord) -> str:
    """Say that an objective is not what was known of it beforehand; "" if it is, or nothing was."""
    if objective.known is None or objective.name not in record.values:
        return ""
    known, measured = objective.loss(objective.known_loss(record.candidate)), record.values[objective.name]
    if math.isclose(known, measured, rel_tol=1e-9):
        return ""
    return f"{objective.name} is {measured:g} where its `known` said {known:g}; it is learned from the trials instead"


def _stop_if_hopeless(records: Sequence[TrialRecord]) -> None:
    first = records[0]
    if len(records) == SAME_FAILURES and all(r.state == "failed" and r.reason == first.reason for r in records):
        why = f"{first.reason}\n{first.traceback}"
        raise AllTrialsFailedError(f"the first {SAME_FAILURES} trials failed alike: {why}")


def _ending(problem: Problem, records: Sequence[TrialRecord], why: Ending | None) -> Ending:
    if any(r.state == "complete" for r in records):
        return why or "time"
    failed = [r for r in records if r.state == "failed"]
    if failed:
        why_failed = f"{failed[0].reason}\n{failed[0].traceback}".rstrip()
        raise AllTrialsFailedError(f"all {len(failed)} trials failed; the first: {why_failed}")
    infeasible = [r for r in records if r.state == "infeasible"]
    if infeasible:
        peaks = [
            (r.measurement.memory_bytes, describe(r))
            for r in infeasible
            if r.measurement and beyond_memory(problem, r.measurement)
        ]
        least = f" The least of it, {show_bytes(min(peaks)[0])}, was {min(peaks)[1]}." if peaks else ""
        raise InfeasibleError(
            f"all {len(infeasible)} trials were infeasible; the first: {infeasible[0].reason}.{least}"
        )
    if why == "exhausted":
        raise InfeasibleError("space: nothing in it could be proposed within the budget; allow more")
    if why == "steps":
        raise OutOfTimeError("steps_total: it did not hold one whole training; raise --steps-total, or lower --steps")
    raise OutOfTimeError("time: it ran out before the first trial was done; raise --time, or lower --steps")
