"""A search that is given earlier runs: its own trials alone are results, and the earlier folder is needed no more."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import autopeft as ap
from autopeft.errors import RequestError

SPACE = {"parameters": {"x": {"low": 0.0, "high": 1.0}, "width": {"ordinal": [1, 2, 4, 8], "size": True}}}
FIELDS: dict[str, Any] = {"space": SPACE, "objectives": ["quality", "params"], "steps": 5, "executor": "local"}


def measure(candidate: ap.Candidate, steps: int) -> ap.Measurement:
    width = int(candidate["width"])
    return ap.Measurement(quality=width - 20 * (float(candidate["x"]) - 0.3) ** 2, trainable_params=width)


def search(out: Path, **fields: Any) -> ap.Result:
    given = {"runner": measure, "cost": lambda c: int(c["width"]), "trials": 10, **FIELDS, **fields}
    return ap.search(**given, out=str(out))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search."""
    return search(tmp_path_factory.mktemp("runs") / "earlier", trials=16).path


def test_only_its_own_trials_are_results(earlier: Path, tmp_path: Path) -> None:
    result = search(tmp_path / "run", warm_from=[str(earlier)], seed=5)
    assert [r.number for r in result.records] == list(range(10))
    lines = (result.path / "records.jsonl").read_text().splitlines()
    assert len(lines) == 10
    assert set(result.front["trial"]) <= set(range(10))
    assert {pick.record.number for pick in result.picks.values()} <= set(range(10))
    assert [len(prior.candidates) for prior in result.info.prior] == [16]
    # Where there is no configuration of the space's own, what was good there is tried first.
    assert {r.candidate for r in result.records[:3]} <= {r.candidate for r in ap.Result(earlier).records}


def test_a_run_goes_on_without_the_earlier_one(earlier: Path, tmp_path: Path) -> None:
    """What it proposes is what the uninterrupted search proposed."""
    copy = Path(shutil.copytree(earlier, tmp_path / "copy"))
    whole = search(tmp_path / "whole", warm_from=str(copy), seed=5)
    part = search(tmp_path / "part", warm_from=[copy], seed=5, trials=4)
    shutil.rmtree(copy)
    resumed = ap.resume(part.path, trials=10, runner=measure, cost=lambda c: int(c["width"]))
    assert [r.candidate for r in resumed.records] == [r.candidate for r in whole.records]


def test_it_is_said_what_was_taken(earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrower = {"parameters": {**SPACE["parameters"], "width": {"ordinal": [1, 2], "size": True}}}
    result = search(tmp_path / "run", warm_from=[str(earlier)], space=narrower, steps=9)
    wide = sum(int(r.candidate["width"]) > 2 for r in ap.Result(earlier).records)
    assert 0 < wide < 16
    said = (
        f"warm-started from {16 - wide} trials of {earlier}, a prior and no results; {wide} more say nothing here; "
        "another run in: steps a trial"
    )
    assert said in capsys.readouterr().err
    assert said in (result.path / "report.html").read_text()


def test_a_run_that_measured_otherwise_is_refused(earlier: Path, tmp_path: Path) -> None:
    other = ap.objective(goal="minimize", name="quality")(lambda m: -m.quality)
    with pytest.raises(
        RequestError, match=r"warm_from: .*its quality is quality \(maximize\), here it is quality \(mini"
    ):
        search(tmp_path / "run", warm_from=[str(earlier)], objectives=[other])
    assert not (tmp_path / "run").exists()


def test_what_a_run_was_warmed_from_stays(earlier: Path, tmp_path: Path) -> None:
    run = search(tmp_path / "run", trials=2)
    with pytest.raises(RequestError, match="warm_from: a run keeps what it was started with"):
        ap.resume(run.path, warm_from=[str(earlier)], runner=measure)


def test_a_real_run_warms_another(done: ap.Result, small: dict[str, Any], tmp_path: Path) -> None:
    fields = {**small, "trials": 4, "steps": 1, "warm_from": [str(done.path)]}
    result = ap.search(**fields, out=str(tmp_path / "run"))
    (prior,) = result.info.prior
    assert set(prior.candidates) == {r.candidate for r in done.records}
    assert prior.differs == ("steps a trial",)
    assert [r.state for r in result.records] == ["complete"] * 4
