"""The command line: parse, call the Python face, print. Nothing heavy is loaded before a command needs it."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from autopeft import __version__
from autopeft.printing import print_estimates, print_json, print_result, print_table, stdout_kept
from autopeft.recipe import OPTIMIZERS, SCHEDULERS
from autopeft.records import MAY_CHANGE

app = typer.Typer(
    name="autopeft",
    help="Finds the parameter-efficient fine-tuning configuration for your model, your data and your budget.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130


def _option(kind: Any, panel: str, text: str, **fields: Any) -> Any:
    return Annotated[kind, typer.Option(help=text, rich_help_panel=panel, **fields)]


_WHAT, _LIMITS, _TRAINING, _BASE, _RUN = "Model and data", "Search", "Training", "Frozen base", "Run"

REQUEST: dict[str, Any] = {
    "model": _option(str | None, _WHAT, "Model folder or hub id; without it the embedded MiniLM encoder."),
    "data": _option(str | None, _WHAT, "File, folder of splits, or hub id; else the docstring data."),
    "task": _option(str | None, _WHAT, "auto, text-classification, causal-lm or seq2seq-lm."),
    "column": _option(
        list[str] | None, _WHAT, "Which column is what, e.g. --column text=sentence.", metavar="ROLE=NAME"
    ),
    "eval_rows": _option(int | None, _WHAT, "Most rows to judge a trial on."),
    "generate_rows": _option(
        int | None, _WHAT, "Most of these to generate answers for: exact_match, rouge_l, bleu, chrf."
    ),
    "metric": _option(str | None, _WHAT, "The measure of quality: accuracy, f1_macro, loss, rouge_l, ..."),
    "budget": _option(str | None, _LIMITS, "Most trainable parameters: 0.5%, 2M, 800000, or none."),
    "memory": _option(str | None, _LIMITS, "Most peak memory of a training, e.g. 16GiB."),
    "time": _option(str | None, _LIMITS, "Most time of the search, e.g. 30min."),
    "trials": _option(int | None, _LIMITS, "How many candidates to train; 24 if there is no other limit."),
    "steps_total": _option(int | None, _LIMITS, "Most optimiser steps of the whole search."),
    "rungs": _option(
        str | None, _LIMITS, "Steps after which only the best trials go on: auto, off, or e.g. 10,30,100."
    ),
    "until_converged": _option(
        float | None, _LIMITS, "Stop when the engine expects to gain less than this share of the front's volume."
    ),
    "space": _option(str | None, _LIMITS, "Name of a search space, or a YAML file."),
    "final_seeds": _option(
        int | None, _LIMITS, "Other seeds to train the front's points again with, judged on the test split; 0 for none."
    ),
    "objectives": _option(str | None, _LIMITS, "What to optimise, e.g. quality,params,memory."),
    "sampler": _option(
        str | None, _LIMITS, "Engine that proposes candidates: known-cost, autopeft, tpe, nsga2, random."
    ),
    "warm_from": _option(
        list[Path] | None, _LIMITS, "Run directory of an earlier search, to look where it found good ones; repeatable."
    ),
    "steps": _option(int | None, _TRAINING, "Optimiser steps a trial."),
    "batch_size": _option(int | None, _TRAINING, "Rows an optimiser step."),
    "max_length": _option(int | None, _TRAINING, "Tokens a row is cut to."),
    "gradient_accumulation_steps": _option(
        int | None, _TRAINING, "Parts that the rows of a step are cut into: the same step in less memory."
    ),
    "gradient_checkpointing": _option(bool | None, _TRAINING, "Compute layers twice to save memory."),
    "packing": _option(bool | None, _TRAINING, "Short texts share a row, unseen by each other (causal-lm)."),
    "optimizer": _option(str | None, _TRAINING, f"{', '.join(OPTIMIZERS)}."),
    "weight_decay": _option(float | None, _TRAINING, "Decoupled weight decay of what is trained."),
    "warmup_ratio": _option(float | None, _TRAINING, "Share of the steps over which the learning rate rises."),
    "lr_scheduler": _option(str | None, _TRAINING, f"How it goes on after: {', '.join(SCHEDULERS)}."),
    "bits": _option(str | None, _BASE, "Bits to search, e.g. 4 or 16,4; by default the space's."),
    "quant_type": _option(str | None, _BASE, "The kind of 4 bits: nf4 or fp4."),
    "double_quant": _option(bool | None, _BASE, "Quantise the scales of 4-bit weights too."),
    "compute_dtype": _option(
        str | None, _BASE, "What a base of 4, 8 or 16 bits computes in: auto, bfloat16, float16, float32."
    ),
    "executor": _option(str | None, _RUN, "ray or local."),
    "workers": _option(int | None, _RUN, "Trials at once; by default what fits."),
    "together": _option(int | None, _RUN, "Candidates given to a worker at once, trained together where that pays."),
    "gpus_per_worker": _option(float | None, _RUN, "GPU share of a trial, e.g. 0.5."),
    "ray_address": _option(str | None, _RUN, "Address of a running Ray cluster, or auto."),
    "storage": _option(str | None, _RUN, "Optuna storage URL; by default SQLite in the run directory."),
    "out": _option(Path | None, _RUN, "Run directory; by default a new one under autopeft-runs/."),
    "seed": _option(int | None, _RUN, "Seed of everything random."),
    "config": _option(Path | None, _RUN, "YAML file with any of these; the command line wins."),
}
"""The options of a request: field -> annotation; `search` and `estimate` take all of them."""


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
AdapterDir = Annotated[Path, typer.Argument(help="Folder of an adapter that a search saved.", show_default=False)]
MergedDir = Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.", show_default=False)]
CandidateFile = Annotated[
    Path | None, typer.Option(help="YAML or JSON file of configurations to estimate in place of the standard ones.")
]
RunDir = Annotated[Path, typer.Argument(help="Run directory.", show_default=False)]


def _with_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options of a request, for its parameter `options`."""

    def give(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=REQUEST[name])
            for name in names
        ]
        command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return command

    return give


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Make the fields of a request of the options given and the --config file."""
    from autopeft.errors import RequestError
    from autopeft.request_fields import read_fields

    given = {name: value for name, value in options.items() if value is not None and name != "config"}
    if "column" in given:
        pairs = [pair.partition("=") for pair in given.pop("column")]
        if wrong := ["".join(p) for p in pairs if not (p[0] and p[2])]:
            raise RequestError(*(f"column: {pair!r}: write ROLE=NAME, e.g. --column text=sentence" for pair in wrong))
        given["columns"] = {role: name for role, _, name in pairs}
    if "objectives" in given:
        given["objectives"] = [name.strip() for name in given["objectives"].split(",") if name.strip()]
    if "bits" in given:
        given["bits"] = [int(b) if b.strip().isdecimal() else b for b in given["bits"].split(",")]
    if "warm_from" in given:
        given["warm_from"] = [str(path) for path in given["warm_from"]]
    if "out" in given:
        given["out"] = str(given["out"])
    stored = read_fields(options["config"]) if options.get("config") is not None else {}
    return {**stored, **given}


@app.command()
@_with_options(*REQUEST)
def search(*, as_json: Json = False, **options: Any) -> None:
    """Search: try many configurations in short trainings, and keep the best of quality, parameters and memory."""
    fields = _fields(options)
    from autopeft.api import search as run

    with stdout_kept(as_json):
        result = run(**fields)
    print_result(result, as_json=as_json)


@app.command()
@_with_options(*MAY_CHANGE)
def resume(run_dir: RunDir, *, as_json: Json = False, **options: Any) -> None:
    """Go on with a run that was stopped or killed."""
    from autopeft.api import resume as run

    with stdout_kept(as_json):
        result = run(run_dir, **options)
    print_result(result, as_json=as_json)


@app.command()
def report(run_dir: RunDir, *, as_json: Json = False) -> None:
    """Write front.csv and report.html of a run anew."""
    from autopeft.result import Result

    result = Result(run_dir)
    result.report()
    print_result(result, as_json=as_json)


@app.command()
@_with_options(*REQUEST)
def estimate(*, candidate: CandidateFile = None, as_json: Json = False, **options: Any) -> None:
    """Tell what the standard configurations cost: parameters, GPU memory, file, time; trains nothing."""
    fields = _fields(options)
    from autopeft.api import estimate as run

    with stdout_kept(as_json):
        rows = run(candidates=candidate, **fields)
    print_estimates(rows, as_json=as_json)


@app.command()
def merge(adapter: AdapterDir, out: MergedDir) -> None:
    """Fold a saved adapter into its base: a plain Hugging Face model folder."""
    from autopeft.api import merge as run

    for caveat in run(adapter, out):
        print(f"autopeft: {caveat}", file=sys.stderr)
    print(out)


@app.command()
def methods(*, as_json: Json = False) -> None:
    """List the PEFT methods and what each can do, and those of PEFT that are not offered, and why."""
    from autopeft.methods import METHODS
    from autopeft.methods.capabilities import capabilities
    from autopeft.methods.not_offered import NOT_OFFERED

    rows = [capabilities(method) for method in METHODS.values()]
    if as_json:
        offered = [{**row, "settings": dict(METHODS[str(row["name"])].settings)} for row in rows]
        print_json({"offered": offered, "not offered": [asdict(method) for method in NOT_OFFERED]})
        return
    columns = [name for name in rows[0] if name not in ("title", "learning rate from")]
    print_table(columns, [[row[name] for name in columns] for row in rows])
    print("\nNot offered, though PEFT has them:\n")
    print_table(["title", "source", "reason"], [[m.title, m.source, m.reason] for m in NOT_OFFERED])


@app.command()
def spaces(*, as_json: Json = False) -> None:
    """List the search spaces that autopeft ships."""
    from autopeft.space_file import load_space, space_names

    files = space_names()
    loaded = {name: load_space(name) for name in files}
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    "description": space.description,
                    "file": str(files[name]),
                    "parameters": [p.name for p in space],
                }
                for name, space in loaded.items()
            ]
        )
    else:
        rows = [[name, space.description, files[name]] for name, space in loaded.items()]
        print_table(["name", "description", "file"], rows)


@app.command()
def doctor(*, as_json: Json = False) -> None:
    """Check what is installed and what this machine can do."""
    from autopeft.doctor import examine

    findings = examine()
    if as_json:
        print_json([{"what": f.what, "ok": f.ok, "says": f.says} for f in findings])
    else:
        print_table(["", "what", ""], [["ok" if f.ok else "!!", f.what, f.says] for f in findings])
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
