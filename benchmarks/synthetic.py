"""Engines on a made-up PEFT search, where a training costs nothing: 12 layers, 4 methods, 3 bit-widths, a hard budget.

It answers which engine finds a front soonest if trainings behave as here: quality saturates in the capacity of each
layer, layers differ in what they are worth, every method has its own best learning rate, fewer bits cost a little
quality and save memory, and what is measured is noisy. The author of the problem wrote an engine, too; see
`engines.py` for recorded trainings.

    python benchmarks/synthetic.py --seeds 5 --trials 64 200 --out benchmarks/results/synthetic.csv

The figure is the hypervolume of the noiseless values of what was trained, in quality, log parameters and memory, as a
share of that of the best front known (`--best` finds it).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from results import write_rows

from autopeft.candidates import Candidate, Cost
from autopeft.objectives import OBJECTIVES
from autopeft.pareto import hypervolume, on_front
from autopeft.problem import Problem
from autopeft.records import TrialRecord
from autopeft.search.engine_sampler import EngineSampler
from autopeft.search.known_cost import KnownCost, Options
from autopeft.search.sampler import SAMPLERS
from autopeft.search.study import Study
from autopeft.space_file import parse_space

LAYERS, WIDTH = 12, 256
BUDGET = 60_000
NOISE = 0.006
METHODS = {
    # Best quality gained, log10 of the best multiple of the learning rate, capacity at which half of it is gained.
    "lora": (0.42, 0.6, 10.0),
    "adapter": (0.40, 0.9, 14.0),
    "scale": (0.25, 0.4, 4.0),
    "prompt": (0.18, 1.1, 9.0),
}
RANKS = [0, 1, 2, 4, 8, 16, 32]
STRENGTH = np.array([0.3, 0.4, 0.5, 0.7, 0.9, 1.2, 1.5, 1.7, 1.6, 1.3, 1.0, 0.6])
"""What a layer's capacity is worth."""

BEST = 6.333e8
"""Hypervolume of the best front known, by `--best`."""


def space(*, start: bool = True) -> dict[str, Any]:
    """Give the search space as in YAML."""
    ranks = {"ordinal": RANKS, "default": 4, "size": True}
    parameters: dict[str, Any] = {
        "method": {"choices": list(METHODS)},
        "bits": {"choices": [16, 8, 4]},
        "lr_multiple": {"low": 0.1, "high": 30, "log": True, "default": 1},
    }
    parameters |= {f"lora.rank{i}": {**ranks, "when": {"method": ["lora"]}} for i in range(LAYERS)}
    parameters["lora.alpha"] = {"choices": ["r", "2r", "16"], "when": {"method": ["lora"]}}
    parameters |= {f"adapter.width{i}": {**ranks, "when": {"method": ["adapter"]}} for i in range(LAYERS)}
    on = {"ordinal": [0, 1], "default": 1, "size": True, "when": {"method": ["scale"]}}
    parameters |= {f"scale.layer{i}": on for i in range(LAYERS)}
    tokens = {"ordinal": [1, 2, 4, 8, 16, 32, 64], "default": 8, "size": True, "when": {"method": ["prompt"]}}
    parameters["prompt.tokens"] = tokens
    hand_made: list[dict[str, Any]] = [
        {"method": "lora", "lr_multiple": 4},
        {"method": "lora", **{f"lora.rank{i}": 8 for i in range(LAYERS)}, "lr_multiple": 4, "lora.alpha": "2r"},
        {"method": "lora", **{f"lora.rank{i}": 1 for i in range(LAYERS)}, "lr_multiple": 4},
        {"method": "lora", "bits": 4, "lr_multiple": 4},
        {"method": "adapter", "lr_multiple": 8},
        {"method": "adapter", **{f"adapter.width{i}": 1 for i in range(LAYERS)}, "lr_multiple": 8, "bits": 8},
        {"method": "scale", "lr_multiple": 3},
        {"method": "scale", "bits": 4, "lr_multiple": 3},
        {"method": "prompt", "lr_multiple": 10},
        {"method": "prompt", "prompt.tokens": 1, "bits": 4, "lr_multiple": 10},
    ]
    return {"description": "made up", "parameters": parameters, "start": hand_made if start else []}


