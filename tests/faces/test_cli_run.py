"""The command line at work: what it prints and leaves, and the exit code of every way to end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fruits import Ended, options

import autopeft as ap

Cli = Callable[..., Ended]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


# --- 0 ---------------------------------------------------------------------------------------------------------------


def test_search_leaves_a_whole_run_directory(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = cli("search", *options(small), "--out", run)
    assert ended.code == 0, ended.err
    for name in ("request.yaml", "run.json", "records.jsonl", "study.db", "front.csv", "report.html", "data"):
        assert (run / name).exists(), name
    result = ap.Result(run)
    assert [r["state"] for r in lines(run)] == ["complete"] * 3
    assert sorted(p.name for p in (run / "adapters").iterdir()) == sorted(f"{n:04d}" for n in result.front["trial"])
    assert str(run / "report.html") in ended.out


def test_json_is_the_result(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    ended = cli("search", *options(small), "--out", tmp_path / "run", "--json")
    found = json.loads(ended.out)
    assert found == ap.Result(tmp_path / "run").to_dict()
    assert found["trials"] == {"complete": 3}
    assert {"best", "knee", "smallest"} == {name for point in found["front"] for name in point["picks"]}


def test_json_survives_a_library_that_prints(
    cli: Cli, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autopeft.trial import worker

    def noisy(*arguments: Any, **keywords: Any) -> Any:
        print("Welcome to libnoise 2.0!")
        return real(*arguments, **keywords)

    real = worker.train
    monkeypatch.setattr(worker, "train", noisy)
    ended = cli("search", *options({**small, "trials": 1}), "--out", tmp_path / "run", "--json")
    assert json.loads(ended.out)["trials"] == {"complete": 1}
    assert "Welcome to libnoise" in ended.err


def test_study_is_left_as_one_file(a_run: Path) -> None:
    assert [path.name for path in a_run.glob("study.db*")] == ["study.db"]


@pytest.mark.parametrize("objectives", ["quality", "quality,train_seconds", "params", "quality,adapter_bytes"])
def test_any_choice_of_objectives_will_do(cli: Cli, small: dict[str, Any], tmp_path: Path, objectives: str) -> None:
    ended = cli("search", *options({**small, "objectives": objectives}), "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    names = objectives.split(",")
    assert all(list(point["values"]) == names for point in json.loads(ended.out)["front"])
    assert "Traceback" not in cli("report", tmp_path / "run").err


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_every_sampler_finds_new_candidates_after_the_start(
    cli: Cli, small: dict[str, Any], tmp_path: Path, sampler: str
) -> None:
    fields = {**small, "trials": 5, "steps": 1, "sampler": sampler}
    assert cli("search", *options(fields), "--out", tmp_path / "run").code == 0
    plans = [json.dumps(record["plan"], sort_keys=True) for record in lines(tmp_path / "run")]
    assert len(set(plans)) == 5


def test_report_is_written_anew_from_the_records(cli: Cli, a_run: Path) -> None:
    before = (a_run / "front.csv").read_text()
    (a_run / "front.csv").unlink()
    (a_run / "report.html").unlink()
    ended = cli("report", a_run, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["run_dir"] == str(a_run)
    assert (a_run / "front.csv").read_text() == before
    assert (a_run / "report.html").stat().st_size > 10_000


def test_resume_of_a_finished_run_changes_nothing(cli: Cli, a_run: Path) -> None:
    before = (a_run / "records.jsonl").read_bytes()
    assert cli("resume", a_run).code == 0
    assert (a_run / "records.jsonl").read_bytes() == before


def test_resume_with_more_trials_goes_on_where_it_was(cli: Cli, a_run: Path) -> None:
    before = (a_run / "records.jsonl").read_bytes()
    assert cli("resume", a_run, "--trials", "5").code == 0
    assert (a_run / "records.jsonl").read_bytes().startswith(before)
    assert [record["number"] for record in lines(a_run)] == [0, 1, 2, 3, 4]


def test_estimate_trains_nothing_and_counts_as_the_real_model(
    cli: Cli, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autopeft.candidates import AdapterPlan, BaseFormat, Recipe
    from autopeft.trial import worker
    from autopeft.trial.adapters import Resident
    from autopeft.trial.model import ModelSource, load_base

    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("it trains")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "train", train)
    ended = cli("estimate", *options(small), "--json")
    assert ended.code == 0, ended.err
    assert not list(tmp_path.iterdir())
    rows = json.loads(ended.out)
    assert len(rows) >= 3
    info = json.loads((cli_run(cli, small, tmp_path / "run", monkeypatch) / "run.json").read_text())
    source = ModelSource(**info["model"]["source"])
    for row in rows:
        plan = AdapterPlan(
            method=row["candidate"]["method"],
            sizes={},
            config=row["adapter_config"],
            adapter_params=0,
            base=BaseFormat(32),
            recipe=Recipe(0.0),
        )
        resident = Resident(load_base(source, BaseFormat(32), device="cpu"))
        adapted = build_unchecked(resident, plan, source.task, info["anatomy"]["head"], monkeypatch)
        assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == row["trainable_params"]


def cli_run(cli: Cli, small: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.undo()
    assert cli("search", *options({**small, "trials": 1, "steps": 1}), "--out", out).code == 0
    return out


def build_unchecked(resident: Any, plan: Any, task: str, head: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Attach without our own comparison of plan and model, so that the count is the model's alone."""
    with monkeypatch.context() as context:
        context.setattr("autopeft.trial.adapters.check_realised", lambda *_, **__: None)
        return resident.attach(plan, task=task, head=head, base="")


