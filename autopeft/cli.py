"""The command line: parse, call the Python face, print. Nothing heavy is loaded before a command needs it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from autopeft import __version__

app = typer.Typer(
    name="autopeft",
    help="Finds the parameter-efficient fine-tuning configuration for your model, your data and your budget.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130

Model = Annotated[str | None, typer.Option(help="Model folder or hub id; without it the embedded MiniLM encoder.")]
Data = Annotated[str | None, typer.Option(help="File, folder of splits, or hub id; without it the docstring data.")]
Task = Annotated[str | None, typer.Option(help="auto, text-classification or causal-lm.")]
Column = Annotated[
    list[str] | None, typer.Option(metavar="ROLE=NAME", help="Which column is what, e.g. --column text=sentence.")
]
Budget = Annotated[str | None, typer.Option(help="Most trainable parameters: 0.5%, 2M, 800000, or none.")]
Memory = Annotated[str | None, typer.Option(help="Most peak memory of a training, e.g. 16GiB.")]
Time = Annotated[str | None, typer.Option(help="Most time of the search, e.g. 30min.")]
Trials = Annotated[int | None, typer.Option(help="How many candidates to train.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps a trial.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows an optimiser step.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens a row is cut to.")]
EvalRows = Annotated[int | None, typer.Option(help="Most rows to judge a trial on.")]
SpaceOption = Annotated[str | None, typer.Option("--space", help="Name of a search space, or a YAML file.")]
Metric = Annotated[str | None, typer.Option(help="The measure of quality: accuracy, f1_macro, loss, ...")]
Objectives = Annotated[str | None, typer.Option(help="What to optimise, e.g. quality,params,memory.")]
Sampler = Annotated[str | None, typer.Option(help="Engine that proposes candidates: tpe, nsga2, random.")]
ExecutorOption = Annotated[str | None, typer.Option("--executor", help="ray or local.")]
Workers = Annotated[int | None, typer.Option(help="Trials at once; by default what fits.")]
Gpus = Annotated[float | None, typer.Option(help="GPU share of a trial, e.g. 0.5.")]
RayAddress = Annotated[str | None, typer.Option(help="Address of a running Ray cluster, or auto.")]
Storage = Annotated[str | None, typer.Option(help="Optuna storage URL; by default SQLite in the run directory.")]
Out = Annotated[Path | None, typer.Option(help="Run directory; by default a new one under autopeft-runs/.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Config = Annotated[Path | None, typer.Option(help="YAML file with any of these; the command line wins.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
RunDir = Annotated[Path, typer.Argument(help="Run directory.", show_default=False)]


def _fields(local: Mapping[str, Any]) -> dict[str, Any]:
    """Make the fields of a request of the options given and the --config file."""
    from autopeft.errors import RequestError
    from autopeft.request import read_fields

    given = {name: value for name, value in local.items() if value is not None and name not in ("config", "as_json")}
    if "column" in given:
        pairs = [pair.partition("=") for pair in given.pop("column")]
        if wrong := ["".join(p) for p in pairs if not (p[0] and p[2])]:
            raise RequestError(*(f"column: {pair!r}: write ROLE=NAME, e.g. --column text=sentence" for pair in wrong))
        given["columns"] = {role: name for role, _, name in pairs}
    if "objectives" in given:
        given["objectives"] = [name.strip() for name in given["objectives"].split(",") if name.strip()]
    if "out" in given:
        given["out"] = str(given["out"])
    stored = read_fields(local["config"]) if local.get("config") is not None else {}
    return {**stored, **given}


@app.command()
def search(
    *,
    model: Model = None,
    data: Data = None,
    task: Task = None,
    column: Column = None,
    budget: Budget = None,
    memory: Memory = None,
    time: Time = None,
    trials: Trials = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    eval_rows: EvalRows = None,
    space: SpaceOption = None,
    metric: Metric = None,
    objectives: Objectives = None,
    sampler: Sampler = None,
    executor: ExecutorOption = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    ray_address: RayAddress = None,
    storage: Storage = None,
    out: Out = None,
    seed: Seed = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Search: try many configurations in short trainings, and keep the best of quality, parameters and memory."""
    fields = _fields(locals())
    from autopeft.api import search as run

    with _stdout_kept(as_json):
        result = run(**fields)
    _print_result(result, as_json=as_json)


