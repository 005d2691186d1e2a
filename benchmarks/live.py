"""Engines on real trainings: stories260K on the sentences of E2E, searched for equal optimiser steps.

All search the default space under a budget of 5%, one training at a time. Of autopeft, through its public API: the
default engine with its rungs and without, and its TPE without the hand-made configurations. Of Ray Tune (`peers.py`):
OptunaSearch as documented, and with ASHAScheduler; these give their candidates to the same worker, in the same units of
work, so that steps are counted alike. Counted is what was trained to its end within the budget: the hypervolume of
(held-out loss, trained parameters), parameters by ratio and by difference, and the best loss. The losses are those of
one seed, as a user would see them.

    STORIES260K=... E2E_NLG=... python benchmarks/live.py --seeds 3 --trainings 32
    python benchmarks/live.py --table    # medians and ranges, from the CSV
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from outsider import Quiet
from peers import PEERS, Spent
from results import write_rows

import autopeft as ap
from autopeft.assembly import assemble
from autopeft.candidates import Candidate
from autopeft.errors import TrialError
from autopeft.execute.protocol import GroupRunner, ResidentRunner, make_runner, run_isolated
from autopeft.judging import work_unit
from autopeft.pareto import hypervolume
from autopeft.problem import Problem
from autopeft.request_fields import make_request
from autopeft.search.study import Proposal
from autopeft.space_file import read_space
from autopeft.workers import worker_spec

STEPS, BUDGET, WORST = 36, 0.05, 4.0
"""A loss of 4 nats a token is what the model has before any training, roughly."""
FIGURES = ("begun", "finished", "by_ratio", "by_difference", "best_loss")


def fields(seed: int) -> dict[str, Any]:
    """Give what all searches ask for."""
    return {
        "model": os.environ["STORIES260K"], "data": os.environ["E2E_NLG"], "task": "causal-lm",
        "columns": {"text": "target"}, "steps": STEPS, "batch_size": 8, "max_length": 64, "eval_rows": 64,
        "budget": f"{100 * BUDGET}%", "executor": "local", "objectives": ["quality", "params"], "seed": seed,
    }  # fmt: skip


def figures(done: Sequence[Mapping[str, float]], *, begun: int, limit: int) -> dict[str, Any]:
    """Give what a search found, of the objectives of what it trained to the end."""
    by_ratio = [(v["quality"], math.log(v["params"])) for v in done]
    by_difference = [(v["quality"], v["params"] / limit) for v in done]
    return {
        "begun": begun,
        "finished": len(done),
        "by_ratio": round(hypervolume(by_ratio, [WORST, math.log(limit)]) / (WORST * math.log(limit)), 4),
        "by_difference": round(hypervolume(by_difference, [WORST, 1.0]) / WORST, 4),
        "best_loss": round(min((v["quality"] for v in done), default=WORST), 4),
    }


# --- autopeft --------------------------------------------------------------------------------------------------------


def own(run_dir: Path, seed: int, trainings: int, **chosen: Any) -> dict[str, Any]:
    """Search with autopeft."""
    result = ap.search(
        **fields(seed), **chosen, steps_total=trainings * STEPS, final_seeds=0, out=str(run_dir),
        view=Quiet(),
    )  # fmt: skip
    assert result.info.parameter_limit is not None
    done = [record.values for record in result.records if record.state == "complete"]
    return figures(done, begun=len(result.records), limit=result.info.parameter_limit)


# --- peers -----------------------------------------------------------------------------------------------------------


class LiveTrainer:
    """Trains with a worker of autopeft, in its units of work, and counts the steps; see `peers.Trainer`.

    Attributes:
        begun: How many trainings were begun.
        done: The objectives of those that came to their end within the budget.

    Args:
        runner: Trains and judges; keeps the state of what may go on.
        limit: Steps that there are in all.
    """

    reference = (WORST, math.inf)

    def __init__(self, problem: Problem, runner: GroupRunner, *, seed: int, limit: int) -> None:
        self.problem, self.full = problem, STEPS
        self.begun, self.done = 0, list[dict[str, float]]()
        self._runner, self._seed, self._left = runner, seed, limit

    def pay(self, steps: int) -> None:
        """Take steps from what is left.

        Raises:
            Spent: If there are not so many.
        """
        if steps > self._left:
            raise Spent
        self._left -= steps

    def train(self, candidate: Candidate, *, first: int = 0, last: int | None = None) -> tuple[float, ...]:
        """Train a candidate; what goes on is the one that was begun last.

        Raises:
            Spent: If there are not so many steps.
            TrialError: If the training failed.
        """
        at = last or self.full
        self.pay(at - first)
        self.begun += not first
        proposal = Proposal(self.begun, candidate, first, at if at < self.full else None)
        unit = work_unit(self.problem, proposal, steps=self.full, seed=self._seed, saves_adapter=True)
        [outcome] = run_isolated(self._runner, [unit])
        if outcome.measurement is None:
            raise TrialError(outcome.reason)
        values = {o.name: o.measure(outcome.measurement) for o in self.problem.objectives}
        assert self.problem.parameter_limit is not None
        if at == self.full and values["params"] <= self.problem.parameter_limit:
            self.done.append(values)
        return tuple(o.loss(values[o.name]) for o in self.problem.objectives)


def peer(run_dir: Path, seed: int, trainings: int, *, engine: str) -> dict[str, Any]:
    """Search with an engine of somebody else's."""
    from autopeft.trial.prepared import write

    assembly = assemble(make_request(fields(seed)), space=read_space("default"))
    assert assembly.data is not None
    write(assembly.data, run_dir / "data")
    (run_dir / "request.yaml").write_text("{}\n")
    worker = ResidentRunner(lambda: make_runner(worker_spec(assembly.info, run_dir, threads=1)))
    trainer = LiveTrainer(assembly.problem, worker, seed=seed, limit=trainings * STEPS)
    with suppress(Spent):
        PEERS[engine](trainer, seed)
    assert assembly.problem.parameter_limit is not None
    return figures(trainer.done, begun=trainer.begun, limit=assembly.problem.parameter_limit)


