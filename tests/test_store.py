from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.candidates import Candidate, Cost
from autopeft.errors import DamagedRunError, RequestError
from autopeft.records import SCHEMA_VERSION, RungResult, RunInfo, TrialRecord
from autopeft.request_fields import make_request
from autopeft.store import RunDirectory, adapter_dir, replace_file, state_dir
from autopeft.work import Measurement

INFO = RunInfo(
    request=make_request({}).model_dump(),
    objectives=({"name": "quality", "goal": "maximize", "unit": ""},),
    space="parameters: {x: {choices: [1]}}\n",
    created_at="2030-01-01T00:00:00+00:00",
    versions={"torch": "2"},
    hardware={},
)


def record(number, **fields):
    state = fields.pop("state", "complete")
    made = TrialRecord(number, state, Candidate({"x": number, "s": "ü\n"}), seed=0, cost=Cost(number))
    return replace(made, measurement=Measurement(0.5, curve=((0, 1.0),)), values={"quality": 0.5}, **fields)


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.new(tmp_path / "run")
    run.make()
    run.begin(make_request({}), INFO)
    run.__exit__(None, None, None)
    return RunDirectory.existing(tmp_path / "run")


@pytest.fixture
def filled(run):
    with run:
        for number in range(4):
            run.append(record(number))
    return run


def reopened(run):
    return RunDirectory.existing(run.path)


def lines(run):
    return (run.path / "records.jsonl").read_bytes().splitlines(keepends=True)


def in_short(whole):
    """What an open run remembers: everything but the loss curve, and the plan's modules, which these have not."""
    return replace(whole, measurement=replace(whole.measurement, curve=()))


def test_records_are_read_as_they_were_written(filled):
    assert list(reopened(filled).records) == [record(n) for n in range(4)]
    with reopened(filled) as again:
        assert list(again.records) == [in_short(record(n)) for n in range(4)]
        assert again.notes == []


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_dropped_and_said(kept, filled):
    whole = lines(filled)
    (filled.path / "records.jsonl").write_bytes(b"".join(whole[:3]) + whole[3][:kept])
    assert len(reopened(filled).records) == 3  # only looking repairs nothing
    assert len(lines(filled)) == 4
    with reopened(filled) as again:
        assert [r.number for r in again.records] == [0, 1, 2]
        assert "torn line" in again.notes[0]
        again.append(record(3))
    assert lines(filled) == whole


def test_a_first_line_that_is_torn_leaves_an_empty_run(run):
    (run.path / "records.jsonl").write_bytes(f'{{"schema": {SCHEMA_VERSION}, "num'.encode())
    with run:
        assert list(run.records) == []
        run.append(record(0))
    assert [r.number for r in reopened(run).records] == [0]


@pytest.mark.parametrize(
    "damage",
    [
        b"{}\n",
        b"[1]\n",
        b"null\n",
        b"not json\n",
        b"\xff\xfe\n",
        b'{"schema": 2, "number": 7}\n',
        b'{"schema": 2, "number": 7, "state": "complete", "seed": 0, "candidate": {"values": 3}}\n',
        b'{"schema": 2, "number": 7, "state": "complete", "seed": 0, "candidate": [2]}\n',
        b"\n",
    ],
)
def test_damage_in_the_middle_names_its_line_and_the_remedy(damage, filled):
    whole = lines(filled)
    (filled.path / "records.jsonl").write_bytes(b"".join([*whole[:2], damage, *whole[2:]]))
    with pytest.raises(DamagedRunError, match=r"line 3 is damaged .*restore the file, or delete the line"):
        _ = reopened(filled).records
    with pytest.raises(DamagedRunError, match="line 3"), reopened(filled):
        pass
    # What the remedy says helps.
    (filled.path / "records.jsonl").write_bytes(b"".join(whole))
    assert len(reopened(filled).records) == 4


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_byte_is_either_found_or_gives_records(data, filled):
    path = filled.path / "records.jsonl"
    whole = path.read_bytes()
    where = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:where] + bytes([data.draw(st.integers(0, 255))]) + whole[where + 1 :])
    try:
        assert len(reopened(filled).records) <= 5
    except DamagedRunError:
        pass
    finally:
        path.write_bytes(whole)


def test_records_of_another_schema_are_refused(filled):
    changed = [
        json.dumps({**json.loads(line), "schema": SCHEMA_VERSION + 1}).encode() + b"\n" for line in lines(filled)
    ]
    (filled.path / "records.jsonl").write_bytes(b"".join(changed))
    with pytest.raises(DamagedRunError, match=f"line 1 has schema {SCHEMA_VERSION + 1}, .* reads {SCHEMA_VERSION}"):
        _ = reopened(filled).records


def test_the_first_record_of_a_number_counts(filled):
    with filled:
        filled.append(record(2, reason="again"))
    assert [r.reason for r in reopened(filled).records] == ["", "", "", ""]


def paused(number, *steps):
    return record(number, state="paused", rungs=tuple(RungResult(step, 1 / step, (2.0, 3.0)) for step in steps))