# --- 3 ---------------------------------------------------------------------------------------------------------------


def test_budget_too_small_names_the_smallest_configuration_and_that_one_fits(
    cli: Cli, small: dict[str, Any], tmp_path: Path
) -> None:
    fields = {**small, "trials": 1, "space": "default", "budget": "10"}
    ended = cli("search", *options(fields), "--out", tmp_path / "run")
    assert ended.code == 3
    assert "method=" in ended.err
    needed = ended.err.partition("Raise --budget to at least ")[2].partition(",")[0]
    assert f"needs {int(needed):,}" in ended.err
    assert not (tmp_path / "run").exists()
    one_less = {**fields, "budget": int(needed) - 1}
    assert cli("search", *options(one_less), "--out", tmp_path / "less").code == 3
    enough = cli("search", *options({**fields, "budget": needed}), "--out", tmp_path / "enough", "--json")
    assert enough.code == 0, enough.err
    assert json.loads(enough.out)["front"][0]["values"]["params"] == int(needed)


def test_memory_below_the_weights_is_infeasible_before_any_training(
    cli: Cli, small: dict[str, Any], tmp_path: Path
) -> None:
    ended = cli("search", *options({**small, "memory": "1KiB"}), "--out", tmp_path / "run")
    assert ended.code == 3
    assert "memory: 1.00 KiB do not hold the model's weights" in ended.err
    assert not (tmp_path / "run" / "records.jsonl").exists()


def test_memory_that_nothing_keeps_to_names_the_least_that_is_needed_and_that_is_enough(
    cli: Cli, small: dict[str, Any], tmp_path: Path
) -> None:
    ended = cli("search", *options({**small, "memory": "450KiB"}), "--out", tmp_path / "run")
    assert ended.code == 3
    assert not (tmp_path / "run" / "records.jsonl").exists()
    least = re.search(r"predicted to need ([\d.,]+) KiB", ended.err)
    assert least is not None
    enough = f"{int(least[1].replace(',', '')) + 1}KiB"
    assert cli("search", *options({**small, "memory": enough}), "--out", tmp_path / "enough").code == 0


# --- 4 ---------------------------------------------------------------------------------------------------------------


