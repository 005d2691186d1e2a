"""The Python face: search, resume, estimate, load, merge; and the Result that they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autopeft.assembly import CostFunction, assemble, reassemble
from autopeft.errors import RequestError
from autopeft.estimate import Estimate, estimates, read_candidates
from autopeft.execute.function import TrainFunction
from autopeft.objectives import Objective
from autopeft.records import MAY_CHANGE
from autopeft.registry import unknown
from autopeft.request import NO_LIMIT, SearchRequest
from autopeft.request_fields import demo_defaults, make_request
from autopeft.result import Result
from autopeft.search.sampler import SAMPLERS
from autopeft.search.storage import is_storage_url
from autopeft.sitting import run_sitting
from autopeft.space_file import load_space, read_space
from autopeft.store import RunDirectory
from autopeft.view import View, make_view


def search(
    *,
    space: str | Path | Mapping[str, Any] | None = None,
    objectives: Sequence[str | Objective] | None = None,
    runner: TrainFunction | str | None = None,
    cost: CostFunction | None = None,
    view: View | None = None,
    **fields: Any,
) -> Result:
    """Search for the best configurations and train, judge and save each point of their front.

    Args:
        space: Name or file of a search space, or its fields as in YAML.
        objectives: Names, and `Objective`s of your own.
        runner: A function (candidate, steps) -> Measurement in place of our training, or "module:name" of one; then
            `space` is yours too, and there is no model and no data. With `rungs` it is called with the steps of each
            rung that a candidate gets to: it trains from the start, or goes on by itself from what it has kept.
        cost: Candidate -> trained parameters, so that `budget` holds for a custom runner as well.
        view: Who is told how it goes; by default a live table on a terminal, lines elsewhere.
        fields: Fields of a SearchRequest: model, data, budget, trials, steps, out ...

    Raises:
        AutopeftError: Of the kind that says what is wrong.
    """
    own: list[Objective] = []
    if objectives is not None and not isinstance(objectives, str):
        own = [o for o in objectives if isinstance(o, Objective)]
        fields["objectives"] = [o.name if isinstance(o, Objective) else o for o in objectives]
    elif objectives is not None:
        fields["objectives"] = objectives
    if isinstance(space, str | Path):
        fields["space"] = str(space)
    defaults = demo_defaults(fields) if runner is None else _runner_defaults(runner, space)
    request = _checked(_over(defaults, fields), own)
    _check_finals(request, runner)
    space_fields = read_space(space if isinstance(space, Mapping) else request.space)
    with ExitStack() as stack:
        view = view or _own_view(stack)
        run = RunDirectory.new(Path(request.out) if request.out else _new_run_dir())
        view.note("reading the model and the data")
        assembly = assemble(request, space=space_fields, objectives=own, runner=runner, cost=cost)
        assembly.problem.check_feasible()
        run.make()
        if assembly.data is not None:
            from autopeft.trial.prepared import write

            write(assembly.data, run.path / "data")
        run.begin(request, assembly.info)
        return run_sitting(run, request, assembly, view, runner=runner)


def _checked(fields: Mapping[str, Any], own: Sequence[Objective] = ()) -> SearchRequest:
    """Make the request, with the faults that only the engine can see among the others; before any work."""
    sampler, storage = fields.get("sampler"), fields.get("storage")
    faults = []
    if sampler is not None and sampler not in SAMPLERS:
        faults.append(f"sampler: {unknown(sampler, SAMPLERS, what='sampler')}")
    try:
        load_space(fields.get("space") or "default")
    except RequestError as error:
        faults += error.faults
    if storage is not None and not is_storage_url(storage):
        faults.append(f"storage: {storage!r} is no database URL; write e.g. postgresql://user@host/name")
    try:
        request = make_request(fields, own_objectives=tuple(o.name for o in own))
    except RequestError as error:
        raise RequestError(*error.faults, *faults) from None
    if faults:
        raise RequestError(*faults)
    return request


def _over(defaults: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Put what was given over defaults; a None means the default."""
    return {**defaults, **{name: value for name, value in fields.items() if value is not None}}


