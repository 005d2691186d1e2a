"""Runs work units on Ray Tune: one unit, or several that go together, is one Tune trial, on an actor that keeps its
runner between them.

Tune places and isolates; it decides nothing, and its own results, loggers and snapshots are off.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import shutil
import socket
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.services import canonicalize_bootstrap_address

from autopeft.errors import AutopeftError, RequestError
from autopeft.execute.board import Board, oom_kills
from autopeft.execute.tune_hooks import (
    KeepActors,
    StopWhenClosed,
    UnitSearcher,
    UnitTrainable,
    Watch,
    trial_name,
    worker_config,
)
from autopeft.work import Outcome, WorkerSpec, WorkUnit

_CONNECT_SECONDS = 10.0
_JOIN_SECONDS = 15.0
_PULSE_SECONDS = 2.0
_SILENCE_SECONDS = 25.0  # with the time to close, less than the 60 s after which Ray exits a driver without a head
_OBJECT_STORE_BYTES = 128 * 2**20  # only small dicts travel; Ray would reserve 30% of the memory
_LONGEST_TEMP = 35  # characters: Ray's sockets are 68 further down, and a socket's path has 103 at most


class RayTuneExecutor:
    """An Executor on Ray Tune: on an own local Ray, on the cluster at `address`, or on the Ray already connected to.

    Args:
        spec: How a worker makes its runner; its module must be importable where the workers are.
        workers: Units under way at once, each on an actor of its own.
        cpus_per_worker, gpus_per_worker: What an actor reserves; whole CPUs are also its number of threads.
        address: A running cluster, or "auto"; None starts an own local Ray that ends with `close`.
        max_restarts: How many deaths of its worker process a unit survives.
        together: Units that a worker is given at once; with more than one its runner must be a GroupRunner.
        startup_timeout_seconds: How long Tune may take to come up.

    Raises:
        RequestError: If the cluster cannot be reached, or can never place a worker.
        AutopeftError: If Tune does not come up.
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
        together: int = 1,
        startup_timeout_seconds: float = 120,
    ) -> None:
        if UnitTrainable.in_worker:
            raise RequestError(
                "executor: a search was started while a worker imported its runner; put the part of the script that "
                'starts the search under `if __name__ == "__main__":`'
            )
        self.capacity, self.together = workers * together, together
        self._workers = workers
        self._spec, self._cpus, self._gpus = spec, cpus_per_worker, gpus_per_worker
        self._board = Board(
            workers, max_restarts, silence_seconds=_SILENCE_SECONDS, count_kills=oom_kills, together=together
        )
        self._watch = Watch(self._board)
        self._folder = Path(tempfile.mkdtemp(prefix="autopeft-"))
        self._session: Path | None = None  # of an own local Ray
        self._connected = False
        self._undo = ExitStack()
        self._thread = threading.Thread(target=self._fit, name="ray-tune", daemon=True)
        atexit.register(self.close)
        try:
            self._connect(address)
            self._refuse_impossible()
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
            self._board.check()
            if not asked:
                raise AutopeftError(f"executor: Ray Tune did not come up within {startup_timeout_seconds:g} s")
            self._board.heard()
            threading.Thread(target=self._pulse, name="ray-pulse", daemon=True).start()
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
        self._undo.close()
        for folder in (self._folder, self._watch.folder, self._session):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _connect(self, address: str | None) -> None:
        if ray.is_initialized():  # the caller's connection: used as it is, and left to the caller
            connected = ray.get_runtime_context().gcs_address
            if address not in (None, "auto", connected):
                raise RequestError(f"ray_address: {address!r}, but this process is connected to {connected!r} already")
            return
        # Ray prints a page to stdout for every dead worker, whatever the log level.
        self._undo.enter_context(_set_meanwhile(vars(ray_worker), print_to_stdstream=_print_nothing))
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address is not None:
            found = _find_cluster(address)
            self._connected = True
            try:
                ray.init(address=found, **quiet)
            except (OSError, RuntimeError, ValueError) as error:  # for one, a cluster with other versions
                raise RequestError(f"ray_address: cannot join the cluster at {address!r}: {error}") from error
            return
        environment = {"RAY_USAGE_STATS_ENABLED": "0"}
        if len(os.environ.get("TMPDIR", "")) > _LONGEST_TEMP:
            environment["RAY_TMPDIR"] = os.environ.get("RAY_TMPDIR", "/tmp")
        # Under `uv run`, Ray would upload the working directory and build the environment again for every worker.
        with (
            _set_meanwhile(vars(ray_constants), RAY_ENABLE_UV_RUN_RUNTIME_ENV=False),
            _set_meanwhile(os.environ, **environment),
        ):
            self._connected = True
            try:
                context = ray.init(
                    address="local",
                    num_cpus=math.ceil(self._workers * self._cpus),
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    **quiet,
                )
            except (OSError, RuntimeError, ValueError) as error:
                raise AutopeftError(f"executor: Ray did not start: {error}; or use --executor local") from error
        self._session = Path(context.address_info["session_dir"])

    def _refuse_impossible(self) -> None:
        """Refuse what would stay pending for ever: more than any node has, or than our own local Ray has in all."""
        room = self._room()
        if room >= self._workers or (room and self._session is None):  # a shared cluster may be busy now, or may grow
            return
        nodes = _alive()
        if room:
            fault = f"workers: {self._workers}, but there is room for {room}"
        elif self._gpus > max((node.get("GPU", 0) for node in nodes), default=0):
            fault = f"gpus_per_worker: {self._gpus:g}, which no machine has"
        else:
            together = f" together with gpus_per_worker: {self._gpus:g}" if self._gpus else ""
            fault = f"cpus_per_worker: {self._cpus:g}{together}, which no machine has"
        has = "; ".join(f"CPU {node.get('CPU', 0):g}, GPU {node.get('GPU', 0):g}" for node in nodes)
        raise RequestError(f"{fault}; Ray sees {len(nodes)} machine(s): {has}")

    def _room(self) -> int:
        """Count the workers that the cluster could hold if nothing else ran there."""
        needs = [(kind, need) for kind, need in (("CPU", self._cpus), ("GPU", self._gpus)) if need > 0]
        room = 0
        for node in _alive():
            # The little more is for fractions: 1 // 0.1 is 9.
            room += min((int(node.get(kind, 0) / need + 1e-6) for kind, need in needs), default=self._workers)
        return room

    def _pulse(self) -> None:
        """Tell the board that Ray lives, as long as it does; Tune waits for ever for a unit on a dead machine."""
        while not self._board.closed:
            try:
                here = ray.get_runtime_context().get_node_id()
                if any(node["NodeID"] == here and node["Alive"] for node in ray.nodes()) and self._room():
                    self._board.heard()
            except Exception:  # noqa: BLE001 - whatever it is, it is no sign of life
                pass
            time.sleep(_PULSE_SECONDS)

    def _fit(self) -> None:
        """Run Tune until the board is closed; the body of the background thread."""
        reason, log = "Tune has ended", logging.getLogger("ray.tune")
        level = log.level
        log.setLevel(logging.CRITICAL)  # what it logs as errors (deaths, an end before all trials) comes as outcomes
        try:
            tune.Tuner(
                tune.with_resources(UnitTrainable, {"cpu": self._cpus, "gpu": self._gpus}),
                param_space=worker_config(self._spec, threads=max(1, int(self._cpus))),
                tune_config=tune.TuneConfig(
                    search_alg=UnitSearcher(self._board),
                    scheduler=KeepActors(self._workers),
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=trial_name,
                    trial_dirname_creator=trial_name,
                ),
                run_config=tune.RunConfig(
                    name=f"autopeft-{uuid.uuid4().hex[:12]}",
                    storage_path=str(self._folder),
                    callbacks=[self._watch],
                    stop=StopWhenClosed(self._board),
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


def _find_cluster(address: str) -> str:
    """Resolve "auto", and make sure that somebody answers: Ray itself would wait for ever."""
    if address.startswith("ray://"):
        raise RequestError(
            f"ray_address: {address!r} is a Ray Client address; start the search on a machine of the cluster and give "
            "'auto' or host:port"
        )
    try:
        found = str(canonicalize_bootstrap_address(address))
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise RequestError(f"ray_address: no Ray cluster answers at {address!r}: {error}") from error
    return found


def _alive() -> list[dict[str, float]]:
    """List what each living machine of the cluster has, in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _print_nothing(*_args: Any, **_kwargs: Any) -> None:
    pass


@contextmanager
def _set_meanwhile(names: MutableMapping[str, Any], **values: Any) -> Iterator[None]:
    before = {name: names[name] for name in values if name in names}
    names.update(values)
    try:
        yield
    finally:
        names.update(before)
        for name in values.keys() - before.keys():
            names.pop(name, None)
