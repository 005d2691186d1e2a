"""Runs work units on Ray Tune: one unit is one Tune trial, on an actor that keeps its runner between units.

Tune places, isolates and counts deaths; it decides nothing, and its own results, loggers and snapshots are off.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from autopeft.errors import AutopeftError, RequestError
from autopeft.execute.board import Board
from autopeft.execute.protocol import Runner, make_runner, run_isolated
from autopeft.records import Measurement, Outcome, WorkerSpec, WorkUnit

_JOIN_SECONDS = 15.0
_OBJECT_STORE_BYTES = 128 * 2**20  # only small dicts travel; Ray would reserve 30% of the memory
_in_worker = False


class RayTuneExecutor:
    """An Executor on Ray Tune: on an own local Ray, on the cluster at `address`, or on the Ray already connected to.

    Args:
        spec: How a worker makes its runner; its module must be importable where the workers are.
        workers: Units under way at once, each on an actor of its own.
        cpus_per_worker, gpus_per_worker: What an actor reserves; whole CPUs are also its number of threads.
        address: A running cluster, or "auto"; None starts an own local Ray that ends with `close`.
        max_restarts: How many deaths of its worker process a unit survives.
        startup_timeout_seconds: How long Tune may take to come up.

    Raises:
        RequestError: If the cluster cannot be reached, or can never place a worker.
    """

    def __init__(
        self,
        *,
        spec: WorkerSpec,
        workers: int,
        cpus_per_worker: float = 1,
        gpus_per_worker: float = 0,
        address: str | None = None,
        max_restarts: int = 2,
        startup_timeout_seconds: float = 120,
    ) -> None:
        if _in_worker:
            raise RequestError(
                "executor: a search was started while a worker imported its runner; put the part of the script that "
                'starts the search under `if __name__ == "__main__":`'
            )
        self.capacity = workers
        self._board = Board(capacity=workers, max_restarts=max_restarts)
        self._watch = _Watch(self._board)
        self._folder = Path(tempfile.mkdtemp(prefix="autopeft-"))
        self._session: Path | None = None  # of an own local Ray
        self._connected = False
        self._thread = threading.Thread(
            target=self._fit, args=(spec, cpus_per_worker, gpus_per_worker), name="ray-tune", daemon=True
        )
        atexit.register(self.close)
        try:
            self._connect(address, cpus=math.ceil(workers * cpus_per_worker))
            self._refuse_impossible(cpus_per_worker, gpus_per_worker)
            # Tune reads these before it asks for the first unit, and never again.
            with _set_meanwhile(
                os.environ,
                RAY_AIR_NEW_OUTPUT="0",  # the new one draws its banner even at verbose=0
                TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
                TUNE_GLOBAL_CHECKPOINT_S="inf",
                TUNE_MAX_PENDING_TRIALS_PG=str(workers),
                TUNE_PRINT_ALL_TRIAL_ERRORS="0",
                TUNE_RESULT_BUFFER_LENGTH="1",
            ):
                self._thread.start()
                asked = self._board.asked.wait(startup_timeout_seconds)
            if not asked:
                raise AutopeftError(f"executor: Ray Tune did not come up within {startup_timeout_seconds:g} s")
        except BaseException:
            self.close()
            raise

    def submit(self, unit: WorkUnit) -> None:
        """Take a work unit; returns at once.

        Raises:
            AutopeftError: If Ray is gone.
        """
        self._board.submit(unit)

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Give the outcomes that have come in, waiting at most this long for the first one.

        Raises:
            AutopeftError: If Ray is gone and work units are left.
        """
        return self._board.collect(timeout_seconds)

    def close(self) -> None:
        """Kill the workers, end Tune, and Ray if it is our own; safe to call twice and at any moment."""
        atexit.unregister(self.close)
        self._board.close()
        self._watch.kill_all()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)
        if self._connected:
            self._connected = False
            ray.shutdown()
        for folder in (self._folder, self._watch.folder, self._session):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _connect(self, address: str | None, *, cpus: int) -> None:
        if address is not None and address.startswith("ray://"):
            raise RequestError(
                f"ray_address: {address!r} is a Ray Client address; start the search on a machine of the cluster and "
                "give 'auto' or host:port"
            )
        if ray.is_initialized():  # the caller's connection: used as it is, and left to the caller
            connected = ray.get_runtime_context().gcs_address
            if address not in (None, "auto", connected):
                raise RequestError(f"ray_address: {address!r}, but this process is connected to {connected!r} already")
            return
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address is not None:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise RequestError(f"ray_address: no Ray cluster answers at {address!r}: {error}") from error
            self._connected = True
            return
        # Under `uv run`, Ray would upload the working directory and build the environment again for every worker.
        with (
            _set_meanwhile(vars(ray_constants), RAY_ENABLE_UV_RUN_RUNTIME_ENV=False),
            _set_meanwhile(os.environ, RAY_USAGE_STATS_ENABLED="0"),
        ):
            self._connected = True
            context = ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **quiet,
            )
        self._session = Path(context.address_info["session_dir"])

    def _refuse_impossible(self, cpus: float, gpus: float) -> None:
        """Refuse what would stay pending for ever: more than any node has, or than our own local Ray has in all."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = 0
        for node in nodes:
            fits = [node.get(kind, 0) // need for kind, need in (("CPU", cpus), ("GPU", gpus)) if need > 0]
            room += int(min(fits, default=self.capacity))
        if room >= self.capacity or (room and self._session is None):  # a shared cluster may be busy now, or may grow
            return
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        if room:
            fault = f"workers: {self.capacity}, but there is room for {room}"
        elif gpus > max(node.get("GPU", 0) for node in nodes):
            fault = f"gpus_per_worker: {gpus:g}, which no machine has"
        else:
            fault = f"cpus_per_worker: {cpus:g}, which no machine has"
        raise RequestError(f"{fault}; Ray sees {has}")

    def _fit(self, spec: WorkerSpec, cpus: float, gpus: float) -> None:
        """Run Tune until the board is closed; the body of the background thread."""
        reason, log = "Tune has ended", logging.getLogger("ray.tune")
        level = log.level
        log.setLevel(logging.CRITICAL)  # what it reports as errors (deaths, an end before all trials) comes as outcomes
        try:
            tune.Tuner(
                tune.with_resources(_UnitTrainable, {"cpu": cpus, "gpu": gpus}),
                # As JSON text, for Tune would search plain values for its own keywords ("grid_search", "eval").
                param_space={
                    "spec": json.dumps(spec.to_dict()),
                    "threads": max(1, int(cpus)),
                    "folder": os.getcwd(),
                    "path": json.dumps([entry for entry in sys.path if entry]),
                },
                tune_config=tune.TuneConfig(
                    search_alg=_UnitSearcher(self._board),
                    scheduler=_KeepActors(self.capacity),
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=_short_name,
                    trial_dirname_creator=_short_name,
                ),
                run_config=tune.RunConfig(
                    name=f"autopeft-{uuid.uuid4().hex[:12]}",
                    storage_path=str(self._folder),
                    callbacks=[self._watch],
                    stop=_StopWhenClosed(self._board),
                    # The board restarts units: Tune would wait for ever for one whose actor died while idle.
                    failure_config=tune.FailureConfig(max_failures=0),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    verbose=0,
                ),
            ).fit()
        except BaseException as error:  # noqa: BLE001 - the thread's end: `wait` raises it where the caller is
            reason = "".join(traceback.format_exception_only(error)).strip()
        finally:
            log.setLevel(level)
            self._board.end(reason)


class _UnitTrainable(tune.Trainable):  # type: ignore[misc]
    """A worker: one unit a trial, one runner over all trials."""

    def setup(self, config: dict[str, Any]) -> None:
        global _in_worker
        _in_worker = True
        # Before torch is loaded, which reads it then; Ray sets it as well, but leaves a value inherited from a shell.
        os.environ["OMP_NUM_THREADS"] = str(config["threads"])
        sys.path.extend(entry for entry in json.loads(config["path"]) if entry not in sys.path)
        self._runner = _ResidentRunner(WorkerSpec.from_dict(json.loads(config["spec"])))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        # Tune moved into the trial's own folder; here a relative path means what it means in the driver.
        if os.path.isdir(self.config["folder"]):
            os.chdir(self.config["folder"])
        outcome = run_isolated(self._runner, WorkUnit.from_dict(json.loads(self.config["unit"])))
        return {"outcome": json.dumps(outcome.to_dict()), "done": True}


class _ResidentRunner:
    """Makes the real runner at its first unit, so that a fault in making it is a unit's outcome, not a dead actor."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._runner: Runner | None = None

    def run(self, unit: WorkUnit) -> Measurement:
        if self._runner is None:
            self._runner = make_runner(self._spec)
        return self._runner.run(unit)


