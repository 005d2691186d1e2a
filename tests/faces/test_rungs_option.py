"""Rungs by the faces: a search whose trials pause and go on, on both executors, through kills, reports and resumes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fruits import SMALL

import autopeft as ap
from autopeft.errors import RequestError

FIELDS = {"trials": 6, "steps": 9, "rungs": [1, 3]}


@pytest.fixture(scope="module")
def laddered(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ap.Result:
    """A finished run with rungs."""
    return ap.search(**{**small, **FIELDS}, out=str(tmp_path_factory.mktemp("runs") / "rungs"))


@pytest.fixture(scope="module")
def plain(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ap.Result:
    """The same candidates without rungs."""
    return ap.search(**{**small, **FIELDS, "rungs": "off"}, out=str(tmp_path_factory.mktemp("runs") / "plain"))


def states_of(result: ap.Result) -> dict[int, list[str]]:
    folder = result.path / "states"
    return {int(d.name): sorted(path.name for path in d.iterdir()) for d in folder.iterdir()} if folder.exists() else {}


def told(record: Any) -> tuple[Any, ...]:
    measurement = record.measurement
    return record.values, measurement.metrics, measurement.curve, measurement.memory_bytes, measurement.base_checksum


def test_what_was_done_in_parts_is_what_is_done_at_once(laddered: ap.Result, plain: ap.Result) -> None:
    whole = {r.candidate: r for r in plain.records}
    done = [r for r in laddered.records if r.state == "complete"]
    shared = [r for r in done if r.candidate in whole]
    assert shared
    for record in shared:
        assert told(record) == told(whole[record.candidate])
        assert [result.step for result in record.rungs] == [1, 3, 9]
        assert record.steps == 9
    assert {r.state for r in laddered.records} == {"complete", "paused"}
    assert len(laddered.records) == 6
    assert set(laddered.front["trial"]) <= {r.number for r in done}


def test_states_are_kept_of_those_that_can_go_on(laddered: ap.Result) -> None:
    paused = {r.number: [f"{r.rungs[-1].step}.safetensors"] for r in laddered.records if r.state == "paused"}
    assert states_of(laddered) == paused


def test_the_report_says_where_trials_stopped_and_why(laddered: ap.Result) -> None:
    text = laddered.report().read_text()
    assert "stopped early, for others were better by then" in text
    assert "at step 1 of 9 with loss" in text
    assert laddered.to_dict()["trials"]["paused"] == sum(r.state == "paused" for r in laddered.records)
    assert list(laddered.trials["state"]).count("paused") == laddered.to_dict()["trials"]["paused"]


def test_paused_trials_go_on_when_more_are_begun(
    laddered: ap.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(laddered.path, tmp_path / "run"))
    result = ap.resume(run, trials=14)
    assert len(result.records) == 14
    said = capsys.readouterr().err
    assert "trial 13 started: " in said
    assert " goes on: " in said
    paused = {r.number: [f"{r.rungs[-1].step}.safetensors"] for r in result.records if r.state == "paused"}
    assert states_of(result) == paused
    for record in result.records:
        assert not record.measurement.restarted
    assert sum(len(r.rungs) for r in result.records) == len((run / "records.jsonl").read_text().splitlines())


def test_a_lost_state_costs_only_time(laddered: ap.Result, tmp_path: Path) -> None:
    """A trial's end is taken out of the records; its state went when it ended."""
    run = Path(shutil.copytree(laddered.path, tmp_path / "run"))
    done = next(r for r in laddered.records if r.state == "complete")
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    kept = [line for line in lines if (line["number"], line["state"]) != (done.number, "complete")]
    (run / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (again,) = (r for r in ap.resume(run).records if r.number == done.number)
    assert again.measurement is not None
    assert again.measurement.restarted
    assert again.steps == 3 + 9
    assert told(again) == told(done)
    assert again.rungs == done.rungs


def test_ray_gives_what_the_local_executor_gives(laddered: ap.Result, small: dict[str, Any], tmp_path: Path) -> None:
    """One worker of Ray, handed the same trial several times."""
    fields = {**small, **FIELDS, "executor": "ray", "workers": 1}
    result = ap.search(**fields, out=str(tmp_path / "run"))
    assert [(r.number, r.state, r.rungs) for r in result.records] == [
        (r.number, r.state, r.rungs) for r in laddered.records
    ]


def test_candidates_together_go_on_too(
    laddered: ap.Result, small: dict[str, Any], tmp_path: Path, group_sizes: list[int]
) -> None:
    result = ap.search(**{**small, **FIELDS, "trials": 12}, together=4, out=str(tmp_path / "run"))
    assert max(group_sizes) > 1
    alone = {r.candidate: {x.step: x.loss for x in r.rungs} for r in laddered.records}
    for record in result.records:
        assert not record.measurement.restarted
        for at in record.rungs:
            known = alone.get(record.candidate, {}).get(at.step)
            assert known is None or at.loss == pytest.approx(known, rel=1e-5)


# --- a runner of one's own -------------------------------------------------------------------------------------------

SPACE = {"parameters": {"x": {"low": 0.0, "high": 1.0}}}
CALLS: list[tuple[float, int]] = []


def measure(candidate: ap.Candidate, steps: int) -> ap.Measurement:
    CALLS.append((float(candidate["x"]), steps))
    return ap.Measurement(quality=float(candidate["x"]) * steps)


@pytest.mark.parametrize(("rungs", "steps"), [("auto", {90}), ("off", {90}), ("10,90", {10, 90}), ([10], {10, 90})])
def test_a_runner_of_ones_own_is_told_the_steps(rungs: Any, steps: set[int], tmp_path: Path) -> None:
    CALLS.clear()
    ap.search(space=SPACE, runner=measure, trials=9, steps=90, rungs=rungs, out=str(tmp_path / "run"))
    assert {s for _, s in CALLS} == steps
    if len(steps) > 1:
        assert sum(s == 10 for _, s in CALLS) == 9
        assert max(CALLS)[1] == 90  # the best was done


# --- the request -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rungs": "10,5"}, "rungs: .*write auto, off, or steps that ascend, e.g. 10,30,100"),
        ({"rungs": "some"}, "rungs: .*write auto, off, or steps that ascend"),
        ({"rungs": [0, 5]}, "rungs: .*write auto, off, or steps that ascend"),
        ({"rungs": []}, "rungs: .*write auto, off, or steps that ascend"),
        ({"rungs": "10,200", "steps": 100}, "rungs: 200 is beyond the 100 steps of a trial; raise --steps"),
        ({"steps_total": 50, "steps": 100}, "steps_total: 50 does not hold the 100 steps of a trial; raise it"),
        ({"steps_total": 0}, "steps_total: 0: "),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        ap.search(**{**SMALL, "model": "/nowhere", "data": "/nowhere", **fields})


def test_the_command_line_takes_rungs_and_steps(cli: Any, small: dict[str, Any], tmp_path: Path) -> None:
    from fruits import options

    fields = {k: v for k, v in small.items() if k != "trials"}
    run = tmp_path / "run"
    ended = cli(
        "search", *options({**fields, "steps": 9}), "--rungs", "3,9", "--steps-total", "40", "--out", str(run), "--json"
    )
    assert ended.code == 0, ended.err
    assert "the optimiser steps are used up" in ended.err
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    last = {line["number"]: line["steps"] for line in lines}
    assert 40 - 6 <= sum(last.values()) <= 40
    more = cli("resume", str(run), "--steps-total", "60", "--json")
    assert more.code == 0, more.err
    assert os.path.getsize(run / "records.jsonl") > 0