def test_model_folder_that_is_not_there_is_named(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    ended = cli("search", *options({**small, "model": tmp_path / "nowhere"}), "--out", tmp_path / "run")
    assert ended.code == 4
    assert str(tmp_path / "nowhere") in ended.err
    assert "Traceback" not in ended.err


def test_folder_that_is_no_model_is_named(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    ended = cli("search", *options({**small, "model": tmp_path}), "--out", tmp_path / "run")
    assert ended.code == 4
    assert "no config.json" in ended.err


def test_hub_id_without_a_network_is_named(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    ended = cli("search", *options({**small, "model": "some-one/some-model"}), "--out", tmp_path / "run")
    assert ended.code == 4
    assert "'some-one/some-model'" in ended.err
    assert "hub id" in ended.err


def test_hub_data_without_a_network_is_named(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    ended = cli("search", *options({**small, "data": "some-one/some-data"}), "--out", tmp_path / "run")
    assert ended.code == 4
    assert "some-one/some-data" in ended.err


def test_model_of_weights_cut_short_is_named(
    cli: Cli, small: dict[str, Any], bert_folder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(bert_folder, tmp_path / "model"))
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    ended = cli("search", *options({**small, "model": model}), "--out", tmp_path / "run")
    assert ended.code == 4, ended.err
    assert str(model) in ended.err


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("missing.csv", None, "does not exist"),
        ("notes.docx", "hello", "no known format"),
        ("empty.csv", "", "empty.csv"),
        ("wrong.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "wrong.jsonl"),
        ("columns.csv", "a,b\n1,2\n", "a, b"),
        ("nothing.parquet", "not parquet", "nothing.parquet"),
    ],
)
def test_wrong_data_file_is_named(
    cli: Cli, small: dict[str, Any], tmp_path: Path, name: str, text: str | None, says: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    ended = cli("search", *options({**small, "data": tmp_path / name}), "--out", tmp_path / "run")
    assert ended.code == 4
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


def test_column_that_the_data_has_not_is_named(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    ended = cli("search", *options(small), "--column", "text=sentence", "--out", tmp_path / "run")
    assert ended.code == 4
    assert "text=sentence" in ended.err
    assert "the data has text, label" in ended.err


def test_task_that_the_model_has_no_form_of_is_named(
    cli: Cli, small: dict[str, Any], bert_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "what is it :", "completion": " a lemon"}\n' * 20)
    ended = cli("search", *options({**small, "data": data, "metric": "loss"}), "--out", tmp_path / "run")
    assert ended.code == 4, ended.err
    assert "causal-lm" in ended.err or "validation" in ended.err


# --- 5 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["resume", "report"])
def test_folder_that_is_no_run_is_told(cli: Cli, command: str, tmp_path: Path) -> None:
    ended = cli(command, tmp_path)
    assert ended.code == 5
    assert "no run directory" in ended.err


def test_damage_within_the_records_is_told_with_its_line(cli: Cli, a_run: Path) -> None:
    records = (a_run / "records.jsonl").read_text().splitlines()
    records[1] = records[1][:50]
    (a_run / "records.jsonl").write_text("\n".join(records) + "\n")
    ended = cli("resume", a_run)
    assert ended.code == 5
    assert "line 2 is damaged" in ended.err
    assert cli("report", a_run).code == 5


def test_taking_the_damaged_line_out_runs_that_configuration_again(cli: Cli, a_run: Path) -> None:
    records = (a_run / "records.jsonl").read_text().splitlines()
    lost = json.loads(records.pop(1))
    (a_run / "records.jsonl").write_text("\n".join(records) + "\n")
    assert cli("resume", a_run).code == 0
    after = lines(a_run)
    assert [record["plan"] for record in after][-1] == lost["plan"]
    assert after[-1]["values"]["quality"] == lost["values"]["quality"]


def test_torn_last_line_is_dropped_and_its_trial_runs_again(cli: Cli, a_run: Path) -> None:
    records = (a_run / "records.jsonl").read_bytes()
    (a_run / "records.jsonl").write_bytes(records[:-30])
    ended = cli("resume", a_run)
    assert ended.code == 0, ended.err
    assert "torn line" in ended.err
    assert len(lines(a_run)) == 3
    assert len({json.dumps(record["plan"]) for record in lines(a_run)}) == 3


def test_damaged_study_is_told_and_rebuilt_once_deleted(cli: Cli, a_run: Path) -> None:
    (a_run / "study.db").write_bytes(b"no database at all" * 1000)
    ended = cli("resume", a_run, "--trials", "4")
    assert ended.code == 5
    assert "study" in ended.err
    assert "delete" in ended.err.lower()
    (a_run / "study.db").unlink()
    assert cli("resume", a_run, "--trials", "4").code == 0
    assert [record["number"] for record in lines(a_run)] == [0, 1, 2, 3]


def test_study_that_is_an_old_copy_is_brought_up_to_the_records(
    cli: Cli, small: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert cli("search", *options({**small, "trials": 1}), "--out", run).code == 0
    old = (run / "study.db").read_bytes()
    assert cli("resume", run, "--trials", "3").code == 0
    (run / "study.db").write_bytes(old)
    ended = cli("resume", run, "--trials", "4")
    assert ended.code == 0, ended.err
    assert [record["number"] for record in lines(run)] == [0, 1, 2, 3]
    assert len({json.dumps(record["plan"]) for record in lines(run)}) == 4


@pytest.mark.parametrize("name", ["run.json", "request.yaml"])
def test_damaged_description_of_the_run_is_told(cli: Cli, a_run: Path, name: str) -> None:
    (a_run / name).write_text("{")
    ended = cli("resume", a_run)
    assert ended.code == 5
    assert name in ended.err


def test_damaged_data_of_the_run_is_told(cli: Cli, a_run: Path) -> None:
    (a_run / "data" / "train.parquet").write_bytes(b"PAR1")
    ended = cli("resume", a_run, "--trials", "4")
    assert ended.code == 5, ended.err
    assert "data" in ended.err


def test_run_of_another_schema_is_refused(cli: Cli, a_run: Path) -> None:
    info = json.loads((a_run / "run.json").read_text())
    (a_run / "run.json").write_text(json.dumps({**info, "schema": 999}))
    ended = cli("resume", a_run)
    assert ended.code == 5
    assert "schema 999" in ended.err


def test_run_that_another_process_holds_is_refused(cli: Cli, a_run: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from autopeft.store import RunDirectory\n"
        "with RunDirectory.existing(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(a_run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    ended = cli("resume", a_run, "--trials", "4")
    holder.communicate("")
    assert ended.code == 5
    assert "in use by another process" in ended.err
    assert cli("resume", a_run).code == 0


# --- 6 ---------------------------------------------------------------------------------------------------------------


def test_five_failures_alike_end_the_search_with_their_traceback(
    cli: Cli, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_kernel(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("autopeft.trial.worker.train", broken_kernel)
    ended = cli("search", *options({**small, "trials": 20}), "--out", tmp_path / "run")
    assert ended.code == 6
    assert "the first 5 trials failed alike" in ended.err
    assert "in broken_kernel" in ended.err
    assert "no kernel image is available" in ended.err
    assert [record["state"] for record in lines(tmp_path / "run")] == ["failed"] * 5
    assert "no kernel image" in (tmp_path / "run" / "report.html").read_text()


def test_different_failures_do_not_end_the_search_early(
    cli: Cli, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = iter(range(100))

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"fault {next(count)}")

    monkeypatch.setattr("autopeft.trial.worker.train", broken)
    ended = cli("search", *options({**small, "trials": 7}), "--out", tmp_path / "run")
    assert ended.code == 6
    assert "all 7 trials failed" in ended.err
    assert "fault 0" in ended.err


def test_failed_trials_among_good_ones_are_records_with_a_reason(
    cli: Cli, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autopeft.trial import worker

    real, count = worker.train, iter(range(100))

    def sometimes(*arguments: Any, **keywords: Any) -> Any:
        if next(count) == 1:
            raise RuntimeError("bad luck")
        return real(*arguments, **keywords)

    monkeypatch.setattr(worker, "train", sometimes)
    ended = cli("search", *options(small), "--out", tmp_path / "run", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["trials"] == {"complete": 2, "failed": 1}
    failed = lines(tmp_path / "run")[1]
    assert failed["reason"] == "RuntimeError: bad luck"
    assert "in sometimes" in failed["traceback"]
    assert failed["values"] == {}


def test_loss_that_is_no_number_is_a_failure_with_its_learning_rate(
    cli: Cli, small: dict[str, Any], tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "parameters:\n  method: {choices: [lora]}\n  lora.rank: {ordinal: [1, 2, 4, 8]}\n"
        "  lr_multiple: {low: 1.0e+30, high: 1.0e+31, log: true}\n"
    )
    ended = cli("search", *options({**small, "space": space, "steps": 8}), "--out", tmp_path / "run")
    assert ended.code == 6
    assert "diverges" in ended.err


# --- 7 ---------------------------------------------------------------------------------------------------------------


def test_time_too_short_for_a_first_trial_is_told(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = cli("search", *options({**small, "time": "0.000001s"}), "--out", run)
    assert ended.code == 7
    assert "raise --time" in ended.err
    again = cli("resume", run, "--time", "5min")
    assert again.code == 0, again.err
    assert len(lines(run)) == 3


def test_report_of_a_run_without_records_says_so(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("search", *options({**small, "time": "0.000001s"}), "--out", run).code == 7
    ended = cli("report", run)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err


def test_time_that_runs_out_after_a_trial_is_no_fault(
    cli: Cli, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autopeft.trial import worker

    real = worker.train

    def slow(*arguments: Any, **keywords: Any) -> Any:
        import time

        time.sleep(1.0)
        return real(*arguments, **keywords)

    monkeypatch.setattr(worker, "train", slow)
    ended = cli("search", *options({**small, "trials": 50, "time": "1s"}), "--out", tmp_path / "run")
    assert ended.code == 0
    assert "the time is over" in ended.err
    assert 1 <= len(lines(tmp_path / "run")) < 50
