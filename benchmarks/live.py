"""Engines on real trainings: stories260K on the sentences of E2E, searched for equal optimiser steps.

Every search is `autopeft search` on the default space under a budget of 5%: the default engine, the same with rungs,
and plain TPE with the budget as its constraint and without the hand-made configurations. Counted is what was trained to
its end: the hypervolume of (held-out loss, trained parameters), parameters by ratio and by difference, and the best
loss. The losses are those of one seed, as a user would see them.

    STORIES260K=... E2E_NLG=... python benchmarks/live.py --seeds 3 --trainings 32
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outsider import Quiet
from results import write_rows

import autopeft as ap
from autopeft.pareto import hypervolume
from autopeft.records import TrialRecord
from autopeft.space_file import read_space

STEPS, BUDGET, WORST = 36, 0.05, 4.0
"""A loss of 4 nats a token is what the model has before any training, roughly."""
WAYS: dict[str, dict[str, Any]] = {
    "known-cost": {"sampler": "known-cost"},
    "known-cost, rungs": {"sampler": "known-cost", "rungs": "auto"},
    "tpe, no start": {"sampler": "tpe", "space": {**read_space("default"), "start": []}},
}


def figures(records: Sequence[TrialRecord], limit: int) -> dict[str, Any]:
    """Give what a search found."""
    done = [r.values for r in records if r.state == "complete"]
    by_ratio = [(v["quality"], math.log(v["params"])) for v in done]
    by_difference = [(v["quality"], v["params"] / limit) for v in done]
    return {
        "begun": len(records),
        "finished": len(done),
        "by_ratio": round(hypervolume(by_ratio, [WORST, math.log(limit)]) / (WORST * math.log(limit)), 4),
        "by_difference": round(hypervolume(by_difference, [WORST, 1.0]) / WORST, 4),
        "best_loss": round(min(v["quality"] for v in done), 4),
    }


def search(way: str, *, seed: int, trainings: int) -> dict[str, Any]:
    """Search for the steps of so many trainings; gives a row."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = ap.search(
            model=os.environ["STORIES260K"], data=os.environ["E2E_NLG"], task="causal-lm", columns={"text": "target"},
            steps=STEPS, batch_size=8, max_length=64, eval_rows=64, budget=f"{100 * BUDGET}%", executor="local",
            steps_total=trainings * STEPS, final_seeds=0, seed=seed, objectives=["quality", "params"],
            out=str(Path(folder) / "run"), view=Quiet(), **WAYS[way],  # type: ignore[arg-type]
        )  # fmt: skip
        assert result.info.parameter_limit is not None
        found = figures(result.records, result.info.parameter_limit)
    about = {"way": way, "trainings": trainings, "seed": seed}
    return {**about, **found, "cpu_seconds": round(time.process_time() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--trainings", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "live.csv")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in arguments.ways}
    for seed in range(arguments.seeds):
        for way, rows in found.items():
            rows.append(search(way, seed=seed, trainings=arguments.trainings))
            write_rows(arguments.csv, rows[-1:])
            print(rows[-1], flush=True)
    for way, rows in found.items():
        print(way, {name: statistics.median(row[name] for row in rows) for name in list(rows[0])[3:]})


if __name__ == "__main__":
    main()
