"""A search of somebody else's: a space, a cost and a runner of their own, through the public API; training is free.

Ten layers, three families of adapters with best learning rates of their own, a hard budget on what the cost function
counts, noise. The dearest family is the best, and a cheap one is found first. With `--rungs` a training is judged
on its way, too, by a curve that misleads a little. Engines spend equal steps; counted are the noiseless hypervolume
with costs by ratio and by difference, and the best quality.

    python benchmarks/outsider.py --engines known-cost tpe random --trainings 32 64 128 --seeds 5
    python benchmarks/outsider.py --engines known-cost --rungs 10,30 --trainings 12 24 40 --seeds 4
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from results import write_rows

import autopeft as ap
from autopeft.pareto import hypervolume
from autopeft.records import TrialRecord

LAYERS, STEPS, BUDGET = 10, 90, 50_000
RANKS = [0, 2, 4, 8, 16, 32]
WEIGHTS = np.random.default_rng(7).gamma(2.0, 1.0, LAYERS)
WEIGHTS /= WEIGHTS.sum()
BEST_RATE = {"low": -2.7, "gate": -1.9, "soft": -1.6}
LOST_TO_BITS = {4: 0.015, 8: 0.006, 16: 0.0}

SPACE: dict[str, Any] = {
    "parameters": {
        "family": {"choices": ["low", "gate", "soft"]},
        "lr": {"low": 1e-5, "high": 1e-1, "log": True},
        "quant": {"choices": [4, 8, 16]},
        **{
            f"r{i}": {"ordinal": [0, 2, 4, 8, 16, 32], "when": {"family": ["low"]}, "size": True} for i in range(LAYERS)
        },
        "scale": {"low": 0.25, "high": 8.0, "log": True, "when": {"family": ["low"]}},
        **{f"g{i}": {"ordinal": [0, 1], "when": {"family": ["gate"]}, "size": True} for i in range(LAYERS)},
        "tokens": {"ordinal": [1, 2, 4, 8, 16, 32, 64, 128], "when": {"family": ["soft"]}, "size": True},
        "depth": {"ordinal": [1, 2, 5, 10], "when": {"family": ["soft"]}, "size": True},
    }
}


def cost(candidate: ap.Candidate) -> int:
    """Count what a candidate trains."""
    values: Mapping[str, Any] = candidate.values
    if values["family"] == "low":
        return int(sum(768 * values[f"r{i}"] for i in range(LAYERS)))
    if values["family"] == "gate":
        return int(sum(400 * values[f"g{i}"] for i in range(LAYERS)))
    return int(64 * values["tokens"] * values["depth"])


def worth(candidate: ap.Candidate) -> float:
    """Give the quality of a candidate without noise."""
    values: Mapping[str, Any] = candidate.values
    family = values["family"]
    if family == "low":
        capacity = sum(w * (1 - math.exp(-values[f"r{i}"] / 6)) for i, w in enumerate(WEIGHTS))
        quality = 0.55 + 0.35 * capacity - 0.04 * abs(math.log2(values["scale"]) - 1)
    elif family == "gate":
        quality = 0.55 + 0.22 * sum(w * values[f"g{i}"] for i, w in enumerate(WEIGHTS))
    else:
        quality = 0.55 + 0.18 * (1 - math.exp(-values["tokens"] * values["depth"] / 60))
    off = math.log10(values["lr"]) - BEST_RATE[family]
    return float(max(0.1, quality - 0.12 * off**2 - LOST_TO_BITS[values["quant"]]))


def train(candidate: ap.Candidate, steps: int, *, seed: int) -> ap.Measurement:
    """Give what a training of so many of the steps measures: noise, and what is still to be learned."""
    key = hashlib.sha256(f"{candidate.key} {seed}".encode()).digest()
    noise, slowness = np.random.default_rng(int.from_bytes(key[:8], "big")).normal(size=2)
    missing = 0.25 * (1 + 0.25 * slowness) * ((steps / 10) ** -0.8 - (STEPS / 10) ** -0.8)
    quality = worth(candidate) + 0.008 * noise - missing
    return ap.Measurement(quality, trainable_params=cost(candidate), metrics={"loss": 1 - quality})


def figures(records: Sequence[TrialRecord]) -> dict[str, float]:
    """Give what was found, without noise."""
    done = [record.candidate for record in records if record.state == "complete"]
    by_ratio = [(-worth(c), math.log(max(1, cost(c)))) for c in done]
    by_difference = [(-worth(c), cost(c) / BUDGET) for c in done]
    return {
        "begun": len(records),
        "finished": len(done),
        "by_ratio": round(hypervolume(by_ratio, [-0.5, math.log(1.2 * BUDGET)]), 4),
        "by_difference": round(hypervolume(by_difference, [-0.5, 1.0]), 4),
        "best": round(max(map(worth, done), default=0.0), 4),
    }


class Quiet:
    """A view that shows nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def search(engine: str, *, seed: int, trainings: int, rungs: str) -> dict[str, Any]:
    """Search for the steps of so many trainings; gives a row."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = ap.search(
            runner=partial(train, seed=seed), cost=cost, space=SPACE, objectives=["quality", "params"], budget=BUDGET,
            steps=STEPS, steps_total=trainings * STEPS, sampler=engine, seed=seed, rungs=rungs,
            out=str(Path(folder) / "run"), view=Quiet(),
        )  # fmt: skip
        found = figures(result.records)
    about = {"engine": engine, "rungs": rungs, "trainings": trainings, "seed": seed}
    return {**about, **found, "cpu_seconds": round(time.process_time() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["known-cost", "tpe", "random"])
    parser.add_argument("--trainings", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rungs", default="off")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "outsider.csv")
    arguments = parser.parse_args()
    for engine in arguments.engines:
        for trainings in arguments.trainings:
            rows = [
                search(engine, seed=seed, trainings=trainings, rungs=arguments.rungs) for seed in range(arguments.seeds)
            ]
            write_rows(arguments.csv, rows)
            middle = {name: statistics.median(row[name] for row in rows) for name in list(rows[0])[4:]}
            least = {name: min(row[name] for row in rows) for name in ("by_ratio", "by_difference", "best")}
            print(engine, f"rungs {arguments.rungs}", trainings, "median", middle, "least", least, flush=True)


if __name__ == "__main__":
    main()
