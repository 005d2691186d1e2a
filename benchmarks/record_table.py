"""Records real trainings into the table of `docs/benchmark-table.md`: every candidate, its costs, its whole curve.

Two subjects are trained in turn, so that whatever is recorded when it is stopped is a table: stories260K on E2E, and
the embedded MiniLM on the docstrings of installed libraries. Rows are appended to a scratch folder; a killed run goes
on, and `--parquet` writes what is there. All of a candidate's values are of one training whose schedule spans the
horizon; one in some is trained with two more seeds.

    STORIES260K=... E2E_NLG=... python benchmarks/record_table.py --scratch DIR [--minutes 60] [--parquet]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recording import RecordingWorker
from sampling import Draw, Known, draws
from table_columns import curve_columns, flat, read_rows, rounded, write_parquet

from autopeft.assembly import Assembly, assemble
from autopeft.errors import TrialError
from autopeft.plain import canonical_json, digest
from autopeft.request_fields import make_request
from autopeft.space_file import read_space
from autopeft.work import WorkUnit
from autopeft.workers import worker_spec

SEED = 0
BITS = [32, 16, 4]
TABLE = Path(__file__).parent / "table"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with its data.

    Attributes:
        fields: Fields of the request.
        rungs: Steps after which a candidate is judged; a ninth, a third and all of its horizon among them.
        shares: Budgets that draws are lowered to, as shares of the base's parameters; the head comes on top.
        configurations: How many to train.
        repeat_every: One configuration in so many is trained with seeds 0, 1, 2; the others with 0.
    """

    fields: Callable[[], dict[str, Any]]
    rungs: tuple[int, ...]
    shares: tuple[float, ...]
    configurations: int
    repeat_every: int


def _stories() -> dict[str, Any]:
    return {
        "model": os.environ["STORIES260K"], "data": os.environ["E2E_NLG"], "task": "causal-lm",
        "columns": {"text": "target"}, "steps": 36, "batch_size": 8, "max_length": 64, "eval_rows": 64,
    }  # fmt: skip


def _minilm() -> dict[str, Any]:
    return {"steps": 81, "batch_size": 8, "max_length": 16, "eval_rows": 128}


SUBJECTS = {
    "stories260k-e2e": Subject(_stories, (4, 8, 12, 24, 36), (0.002, 0.005, 0.01, 0.02, 0.05, 0.1), 660, 14),
    "minilm-docstrings": Subject(_minilm, (9, 27, 81), (0.0003, 0.001, 0.003, 0.01, 0.02), 308, 14),
}


