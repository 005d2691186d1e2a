"""The real program in a process of its own: Ctrl-C, one JSON document on stdout, the embedded default, Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from fruits import options, run_program, start_program, wait_for

import autopeft as ap

DEMO = {"steps": 3, "eval_rows": 20, "time": "10min"}


def numbers(run: Path) -> list[int]:
    return [json.loads(line)["number"] for line in (run / "records.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def interrupted(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, list[int]]:
    """A run that Ctrl-C ended within its second trial: its folder, exit code, log, and records at that time."""
    folder = tmp_path_factory.mktemp("interrupted")
    fields = {**small, "steps": 100, "rungs": "off"}
    process = start_program("search", *options(fields), "--out", "run", folder=folder, log=folder / "log")
    wait_for("trial 1 started", folder / "log", process)
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(60)
    return folder / "run", code, (folder / "log").read_text(), numbers(folder / "run")


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(interrupted: tuple[Path, int, str, list[int]]) -> None:
    _, code, log, _ = interrupted
    assert code == 130
    assert "autopeft resume run" in log
    assert "Traceback" not in log


def test_ctrl_c_leaves_a_report_of_what_there_is(interrupted: tuple[Path, int, str, list[int]]) -> None:
    run, _, _, done = interrupted
    assert done == [0]
    assert list(ap.Result(run).front["trial"]) == [0]
    assert (run / "report.html").exists()


def test_resume_after_ctrl_c_runs_the_trial_that_was_cut_off_again(
    interrupted: tuple[Path, int, str, list[int]], tmp_path: Path
) -> None:
    run = shutil.copytree(interrupted[0], tmp_path / "run")
    before = (run / "records.jsonl").read_bytes()
    ended = run_program("resume", "run", "--json", folder=run.parent)
    assert ended.code == 0, ended.err
    assert (run / "records.jsonl").read_bytes().startswith(before)
    assert numbers(run) == [0, 1, 2]
    assert json.loads(ended.out)["trials"] == {"complete": 3}


@pytest.mark.parametrize("when", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_before_the_first_trial_ends_with_130(
    small: dict[str, Any], tmp_path: Path, when: signal.Signals
) -> None:
    process = start_program("search", *options(small), "--out", "run", folder=tmp_path, log=tmp_path / "log")
    wait_for("reading the model", tmp_path / "log", process)
    os.killpg(process.pid, when)
    assert process.wait(60) == 130
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_ctrl_c_while_ray_comes_up_says_how_to_go_on(small: dict[str, Any], tmp_path: Path) -> None:
    fields = {**small, "executor": "ray", "workers": 1}
    process = start_program("search", *options(fields), "--out", "run", folder=tmp_path, log=tmp_path / "log")
    wait_for("search for", tmp_path / "log", process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    log = (tmp_path / "log").read_text()
    assert "autopeft resume run" in log
    assert "Traceback" not in log


def test_embedded_default_runs_in_this_process(tmp_path: Path) -> None:
    ended = run_program("search", *options({**DEMO, "executor": "local", "trials": 2}), "--json", folder=tmp_path)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["trials"] == {"complete": 2}
    assert Path(found["run_dir"]).parent == Path("autopeft-runs")
    assert (tmp_path / found["report"]).exists()


def test_embedded_default_runs_on_two_ray_workers(tmp_path: Path) -> None:
    fields = {**DEMO, "executor": "ray", "workers": 2, "trials": 4, "final_seeds": 0, "out": "run"}
    ended = run_program("search", *options(fields), "--json", folder=tmp_path)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["trials"] == {"complete": 4}
    assert sorted(numbers(tmp_path / "run")) == [0, 1, 2, 3]
    for pick in ap.Result(tmp_path / "run").picks.values():
        assert pick.load().num_parameters() > 22_000_000


def test_time_too_short_on_ray_ends_with_7(small: dict[str, Any], tmp_path: Path) -> None:
    fields = {**small, "executor": "ray", "workers": 1, "time": "1s", "steps": 3000}
    ended = run_program("search", *options(fields), "--out", "run", folder=tmp_path)
    assert ended.code == 7, ended.err
    assert "raise --time" in ended.err
