from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.candidates import AdapterPlan, BaseFormat, Candidate, Cost, Recipe
from autopeft.plain import canonical_json, digest
from autopeft.records import RunInfo, TrialRecord
from autopeft.work import Measurement, Outcome, WorkerSpec, WorkUnit

names = st.text(max_size=8)
whole = st.integers(0, 2**53)
real = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(names, whole, real, st.booleans())
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
numbers = st.dictionaries(names, real, max_size=3)
states = st.sampled_from(["complete", "failed", "infeasible", "stopped", "duplicate"])
candidates = st.builds(Candidate, st.dictionaries(names, scalars, max_size=5))
bases = st.builds(
    BaseFormat, st.sampled_from([4, 8, 16, 32]), st.sampled_from(["nf4", "fp4"]), st.booleans(), compute_dtype=names
)
recipes = st.builds(
    Recipe, real, batch_size=whole, gradient_checkpointing=st.booleans(), optimizer=names, weight_decay=real
)
plans = st.builds(
    AdapterPlan,
    method=names,
    sizes=st.dictionaries(names, whole, max_size=3),
    config=st.dictionaries(names, plain, max_size=3),
    adapter_params=whole,
    base=bases,
    recipe=recipes,
)
costs = st.builds(Cost, adapter_params=whole, head_params=whole)
measurements = st.builds(
    Measurement,
    quality=real,
    trainable_params=whole,
    memory_bytes=whole,
    memory_kind=names,
    head_params=whole,
    reserved_bytes=whole,
    adapter_bytes=whole,
    steps=whole,
    train_seconds=real,
    eval_seconds=real,
    metrics=numbers,
    curve=st.lists(st.tuples(whole, real), max_size=3).map(tuple),
    base_checksum=names,
)
units = st.builds(
    WorkUnit,
    trial=whole,
    candidate=candidates,
    steps=whole,
    seed=whole,
    plan=st.none() | plans,
    head_params=whole,
    splits=st.sampled_from([("validation",), ("test", "validation")]),
    adapter_dir=names,
)
outcomes = st.builds(
    Outcome,
    trial=whole,
    state=states,
    measurement=st.none() | measurements,
    reason=names,
    traceback=names,
    worker=names,
    seconds=real,
)
records = st.builds(
    TrialRecord,
    number=whole,
    state=states,
    candidate=candidates,
    seed=whole,
    cost=st.none() | costs,
    plan=st.none() | plans,
    measurement=st.none() | measurements,
    values=numbers,
    reason=names,
    traceback=names,
    worker=names,
    seconds=real,
    finished_at=names,
)
specs = st.builds(WorkerSpec, entry=names, settings=st.dictionaries(names, plain, max_size=3))
ALL = [candidates, plans, costs, measurements, units, outcomes, records, specs]


@given(st.one_of(ALL))
def test_every_record_survives_json(record):
    again = type(record).from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False)))
    assert again == record
    # Equal values could still be of another type: 1 for True, a list for a tuple.
    assert repr(again) == repr(record)


def test_what_is_not_finite_survives_json():
    nan, inf = float("nan"), float("inf")
    measurement = Measurement(0.1, metrics={"perplexity": inf, "bits": nan, "low": -inf}, curve=((0, nan), (1, 2.0)))
    record = TrialRecord(0, "complete", Candidate({}), 0, measurement=measurement)
    again = TrialRecord.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))).measurement
    assert repr(again) == repr(measurement)


def test_scalars_of_numpy_and_torch_become_plain():
    measurement = Measurement(
        np.float32(0.5),
        trainable_params=np.int64(3),
        memory_bytes=torch.tensor(7),
        metrics={"loss": torch.tensor(0.25)},
        curve=[[np.int32(1), np.float64(2)]],
    )
    assert repr(measurement) == repr(Measurement(0.5, 3, 7, metrics={"loss": 0.25}, curve=((1, 2.0),)))
    json.dumps(measurement.to_dict())


@pytest.mark.parametrize("quality", ["good", None, [1]])
def test_a_quality_that_is_no_number_is_an_error_where_it_is_made(quality):
    with pytest.raises((TypeError, ValueError)):
        Measurement(quality)


def test_run_info_survives_json():
    goals = ({"name": "quality", "goal": "maximize", "unit": ""},)
    info = RunInfo({"trials": 3}, goals, "a: 1\n", "2030-01-01", {"torch": "2"}, {"cores": "2"}, model={"x": [1]})
    assert RunInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


@given(st.one_of(ALL))
def test_a_field_of_a_later_version_is_ignored(record):
    assert type(record).from_dict({**record.to_dict(), "a field of tomorrow": 1}) == record


def test_a_missing_field_is_an_error():
    with pytest.raises((TypeError, KeyError)):
        TrialRecord.from_dict({"number": 1, "state": "complete", "seed": 0})


def test_records_are_frozen_and_slotted():
    for kind in (Candidate, AdapterPlan, Cost, Measurement, WorkUnit, WorkerSpec, Outcome, TrialRecord, RunInfo):
        assert kind.__dataclass_params__.frozen
        assert set(kind.__slots__) == {f.name for f in fields(kind)}


@given(st.dictionaries(names, scalars, max_size=5), st.randoms())
def test_candidates_of_equal_values_are_equal_whatever_the_order(values, random):
    items = list(values.items())
    random.shuffle(items)
    one, other = Candidate(values), Candidate(dict(items))
    assert one == other
    assert one.key == other.key
    assert hash(one) == hash(other)


@given(st.dictionaries(names, scalars, max_size=4), st.dictionaries(names, scalars, max_size=4))
def test_keys_are_equal_only_for_equal_values(one, other):
    same = canonical_json(one) == canonical_json(other)
    assert (Candidate(one).key == Candidate(other).key) == same


def test_canonical_json_has_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_digest_is_the_same_in_every_process():
    assert digest({"b": 1, "a": [True, "é"]}) == "83a3979059aec8e3"  # sha256sum of {"a":[true,"é"],"b":1}
