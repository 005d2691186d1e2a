"""Puts a run together: from a request to the model's anatomy, the prepared data, the problem, and the executor."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from autopeft.anatomy import Anatomy
from autopeft.binding import bind_space
from autopeft.errors import RequestError
from autopeft.execute.function import FunctionRunner, TrainFunction, entry_of
from autopeft.execute.local import LocalExecutor
from autopeft.execute.protocol import Executor, make_runner
from autopeft.forecast import prediction
from autopeft.methods import METHODS
from autopeft.objectives import METRICS, OBJECTIVES, Objective, quality_of
from autopeft.problem import Problem
from autopeft.recipe import CUSTOMARY, defaults, holds
from autopeft.records import Candidate, Measurement, RunInfo, WorkerSpec
from autopeft.request import SearchRequest
from autopeft.space import Ordinal, Space, ends
from autopeft.space_file import parse_space
from autopeft.store import RunDirectory
from autopeft.units import show_bytes

if TYPE_CHECKING:
    from autopeft.trial.prepared import Prepared

CostFunction = Callable[[Candidate], int]
_PACKAGES = ("autopeft", "torch", "transformers", "peft", "bitsandbytes", "optuna", "ray", "datasets", "numpy")
_WORKER_BYTES = 700 * 2**20
"""What a worker process holds beside its model: interpreter, libraries, data."""


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
        model, anatomy, prepared = _read_sources(request, parse_space(space))
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
    return Assembly(info, _problem(info, chosen, cost), prepared)


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
    known = {**OBJECTIVES, **{o.name: o for o in own}}
    return tuple(
        Objective(
            stored["name"],
            "maximize" if stored["goal"] == "maximize" else "minimize",
            stored["unit"],
            known[stored["name"]].measure if stored["name"] in known else _unknown_measure,
        )
        for stored in info.objectives
    )


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
    return Problem(space, objectives, anatomy, cost, *limits, recipe=recipe, base=base, predicted_bytes=predicted)


def _objectives(request: SearchRequest, metric: str | None, own: Sequence[Objective]) -> tuple[Objective, ...]:
    brought = {o.name: o for o in own}
    known = dict(OBJECTIVES)
    if metric is not None:
        known["quality"] = quality_of(METRICS[metric])
    return tuple(brought.get(name) or known[name] for name in request.objectives)


def _values(name: str, request: SearchRequest, space: Space) -> list[Any]:
    """Give every value that a dimension of training can have in a search; of a range, its ends."""
    found = [ends(p.domain) for p in space if p.name == name]
    # Others are refused with all that is wrong in the space, when it is bound to the model.
    return [v for v in found[0] if holds(name, v)] if found else [getattr(request, name)]


def _most_virtual_tokens(space: Space) -> int:
    """Give the most tokens that a prompt of the space puts before a text: they take positions of the model too."""
    # A hybrid's parts have tokens too.
    names = {f"{name}.tokens" for name, method in METHODS.items() if method.takes_positions}
    domains = [p.domain for p in space if p.name in names or p.name.endswith((".prefix.tokens", ".prompt.tokens"))]
    return int(max((v for d in domains if isinstance(d, Ordinal) for v in d.values), default=0))


def _read_sources(request: SearchRequest, space: Space) -> tuple[dict[str, Any], Anatomy, Prepared]:
    """Read tokenizer, data and anatomy; gives (what the model is, anatomy, prepared data)."""
    # Heavy, and of no use to a custom runner.
    from autopeft.trial.data import prepare
    from autopeft.trial.demo import demo_model
    from autopeft.trial.device import cuda_available
    from autopeft.trial.model import (
        ModelSource,
        answering_task,
        check_trains,
        check_weights,
        load_tokenizer,
        position_limit,
    )
    from autopeft.trial.prepared import frequent_tokens
    from autopeft.trial.reading import read_anatomy

    path = request.model or str(demo_model())
    if Path(path).expanduser().is_dir():
        path = str(Path(path).expanduser().resolve())  # it must mean the same from any other folder
    tokenizer = load_tokenizer(path)
    positions = position_limit(path)
    check_weights(path)
    room = None if positions is None else positions - _most_virtual_tokens(space)
    rows = max(_values("batch_size", request, space), default=request.batch_size)
    answering = answering_task(path)
    prepared = prepare(request, tokenizer, task=request.task, answering=answering, max_positions=room, batch_size=rows)
    _check_lengths(prepared, [v for v in _values("max_length", request, space) if v < prepared.max_length])
    source = ModelSource(path, prepared.task, prepared.label_names, tokenizer.pad_token_id or 0)
    check_trains(
        source,
        packed=prepared.task == "causal-lm" and True in _values("packing", request, space),
        checkpointed=True in _values("gradient_checkpointing", request, space),
    )
    anatomy = read_anatomy(source).on_data(frequent_tokens(prepared.train))
    model = {
        "name": path,
        "checkpoint_bits": anatomy.dtype_bits,
        "cuda": cuda_available() or bool(request.gpus_per_worker),  # of a cluster, if not of this machine
        "source": asdict(source),
    }
    return model, anatomy, prepared


def _check_lengths(prepared: Prepared, lengths: Sequence[int]) -> None:
    """Make sure that the rows can be cut to the lengths of a space."""
    from autopeft.trial.batches import rows_left_empty

    if lengths and prepared.closing is None:
        raise RequestError(
            "space: max_length: rows of two texts are cut once, by the tokenizer; drop it, and give --max-length"
        )
    for length in lengths:
        if empty := rows_left_empty(prepared, length):
            raise RequestError(
                f"space: max_length: at {length} tokens the prompt fills {len(empty)} of the "
                f"{prepared.train.num_rows} train rows, the first row {min(empty)}; start from a larger one"
            )


def worker_spec(info: RunInfo, run_dir: Path, *, threads: int, memory_share: float = 1.0) -> WorkerSpec:
    """Say how a worker of a run is made."""
    anatomy, request = info.anatomy or {}, info.request
    return WorkerSpec(
        "autopeft.trial.worker:TrialWorker",
        {
            "run_dir": str(run_dir.absolute()),
            "source": info.model["source"],
            "head": anatomy["head"],
            "metric": request["metric"] or _default_metric(info),
            "data_seed": request["seed"],
            "threads": threads,
            "memory_share": memory_share,
        },
    )


def _default_metric(info: RunInfo) -> str:
    return SearchRequest(**info.request).metric_for(info.data["task"])


def make_executor(
    request: SearchRequest, info: RunInfo, run_dir: Path, *, runner: TrainFunction | str | None = None
) -> Executor:
    """Make the executor of a request: as many workers as were asked for, or as this machine holds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if request.executor == "local":
        if runner is not None:
            own = runner
            return LocalExecutor(lambda: FunctionRunner(own))
        spec = worker_spec(info, run_dir, threads=cores)
        return LocalExecutor(lambda: make_runner(spec))
    from autopeft.execute.ray_tune import RayTuneExecutor

    gpus = request.gpus_per_worker or 0.0
    if not gpus and info.model.get("cuda"):
        gpus = 1.0
    workers = request.workers or _fitting_workers(info, cores, gpus)
    # Of a cluster's machines nothing is known here; one thread a worker suits any.
    threads = 1 if request.ray_address else max(1, cores // workers)
    if runner is None:
        # How many share a machine of a cluster is not known; all of them on one is the worst.
        share = min(1.0, gpus) if gpus else 1 / workers
        spec = worker_spec(info, run_dir, threads=threads, memory_share=share)
    else:
        entry = runner if isinstance(runner, str) else entry_of(runner)
        spec = WorkerSpec("autopeft.execute.function:FunctionRunner", {"function": entry})
    return RayTuneExecutor(
        spec=spec, workers=workers, cpus_per_worker=threads, gpus_per_worker=gpus, address=request.ray_address
    )


def _fitting_workers(info: RunInfo, cores: int, gpus: float) -> int:
    """Count the workers that this machine holds: by GPUs where there are some, else by cores and free memory."""
    if gpus:
        from autopeft.trial.device import gpu_names

        return max(1, int(len(gpu_names()) / gpus))
    weights = 4 * (info.anatomy or {}).get("base_params", 0)
    return max(1, min(cores, int(psutil.virtual_memory().available * 0.8 / (_WORKER_BYTES + 2 * weights))))


def versions() -> dict[str, str]:
    """Give the versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str]:
    """Say what this machine is."""
    found = {"machine": f"{platform.system()} {platform.machine()}", "cores": str(os.cpu_count())}
    found["memory"] = show_bytes(psutil.virtual_memory().total)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x.partition(":")[2].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        found |= {"cpu": names[0]} if names else {}
    import sys

    if "torch" in sys.modules:
        from autopeft.trial.device import gpu_names

        found |= {f"gpu {i}": name for i, name in enumerate(gpu_names())}
    return found
