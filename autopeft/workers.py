"""Makes the workers of a run: how each is built, and how many this machine holds."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from autopeft.errors import RequestError
from autopeft.execute.function import FunctionRunner, TrainFunction, entry_of
from autopeft.execute.local import LocalExecutor
from autopeft.execute.protocol import Executor, make_runner
from autopeft.records import RunInfo
from autopeft.request import SearchRequest
from autopeft.work import WorkerSpec

_WORKER_BYTES = 700 * 2**20
"""What a worker process holds beside its model: interpreter, libraries, data."""
_TIMELESS = {"quality", "params", "memory", "adapter_bytes"}
"""Objectives that do not depend on how long a training takes, which what is reused of earlier trials shortens."""


def worker_spec(
    info: RunInfo, run_dir: Path, *, threads: int, memory_share: float = 1.0, host_share: float = 1.0
) -> WorkerSpec:
    """Say how a worker of a run is made."""
    anatomy, request = info.anatomy or {}, info.request
    return WorkerSpec(
        "autopeft.trial.worker:TrialWorker",
        {
            "run_dir": str(run_dir.absolute()),
            "source": info.model["source"],
            "head": anatomy["head"],
            "metric": request["metric"] or _default_metric(info),
            "head_seed": request["seed"],
            "threads": threads,
            "memory_share": memory_share,
            "host_share": host_share,
            "reuse": {objective["name"] for objective in info.objectives} <= _TIMELESS,
        },
    )


def _default_metric(info: RunInfo) -> str:
    return SearchRequest(**info.request).metric_for(info.data["task"])


def make_executor(
    request: SearchRequest, info: RunInfo, run_dir: Path, *, runner: TrainFunction | str | None = None
) -> Executor:
    """Make the executor of a request: as many workers as were asked for, or as this machine holds.

    Raises:
        RequestError: If candidates are to be trained together that cannot be.
    """
    if request.together > 1:
        _check_together(info, runner)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if request.executor == "local":
        if runner is not None:
            own = runner
            return LocalExecutor(lambda: FunctionRunner(own))
        spec = worker_spec(info, run_dir, threads=cores)
        return LocalExecutor(lambda: make_runner(spec), together=request.together)
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
        spec = worker_spec(info, run_dir, threads=threads, memory_share=share, host_share=1 / workers)
    else:
        entry = runner if isinstance(runner, str) else entry_of(runner)
        spec = WorkerSpec("autopeft.execute.function:FunctionRunner", {"function": entry})
    return RayTuneExecutor(
        spec=spec,
        workers=workers,
        cpus_per_worker=threads,
        gpus_per_worker=gpus,
        address=request.ray_address,
        together=request.together,
    )


def _check_together(info: RunInfo, runner: TrainFunction | str | None) -> None:
    if runner is not None:
        raise RequestError("together: a runner of your own takes one candidate at a time; drop together")
    if timed := [objective["name"] for objective in info.objectives if objective["name"] not in _TIMELESS]:
        raise RequestError(
            f"together: {', '.join(timed)} may depend on how long a training takes, which nobody can tell of one among "
            "several; drop together, or that objective"
        )


def _fitting_workers(info: RunInfo, cores: int, gpus: float) -> int:
    """Count the workers that this machine holds: by GPUs where there are some, else by cores and free memory."""
    if gpus:
        from autopeft.trial.device import gpu_names

        return max(1, int(len(gpu_names()) / gpus))
    weights = 4 * (info.anatomy or {}).get("base_params", 0)
    return max(1, min(cores, int(psutil.virtual_memory().available * 0.8 / (_WORKER_BYTES + 2 * weights))))
