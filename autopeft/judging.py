"""What is asked of a worker, and what its answer makes of a trial: from a proposal to a work unit, from an outcome to a
record."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from autopeft.limits import Stretch
from autopeft.pareto import quality_objective
from autopeft.problem import Problem
from autopeft.records import RungResult, TrialRecord
from autopeft.search.study import Proposal
from autopeft.store import adapter_dir, state_dir
from autopeft.units import show_bytes
from autopeft.work import Measurement, Outcome, WorkUnit


def stretch_of(proposal: Proposal, steps: int) -> Stretch:
    """Give the steps of a proposal's work unit, of a whole training of so many."""
    return Stretch(proposal.first, proposal.steps or steps)


def beyond_memory(problem: Problem, measurement: Measurement) -> bool:
    """Tell whether a training needed more memory than it may."""
    return problem.memory_limit_bytes is not None and measurement.memory_bytes > problem.memory_limit_bytes


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
    stretch = stretch_of(proposal, steps)
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
    if beyond_memory(problem, measurement):
        peak, limit = show_bytes(measurement.memory_bytes), show_bytes(problem.memory_limit_bytes or 0)
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