def sizes(candidate: Candidate) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Give the size at each layer, ``(LAYERS,)``."""
    prefix = {"lora": "lora.rank", "adapter": "adapter.width", "scale": "scale.layer"}.get(str(candidate["method"]))
    if prefix is None:
        return np.full(LAYERS, float(candidate["prompt.tokens"]) / 8)
    return np.array([float(candidate[f"{prefix}{i}"]) for i in range(LAYERS)])


def params(candidate: Candidate) -> int:
    """Count trained parameters."""
    each = {"lora": 4 * 2 * WIDTH, "adapter": 2 * WIDTH + 1, "scale": 3 * WIDTH, "prompt": 0}[str(candidate["method"])]
    if candidate["method"] == "prompt":
        return int(candidate["prompt.tokens"]) * WIDTH
    return int(sizes(candidate).sum()) * each // (4 if candidate["method"] == "lora" else 1)


def quality(candidate: Candidate) -> float:
    """Give the quality of a training without noise; about 0.5 untrained, 0.9 at best."""
    method = str(candidate["method"])
    gain, best_rate, half = METHODS[method]
    capacity = float((STRENGTH * np.log2(1 + sizes(candidate))).sum()) * (1.5 if method == "lora" else 1.2)
    reached = gain * capacity / (capacity + half)
    alpha = {"r": 0.0, "2r": 0.3, "16": 0.15}.get(str(candidate.values.get("lora.alpha")), 0.0)
    # Larger adapters want smaller steps; a rate that is far too high diverges.
    off = math.log10(float(candidate["lr_multiple"])) - (best_rate - alpha - 0.1 * math.log2(1 + capacity / half))
    reached *= math.exp(-1.2 * off**2) if off < 0 else math.exp(-2.5 * off**2)
    if off > 0.8:
        reached -= 0.3
    return 0.5 + reached - {16: 0.0, 8: 0.004, 4: 0.02}[int(candidate["bits"])]


def memory(candidate: Candidate) -> float:
    """Give the peak memory in bytes: weights, gradients and optimiser of what is trained, activations."""
    method, bits = str(candidate["method"]), int(candidate["bits"])
    lowest = next((i for i, size in enumerate(sizes(candidate)) if size > 0), LAYERS)
    activations = 2e8 * (LAYERS - (0 if method == "prompt" else lowest)) / LAYERS
    return 4e8 * bits / 16 + activations * (1.2 if method == "lora" else 1.0) + 16 * params(candidate)


THREE = tuple(OBJECTIVES[name] for name in ("quality", "params", "memory"))


def make_problem(*, start: bool = True) -> Problem:
    return Problem(parse_space(space(start=start)), THREE, own_cost=params, parameter_limit=BUDGET)


def truth(candidate: Candidate) -> list[float]:
    """Give the noiseless losses on the scale on which the volume is measured."""
    return [-quality(candidate), math.log(params(candidate)), memory(candidate)]


REFERENCE = [-0.5, math.log(BUDGET) + 0.05, 7e8]


def volume(losses: Sequence[Sequence[float]]) -> float:
    return hypervolume(losses, REFERENCE)


ENGINES: Mapping[str, Callable[[int], Any]] = {
    **SAMPLERS,
    "no known costs": lambda seed: EngineSampler(partial(KnownCost, options=Options(known_costs=False)), seed=seed),
    "no mutations": lambda seed: EngineSampler(partial(KnownCost, options=Options(mutations=False)), seed=seed),
}


def search(
    engine: str, *, seed: int, trials: Sequence[int], start: bool = True, at_once: int = 1
) -> list[tuple[int, float, float]]:
    """Search once; give a row for each number of trials: that number, the volume's share, CPU seconds of the driver."""
    problem = make_problem(start=start)
    study = Study(problem, url="sqlite:///:memory:", sampler=ENGINES[engine], seed=seed)
    random = np.random.default_rng([seed, 99])
    losses: list[list[float]] = []
    rows, began, running = [], time.process_time(), []
    while len(losses) < max(trials):
        proposal = study.ask()
        assert proposal is not None
        running.append(proposal)
        if len(running) < at_once:
            continue
        proposal = running.pop(0)
        candidate = proposal.candidate
        losses.append(truth(candidate))
        values = {
            "quality": quality(candidate) + NOISE * float(random.standard_normal()),
            "params": float(params(candidate)),
            "memory": memory(candidate),
        }
        study.tell(TrialRecord(proposal.number, "complete", candidate, seed, Cost(params(candidate)), values=values))
        if len(losses) in trials:
            rows.append((len(losses), volume(losses) / BEST, time.process_time() - began))
    study.close()
    return rows


def best_known(generations: int = 400) -> float:
    """Evolve without noise and without a budget of trainings; give the hypervolume of the front."""
    from random import Random

    from autopeft.search.pool import Pool

    problem, random = make_problem(), Random(0)
    pool = Pool(problem)
    found = list(problem.starts()) + pool.fresh(2000, random)
    for generation in range(generations):
        losses = np.array([truth(c) for c in found])
        front = [found[i] for i in np.flatnonzero(on_front(losses))]
        found = front[:400] + pool.mutants(front, 300, seed=str(generation))
    return volume([truth(c) for c in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, nargs="+", default=[64, 200])
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--no-start", action="store_true")
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.best:
        print(best_known())
        return
    for engine in options.engines:
        rows = [
            {
                "engine": engine,
                "start": not options.no_start,
                "at_once": options.at_once,
                "seed": seed,
                "trials": trials,
                "share": round(share, 4),
                "driver_cpu_seconds": round(seconds, 1),
            }
            for seed in range(options.seeds)
            for trials, share, seconds in search(
                engine, seed=seed, trials=options.trials, start=not options.no_start, at_once=options.at_once
            )
        ]
        if options.out:
            write_rows(options.out, rows)
        for trials in options.trials:
            shares, seconds = np.array(
                [(row["share"], row["driver_cpu_seconds"]) for row in rows if row["trials"] == trials], dtype=float
            ).T
            print(
                f"{engine:16} {trials:4} {shares.mean():.3f} +- {shares.std():.3f} {seconds.mean():7.1f} s", flush=True
            )


if __name__ == "__main__":
    main()
