"""Every example does what it says, with small settings."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from fruits import ROOT, SHARED, Ended, fruit_rows, program, write_jsonl

import autopeft as ap

EXAMPLES = ROOT / "examples"
QUICK: dict[str, Any] = {"executor": "local", "steps": 2, "trials": 2, "eval_rows": 20, "final_seeds": 0}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    return


def run_script(cli: Callable[..., Ended], name: str, *arguments: object, folder: Path, settings: str = "") -> None:
    """Run a shell example, by a program `autopeft` in front of the real one, and what it asks for with a few steps.

    What it asks for runs in this process: to import all that a search needs takes longer than such a search.
    """
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "autopeft"
    wrapper.write_text(f"#!/bin/sh\nset -C  # once\nprintf '%s\\0' \"$@\" > {folder / 'asked'}\n")
    wrapper.chmod(0o755)
    path = f"{folder / 'bin'}:{Path(program()).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", str(EXAMPLES / name), *map(str, arguments)],
        cwd=folder,
        check=True,
        timeout=300,
        env={**os.environ, "PATH": path, "TRIALS": "2"},
    )
    asked = (folder / "asked").read_text().split("\0")[:-1]
    ended = cli(*asked, "--executor", "local", "--steps", 2, "--eval-rows", 9, "--final-seeds", 0, *settings.split())
    assert ended.code == 0, ended.err


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    assert all(path.name in listed for path in EXAMPLES.iterdir() if path.name != "README.md" and path.is_file())


def test_python_api_prints_a_front_and_loads_the_pick(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = example("python_api").main(str(tmp_path / "run"), **QUICK)
    assert len(result.records) == 2
    assert "parameters" in capsys.readouterr().out


def test_custom_objective_is_in_the_front(tmp_path: Path) -> None:
    result = example("custom_objective").main(str(tmp_path / "run"), **QUICK)
    assert "seconds_a_step" in result.front
    assert (result.front["seconds_a_step"] > 0).all()


def test_custom_runner_keeps_its_budget(tmp_path: Path) -> None:
    result = example("custom_runner").main(str(tmp_path / "run"))
    assert len(result.records) == 30
    assert result.trials["params"].max() <= 10
    assert (result.trials["prediction_cost"] < 2 * result.trials["params"]).all()
    assert len(result.front) > 1


def test_classify_intents_searches_labelled_texts(cli: Callable[..., Ended], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    frame = pd.DataFrame(fruit_rows(60))
    for split, part in {"train": frame[:42], "validation": frame[42:51], "test": frame[51:]}.items():
        part.to_parquet(data / f"{split}.parquet")
    run_script(cli, "classify_intents.sh", data, tmp_path / "run", folder=tmp_path)
    assert len(ap.Result(tmp_path / "run").records) == 2


def test_generate_text_searches_prompts_and_answers(
    cli: Callable[..., Ended], llama_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"source": row["text"], "target": row["label"]} for row in fruit_rows(60)]
    for split, part in {"train": rows[:42], "validation": rows[42:51], "test": rows[51:]}.items():
        write_jsonl(part, data / f"{split}.jsonl")
    model = SHARED / "stories260k-llama-hf" if (SHARED / "stories260k-llama-hf").is_dir() else llama_folder
    run_script(cli, "generate_text.sh", model, data, tmp_path / "run", folder=tmp_path, settings="--budget none")
    result = ap.Result(tmp_path / "run")
    assert len(result.records) == 2
    assert result.info.objectives[0]["unit"] == "bits"


@pytest.mark.parametrize("metric", ["loss", "chrf"])
def test_rewrite_text_searches_sources_and_targets(
    cli: Callable[..., Ended], t5_folder: Path, tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"source": row["text"], "target": f"it is a {row['label']}"} for row in fruit_rows(60)]
    for split, part in {"train": rows[:42], "validation": rows[42:51], "test": rows[51:]}.items():
        write_jsonl(part, data / f"{split}.jsonl")
    monkeypatch.setenv("METRIC", metric)
    run_script(cli, "rewrite_text.sh", t5_folder, data, tmp_path / "run", folder=tmp_path, settings="--budget none")
    result = ap.Result(tmp_path / "run")
    assert len(result.records) == 2
    assert result.info.request["metric"] == metric
    assert all(metric in r.measurement.metrics for r in result.records if r.measurement)
