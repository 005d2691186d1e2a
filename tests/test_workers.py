"""How the workers of a run are made."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import make_data

from autopeft.errors import RequestError
from autopeft.execute import ray_tune
from autopeft.records import RunInfo
from autopeft.request import SearchRequest
from autopeft.trial import worker as worker_module
from autopeft.trial.worker import TrialWorker
from autopeft.workers import make_executor, worker_spec


@pytest.mark.parametrize(
    ("objectives", "reuses"),
    [
        (("quality", "params", "memory"), True),
        (("quality", "adapter_bytes"), True),
        (("quality", "train_seconds"), False),
        (("quality", "my_own"), False),  # who knows what it reads of a measurement
    ],
)
def test_nothing_is_reused_where_the_time_of_a_training_may_count(objectives, reuses):
    assert worker_spec(info_of(objectives), Path(), threads=1).settings["reuse"] is reuses


def test_workers_with_a_gpu_each_share_the_memory_of_the_host(monkeypatch):
    made = {}
    monkeypatch.setattr(ray_tune, "RayTuneExecutor", lambda **settings: made.update(settings))
    make_executor(SearchRequest(workers=8, gpus_per_worker=1), info_of(["quality"]), Path())
    assert made["spec"].settings["memory_share"] == 1
    assert made["spec"].settings["host_share"] == 1 / 8


def test_kept_states_take_a_tenth_of_the_share_of_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "capacity_bytes", lambda device: 1000)
    monkeypatch.setattr(worker_module, "read_prepared", lambda folder: make_data("causal-lm"))
    (tmp_path / "request.yaml").touch()
    source = {"path": "", "task": "causal-lm", "label_names": ()}
    shares = {"device": "cpu", "memory_share": 1.0, "host_share": 0.25}
    worker = TrialWorker(run_dir=str(tmp_path), source=source, head={}, metric="loss", head_seed=0, **shares)
    assert worker._states.limit_bytes == 25


def info_of(objectives):
    goals = tuple({"name": name, "goal": "minimize", "unit": ""} for name in objectives)
    request = {"metric": "loss", "seed": 0}
    return RunInfo(request, goals, "", "", {}, {}, anatomy={"head": {}}, model={"source": {}})


def test_a_local_worker_is_given_as_many_as_are_asked_for():
    request = SearchRequest(executor="local", together=4)
    assert make_executor(request, info_of(["quality", "params"]), Path()).capacity == 4


def test_candidates_that_cannot_be_trained_together_are_refused():
    request = SearchRequest(executor="local", together=4)
    with pytest.raises(RequestError, match="together: a runner of your own takes one candidate at a time"):
        make_executor(request, info_of(["quality"]), Path(), runner=lambda candidate, steps: None)
    with pytest.raises(RequestError, match="together: train_seconds may depend on how long a training takes"):
        make_executor(request, info_of(["quality", "train_seconds"]), Path())
