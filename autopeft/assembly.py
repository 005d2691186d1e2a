"""Puts a run together: from a request to the model's anatomy, the prepared data and the problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

from autopeft.anatomy import Anatomy
from autopeft.binding import bind_space
from autopeft.candidates import Candidate
from autopeft.earlier import priors_of, read_earlier
from autopeft.errors import RequestError
from autopeft.execute.function import TrainFunction
from autopeft.forecast import prediction
from autopeft.machine import hardware, versions
from autopeft.objectives import METRICS, OBJECTIVES, Goal, Objective, quality_of
from autopeft.problem import Problem
from autopeft.recipe import CUSTOMARY, defaults
from autopeft.records import RunInfo
from autopeft.request import SearchRequest
from autopeft.sources import read_sources
from autopeft.space_file import parse_space
from autopeft.store import RunDirectory
from autopeft.work import Measurement

if TYPE_CHECKING:
    from autopeft.trial.prepared import Prepared

CostFunction = Callable[[Candidate], int]


@dataclass(frozen=True, slots=True)
class Assembly:
    """A run put together, nothing trained yet."""

    info: RunInfo
    problem: Problem
    data: Prepared | None = None


def assemble(
    request: SearchRequest,
    *,
    space: Mapping[str, Any],
    objectives: Sequence[Objective] = (),
    runner: TrainFunction | str | None = None,
    cost: CostFunction | None = None,
    cuda: bool | None = None,
) -> Assembly:
    """Read the model and the data of a request, bind the space, count: everything that can go wrong before training.

    Args:
        space: Fields of the space, as in YAML.
        objectives: Objectives that the caller brings along; one with a known name takes its place.
        runner: With a custom runner there is neither model nor data.
        cost: Candidate -> trained parameters, for a custom runner.
        cuda: Whether trainings are thought of on a CUDA device; by default where there is one.

    Raises:
        AutopeftError: Of the kind that says what is wrong, and what to do.
    """
    earlier = read_earlier(request.warm_from)
    fields: dict[str, Any] = {
        # This is shown in the report, which people share; request.yaml keeps the URL whole, for resume.
        "request": {**request.model_dump(), "storage": _without_password(request.storage)},
        "space": yaml.safe_dump(dict(space), sort_keys=False, allow_unicode=True),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "memory_limit_bytes": request.memory_bytes,
    }
    prepared, metric = None, None
    if runner is None:
        model, anatomy, prepared = read_sources(request, parse_space(space))
        model = model if cuda is None else {**model, "cuda": cuda}
        metric = request.metric_for(prepared.task)
        limit = request.parameter_limit.of(anatomy.base_params) if request.parameter_limit else None
        fields |= {"anatomy": anatomy.to_dict(), "model": model, "data": prepared.card(), "parameter_limit": limit}
    else:
        fields["parameter_limit"] = _own_limit(request, cost)
    chosen = _objectives(request, metric, objectives)
    info = RunInfo(
        **fields,
        objectives=tuple({"name": o.name, "goal": o.goal, "unit": o.unit} for o in chosen),
        hardware=hardware(),
    )
    problem = _problem(info, chosen, cost)
    prior = priors_of(earlier, info, problem)
    return Assembly(replace(info, prior=prior), replace(problem, prior=prior), prepared)


def _without_password(url: str | None) -> str | None:
    return None if url is None else re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _own_limit(request: SearchRequest, cost: CostFunction | None) -> int | None:
    """Give the budget of a search with a custom runner."""
    faults = [
        f"{name}: {getattr(request, name)!r} means nothing with a custom runner; drop it"
        for name in ("model", "data")
        if getattr(request, name) is not None
    ]
    limit = request.parameter_limit
    if limit is not None and cost is None:
        faults.append(f"budget: {request.budget} cannot be held to without `cost`; give it, or budget='none'")
    elif limit is not None and limit.count is None:
        faults.append(f"budget: {request.budget} of what? With a custom runner give a count, e.g. 2M")
    if faults:
        raise RequestError(*faults)
    return None if limit is None else limit.count


def reassemble(
    run: RunDirectory, *, objectives: Sequence[Objective] = (), cost: CostFunction | None = None
) -> Assembly:
    """Put a stored run together again, from what it wrote down, not from what its sources have become since.

    Raises:
        DamagedRunError: If it cannot be read.
        RequestError: If it needs an objective that only its caller has.
    """
    info = run.read_info()
    chosen = stored_objectives(info, objectives)
    for objective in chosen:
        if objective.measure is _unknown_measure:
            raise RequestError(
                f"objectives: {objective.name!r} is the caller's own; resume from Python with `objectives=`"
            )
    return Assembly(info, _problem(info, chosen, cost))


def stored_objectives(info: RunInfo, own: Sequence[Objective] = ()) -> tuple[Objective, ...]:
    """Give the objectives of a stored run; one that only its caller can measure can still be compared and shown."""
    given = {**OBJECTIVES, **{o.name: o for o in own}}
    found = []
    for stored in info.objectives:
        goal: Goal = "maximize" if stored["goal"] == "maximize" else "minimize"
        of = given.get(stored["name"])
        if of is not None and of in own and of.goal != goal:
            raise RequestError(f"objectives: {of.name} is to {of.goal} now, and the run was started to {goal} it")
        of = of or Objective(stored["name"], goal, stored["unit"], _unknown_measure)
        found.append(replace(of, goal=goal, unit=stored["unit"]))
    return tuple(found)


def _unknown_measure(measurement: Measurement) -> float:
    raise RequestError("objectives: this one is the caller's own; give it by `objectives=`")


def _problem(info: RunInfo, objectives: tuple[Objective, ...], cost: CostFunction | None) -> Problem:
    space = parse_space(yaml.safe_load(info.space))
    anatomy = None if info.anatomy is None else Anatomy.from_dict(info.anatomy)
    recipe, base = CUSTOMARY, None
    if anatomy is not None:
        longest = info.data["max_length"]
        recipe, form = defaults(info.request, max_length=longest)
        base = replace(form, bits=anatomy.dtype_bits)
        bits = info.request.get("bits")
        space = bind_space(space, anatomy, cuda=info.model["cuda"], bits=bits, max_length=longest)
    elif spread := [p.name for p in space if p.per]:
        raise RequestError(f"space: {spread[0]}: `per` needs a model; a custom runner has none")
    limits = info.parameter_limit, info.memory_limit_bytes
    predicted = None if anatomy is None else prediction(info, anatomy)
    return Problem(
        space, objectives, anatomy, cost, *limits,
        recipe=recipe, base=base, predicted_bytes=predicted, prior=info.prior,
    )  # fmt: skip


def _objectives(request: SearchRequest, metric: str | None, own: Sequence[Objective]) -> tuple[Objective, ...]:
    brought = {o.name: o for o in own}
    known = dict(OBJECTIVES)
    if metric is not None:
        known["quality"] = quality_of(METRICS[metric])
    return tuple(brought.get(name) or known[name] for name in request.objectives)
