"""What every Executor does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import tiny_runner

from autopeft.execute.local import LocalExecutor
from autopeft.execute.protocol import Executor, make_runner
from autopeft.work import WorkerSpec


@pytest.fixture(params=["local", "ray"])
def make_executor(request: pytest.FixtureRequest) -> Callable[[WorkerSpec], Executor]:
    if request.param == "local":
        return lambda spec, **options: LocalExecutor(lambda: make_runner(spec), **options)
    ray_executor: Callable[..., Any] = request.getfixturevalue("ray_executor")
    return lambda spec, **options: ray_executor(spec=spec, **{"workers": 1 if options else 2, **options})


def test_each_unit_gives_its_own_outcome_once(make_executor: Callable[[WorkerSpec], Executor]) -> None:
    executor = make_executor(tiny_runner.SPEC)
    things = ["nothing", "raise", "nan", "trial error", "out of memory", "nothing"]
    for trial, do in enumerate(things):
        executor.submit(tiny_runner.unit(trial, do=do))
    outcomes = tiny_runner.drain(executor, len(things))
    assert [o.trial for o in outcomes] == list(range(len(things)))
    assert [o.state for o in outcomes] == ["complete", "failed", "failed", "failed", "infeasible", "complete"]
    assert [o.reason for o in outcomes] == [
        "",
        "ZeroDivisionError: on purpose",
        "quality is nan, not a number",
        "the realised adapter is another one",
        "out of memory; peak seen 3.00 GiB: in step 1",
        "",
    ]
    assert "tiny_runner.py" in outcomes[1].traceback
    for outcome in (outcomes[0], outcomes[-1]):
        assert outcome.measurement is not None
        assert (outcome.measurement.quality, outcome.measurement.trainable_params) == (0.5, 7)
        assert outcome.measurement.curve == ((1, 0.5), (2, 0.25))
        assert outcome.worker.endswith(f":{outcome.measurement.metrics['pid']:.0f}")


def test_units_that_go_together_reach_the_runner_at_once(make_executor: Callable[..., Executor]) -> None:
    executor = make_executor(WorkerSpec("tiny_runner:Together"), together=3)
    assert executor.capacity == 3
    for trial, do in enumerate(["nothing", "raise", "nothing", "nothing"]):
        executor.submit(tiny_runner.unit(trial, do=do))
    outcomes = tiny_runner.drain(executor, 4)
    assert [o.state for o in outcomes] == ["complete", "failed", "complete", "complete"]
    assert "tiny_runner.py" in outcomes[1].traceback
    assert [o.measurement.metrics.get("together") for o in outcomes if o.measurement] == [3, 3, None]


def test_waiting_for_nothing_gives_nothing_at_once(make_executor: Callable[[WorkerSpec], Executor]) -> None:
    assert make_executor(tiny_runner.SPEC).wait(60) == []


def test_close_twice(make_executor: Callable[[WorkerSpec], Executor]) -> None:
    executor = make_executor(tiny_runner.SPEC)
    executor.submit(tiny_runner.unit(0, sleep=0.0))
    executor.close()
    executor.close()


def test_a_function_is_a_runner(make_executor: Callable[[WorkerSpec], Executor]) -> None:
    spec = WorkerSpec("autopeft.execute.function:FunctionRunner", {"function": "tiny_runner:good"})
    executor = make_executor(spec)
    executor.submit(tiny_runner.unit(3, x=0.25))
    (outcome,) = tiny_runner.drain(executor, 1)
    assert outcome.measurement is not None, outcome.reason
    assert outcome.measurement.quality == 1.25


def test_a_local_search_leaves_nothing_out_of_the_reach_of_the_collector() -> None:
    executor = LocalExecutor(lambda: make_runner(tiny_runner.SPEC))
    gc.freeze()  # as a runner does when it has loaded a base
    executor.close()
    assert gc.get_freeze_count() == 0