@app.command()
def resume(
    run_dir: RunDir,
    *,
    trials: Trials = None,
    time: Time = None,
    executor: ExecutorOption = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    ray_address: RayAddress = None,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed."""
    from autopeft.api import resume as run

    changes = {k: v for k, v in locals().items() if k not in ("run_dir", "as_json", "run")}
    with _stdout_kept(as_json):
        result = run(run_dir, **changes)
    _print_result(result, as_json=as_json)


@app.command()
def report(run_dir: RunDir, *, as_json: Json = False) -> None:
    """Write front.csv and report.html of a run anew."""
    from autopeft.result import Result

    result = Result(run_dir)
    result.report()
    _print_result(result, as_json=as_json)


@app.command()
def estimate(
    *,
    model: Model = None,
    data: Data = None,
    task: Task = None,
    column: Column = None,
    budget: Budget = None,
    memory: Memory = None,
    time: Time = None,
    trials: Trials = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    eval_rows: EvalRows = None,
    space: SpaceOption = None,
    metric: Metric = None,
    objectives: Objectives = None,
    sampler: Sampler = None,
    executor: ExecutorOption = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    ray_address: RayAddress = None,
    storage: Storage = None,
    out: Out = None,
    seed: Seed = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Count exactly what the standard configurations train; trains nothing."""
    fields = _fields(locals())
    from autopeft.api import estimate as run
    from autopeft.units import show_percent

    with _stdout_kept(as_json):
        rows = run(**fields)
    if as_json:
        _print_json(
            [
                {
                    "configuration": r.configuration,
                    "adapter_params": r.adapter_params,
                    "head_params": r.head_params,
                    "trainable_params": r.adapter_params + r.head_params,
                    "fits": r.fits,
                    "candidate": dict(r.candidate.values),
                    "adapter_config": dict(r.plan.config),
                }
                for r in rows
            ]
        )
        return
    _print_table(
        ["configuration", "adapter", "head", "trained", "of the model", "fits"],
        [
            [
                r.configuration,
                f"{r.adapter_params:,}",
                f"{r.head_params:,}",
                f"{r.adapter_params + r.head_params:,}",
                show_percent((r.adapter_params + r.head_params) / r.base_params),
                "yes" if r.fits else "no",
            ]
            for r in rows
        ],
    )


@app.command()
def methods(*, as_json: Json = False) -> None:
    """List the PEFT methods and what each can do."""
    from autopeft.methods import METHODS

    if as_json:
        _print_json([{**_method(name), "settings": dict(METHODS[name].settings)} for name in METHODS])
        return
    rows = [_method(name) for name in METHODS]
    _print_table(list(rows[0]), [[_shown(v) for v in row.values()] for row in rows])


def _method(name: str) -> dict[str, Any]:
    from autopeft.methods import METHODS

    m = METHODS[name]
    return {
        "name": m.name,
        "title": m.title,
        "bits": list(m.bits),
        "tasks": list(m.tasks),
        "mergeable": m.mergeable,
        "starts at identity": m.starts_at_identity,
        "learning rate": m.learning_rate,
        "source": m.source,
    }


@app.command()
def spaces(*, as_json: Json = False) -> None:
    """List the search spaces that autopeft ships."""
    from autopeft.space_file import load_space, space_names

    loaded = {name: load_space(name) for name in space_names()}
    rows = [
        {
            "name": name,
            "description": space.description,
            "parameters": [p.name for p in space],
            "file": str(space_names()[name]),
        }
        for name, space in loaded.items()
    ]
    if as_json:
        _print_json(rows)
        return
    _print_table(
        ["name", "description", "file"], [[str(r["name"]), str(r["description"]), str(r["file"])] for r in rows]
    )


@app.command()
def doctor(*, as_json: Json = False) -> None:
    """Check what is installed and what this machine can do."""
    from autopeft.doctor import examine

    findings = examine()
    if as_json:
        _print_json([{"what": f.what, "ok": f.ok, "says": f.says} for f in findings])
    else:
        _print_table(["", "what", ""], [["ok" if f.ok else "!!", f.what, f.says] for f in findings])
    if not all(f.ok for f in findings):
        raise typer.Exit(1)


def _version(value: bool) -> None:
    if value:
        print(f"autopeft {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


@contextmanager
def _stdout_kept(as_json: bool) -> Iterator[None]:
    """Send what libraries print to stderr, where stdout is for one JSON document."""
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        yield


def _print_result(result: Any, *, as_json: bool) -> None:
    if as_json:
        _print_json(result.to_dict())
        return
    from autopeft.labels import describe, show_value

    named: dict[int, list[str]] = {}
    for name, pick in result.picks.items():
        named.setdefault(pick.record.number, []).append(name)
    by_number = {r.number: r for r in result.records}
    numbers = [int(n) for n in result.front["trial"]]
    _print_table(
        ["trial", "", *(o.name for o in result.objectives), "configuration"],
        [
            [
                str(n),
                ", ".join(named.get(n, [])),
                *(show_value(by_number[n].values[o.name], o.unit) for o in result.objectives),
                describe(by_number[n]),
            ]
            for n in numbers
        ],
    )
    print(f"\nreport: {result.path / 'report.html'}")


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False, indent=1)
    print()


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _on_terminate(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; every error of ours ends with its message and its exit code, never a traceback."""
    from autopeft.errors import AutopeftError

    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        app()
    except AutopeftError as error:
        print(f"autopeft: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("autopeft: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