def test_the_last_record_of_a_trial_that_paused_counts_until_it_ends(run):
    written = [paused(0, 1), paused(1, 1), paused(1, 1, 3), record(2), paused(0, 1, 3), record(0, reason="end")]
    with run:
        for made in [*written, paused(0, 1), record(0, reason="again")]:
            run.append(made)
        in_memory = [(r.number, r.state, r.reason, r.rungs) for r in run.records]
    assert reopened(run).records == [written[2], written[3], written[5]]
    assert in_memory == [(r.number, r.state, r.reason, r.rungs) for r in reopened(run).records]
    assert len(lines(run)) == 8


def test_the_states_that_paused_trials_go_on_from_are_kept_and_others_removed(run):
    def states():
        return sorted(str(path.relative_to(run.path / "states")) for path in run.path.glob("states/*/*"))

    def write(number, *names):
        (run.path / state_dir(number)).mkdir(parents=True, exist_ok=True)
        for name in names:
            (run.path / state_dir(number) / name).write_text("x")

    with run:
        write(0, "1.safetensors", "3.safetensors")
        run.append(paused(0, 1, 3))
        run.keep_state(paused(0, 1, 3))
        write(1, "1.safetensors")
        run.append(record(1))
        run.keep_state(record(1))
        assert states() == ["0000/3.safetensors"]
        write(0, ".9.safetensors.host-7.partial")  # what a killed worker left
        write(5, "1.safetensors")  # of a unit that was never recorded
        run.sweep_states()
    assert states() == ["0000/3.safetensors"]
    assert [folder.name for folder in (run.path / "states").iterdir()] == ["0000"]


def test_an_adapter_that_is_being_saved_by_a_trial_that_had_paused_is_left_alone(run):
    with run:
        run.append(paused(0, 1))
        (run.path / adapter_dir(0)).mkdir(parents=True)
        run.append(record(1))
        run.keep_adapters([1])
        assert (run.path / adapter_dir(0)).is_dir()
        run.append(record(0))
        run.keep_adapters([1])
        assert not (run.path / adapter_dir(0)).exists()


def test_what_json_has_no_form_for_is_written_all_the_same(run):
    odd = record(0, reason="a file \udce9 \u2028", traceback="\x00\x1b[31m")
    odd = replace(odd, measurement=Measurement(0.1, metrics={"perplexity": float("inf")}))
    with run:
        run.append(odd)
        run.append(record(1))
    assert list(reopened(run).records) == [odd, record(1)]


def test_one_driver_at_a_time(filled):
    code = f"""
import sys
from pathlib import Path
from autopeft.errors import DamagedRunError
from autopeft.store import RunDirectory
try:
    with RunDirectory.existing(Path({str(filled.path)!r})):
        print("held")
except DamagedRunError as error:
    print(error)
"""

    def other():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    with filled:
        assert "is in use by another process; wait for it, or stop it" in other()
        with pytest.raises(DamagedRunError, match="in use"), reopened(filled):
            pass
        assert len(reopened(filled).records) == 4  # looking is always allowed
    assert other() == "held\n"


def test_the_lock_of_a_driver_that_was_killed_is_free(filled):
    code = f"""
import os, signal
from pathlib import Path
from autopeft.store import RunDirectory
run = RunDirectory.existing(Path({str(filled.path)!r}))
run.__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with filled:
        pass


def test_run_info_and_request_are_read_as_they_were_written(run):
    assert run.read_info() == INFO
    assert run.request == make_request({})


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"objectives": 3}', "\x00"])
def test_damaged_run_info_is_a_damaged_run(text, run):
    (run.path / "run.json").write_text(text)
    with pytest.raises(DamagedRunError, match=r"run\.json is damaged"):
        run.read_info()


def test_run_info_of_another_schema_is_refused(run):
    data = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**data, "schema": SCHEMA_VERSION + 1}))
    with pytest.raises(DamagedRunError, match=f"has schema {SCHEMA_VERSION + 1}"):
        run.read_info()


def test_a_damaged_request_is_a_damaged_run(run):
    (run.path / "request.yaml").write_text("steps: many\n")
    with pytest.raises(DamagedRunError, match=r"request\.yaml.*steps"):
        _ = run.request


def test_a_folder_that_is_no_run_is_said(tmp_path):
    with pytest.raises(DamagedRunError, match="is no run directory"):
        RunDirectory.existing(tmp_path)


def test_a_new_run_takes_no_folder_that_holds_anything(filled, tmp_path):
    with pytest.raises(RequestError, match="holds a run; go on with it by `autopeft resume"):
        RunDirectory.new(filled.path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="is not empty"):
        RunDirectory.new(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    RunDirectory.new(tmp_path / "empty").make()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot write"):
        RunDirectory.new(tmp_path / "file" / "run").make()


def test_the_adapters_of_the_front_are_kept_and_others_removed(filled):
    for number in (0, 1, 2, 9):
        (filled.path / adapter_dir(number)).mkdir(parents=True)
        (filled.path / adapter_dir(number) / "adapter_model.safetensors").write_text("x")
    with filled:
        filled.keep_adapters([1])
    left = sorted(f.name for f in (filled.path / "adapters").iterdir())
    assert left == ["0001", "0009"]  # 9 has no record yet: it is being trained
    with filled:
        filled.sweep([1])
    assert [f.name for f in (filled.path / "adapters").iterdir()] == ["0001"]


def test_a_file_is_replaced_whole(tmp_path):
    replace_file(tmp_path / "a.txt", "one")
    replace_file(tmp_path / "a.txt", "two")
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "two"