def _check_finals(request: SearchRequest, runner: TrainFunction | str | None) -> None:
    if runner is not None and request.final_seeds:
        raise RequestError(
            f"final_seeds: {request.final_seeds}, and a runner of your own is told no seed; drop final_seeds"
        )


def _own_view(stack: ExitStack) -> View:
    view = make_view()
    stack.enter_context(view)
    return view


def _runner_defaults(runner: TrainFunction | str, space: object) -> dict[str, Any]:
    if space is None:
        raise RequestError("space: a custom runner needs a space of its own, as a YAML file or its fields")
    executor = "ray" if isinstance(runner, str) else "local"
    return {"executor": executor, "budget": NO_LIMIT, "objectives": ["quality"], "final_seeds": 0}


def resume(
    run_dir: str | Path,
    *,
    objectives: Sequence[Objective] = (),
    runner: TrainFunction | str | None = None,
    cost: CostFunction | None = None,
    view: View | None = None,
    **changes: Any,
) -> Result:
    """Go on with a run that was stopped or killed; what is complete is kept, what was cut off runs again.

    Args:
        objectives: The `Objective`s of your own that the run was started with.
        runner, cost: Those that the run was started with.
        changes: Fields that may differ from the run's request, for this sitting: trials, time, steps_total,
            final_seeds, executor, workers, together, gpus_per_worker, ray_address.

    Raises:
        AutopeftError: Of the kind that says what is wrong.
    """
    run = RunDirectory.existing(Path(run_dir))
    stored = run.request.model_dump()
    given = {name: value for name, value in changes.items() if value is not None}
    for name in given:
        if name not in MAY_CHANGE:
            raise RequestError(
                f"{name}: a run keeps what it was started with; on resume only {', '.join(MAY_CHANGE)} may change"
            )
    if given.get("executor") == "local":
        stored |= {"workers": None, "ray_address": None}  # they were for Ray
    request = make_request({**stored, **given}, own_objectives=tuple(stored["objectives"]))
    _check_finals(request, runner)
    assembly = reassemble(run, objectives=objectives, cost=cost)
    with ExitStack() as stack:
        view = view or _own_view(stack)
        return run_sitting(run, request, assembly, view, runner=runner)


def _new_run_dir() -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = Path("autopeft-runs") / stamp
    number = 1
    while path.exists():
        number += 1
        path = Path("autopeft-runs") / f"{stamp}-{number}"
    return path


def estimate(
    *, candidates: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None, **fields: Any
) -> list[Estimate]:
    """Tell what configurations cost: exact parameters, predicted GPU memory, size on disk, time; trains nothing.

    Args:
        candidates: A configuration or several, as under `start` in a space, or a YAML or JSON file of them; by default
            those that the space starts with, and its smallest.
        fields: Fields of a SearchRequest.

    Raises:
        AutopeftError: Of the kind that says what is wrong.
    """
    request = _checked(_over(demo_defaults(fields), fields))
    if isinstance(candidates, str | Path):
        candidates = read_candidates(Path(candidates))
    elif isinstance(candidates, Mapping):
        candidates = [candidates]
    return estimates(request, candidates)


def load(adapter_dir: str | Path, *, device: str = "cpu") -> Any:
    """Load an adapter that a search saved, on its base model, ready for use.

    Raises:
        SourceError: If the folder holds no such adapter, or its base cannot be read.
    """
    from autopeft.trial.adapters import load_adapter

    return load_adapter(Path(adapter_dir), device=device)


def merge(adapter_dir: str | Path, out_dir: str | Path, *, device: str = "cpu") -> tuple[str, ...]:
    """Fold an adapter that a search saved into its base, and save a plain Hugging Face model with its tokenizer.

    Returns:
        Caveats, where there are some: an adapter that was trained on a base of 4 or 8 bits is merged into 16 or 32.

    Raises:
        RequestError: If the method cannot be merged, or `out_dir` is not empty.
        SourceError: If the folder holds no such adapter, or its base cannot be read.
    """
    from autopeft.trial.merge import merge_adapter

    return merge_adapter(Path(adapter_dir), Path(out_dir), device=device)
