"""What a trial costs beside its steps: units of work of no steps, piece by piece, in one process and on Ray Tune.

They are judged on one row, for what the evaluation of many costs is theirs.

    local   a worker in this process: CPU milliseconds of each piece of a unit, the least of some repeats, the mean over
            the configurations; "rest" is what no piece has
    ray     wall milliseconds from one trial's end to the next one's: of an empty class Trainable that Tune reuses, of
            autopeft's executor with a runner that does nothing, and of units of no steps, of which "inside" is spent in
            the worker; the median

On a shared machine believe the CPU time, and of the wall only what stands beside it.

    python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from results import write_rows
from subjects import SUBJECTS, TARGETS, USUAL, configurations
from workers import Setting, make_setting

from autopeft.work import Measurement, WorkerSpec, WorkUnit


class Idle:
    """A runner that does nothing."""

    def run(self, unit: WorkUnit) -> Measurement:
        """Nothing."""
        return Measurement(quality=0.0)


def units_of(setting: Setting, count: int) -> list[WorkUnit]:
    """Make units of no steps of the first configurations."""
    anatomy = setting.assembly.problem.anatomy
    assert anatomy is not None
    found = []
    for i, config in enumerate(configurations(count)):
        shares = {f"lora.share[{kind}]": int(kind in TARGETS[config["targets"]]) for kind in anatomy.kinds}
        values = {"method": "lora", "lora.rank": config["r"], **shares}
        found.append(setting.unit(values, steps=0, trial=i, adapter_dir=f"adapters/{i:04d}"))
    return found


def measure_local(setting: Setting, units: list[WorkUnit], *, repeats: int) -> dict[str, float]:
    """Give the CPU milliseconds of a unit and of its pieces."""
    from autopeft.execute.protocol import make_runner
    from autopeft.trial import adapters
    from autopeft.trial import worker as module

    worker: Any = make_runner(setting.spec())
    spent: dict[str, list[float]] = {}
    pieces = {
        "attach": (adapters.Resident, "attach"),
        "train": (module, "train"),
        "evaluate": (module, "evaluate"),
        "save": (module, "save_adapter"),
        "detach": (adapters.Resident, "detach"),
        "checksum": (module, "checksum"),
        "collect": (module.TrialWorker, "_free"),
        "whole": (module.TrialWorker, "run"),
    }
    worker.run(units[0])  # loads the model
    for name, (owner, attribute) in pieces.items():
        setattr(owner, attribute, _timed(getattr(owner, attribute), spent.setdefault(name, [])))
    for _ in range(repeats):
        for unit in units:
            worker.run(unit)
    least = {
        name: statistics.mean(min(times[i :: len(units)]) for i in range(len(units))) for name, times in spent.items()
    }
    least["rest"] = 2 * least["whole"] - sum(least.values())
    return {name: round(1e3 * seconds, 2) for name, seconds in least.items()}


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.process_time() - start)

    return timed


def measure_executor(spec: WorkerSpec, units: list[WorkUnit]) -> tuple[float, float]:
    """Give the median wall milliseconds of a unit on autopeft's executor, and of that inside the worker."""
    from autopeft.execute.ray_tune import RayTuneExecutor

    executor = RayTuneExecutor(spec=spec, workers=1, cpus_per_worker=1, gpus_per_worker=0, address=None)
    wall, inside = [], []
    try:
        for unit in units:
            start = time.monotonic()
            executor.submit(unit)
            while not (outcomes := executor.wait(1.0)):
                pass
            assert outcomes[0].state == "complete", outcomes[0].traceback
            wall.append(time.monotonic() - start)
            inside.append(outcomes[0].seconds)
    finally:
        executor.close()
    return _median(wall), _median(inside)


def measure_empty_tune(trials: int, folder: Path) -> float:
    """Give the median wall milliseconds of an empty reused trial of Ray Tune itself."""
    import ray
    from ray import tune

    class Empty(tune.Trainable):  # type: ignore[misc]
        def step(self) -> dict[str, Any]:
            return {"at": time.time(), "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(Empty, {"cpu": 1}),
        tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(folder), verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
        ),
    )
    moments = sorted(result.metrics["at"] for result in tuner.fit())
    ray.shutdown()
    return _median([later - earlier for earlier, later in pairwise(moments)])


def _median(seconds: list[float]) -> float:
    """Give milliseconds; the first trials, which start everything, do not count much."""
    return round(1e3 * statistics.median(seconds), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(USUAL))
    parser.add_argument("--units", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="on Ray Tune too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        local, on_ray = [], []
        if args.ray:
            on_ray.append({"what": "empty Ray Tune trial", "wall": measure_empty_tune(30, Path(folder)), "inside": 0.0})
            spec = WorkerSpec("overhead:Idle")
            setting = make_setting(args.models[0], Path(folder) / "idle", steps=1, eval_rows=1)
            wall, inside = measure_executor(spec, units_of(setting, 30))
            on_ray.append({"what": "autopeft, nothing to do", "wall": wall, "inside": inside})
        for model in args.models:
            setting = make_setting(model, Path(folder) / model, steps=1, eval_rows=1)
            units = units_of(setting, args.units)
            if args.ray:
                wall, inside = measure_executor(setting.spec(), [*units, *units])
                on_ray.append({"what": f"no steps, {model}", "wall": wall, "inside": inside})
            local.append({"model": model, **measure_local(setting, units, repeats=args.repeats)})
    for name, rows in (("overhead_local", local), ("overhead_ray", on_ray)):
        for row in rows:
            print(row)
        if rows:
            write_rows(args.out / f"{name}.csv", rows)


if __name__ == "__main__":
    main()
