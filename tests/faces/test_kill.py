"""kill -9 loses nothing and counts nothing twice; `benchmarks/kill.py` does the same at many moments."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fruits import options

if sys.platform != "linux":
    pytest.skip("processes are found by /proc", allow_module_level=True)

from survival import Driver, check, descendants, go_on, record_lines, repeated, start

TRIALS = 6


def begin(small: dict[str, Any], run: Path, **changes: Any) -> Driver:
    """Start a search on two Ray workers, and wait for its first record."""
    fields = {**small, "executor": "ray", "workers": 2, "trials": TRIALS, "steps": 40, "rungs": "off", **changes}
    driver = start(run, *options(fields))
    assert driver.wait_until(lambda: bool(record_lines(run))), driver.said()
    return driver


def test_killed_driver_loses_no_trial_and_no_rung_and_counts_none_twice(small: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    driver = begin(small, run, rungs="4,12")
    assert driver.wait_until(lambda: any("goes on" in line for line in driver.said().splitlines())), driver.said()
    orphans = descendants(driver.process.pid)
    driver.process.kill()
    driver.end()
    before = record_lines(run)
    states = {record["number"]: record["state"] for record in map(json.loads, before)}
    assert list(states.values()).count("complete") < TRIALS  # in the middle
    resumed = go_on(run)
    assert resumed.end() == 0, resumed.said()
    assert check(run, before, trials=TRIALS).faults == ()
    assert states.keys().isdisjoint(resumed.started())  # what had paused goes on, and is not begun again
    assert set(repeated([*driver.started(), *resumed.started()])) <= set(driver.started()) - states.keys()
    assert resumed.handed_out()
    for process in orphans:
        process.kill()


def test_killed_worker_does_not_end_the_search(small: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    driver = begin(small, run, steps=60)  # long enough to find somebody at work
    workers = driver.await_workers()
    assert workers, driver.said()
    assert driver.process.poll() is None, driver.said()
    before = record_lines(run)
    workers[0].kill()
    assert driver.end() == 0, driver.said()
    checked = check(run, before, trials=TRIALS)
    assert checked.faults == ()
    assert repeated(driver.started()) == []


def test_check_finds_what_is_wrong(a_run: Path) -> None:
    before = record_lines(a_run)
    assert check(a_run, before, trials=3).faults == ()
    records = a_run / "records.jsonl"
    records.write_bytes(b"\n".join([*before[1:], before[1], b""]))
    checked = check(a_run, before, trials=3)
    assert (checked.lost, checked.counted_twice) == (1, 2)
    assert any("no beginning" in fault for fault in checked.faults)
    assert any("in the study" in fault for fault in checked.faults)
