"""The search: ask the study, place the work, write down what came of it. It receives all three and decides only when
to stop."""

from __future__ import annotations

import math
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from autopeft.errors import AllTrialsFailedError, InfeasibleError, OutOfTimeError
from autopeft.execute.protocol import Executor
from autopeft.finals import baseline, kept
from autopeft.labels import describe
from autopeft.limits import Ending, Ledger, Limits, Stretch
from autopeft.objectives import Objective
from autopeft.pareto import front, quality_objective
from autopeft.problem import Problem
from autopeft.records import RungResult, TrialRecord
from autopeft.search.study import Proposal, Study
from autopeft.store import RunDirectory, adapter_dir, state_dir
from autopeft.units import show_bytes
from autopeft.view import View
from autopeft.work import Outcome, WorkUnit

SAME_FAILURES = 5
"""The search gives up when the first trials of a sitting, this many, all failed for the same reason."""
BEYOND_MEMORY = "its peak memory"
"""How the reason of a trial begins that needed more memory than there may be."""
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
            stretch = _stretch(proposal, steps)
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
        sitting.append(record)
        _stop_if_hopeless(sitting)

    while True:
        while len(running) < executor.capacity:
            with interrupts_deferred():
                proposal = choose()
            if proposal is None:
                break
            running[proposal.number] = proposal
            ledger.begin(proposal.number, _stretch(proposal, steps))
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
    return _ending(store.records, held or ("exhausted" if exhausted else "trials" if ledger.all_begun else barred))


def _stretch(proposal: Proposal, steps: int) -> Stretch:
    return Stretch(proposal.first, proposal.steps or steps)


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
    """Make the work unit of a proposal, judged on the validation split; the adapter is saved when its training is over.

    Args:
        steps: Of a whole training.
        saves_adapter: Whether adapters are saved at all, and states to go on from.
    """
    return WorkUnit(
        trial=proposal.number,
        candidate=proposal.candidate,
        steps=proposal.steps or steps,
        seed=seed,
        data_seed=seed,
        plan=problem.plan(proposal.candidate),
        head_params=problem.anatomy.head_params if problem.anatomy else 0,
        adapter_dir=adapter_dir(proposal.number) if saves_adapter and not proposal.steps else "",
        first=proposal.first,
        horizon=steps,
        state_dir=state_dir(proposal.number) if saves_adapter and (proposal.first or proposal.steps) else "",
    )


def judge(
    problem: Problem,
    proposal: Proposal,
    outcome: Outcome,
    *,
    seed: int,
    steps: int,
    before: TrialRecord | None = None,
) -> TrialRecord:
    """Make the record of a trial after a work unit: its objectives if it is complete and within the limits, how it
    stands if it pauses, else the reason.

    Args:
        steps: Of a whole training.
        before: Its record after the work unit before.
    """
    stretch = _stretch(proposal, steps)
    cost, measurement = problem.cost(proposal.candidate), outcome.measurement
    if measurement is not None and cost is not None:
        measurement = replace(measurement, predicted_bytes=cost.memory_bytes)
        if problem.own_cost is not None and not measurement.trainable_params:
            measurement = replace(measurement, trainable_params=cost.trainable_params)  # the runner left it to the cost
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
        seconds=outcome.seconds + (before.seconds if before else 0.0),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        exhausted_bytes=outcome.exhausted_bytes,
        # One that had to begin anew took the steps before it as well.
        steps=(stretch.last if measurement and measurement.restarted else stretch.steps)
        + (before.steps if before else 0),
        rungs=before.rungs if before else (),
    )
    if outcome.state != "complete" or measurement is None:
        return record
    if problem.memory_limit_bytes is not None and measurement.memory_bytes > problem.memory_limit_bytes:
        peak, limit = show_bytes(measurement.memory_bytes), show_bytes(problem.memory_limit_bytes)
        return replace(record, state="infeasible", reason=f"{BEYOND_MEMORY}, {peak}, is more than {limit}")
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
    return _placed(record, problem, values, at=stretch.last, steps=steps)


def _placed(record: TrialRecord, problem: Problem, values: Mapping[str, float], *, at: int, steps: int) -> TrialRecord:
    """Note how a trial stands after some steps; one that has more before it pauses."""
    quality = quality_objective(problem.objectives)
    assert record.measurement is not None
    loss = record.measurement.metrics.get("loss", quality.loss(values[quality.name]))
    if math.isfinite(loss):
        costs = tuple(o.loss(values[o.name]) for o in problem.objectives if o is not quality)
        record = replace(record, rungs=(*record.rungs, RungResult(at, loss, costs)))
    if at == steps:
        return replace(record, values=values)
    if not math.isfinite(loss):
        return replace(record, state="failed", reason=f"the held-out loss is {loss} after step {at}")
    why = f"at step {at} of {steps} with loss {loss:.4g}; it goes on only if it is among the best there"
    return replace(record, state="paused", reason=why)


def _wrong(objective: Objective, record: TrialRecord) -> str:
    """Say that an objective is not what was known of it beforehand; "" if it is, or nothing was."""
    if objective.known is None or objective.name not in record.values:
        return ""
    known, measured = objective.known(record.candidate), record.values[objective.name]
    if math.isclose(known, measured, rel_tol=1e-9):
        return ""
    return f"{objective.name} is {measured:g} where its `known` said {known:g}; it is learned from the trials instead"


def _stop_if_hopeless(records: Sequence[TrialRecord]) -> None:
    first = records[:SAME_FAILURES]
    if len(records) == SAME_FAILURES and all(r.state == "failed" and r.reason == first[0].reason for r in first):
        why = f"{first[0].reason}\n{first[0].traceback}"
        raise AllTrialsFailedError(f"the first {SAME_FAILURES} trials failed alike: {why}")


def _ending(records: Sequence[TrialRecord], why: Ending | None) -> Ending:
    if any(r.state == "complete" for r in records):
        return why or "time"
    failed = [r for r in records if r.state == "failed"]
    if failed:
        why_failed = f"{failed[0].reason}\n{failed[0].traceback}".rstrip()
        raise AllTrialsFailedError(f"all {len(failed)} trials failed; the first: {why_failed}")
    infeasible = [r for r in records if r.state == "infeasible"]
    if infeasible:
        beyond = [r for r in infeasible if r.reason.startswith(BEYOND_MEMORY)]
        peaks = [(r.measurement.memory_bytes, describe(r)) for r in beyond if r.measurement]
        least = f" The least of it, {show_bytes(min(peaks)[0])}, was {min(peaks)[1]}." if peaks else ""
        raise InfeasibleError(
            f"all {len(infeasible)} trials were infeasible; the first: {infeasible[0].reason}.{least}"
        )
    if why == "exhausted":
        raise InfeasibleError("space: nothing in it could be proposed within the budget; allow more")
    if why == "steps":
        raise OutOfTimeError("steps_total: it did not hold one whole training; raise --steps-total, or lower --steps")
    raise OutOfTimeError("time: it ran out before the first trial was done; raise --time, or lower --steps")
