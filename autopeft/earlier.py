"""Earlier runs, read as a prior of a new search: which candidates of its space were the better ones there.

A trial counts if it was complete, or has paused where enough others went on to tell what it would have come to. Its
quality becomes its rank in its own run, so that other steps, data or models do not have to give like numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from autopeft.candidates import Candidate, Scalar
from autopeft.errors import AutopeftError, RequestError
from autopeft.objectives import DEFAULT_METRIC, Objective
from autopeft.pareto import quality_objective
from autopeft.problem import Problem
from autopeft.records import Prior, RunInfo, TrialRecord
from autopeft.search.expectation import expected_from_partial
from autopeft.space import Parameter, Space
from autopeft.store import RunDirectory

Earlier = tuple[str, RunInfo, Sequence[TrialRecord]]
"""A run that was read: where, what it was, and its trials."""


def read_earlier(paths: Iterable[str]) -> list[Earlier]:
    """Read runs, before anything else of a search costs time.

    Raises:
        RequestError: Naming each that cannot be read.
    """
    found: list[Earlier] = []
    faults = []
    for path in paths:
        try:
            run = RunDirectory.existing(Path(path).expanduser())
            found.append((path, run.read_info(), run.records))
        except AutopeftError as error:
            faults.append(f"warm_from: {path!r}: {error}. Give the folder of an earlier run, with its request.yaml")
    if faults:
        raise RequestError(*faults)
    return found


def priors_of(earlier: Sequence[Earlier], info: RunInfo, problem: Problem) -> tuple[Prior, ...]:
    """Give what earlier runs say of a new one.

    Raises:
        RequestError: Naming each run of another quality, or without a trial that says anything.
    """
    priors, faults = [], []
    for path, other, records in earlier:
        ours, theirs = _measure(info), _measure(other)
        if ours != theirs:
            faults.append(f"warm_from: {path!r}: its quality is {theirs}, here it is {ours}; drop it, or give --metric")
            continue
        prior = _prior(path, records, problem, _quality(other), differs=_differences(info, other))
        if not prior.candidates:
            faults.append(
                f"warm_from: {path!r}: none of its {prior.skipped} trials has a result and is of this space; drop it"
            )
        priors.append(prior)
    if faults:
        raise RequestError(*faults)
    return tuple(priors)


def _quality(info: RunInfo) -> Objective:
    own = [Objective(o["name"], o["goal"], o["unit"], lambda m: m.quality) for o in info.objectives]  # type: ignore[arg-type]
    return quality_objective(own)


def _measure(info: RunInfo) -> str:
    """Say what a run calls quality."""
    quality = _quality(info)
    metric = info.request.get("metric") or (DEFAULT_METRIC[info.anatomy["task"]] if info.anatomy else "")
    named = metric if quality.name == "quality" and metric else quality.name
    return f"{named} ({quality.goal}{f', {quality.unit}' if quality.unit else ''})"


def _differences(info: RunInfo, other: RunInfo) -> tuple[str, ...]:
    """Say in what an earlier run was another, as far as it moves what is best."""
    pairs = {
        "model": (info.model.get("name"), other.model.get("name")),
        "data": (info.data.get("name"), other.data.get("name")),
        "steps a trial": (info.request.get("steps"), other.request.get("steps")),
    }
    return tuple(name for name, (ours, theirs) in pairs.items() if ours != theirs)


def _prior(
    path: str, records: Sequence[TrialRecord], problem: Problem, quality: Objective, *, differs: tuple[str, ...]
) -> Prior:
    """Rank the trials of a run, then keep those that mean something here."""
    done = [r for r in records if r.state == "complete" and quality.name in r.values]
    paused = [r for r in records if r.state == "paused" and r.rungs] if done else []
    ends = np.array([quality.loss(r.values[quality.name]) for r in done])
    expected, _ = expected_from_partial([_curve(r) for r in done], ends, [_curve(r) for r in paused])
    told = np.isfinite(expected)
    counted = [*done, *(r for r, tells in zip(paused, told, strict=True) if tells)]
    scores = normal_scores([*ends, *expected[told]])
    kept = [
        (candidate, score)
        for record, score in zip(counted, scores, strict=True)
        if (candidate := carried(record.candidate.values, problem.space)) is not None
    ]
    return Prior(
        path,
        tuple(candidate for candidate, _ in kept),
        tuple(score for _, score in kept),
        skipped=len(records) - len(kept),
        differs=differs,
    )


def _curve(record: TrialRecord) -> Mapping[int, float]:
    return {result.step: result.loss for result in record.rungs}


def normal_scores(losses: Sequence[float]) -> list[float]:
    """Give the quantile of a standard normal at each one's rank; equal ones share theirs.

    >>> [round(score, 2) for score in normal_scores([3.0, 1e9, 0.5])]
    [0.0, 0.97, -0.97]
    """
    return [float(score) for score in ndtri((rankdata(losses) - 0.5) / max(1, len(losses)))]


def carried(values: Mapping[str, Scalar], space: Space) -> Candidate | None:
    """Give the candidate of a bound space that an earlier run's values mean; None if it holds none.

    What the space does not know is dropped, what is not said has its default. A parameter that is repeated over other
    groups of layers takes the value of the same place from first to last.
    """
    said = {p.name: values[p.name] for p in space if p.name in values}
    elsewhere = {_base(name) for name in values}
    for parameter in space:
        if parameter.name not in said and _base(parameter.name) in elsewhere:
            said |= _at_same_place(parameter, values, space)
    active = [p for p in space.active(said) if p.name in said]
    if not active or not all(p.domain.holds(said[p.name]) for p in active):
        return None
    return space.complete({p.name: said[p.name] for p in active})


def _at_same_place(parameter: Parameter, values: Mapping[str, Scalar], space: Space) -> dict[str, Scalar]:
    """Give a parameter of a group of layers the value of the earlier group that lies where it does, if there is one."""
    layers, kind = _parts(parameter.name)

    def alike(names: Iterable[str]) -> list[str]:
        same = [n for n in names if _base(n) == _base(parameter.name) and _parts(n)[0] and _parts(n)[1] == kind]
        return sorted(same, key=lambda name: int(_parts(name)[0].partition("-")[0]))

    here, there = alike(p.name for p in space), alike(values)
    if not layers or not there:
        return {}
    return {parameter.name: values[there[here.index(parameter.name) * len(there) // len(here)]]}


def _base(name: str) -> str:
    return name.partition("[")[0]


def _parts(name: str) -> tuple[str, str]:
    """Give the group of layers and the kind of module that a bound parameter's name ends in; "" where it has none."""
    parts = name.partition("[")[2].removesuffix("]").split("/")
    layers = next((part for part in parts if part[:1].isdigit()), "")
    return layers, next((part for part in parts if part != layers), "")