WITHOUT_START = {**read_space("default"), "start": []}
WAYS: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "known-cost": partial(own, rungs="off"),
    "known-cost, rungs": own,
    "tpe, no start": partial(own, sampler="tpe", rungs="off", space=WITHOUT_START),
    "tpe, no start, rungs": partial(own, sampler="tpe", space=WITHOUT_START),
    "OptunaSearch": partial(peer, engine="optunasearch"),
    "OptunaSearch, ASHA": partial(peer, engine="optunasearch-asha"),
}


def search(way: str, *, seed: int, trainings: int) -> dict[str, Any]:
    """Search for the steps of so many trainings; gives a row."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        found = WAYS[way](Path(folder) / "run", seed, trainings)
    about = {"way": way, "trainings": trainings, "seed": seed}
    return {**about, **found, "cpu_seconds": round(time.process_time() - start, 1)}


def table(path: Path) -> str:
    """Give the medians over seeds as Markdown, with the least and the most."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = ["| way | seeds | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    for way in dict.fromkeys(row["way"] for row in rows):
        of = [row for row in rows if row["way"] == way]
        cells = []
        for name in FIGURES:
            values = [float(row[name]) for row in of]
            cells.append(f"{statistics.median(values):g} ({min(values):g} - {max(values):g})")
        lines.append(f"| {way} | {len(of)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--trainings", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "live.csv")
    parser.add_argument("--table", action="store_true", help="run nothing; print what is in the CSV")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.csv))
        return
    for seed in range(arguments.seeds):
        for way in arguments.ways:
            row = search(way, seed=seed, trainings=arguments.trainings)
            write_rows(arguments.csv, [row])
            print(row, flush=True)


if __name__ == "__main__":
    main()
