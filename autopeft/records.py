"""What a run directory keeps: what was run, a record a trial, and what earlier runs said, with one schema version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from autopeft.candidates import AdapterPlan, Candidate, Cost
from autopeft.plain import Plain
from autopeft.work import Measurement, TrialState

SCHEMA_VERSION = 2
"""Raised when a stored value changes its meaning; a run directory of another version is refused, never guessed at."""

MAY_CHANGE = (
    "trials", "time", "steps_total", "until_converged", "final_seeds", "executor", "workers", "together",
    "gpus_per_worker", "ray_address",
)  # fmt: skip
"""Fields of a request that may differ when a run goes on; all others stay what it was started with."""


@dataclass(frozen=True, slots=True)
class RungResult(Plain):
    """How a trial stood at the end of a work unit.

    Attributes:
        step: Optimiser steps taken by then.
        loss: Held-out loss; of a custom runner that gives none, its quality so that smaller is better.
        costs: The other objectives in their order, so that smaller is better.
    """

    step: int
    loss: float
    costs: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`, or from JSON, which knows no tuples."""
        return cls(int(data["step"]), float(data["loss"]), tuple(map(float, data["costs"])))


@dataclass(frozen=True, slots=True)
class TrialRecord(Plain):
    """Everything that is kept of one trial; a line of `records.jsonl` a work unit, the last of which counts.

    Attributes:
        values: Objective name -> value, for a complete trial.
        reason: Why there is no value, for any other.
        measurement: What the last work unit gave.
        seconds: Time of all its work units.
        steps: Optimiser steps that these took, those trained again included.
        rungs: How it stood at the end of each.
        plan: Adapter that was trained; None for a custom runner.
        exhausted_bytes: Memory that was in use when it ran out, 1 where that is not known; 0 if it did not.
    """

    number: int
    state: TrialState
    candidate: Candidate
    seed: int
    cost: Cost | None = None
    plan: AdapterPlan | None = None
    measurement: Measurement | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    traceback: str = ""
    worker: str = ""
    seconds: float = 0.0
    finished_at: str = ""
    exhausted_bytes: int = 0
    steps: int = 0
    rungs: tuple[RungResult, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`."""
        record = super(TrialRecord, cls).from_dict(data)
        return replace(
            record,
            candidate=Candidate.from_dict(data["candidate"]),
            cost=Cost.from_dict(data["cost"]) if data.get("cost") else None,
            plan=AdapterPlan.from_dict(data["plan"]) if data.get("plan") else None,
            measurement=Measurement.from_dict(data["measurement"]) if data.get("measurement") else None,
            rungs=tuple(map(RungResult.from_dict, data.get("rungs", ()))),
        )


@dataclass(frozen=True, slots=True)
class Prior(Plain):
    """What an earlier run says of candidates of this one: which were the better ones there, and no result of any.

    Attributes:
        run: Where it was read; it is not needed any more.
        candidates: ``(n_trials,)``: of the space of this run.
        scores: ``(n_trials,)``: how good each was in that run, smaller is better: the standard normal's quantile at
            its rank, so that neither the metric's scale nor the length of the trainings matters.
        skipped: Its trials that say nothing here: without a result that counts, or not of this run's space.
        differs: In what that run was another, in words.
    """

    run: str
    candidates: tuple[Candidate, ...]
    scores: tuple[float, ...]
    skipped: int = 0
    differs: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`, or from JSON, which knows no tuples."""
        prior = super(Prior, cls).from_dict(data)
        candidates = tuple(map(Candidate.from_dict, data["candidates"]))
        return replace(prior, candidates=candidates, scores=tuple(prior.scores), differs=tuple(prior.differs))


@dataclass(frozen=True, slots=True)
class RunInfo(Plain):
    """What was run: everything about a run that is not a trial; `run.json` in the run directory.

    Attributes:
        request: The whole request, field -> value.
        objectives: For each objective its name, goal ("maximize" or "minimize") and unit, in order.
        space: The search space as YAML text.
        anatomy: Anatomy of the model as plain values; None with a custom runner.
        data: What the data is: name, rows a split, labels, fingerprint, notes of what was done to it; empty with a
            custom runner.
        model: What the model is: name, checksum of the base's weights, bits of its checkpoint; empty likewise.
        parameter_limit, memory_limit_bytes: The budget as numbers; None for no limit.
        versions: Package -> version.
        hardware: What the machine is, name -> text.
        prior: What was taken from earlier runs.
    """

    request: Mapping[str, Any]
    objectives: tuple[Mapping[str, str], ...]
    space: str
    created_at: str
    versions: Mapping[str, str]
    hardware: Mapping[str, str]
    anatomy: Mapping[str, Any] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    parameter_limit: int | None = None
    memory_limit_bytes: int | None = None
    prior: tuple[Prior, ...] = ()
    schema: int = SCHEMA_VERSION

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`, or from JSON, which knows no tuples."""
        info = super(RunInfo, cls).from_dict(data)
        return replace(
            info, objectives=tuple(info.objectives), prior=tuple(map(Prior.from_dict, data.get("prior", ())))
        )
