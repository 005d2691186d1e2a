"""Does one gradient pass over the frozen base tell where LoRA's ranks should go? Allocations of equal size, trained.

Each linear's importance is taken from a few batches of the user's data before any training; ranks are given out in
proportion, none below 1, until the adapter has as many parameters as LoRA with one rank throughout. Importances:

- uniform: one rank in every linear, the baseline;
- weight_gradient: mean |weight * gradient|, as in GoRA (arXiv:2502.12171);
- gradient: the gradient's root mean square;
- reversed: those of weight_gradient in reversed order, to see whether the order matters at all.

Each is trained at several learning rates and seeds, and stands with its best rate's mean over the seeds.

    STORIES260K=... python benchmarks/sensitivity.py --models minilm stories260k
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from results import write_rows
from subjects import CUSTOMARY_RATE, SUBJECTS
from workers import Setting, make_setting

RANK = 4  # of the baseline: small enough for an allocation to matter
BATCHES = 8  # that the gradient is taken of
RATES = (3.0, 10.0)


def importances(setting: Setting) -> dict[str, dict[str, float]]:
    """Give for each kind of importance that of each linear, by one pass over the first batches."""
    import torch

    from autopeft.candidates import BaseFormat, Recipe
    from autopeft.trial.batches import TrainBatches
    from autopeft.trial.model import ModelSource, load_base
    from autopeft.trial.prepared import read_prepared

    torch.set_num_threads(1)
    spec, anatomy = setting.spec().settings, setting.assembly.problem.anatomy
    assert anatomy is not None
    model = load_base(ModelSource.from_dict(spec["source"]), BaseFormat(32), device="cpu", seed=0).eval()
    weights = {linear.name: model.get_submodule(linear.name).weight for linear in anatomy.linears}
    for weight in weights.values():
        weight.requires_grad_(True)
    data = read_prepared(setting.run_dir / "data")
    for parts in TrainBatches(data).first(BATCHES, Recipe(0.0, batch_size=setting.batch_size), seed=0):
        for part in parts:
            (model(**part).loss / BATCHES).backward()
    return {
        "weight_gradient": {n: float((w * w.grad).abs().mean().detach()) for n, w in weights.items()},
        "gradient": {n: math.sqrt(float((w.grad**2).mean())) for n, w in weights.items()},
    }


def allocate(importance: Mapping[str, float], sizes: Mapping[str, int], limit: int) -> dict[str, int]:
    """Give ranks in proportion to importance, none below 1, that together take at most `limit` parameters.

    Args:
        sizes: Linear -> parameters of one rank.
    """

    def ranks(scale: float) -> dict[str, int]:
        return {name: max(1, round(scale * value)) for name, value in importance.items()}

    def total(found: Mapping[str, int]) -> int:
        return sum(rank * sizes[name] for name, rank in found.items())

    low, high = 0.0, limit / min(value for value in importance.values() if value > 0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if total(ranks(middle)) <= limit else (low, middle)
    return ranks(low)


def reverse(importance: Mapping[str, float]) -> dict[str, float]:
    """Give the most important the least importance, and so on."""
    order = sorted(importance, key=lambda name: importance[name])
    return {name: importance[other] for name, other in zip(order, reversed(order), strict=True)}


def allocations(setting: Setting) -> dict[str, dict[str, int]]:
    """Give the ranks of every allocation."""
    anatomy = setting.assembly.problem.anatomy
    assert anatomy is not None
    sizes = {linear.name: linear.fan_in + linear.fan_out for linear in anatomy.linears}
    found = importances(setting)
    found["reversed"] = reverse(found["weight_gradient"])
    limit = RANK * sum(sizes.values())
    uniform = dict.fromkeys(sizes, RANK)
    return {"uniform": uniform} | {name: allocate(values, sizes, limit) for name, values in found.items()}


def measure(model: str, setting: Setting, run: Callable[[Any], Any], *, steps: int, seeds: int) -> list[dict[str, Any]]:
    """Train every allocation; gives a row for each."""
    from autopeft.methods.linears import rank_fields

    anatomy = setting.assembly.problem.anatomy
    assert anatomy is not None
    rows = []
    for name, ranks in allocations(setting).items():
        params = sum(ranks[x.name] * (x.fan_in + x.fan_out) for x in anatomy.linears)
        by_rate = {}
        for rate in RATES:
            unit = setting.unit({"method": "lora", "lora.rank": RANK, "lr_multiple": rate}, steps=steps)
            assert unit.plan is not None
            # Alpha is twice the rank everywhere, so that only the rank differs.
            alphas = {f"^{n}$".replace(".", r"\."): 2 * r for n, r in ranks.items()}
            config = {**unit.plan.config, **rank_fields(ranks), "alpha_pattern": alphas}
            plan = replace(unit.plan, sizes=ranks, config=config, adapter_params=params)
            by_rate[rate] = [run(replace(unit, plan=plan, seed=seed)).metrics["loss"] for seed in range(seeds)]
        rate = min(by_rate, key=lambda rate: statistics.fmean(by_rate[rate]))
        rows.append(
            {
                "model": model,
                "allocation": name,
                "adapter_params": params,
                "steps": steps,
                "learning_rate": rate * CUSTOMARY_RATE,
                "least_rank": min(ranks.values()),
                "largest_rank": max(ranks.values()),
                "loss": round(statistics.fmean(by_rate[rate]), 4),
                "spread": round(statistics.stdev(by_rate[rate]), 4) if seeds > 1 else "",
                "seeds": seeds,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=["minilm"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "sensitivity.csv")
    arguments = parser.parse_args()
    from autopeft.execute.protocol import make_runner

    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            setting = make_setting(model, Path(folder), steps=arguments.steps)
            worker: Any = make_runner(setting.spec())
            write_rows(arguments.csv, measure(model, setting, worker.run, steps=arguments.steps, seeds=arguments.seeds))


if __name__ == "__main__":
    main()
