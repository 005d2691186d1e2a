"""Somebody else's searches (`outside.py`) through the public API: their space, cost and runner; training is free.

Engines spend equal steps. Counted is what was trained to its end, without noise: the hypervolume of quality and
parameters, these by ratio and by difference, the best quality, and where memory is an objective the volume of all three
with costs by ratio.

    python benchmarks/outsider.py --engines known-cost tpe random --trainings 32 64 128 --seeds 5
    python benchmarks/outsider.py --engines known-cost --rungs 10,30 --trainings 12 24 40 --seeds 4
    python benchmarks/outsider.py --problems networks numbers choices --memory learned
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from outside import PROBLEMS, STEPS, Outside
from results import write_rows

import autopeft as ap
from autopeft.pareto import hypervolume
from autopeft.records import TrialRecord

VOLUMES = ("by_ratio", "by_difference", "best", "with_memory")


def figures(problem: Outside, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Give what was found, without noise."""
    done = [record.candidate.values for record in records if record.state == "complete"]
    worths = [-problem.worth(values) for values in done]
    counts, most = [math.log(max(1, problem.count(values))) for values in done], math.log(1.2 * problem.budget)
    shares = [problem.count(values) / problem.budget for values in done]
    found = {
        "begun": len(records),
        "finished": len(done),
        "by_ratio": hypervolume(list(zip(worths, counts, strict=True)), [-problem.worst, most]),
        "by_difference": hypervolume(list(zip(worths, shares, strict=True)), [-problem.worst, 1.0]),
        "best": -min(worths, default=0.0),
        "with_memory": math.nan,
    }
    if problem.memory is not None:
        memory = [math.log(problem.memory(values)) for values in done]
        worst = [-problem.worst, most, math.log(problem.most_bytes)]
        found["with_memory"] = hypervolume(list(zip(worths, counts, memory, strict=True)), worst)
    return {name: round(value, 4) for name, value in found.items()}


class Quiet:
    """A view that shows nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def search(name: str, engine: str, *, seed: int, trainings: int, rungs: str, memory: str) -> dict[str, Any]:
    """Search for the steps of so many trainings; gives a row."""
    problem, start = PROBLEMS[name], time.process_time()
    objectives: list[str | ap.Objective] = ["quality", "params"]
    if (bytes_of := problem.memory) is not None:
        known = (lambda candidate: float(int(bytes_of(candidate.values)))) if memory == "known" else None
        objectives.append(ap.Objective("bytes", "minimize", "bytes", lambda m: float(m.memory_bytes), known))
    with tempfile.TemporaryDirectory() as folder:
        result = ap.search(
            runner=partial(problem.train, seed=seed), cost=lambda candidate: problem.count(candidate.values),
            space={"parameters": problem.parameters}, objectives=objectives, budget=problem.budget, steps=STEPS,
            steps_total=trainings * STEPS, sampler=engine, seed=seed, rungs=rungs, out=str(Path(folder) / "run"),
            view=Quiet(),
        )  # fmt: skip
        found = figures(problem, result.records)
    about = {"problem": name, "memory": memory if bytes_of else "", "engine": engine, "rungs": rungs}
    spent = {"cpu_seconds": round(time.process_time() - start, 1)}
    return {**about, "trainings": trainings, "seed": seed, **found, **spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=["adapters"])
    parser.add_argument("--engines", nargs="+", default=["known-cost", "tpe", "random"])
    parser.add_argument("--trainings", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rungs", default="off")
    parser.add_argument("--memory", choices=("known", "learned"), default="known", help="where it is an objective")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "outsider.csv")
    asked = parser.parse_args()
    for name in asked.problems:
        for engine in asked.engines:
            for n in asked.trainings:
                each = partial(search, name, engine, trainings=n, rungs=asked.rungs, memory=asked.memory)
                rows = [each(seed=seed) for seed in range(asked.seeds)]
                write_rows(asked.csv, rows)
                middle = {figure: round(statistics.median(row[figure] for row in rows), 4) for figure in VOLUMES}
                least = {figure: min(row[figure] for row in rows) for figure in VOLUMES}
                print(name, engine, f"rungs {asked.rungs}", n, "median", middle, "least", least, flush=True)


if __name__ == "__main__":
    main()
