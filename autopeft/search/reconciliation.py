"""What Optuna is told of records, and how a storage is brought to what the records say: they never know less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.plain import canonical_json
from autopeft.problem import Problem
from autopeft.records import TrialRecord
from autopeft.search.codec import encode
from autopeft.search.sampler import IDENTITY

CANDIDATE = "candidate"
"""User attribute of an Optuna trial: the values of its candidate."""


def told(record: TrialRecord, problem: Problem) -> tuple[TrialState, list[float] | None]:
    """Give a record's state and values for Optuna."""
    if record.state == "complete":
        return TrialState.COMPLETE, [record.values[o.name] for o in problem.objectives]
    if record.state == "paused":
        return TrialState.RUNNING, None
    # A failure teaches the engine nothing; an infeasible or stopped one did run.
    return (TrialState.FAIL if record.state == "failed" else TrialState.PRUNED), None


def disagrees(stored: optuna.Study, records: Sequence[TrialRecord]) -> bool:
    """Tell whether storage and records disagree: one is an old copy, or somebody took a record out."""
    trials = stored.get_trials(deepcopy=False)
    recorded = {r.number: canonical_json(r.candidate.values) for r in records}
    other = any(trials[n].user_attrs.get(CANDIDATE) != of for n, of in recorded.items() if n < len(trials))
    complete = {t.number for t in trials if t.state is TrialState.COMPLETE}
    unknown = any(CANDIDATE not in t.user_attrs for t in trials if not t.state.is_finished())
    ended = {t.number for t in trials if t.state.is_finished()} & {r.number for r in records if r.state == "paused"}
    return other or unknown or bool(ended) or bool(recorded and complete - recorded.keys())


def reconcile(
    storage: BaseStorage,
    stored: optuna.Study,
    records: Sequence[TrialRecord],
    *,
    problem: Problem,
    known: Mapping[str, BaseDistribution],
) -> None:
    """Bring a storage to what the records say; they are written first.

    Args:
        known: Distributions of the parameters, by name.
    """
    trials = stored.get_trials(deepcopy=False)
    by_number = {record.number: record for record in records}
    for trial in trials:
        if trial.number not in by_number or trial.state.is_finished():
            continue
        record = by_number[trial.number]
        if record.state != "paused":
            storage.set_trial_state_values(trial._trial_id, *told(record, problem))
            continue
        for step, loss in _losses(record).items():
            if step not in trial.intermediate_values:
                storage.set_trial_intermediate_value(trial._trial_id, step, loss)
    # A study that was lost, wholly or its last commits, is rebuilt; numbers stay what they were.
    for number in range(len(trials), max(by_number, default=-1) + 1):
        stored.add_trial(_rebuilt(by_number.get(number), problem, known))


def _losses(record: TrialRecord) -> dict[int, float]:
    """Give a trial's held-out loss at each rung."""
    return {result.step: result.loss for result in record.rungs}


def _rebuilt(record: TrialRecord | None, problem: Problem, known: Mapping[str, BaseDistribution]) -> FrozenTrial:
    if record is None:
        return create_trial(state=TrialState.FAIL)
    state, values = told(record, problem)
    params: dict[str, Any] = encode(problem.space, record.candidate)
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions={name: known[name] for name in params},
        intermediate_values=_losses(record) if record.state == "paused" else None,
        user_attrs={
            CANDIDATE: canonical_json(record.candidate.values),
            IDENTITY: problem.identity(record.candidate),
        },
    )
