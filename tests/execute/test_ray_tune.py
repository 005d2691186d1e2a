from __future__ import annotations

import logging
import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_runner
from tiny_runner import drain, unit

from autopeft.errors import AutopeftError, RequestError
from autopeft.work import Outcome, WorkerSpec

Make = Callable[..., Any]


def metrics_of(outcome: Outcome) -> dict[str, float]:
    assert outcome.measurement is not None, outcome.reason
    return dict(outcome.measurement.metrics)


def test_one_worker_is_kept_and_quick_over_single_units(ray_executor: Make) -> None:
    executor = ray_executor(spec=tiny_runner.SPEC, workers=1)
    seen, seconds = [], []
    for trial in range(21):
        start = time.monotonic()
        executor.submit(unit(trial))
        seen += drain(executor, 1)
        seconds.append(time.monotonic() - start)
    assert len({o.worker for o in seen}) == 1
    assert [metrics_of(o)["units"] for o in seen] == list(range(1, 22))
    assert statistics.median(seconds[1:]) < 0.15


def test_all_idle_workers_are_kept(ray_executor: Make, tmp_path: Path) -> None:
    executor = ray_executor(spec=tiny_runner.SPEC, workers=2)
    workers = set()
    for round_ in range(5):  # in each, both work at the same time, and then both are idle
        (folder := tmp_path / str(round_)).mkdir()
        for trial in range(2):
            executor.submit(unit(trial, do="meet", folder=str(folder)))
        workers |= {o.worker for o in drain(executor, 2)}
    assert len(workers) == 2


def test_two_workers_work_at_the_same_time(ray_executor: Make, tmp_path: Path) -> None:
    executor = ray_executor(spec=tiny_runner.SPEC, workers=2)
    for trial in range(2):
        executor.submit(unit(trial, do="meet", folder=str(tmp_path)))
    outcomes = drain(executor, 2)
    assert [o.state for o in outcomes] == ["complete"] * 2
    assert len({o.worker for o in outcomes}) == 2


def test_no_more_at_once_than_workers(ray_executor: Make) -> None:
    executor = ray_executor(spec=tiny_runner.SPEC, workers=1)  # the cluster has room for four
    for trial in range(4):
        executor.submit(unit(trial, sleep=0.05))
    assert len({o.worker for o in drain(executor, 4)}) == 1


def test_a_runner_that_cannot_be_made_is_the_outcome_of_each_unit(ray_executor: Make) -> None:
    executor = ray_executor(spec=WorkerSpec("tiny_runner:Unbuildable"), workers=1)
    for trial in range(2):
        executor.submit(unit(trial))
    outcomes = drain(executor, 2)
    assert [o.reason for o in outcomes] == ["RuntimeError: no such model"] * 2
    assert "tiny_runner.py" in outcomes[0].traceback
    assert len({o.worker for o in outcomes}) == 1  # and no reason to start another process


def test_a_unit_outlives_its_worker_and_counts_once(ray_executor: Make, tmp_path: Path) -> None:
    executor = ray_executor(spec=tiny_runner.SPEC, workers=2)
    executor.submit(unit(0, do="die once", marker=str(tmp_path / "marker")))
    for trial in range(1, 4):
        executor.submit(unit(trial, sleep=0.2))
    outcomes = drain(executor, 4)
    assert [o.state for o in outcomes] == ["complete"] * 4
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("how", ["die", "exit"])
def test_a_unit_that_kills_every_worker_fails(ray_executor: Make, how: str) -> None:
    executor = ray_executor(spec=tiny_runner.SPEC, workers=2, max_restarts=1)
    executor.submit(unit(0, do=how))
    for trial in range(1, 4):
        executor.submit(unit(trial, sleep=0.2))
    outcomes = drain(executor, 4)
    assert [o.state for o in outcomes] == ["failed", "complete", "complete", "complete"]
    assert outcomes[0].reason == "worker died 2 times"
    assert "worker process has died" in outcomes[0].traceback


def test_a_worker_that_does_not_come_up_says_why(ray_executor: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.execute.ray_tune.worker_config", lambda spec, *, threads: {})
    executor = ray_executor(spec=tiny_runner.SPEC, workers=1, max_restarts=0)
    executor.submit(unit(0))
    (outcome,) = drain(executor, 1)
    assert outcome.reason == "worker died 1 time: KeyError: 'threads'"


def test_the_death_of_an_idle_worker_costs_no_unit(ray_executor: Make) -> None:
    executor = ray_executor(spec=tiny_runner.SPEC, workers=1)
    executor.submit(unit(0))
    (first,) = drain(executor, 1)
    os.kill(int(metrics_of(first)["pid"]), signal.SIGKILL)
    time.sleep(0.3)
    executor.submit(unit(1))
    (second,) = drain(executor, 1)
    assert second.state == "complete"
    assert second.worker != first.worker


def test_a_worker_has_the_threads_it_reserves_and_the_drivers_folder(ray_executor: Make) -> None:
    executor = ray_executor(spec=tiny_runner.SPEC, workers=1, cpus_per_worker=3)
    executor.submit(unit(0, cwd=str(Path.cwd())))
    (outcome,) = drain(executor, 1)
    assert metrics_of(outcome)["threads"] == 3
    assert metrics_of(outcome)["here"] == 1.0


def test_close_does_not_wait_for_a_unit(ray_executor: Make) -> None:
    executor = ray_executor(spec=tiny_runner.SPEC, workers=2)
    executor.submit(unit(0))
    drain(executor, 1)
    for trial in range(1, 5):
        executor.submit(unit(trial, sleep=100.0))
    time.sleep(0.5)
    start = time.monotonic()
    executor.close()
    assert time.monotonic() - start < 50  # half of what a unit takes
    with pytest.raises(AutopeftError, match="Ray has stopped"):
        executor.submit(unit(9))


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"gpus_per_worker": 1}, "gpus_per_worker: 1, which no machine has; Ray sees 1 machine"),
        ({"gpus_per_worker": 0.5}, "gpus_per_worker: 0.5, which no machine has"),
        ({"cpus_per_worker": 5}, r"cpus_per_worker: 5, which no machine has; .*CPU 4"),
    ],
)
def test_what_no_machine_has_is_refused_at_once(ray_executor: Make, asked: dict[str, float], fault: str) -> None:
    with pytest.raises(RequestError, match=fault):
        ray_executor(spec=tiny_runner.SPEC, workers=1, **asked)


@pytest.mark.parametrize(
    ("address", "fault"), [("127.0.0.1:1", "connected to"), ("ray://localhost:10001", "connected to")]
)
def test_another_cluster_than_the_connected_one_is_refused(ray_executor: Make, address: str, fault: str) -> None:
    with pytest.raises(RequestError, match=fault):
        ray_executor(spec=tiny_runner.SPEC, workers=1, address=address)


def test_a_search_within_a_worker_is_refused(ray_executor: Make) -> None:
    executor = ray_executor(spec=WorkerSpec("tiny_runner:Searching"), workers=1)
    executor.submit(unit(0))
    (outcome,) = drain(executor, 1)
    assert "__main__" in outcome.reason


def test_environment_and_logging_are_left_as_they_were(ray_executor: Make) -> None:
    level, before = logging.getLogger("ray.tune").level, dict(os.environ)
    executor = ray_executor(spec=tiny_runner.SPEC, workers=1)
    assert dict(os.environ) == before
    executor.submit(unit(0))
    drain(executor, 1)
    executor.close()
    assert dict(os.environ) == before
    assert logging.getLogger("ray.tune").level == level
