from __future__ import annotations

import pytest
import yaml

from autopeft.errors import RequestError
from autopeft.request import SearchRequest
from autopeft.request_fields import demo_defaults, make_request, read_fields, write_request


def faults_of(fields, **options):
    with pytest.raises(RequestError) as error:
        make_request(fields, **options)
    return list(error.value.faults)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budgt": "1%"}, ["budgt", "did you mean 'budget'"]),
        ({"budget": "0.5"}, ["budget", "'0.5'", "write e.g. 0.5%"]),
        ({"budget": "120%"}, ["budget", "'120%'", "between 0% and 100%"]),
        ({"memory": "16XB"}, ["memory", "'16XB'", "GiB"]),
        ({"time": "soon"}, ["time", "'soon'", "write e.g. 30min"]),
        ({"trials": 0}, ["trials", "0", "greater than or equal to 1"]),
        ({"trials": "many"}, ["trials", "'many'", "valid integer"]),
        ({"steps": -1}, ["steps", "-1"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"max_length": 4}, ["max_length", "4"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": 2**31}, ["seed", str(2**31)]),
        ({"workers": 0}, ["workers", "0"]),
        ({"gpus_per_worker": 0}, ["gpus_per_worker", "0"]),
        ({"task": "translation"}, ["task", "'translation'", "causal-lm"]),
        ({"executor": "slurm"}, ["executor", "'slurm'", "ray"]),
        ({"columns": {"txt": "body"}}, ["columns", "txt", "did you mean 'text'"]),
        ({"metric": "acuracy"}, ["metric", "acuracy", "did you mean 'accuracy'"]),
        ({"objectives": []}, ["objectives", "at least one"]),
        ({"objectives": ["quality", "quality"]}, ["objectives", "quality, quality", "twice"]),
        ({"objectives": ["qualty"]}, ["objectives", "qualty", "did you mean 'quality'"]),
        ({"model": "x"}, ["model", "'x'", "add --data"]),
        ({"task": "causal-lm", "metric": "accuracy"}, ["metric", "'accuracy'", "causal-lm", "choose one of loss"]),
        ({"executor": "local", "ray_address": "auto"}, ["ray_address", "'auto'", "drop one of the two"]),
        ({"executor": "local", "workers": 4}, ["workers", "4", "use ray"]),
        ({"executor": "local", "gpus_per_worker": 1}, ["gpus_per_worker", "1", "drop one of the two"]),
        ({"ray_address": "auto"}, ["workers", "Add --workers"]),
    ],
)
def test_a_fault_names_field_value_and_remedy(fields, words):
    (fault,) = faults_of(fields)
    for word in words:
        assert word in fault


def test_all_faults_are_found_at_once():
    wrong = {
        "budgt": 1,
        "budget": "0.5",
        "trials": 0,
        "metric": "acc",
        "objectives": ["speed"],
        "time": "x",
        "seed": -1,
    }
    text = "\n".join(faults_of(wrong))
    for name in ("budgt", "budget", "trials", "metric", "objectives", "time", "seed"):
        assert name in text
    assert len(faults_of(wrong)) == len(wrong)


def test_no_fault_is_named_twice():
    faults = faults_of({"budget": "x", "memory": "x", "time": "x"})
    assert len(faults) == len(set(faults)) == 3


def test_an_empty_request_is_the_demo():
    request = make_request({})
    assert request.model is None
    assert request.parameter_limit.fraction == 0.005
    assert (request.memory_bytes, request.time_seconds) == (None, None)


def test_nothing_said_is_the_default():
    assert make_request({"steps": None, "budget": None}) == make_request({})


def test_sizes_and_times_keep_the_form_in_which_they_were_written():
    request = make_request({"budget": "0.50%", "memory": "16GiB", "time": "1.5h"})
    assert (request.budget, request.memory, request.time) == ("0.50%", "16GiB", "1.5h")
    assert (request.parameter_limit.fraction, request.memory_bytes, request.time_seconds) == (0.005, 2**34, 5400)


def test_an_objective_of_the_callers_own_is_known():
    assert make_request({"objectives": ["mine"]}, own_objectives=("mine",)).objectives == ["mine"]


def test_a_request_survives_yaml(tmp_path):
    request = make_request(
        {
            "model": "m",
            "data": "d ü",
            "budget": 800_000,
            "time": 12.5,
            "columns": {"text": "body"},
            "seed": 3,
            "trials": 7,
        }
    )
    write_request(request, tmp_path / "r.yaml")
    assert make_request(read_fields(tmp_path / "r.yaml")) == request
    assert set(yaml.safe_load((tmp_path / "r.yaml").read_text())) == set(SearchRequest.model_fields)


def test_a_search_without_any_limit_ends_after_some_trials():
    assert make_request({}).trials == 24
    assert make_request({"time": "1h", "trials": None}).trials is None
    assert make_request({"trials": 3}).trials == 3


@pytest.mark.parametrize(("text", "why"), [("steps: [1", "is not YAML"), ("- 1\n", "holds list"), ("3\n", "holds int")])
def test_a_file_that_is_no_request_is_a_fault(text, why, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RequestError, match=why):
        read_fields(tmp_path / "r.yaml")


def test_a_file_that_is_not_there_is_a_fault(tmp_path):
    with pytest.raises(RequestError, match=r"cannot read .*gone"):
        read_fields(tmp_path / "gone.yaml")


def test_a_metric_is_checked_once_the_task_is_known():
    request = make_request({"metric": "accuracy"})
    assert request.metric_for("text-classification") == "accuracy"
    with pytest.raises(RequestError, match=r"metric: 'accuracy' is not for causal-lm; choose one of loss"):
        request.metric_for("causal-lm")
    assert make_request({}).metric_for("causal-lm") == "loss"


def test_the_defaults_of_the_demo_are_those_of_the_demo_only():
    assert demo_defaults({})["trials"] > 1
    assert demo_defaults({"model": "m"}) == demo_defaults({"data": "d"}) == {}
    make_request(demo_defaults({}))


def test_every_field_says_what_it_is():
    assert all(field.description for field in SearchRequest.model_fields.values())


@pytest.mark.parametrize(
    ("rungs", "steps", "stored", "pauses"),
    [
        ("auto", 100, "auto", (11, 33)),
        ("auto", 27, "auto", (3, 9)),
        ("auto", 26, "auto", ()),
        ("off", 100, "off", ()),
        (False, 100, "off", ()),
        ("10,30,100", 100, [10, 30, 100], (10, 30)),
        ([10, 30], 100, [10, 30], (10, 30)),
        ("50", 100, [50], (50,)),
        (50, 100, [50], (50,)),
        (100, 100, [100], ()),
    ],
)
def test_rungs_are_where_trials_pause(rungs, steps, stored, pauses, tmp_path):
    request = make_request({"rungs": rungs, "steps": steps})
    assert (request.rungs, request.pauses) == (stored, pauses)
    write_request(request, tmp_path / "request.yaml")
    assert make_request(read_fields(tmp_path / "request.yaml")) == request


@pytest.mark.parametrize("limit", [{"trials": 5}, {"time": "1min"}, {"steps_total": 900}])
def test_one_limit_stands_alone(limit):
    demo = demo_defaults(limit)
    assert {"trials", "time", "steps_total"} & demo.keys() <= limit.keys()
    request = make_request({**demo, **limit})
    assert {n for n in ("trials", "time", "steps_total") if getattr(request, n) is not None} == limit.keys()