class Recorder:
    """Trains the configurations of one subject, one after the other, and writes a line for each training.

    Args:
        folder: Takes the prepared data and the rows; a recorder that finds rows there goes on after them.
        commit: Of the code that trains.
    """

    def __init__(self, key: str, folder: Path, *, commit: str) -> None:
        self.key, self.subject, self._commit = key, SUBJECTS[key], commit
        self.assembly = assemble_subject(self.subject)
        self._run_dir = folder / key
        self.path = folder / f"{key}.jsonl"
        self._problem = self.assembly.problem
        assert self._problem.anatomy is not None
        self._anatomy = self._problem.anatomy
        self._steps = int(self.assembly.info.request["steps"])
        self._rows = read_rows(self.path)
        self._draws = draws(self._problem, self._budgets, self._known, seed=SEED)
        self._queue = self._all_units()
        self._worker: RecordingWorker | None = None

    @property
    def _budgets(self) -> list[int]:
        head, base = self._anatomy.head_params, self._anatomy.base_params
        return [head + round(share * base) for share in self.subject.shares]

    @property
    def done(self) -> float:
        """The part of the configurations that is recorded."""
        return len({row["configuration"] for row in self._rows}) / self.subject.configurations

    def _known(self) -> Sequence[Known]:
        return self._before

    def _all_units(self) -> Iterator[tuple[int, Draw, int]]:
        """Give (number, draw, seed) in the order of the rows; a draw knows of the rows before it only."""
        self._before: list[Known] = []
        for number in range(self.subject.configurations):
            drawn = next(self._draws)
            for seed in range(3 if number % self.subject.repeat_every == 0 else 1):
                yield number, drawn, seed
            row = next((r for r in self._rows if r["configuration"] == number and r["seed"] == 0), None)
            if row is not None and row["state"] == "complete":
                loss = row["curve_loss"][-1]
                self._before.append(Known(drawn.candidate, row["trainable_params"], loss))

    def record(self) -> dict[str, Any] | None:
        """Train the next that has no row yet, and write it down; None if there is none."""
        have = {(row["configuration"], row["seed"]) for row in self._rows}
        for number, drawn, seed in self._queue:
            if (number, seed) in have:
                continue
            row = self._trained(number, drawn, seed)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(canonical_json(row) + "\n")
            self._rows.append(row)
            return row
        return None

    def _trained(self, number: int, drawn: Draw, seed: int) -> dict[str, Any]:
        worker = self._worker = self._worker or self._make_worker()
        plan = self._problem.plan(drawn.candidate)
        assert plan is not None
        unit = WorkUnit(
            trial=number, candidate=drawn.candidate, steps=self._steps, seed=seed, plan=plan,
            head_params=self._anatomy.head_params, adapter_dir="adapter",
        )  # fmt: skip
        row: dict[str, Any] = {
            "configuration": number,
            "identity": digest(plan.to_dict()),
            "seed": seed,
            "origin": drawn.origin,
            "budget_params": drawn.budget_params,
            **flat(drawn.candidate, self._problem),
            "state": "complete",
            "reason": "",
        }
        start = time.process_time()
        try:
            with contextlib.redirect_stdout(None):
                measurement = worker.run(unit)
        except (TrialError, ArithmeticError, RuntimeError, ValueError) as error:
            measurement = None
            row |= {"state": "failed", "reason": (str(error).splitlines() or [type(error).__name__])[0][:200]}
        row |= {"cpu_seconds": round(time.process_time() - start, 3), "commit": self._commit}
        row |= curve_columns(worker.curve)
        row["train_loss"] = [rounded(loss) for loss in worker.losses]
        if measurement is not None:
            row |= {
                "memory_bytes": measurement.memory_bytes,
                "adapter_bytes": measurement.adapter_bytes,
                "steps": measurement.steps,
                **{f"test_{name}": rounded(value) for name, value in worker.test.items()},
            }
        return row

    def untrained(self) -> dict[str, float]:
        """Judge the base with an adapter that does nothing yet: what every training has to beat."""
        worker = self._worker = self._worker or self._make_worker()
        candidate = next(c for c in self._problem.starts() if c["method"] == "lora")
        plan = self._problem.plan(candidate)
        unit = WorkUnit(0, candidate, 0, 0, plan, self._anatomy.head_params)
        return dict(worker.run(unit).metrics)

    def _make_worker(self) -> RecordingWorker:
        from autopeft.trial.prepared import write

        assert self.assembly.data is not None
        shutil.rmtree(self._run_dir, ignore_errors=True)
        write(self.assembly.data, self._run_dir / "data")
        (self._run_dir / "request.yaml").write_text("{}\n")
        spec = worker_spec(self.assembly.info, self._run_dir, threads=1)
        return RecordingWorker(rungs=self.subject.rungs, **spec.settings)


def assemble_subject(subject: Subject) -> Assembly:
    """Put a subject together without a budget: the default space, with 4 bits on a CPU too."""
    fields = {**subject.fields(), "budget": "none", "trials": 1, "seed": SEED, "bits": BITS, "executor": "local"}
    return assemble(make_request(fields), space=read_space("default"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--scratch", type=Path, required=True, help="takes rows as they come; kept")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="most CPU minutes of this sitting")
    parser.add_argument("--trainings", type=int, default=10**9, help="most trainings of this sitting")
    parser.add_argument("--parquet", action="store_true", help="train nothing; write what is recorded to table/")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    args.scratch.mkdir(parents=True, exist_ok=True)
    recorders = [Recorder(key, args.scratch, commit=commit.stdout.strip()) for key in args.subjects]
    if args.parquet:
        for recorder in recorders:
            write_parquet(
                TABLE / f"{recorder.key}.parquet",
                read_rows(recorder.path),
                dataset=recorder.key,
                run=recorder.assembly.info,
                untrained=recorder.untrained(),
            )
        return
    states: Counter[str] = Counter()
    start = time.process_time()
    while recorders and time.process_time() - start < 60 * args.minutes and sum(states.values()) < args.trainings:
        recorder = min(recorders, key=lambda r: r.done)
        if (row := recorder.record()) is None:
            recorders.remove(recorder)
            continue
        states[row["state"]] += 1
        best = row.get("curve_accuracy", row.get("curve_loss", []))
        print(
            f"{recorder.key} {row['configuration']}.{row['seed']} {row['method']} {row['bits']} bits "
            f"x{row['lr_multiple']:.2f} {row['adapter_params']} parameters: {row['state']} {best} "
            f"{row['cpu_seconds']:.1f} s {row['reason']}",
            flush=True,
        )
    print(dict(states), f"{(time.process_time() - start) / 60:.1f} CPU minutes")


if __name__ == "__main__":
    main()