class _UnitSearcher(Searcher):  # type: ignore[misc]
    """What Tune asks for the next configuration: the next unit."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._board.closed:
            return str(self.FINISHED)
        unit = self._board.take(trial_id)
        return {"unit": unit} if unit else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: `_Watch` hears of it as well, and with the trial itself."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state worth keeping is the study's."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Watch(tune.Callback):  # type: ignore[misc]
    """Brings outcomes and deaths from Tune to the board, and knows the actors."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._actors: dict[str, Any] = {}
        self.folder: Path | None = None

    def __reduce__(self) -> tuple[type[_Watch], tuple[Board]]:
        return _Watch, (self._board,)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.folder = Path(trial.local_experiment_path).parent
        actor = trial.temporary_state.ray_actor
        self._actors[actor._actor_id.hex()] = actor

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if "outcome" in trial.last_result:
            self._board.finish(trial.trial_id, Outcome.from_dict(json.loads(trial.last_result["outcome"])))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._board.lose(trial.trial_id, str(trial.get_error() or ""))

    def kill_all(self) -> None:
        """Kill every actor seen so far; the dead ones do not mind."""
        while self._actors and ray.is_initialized():
            ray.kill(self._actors.popitem()[1])


class _StopWhenClosed(tune.Stopper):  # type: ignore[misc]
    """Ends Tune when the board is closed."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._board.closed


class _KeepActors(FIFOScheduler):  # type: ignore[misc]
    """First in, first out; and tells Tune to keep as many idle actors as there are workers.

    By itself Tune keeps one idle actor: with two workers that finish together it would throw one away, with its model.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._missing = workers

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        if self._missing:
            cache = tune_controller._tune_controller._actor_cache
            cache.increase_max(trial.placement_group_factory, self._missing)
            self._missing = 0


def _short_name(trial: Trial) -> str:
    return str(trial.trial_id)


@contextmanager
def _set_meanwhile(names: MutableMapping[str, Any], **values: Any) -> Iterator[None]:
    before = {name: names[name] for name in values if name in names}
    names.update(values)
    try:
        yield
    finally:
        for name in values:
            names.pop(name, None)
        names.update(before)
