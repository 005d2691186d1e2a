"""The run's study is an ordinary Optuna study, for Optuna and for optuna-dashboard; it may live elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

import autopeft as ap

DIRECTIONS = ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]


def load_study(url: str, name: str = "autopeft") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=url)


def test_optuna_opens_the_study_with_three_objectives(done: ap.Result) -> None:
    study = load_study(f"sqlite:///{done.path / 'study.db'}")
    assert [direction.name for direction in study.directions] == DIRECTIONS
    assert study.metric_names == ["quality", "params", "memory"]
    by_number = {trial.number: trial for trial in study.get_trials() if trial.state.name == "COMPLETE"}
    assert set(by_number) == {record.number for record in done.records}
    for record in done.records:
        assert by_number[record.number].values == [record.values[name] for name in study.metric_names]
        assert by_number[record.number].params["method"] == record.candidate["method"]
    assert {trial.number for trial in study.best_trials} == set(done.front["trial"])


def test_dashboard_shows_three_objectives_with_their_names(done: ap.Result) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is an extra of developers")
    import optuna_dashboard

    page = optuna_dashboard.wsgi(optuna.storages.RDBStorage(f"sqlite:///{done.path / 'study.db'}"))

    def get(path: str) -> Any:
        said: list[str] = []
        environ = {
            "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "SERVER_NAME": "localhost",
            "SERVER_PORT": "80", "wsgi.url_scheme": "http", "HTTP_CONTENT_TYPE": "application/json",
            "CONTENT_TYPE": "application/json",
        }  # fmt: skip
        body = b"".join(page(environ, lambda status, *_: said.append(status)))
        assert said == ["200 OK"], body
        return json.loads(body)

    (study,) = get("/api/studies")["study_summaries"]
    assert study["study_name"] == "autopeft"
    assert [direction.upper() for direction in study["directions"]] == DIRECTIONS
    shown = get(f"/api/studies/{study['study_id']}")
    assert shown["objective_names"] == ["quality", "params", "memory"]
    complete = [trial for trial in shown["trials"] if trial["state"] == "Complete"]
    assert len(complete) == len(done.records)
    assert all(len(trial["values"]) == 3 for trial in complete)


def test_storage_elsewhere_holds_the_study_and_resumes(small: dict[str, Any], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    ap.search(**{**small, "trials": 2}, storage=url, out=str(tmp_path / "run"))
    assert not (tmp_path / "run" / "study.db").exists()
    ap.resume(tmp_path / "run", trials=3)
    (name,) = optuna.get_all_study_names(url)
    assert len([t for t in load_study(url, name).get_trials() if t.state.name == "COMPLETE"]) == 3


def test_two_runs_in_one_storage_are_two_studies(small: dict[str, Any], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    for folder, seed in (("one", 0), ("other", 1)):
        ap.search(**{**small, "trials": 2, "seed": seed}, storage=url, out=str(tmp_path / folder / "run"))
    assert len(optuna.get_all_study_names(url)) == 2
    for folder in ("one", "other"):
        assert [r.number for r in ap.Result(tmp_path / folder / "run").records] == [0, 1]


def test_lost_study_is_rebuilt_from_the_records(a_run: Path) -> None:
    (a_run / "study.db").unlink()
    before = ap.Result(a_run)
    ap.resume(a_run)
    study = load_study(f"sqlite:///{a_run / 'study.db'}")
    told = {t.number: t.values for t in study.get_trials() if t.state.name == "COMPLETE"}
    assert told == {r.number: [r.values[o.name] for o in before.objectives] for r in before.records}
