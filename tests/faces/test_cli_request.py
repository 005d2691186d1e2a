"""The command line before any work: what is wrong with a request, and the commands that only tell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fruits import Ended, options

Cli = Callable[..., Ended]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--budget", "much"], ["budget: 'much'", "0.5%, 2M, 800000 or none"]),
        (["--budget", "-5"], ["budget: '-5'", "0.5%"]),
        (["--memory", "lots"], ["memory: 'lots'", "16GiB"]),
        (["--time", "soon"], ["time: 'soon'", "30min"]),
        (["--trials", "0"], ["trials: 0", "greater than or equal to 1"]),
        (["--steps", "0"], ["steps: 0", "greater than or equal to 1"]),
        (["--seed", "-1"], ["seed: -1", "greater than or equal to 0"]),
        (["--metric", "acuracy"], ["metric: ", "did you mean 'accuracy'?"]),
        (["--objectives", "qualty,params"], ["objectives: ", "did you mean 'quality'?"]),
        (["--objectives", "quality,quality"], ["objectives: ", "named twice"]),
        (["--objectives", ","], ["objectives: ", "at least one"]),
        (["--space", "defalt"], ["space: ", "did you mean 'default'?", ".yaml"]),
        (["--space", "nowhere.yaml"], ["space: ", "nowhere.yaml", "No such file"]),
        (["--sampler", "tpee"], ["sampler: ", "did you mean 'tpe'?"]),
        (["--executor", "rya"], ["executor: 'rya'", "'ray' or 'local'"]),
        (["--task", "classify"], ["task: 'classify'", "text-classification"]),
        (["--column", "text"], ["column: 'text'", "--column text=sentence"]),
        (["--column", "txt=a"], ["columns: ", "did you mean 'text'?"]),
        (["--model", "some/model"], ["model: 'some/model'", "add --data"]),
        (["--workers", "2", "--executor", "local"], ["workers: 2", "use ray"]),
        (["--ray-address", "h:1", "--executor", "local"], ["ray_address: 'h:1'", "drop one of the two"]),
        (["--metric", "accuracy", "--task", "causal-lm"], ["metric: 'accuracy'", "perplexity"]),
        (["--storage", "nonsense"], ["storage: 'nonsense'", "postgresql://"]),
        (["--warm-from", "nowhere"], ["warm_from: 'nowhere'", "no run directory", "request.yaml"]),
        (["--warm-from", "a", "--sampler", "tpe"], ["warm_from: tpe", "--sampler known-cost"]),
        (["--warm-from", "a", "--warm-from", "a"], ["warm_from: ", "a is named twice"]),
        (["--warm-from", "a", "--warm-from", "./a/"], ["warm_from: ", "a is named twice"]),
    ],
)
def test_fault_names_field_value_and_remedy(
    cli: Cli, arguments: list[str], says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli("search", *arguments)
    assert ended.code == 2
    assert all(text in ended.err for text in says), ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert not list(tmp_path.iterdir())


def test_all_faults_are_told_at_once(cli: Cli) -> None:
    ended = cli("search", "--budget", "x", "--time", "y", "--metric", "z", "--sampler", "tpee", "--objectives", "o")
    assert ended.code == 2
    fields = [line.removeprefix("autopeft: ").partition(":")[0] for line in ended.err.splitlines()]
    assert sorted(fields) == ["budget", "metric", "objectives", "sampler", "time"]


def test_request_is_checked_before_anything_is_read(cli: Cli, tmp_path: Path) -> None:
    ended = cli("search", "--sampler", "tpee", "--model", tmp_path / "nowhere", "--data", tmp_path / "nothing.csv")
    assert ended.code == 2
    assert "reading" not in ended.err


@pytest.mark.parametrize("command", ["search", "estimate"])
def test_unknown_sampler_is_a_fault_of_the_request(cli: Cli, command: str) -> None:
    assert cli(command, "--sampler", "tpee").code == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        (b"a: [1", "is not YAML"),
        (b"\xff\xfe\x00\x80", "is not YAML"),
        (b"- a\n- b\n", "holds list, not a mapping"),
        (b"1: 2\n", "not a mapping of field names"),
        (b"bugdet: 1%\n", "did you mean 'budget'?"),
        (b"objectives: quality,params\n", "objectives: 'quality,params'"),
        (b"columns: 5\n", "columns: 5"),
        (b"trials: many\n", "trials: 'many'"),
    ],
)
def test_config_file_at_fault_is_named(cli: Cli, text: bytes | None, says: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    if text is not None:
        config.write_bytes(text)
    ended = cli("search", "--config", config)
    assert ended.code == 2
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_config_file_that_is_a_folder_is_named(cli: Cli, tmp_path: Path) -> None:
    ended = cli("search", "--config", tmp_path)
    assert ended.code == 2
    assert "Is a directory" in ended.err


def test_command_line_wins_over_config_file(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**small, "trials": 3, "seed": 5, "objectives": ["quality", "params"]}))
    ended = cli("search", "--config", config, "--trials", "1", "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    stored = yaml.safe_load((tmp_path / "run" / "request.yaml").read_text())
    assert (stored["trials"], stored["seed"], stored["objectives"]) == (1, 5, ["quality", "params"])
    assert json.loads(ended.out)["trials"] == {"complete": 1}


def test_empty_config_file_means_the_defaults(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("")
    ended = cli("search", "--config", config, "--trials", "0")
    assert ended.code == 2
    assert "trials: 0" in ended.err
    assert "config" not in ended.err


def test_space_with_a_wrong_method_says_what_was_meant(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("parameters: {method: {choices: [loar]}}\n")
    ended = cli("search", *options({**small, "space": space}), "--out", tmp_path / "run")
    assert ended.code == 2
    assert "did you mean 'lora'?" in ended.err


def test_space_with_a_wrong_field_says_what_was_meant(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("inherit: tiny\nparameters: {lora.rank: {ordnal: [1, 2]}}\n")
    ended = cli("search", *options({**small, "space": space}), "--out", tmp_path / "run")
    assert ended.code == 2
    assert "did you mean 'ordinal'?" in ended.err


def test_out_that_holds_something_else_is_refused(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    ended = cli("search", *options(small), "--out", tmp_path)
    assert ended.code == 2
    assert f"out: {tmp_path} is not empty" in ended.err


def test_out_that_holds_a_run_is_told_how_to_go_on(cli: Cli, small: dict[str, Any], a_run: Path) -> None:
    ended = cli("search", *options(small), "--out", a_run)
    assert ended.code == 2
    assert f"autopeft resume {a_run}" in ended.err


def test_out_that_cannot_be_written_is_told(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = cli("search", *options(small), "--out", tmp_path / "file" / "run")
    assert ended.code == 2
    assert "cannot write" in ended.err


def test_out_that_a_killed_preparation_left_is_taken(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    for name in (".lock", "run.json", ".request.yaml.partial"):
        (tmp_path / name).touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.parquet").write_bytes(b"PAR1")
    ended = cli("search", *options({**small, "trials": 1}), "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert not (tmp_path / "data" / "test.parquet").exists()


def test_unknown_command_is_a_usage_error(cli: Cli) -> None:
    assert cli("serach").code == 2


def test_unknown_option_is_a_usage_error(cli: Cli) -> None:
    ended = cli("search", "--bugdet", "1%")
    assert ended.code == 2
    assert "--budget" in ended.err


def test_no_command_shows_the_help(cli: Cli) -> None:
    assert "search" in cli().out


@pytest.mark.parametrize("command", ["search", "resume", "report", "estimate", "methods", "spaces", "doctor"])
def test_every_command_has_a_help(cli: Cli, command: str) -> None:
    ended = cli(command, "--help")
    assert ended.code == 0
    assert "Usage" in ended.out


def test_version_is_the_packages(cli: Cli) -> None:
    from autopeft import __version__

    assert cli("--version").out == f"autopeft {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom autopeft.cli import main\n"
        f"sys.argv = ['autopeft', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "loaded = {'torch', 'peft', 'transformers', 'ray', 'optuna', 'datasets', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_methods_are_listed_with_what_they_can(cli: Cli) -> None:
    from autopeft.methods import METHODS

    listed = json.loads(cli("methods", "--json").out)
    assert [method["name"] for method in listed["offered"]] == list(METHODS)
    assert all(method["settings"] == dict(METHODS[method["name"]].settings) for method in listed["offered"])
    shown = cli("methods").out
    assert all(name in shown for name in METHODS)
    for method in listed["not offered"]:
        assert method["reason"]
        assert method["title"] in shown


def test_spaces_are_listed_with_their_files(cli: Cli) -> None:
    found = json.loads(cli("spaces", "--json").out)
    assert {"default", "lora", "qlora", "tiny"} <= {space["name"] for space in found}
    assert all(Path(space["file"]).is_file() for space in found)


def test_doctor_examines_packages_and_four_bit_layers(cli: Cli) -> None:
    findings = {finding["what"]: finding for finding in json.loads(cli("doctor", "--json").out)}
    assert findings["torch"]["ok"]
    assert findings["4-bit layers"]["ok"], findings["4-bit layers"]["says"]


def test_doctor_fails_when_something_is_wrong(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.doctor._ROOM_BYTES", 2**80)
    ended = cli("doctor")
    assert ended.code == 1
    assert "!!" in ended.out
