"""What Ray Tune calls: the trainable that runs units in a worker, and the driver's searcher, callback and scheduler.

Searcher and TrialScheduler are Ray's developer API; everything of ours that depends on them is here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from autopeft.execute.board import Board
from autopeft.execute.protocol import ResidentRunner, make_runner, run_isolated
from autopeft.work import Outcome, WorkerSpec, WorkUnit


def worker_config(spec: WorkerSpec, *, threads: int) -> dict[str, Any]:
    """Give the part of a trial's configuration that is the same for all units.

    As JSON text, for Tune searches plain values for its own keywords ("grid_search", "eval").
    """
    path = [entry for entry in sys.path if entry]
    return {"spec": json.dumps(spec.to_dict()), "threads": threads, "folder": os.getcwd(), "path": json.dumps(path)}


class UnitTrainable(tune.Trainable):
    """A worker: one unit a trial, or several that go together; one runner over all trials."""

    in_worker = False

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the process; the runner comes with the first unit."""
        UnitTrainable.in_worker = True
        # Before torch is loaded, which reads it then; Ray sets it as well, but leaves a value inherited from a shell.
        os.environ["OMP_NUM_THREADS"] = str(config["threads"])
        # What the driver can import, the worker can; Ray itself hands on only the script's folder and the current one.
        sys.path.extend(entry for entry in json.loads(config["path"]) if entry not in sys.path)
        spec = WorkerSpec.from_dict(json.loads(config["spec"]))
        self._runner = ResidentRunner(lambda: make_runner(spec))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with the next unit, as `self.config` now has it."""
        return True

    def step(self) -> dict[str, Any]:
        """Run the units."""
        # Tune moved into the trial's own folder; here a relative path means what it means in the driver.
        if os.path.isdir(self.config["folder"]):
            os.chdir(self.config["folder"])
        outcomes = run_isolated(self._runner, [WorkUnit.from_dict(unit) for unit in json.loads(self.config["units"])])
        return {"outcomes": json.dumps([outcome.to_dict() for outcome in outcomes]), "done": True}


class UnitSearcher(Searcher):
    """What Tune asks for the next configuration: the next unit."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Give the next units, None while there are none, or FINISHED."""
        units = self._board.take(trial_id)
        if self._board.closed:
            return str(self.FINISHED)
        return {"units": units} if units else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: `Watch` hears of it as well, and with the trial itself."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state that is worth keeping is the study's."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Watch(tune.Callback):
    """Brings outcomes and deaths from Tune to the board, and knows the actors.

    Attributes:
        folder: Where Tune keeps the trials' (empty) folders on this machine, once there is a trial.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        # Weak: a handle kept here would keep alive an actor that Tune has let go of, and its model.
        self._actors: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self.folder: Path | None = None

    def __reduce__(self) -> tuple[type[Watch], tuple[Board]]:
        # Tune pickles its settings; actor handles are of no use to anybody else.
        return Watch, (self._board,)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Remember the actor."""
        self.folder = Path(trial.local_experiment_path).parent
        actor = trial.temporary_state.ray_actor
        self._actors[actor._actor_id.hex()] = actor

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Hand on the outcomes."""
        if "outcomes" in trial.last_result:
            outcomes = json.loads(trial.last_result["outcomes"])
            self._board.finish(trial.trial_id, [Outcome.from_dict(outcome) for outcome in outcomes])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Hand on the death of an actor, with what Ray says of it."""
        said = Path(trial.error_file).read_text() if trial.error_file else ""
        self._board.lose(trial.trial_id, said)

    def kill_all(self) -> None:
        """Kill every actor seen so far; the dead ones do not mind."""
        for actor in list(self._actors.values()):
            if ray.is_initialized():
                ray.kill(actor)


class StopWhenClosed(tune.Stopper):
    """Ends Tune when the board is closed."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial: a unit ends by itself."""
        return False

    def stop_all(self) -> bool:
        """Say whether it is time."""
        return self._board.closed


class KeepActors(FIFOScheduler):
    """First in, first out; and tells Tune to keep as many idle actors as there are workers.

    By itself Tune keeps one idle actor: of two workers that finish together it would throw one away, with its model.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._missing = workers

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """At the first trial, whose resources are those of all, make room in Tune's cache of idle actors."""
        super().on_trial_add(tune_controller, trial)
        if self._missing:
            cache = tune_controller._tune_controller._actor_cache
            cache.increase_max(trial.placement_group_factory, self._missing)
            self._missing = 0


def trial_name(trial: Trial) -> str:
    """Name a trial, and its folder, by nothing but its id."""
    return str(trial.trial_id)
