"""Whether torch.compile pays on a resident base whose adapters come and go.

Trials of LoRA, one after the other on the same base: seconds until the first step is compiled, seconds of a step then
and of one that is not compiled, and the steps after which the compiler has earned its time. The compiler's own cache on
disk is on, as it is for a user, and empty at first; "again" is the structure of the first trial once more, so that all
that can be reused is. Seconds are this process's CPU time, on CUDA the wall; the compiler's helper processes are in the
wall of the first step alone.

    python benchmarks/compiled.py --models stories260k
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import write_rows
from subjects import SEED, SUBJECTS
from workers import Setting, make_setting

TRIALS: dict[str, dict[str, Any]] = {
    "first": {"method": "lora", "lora.rank": 8},
    "another rank": {"method": "lora", "lora.rank": 16},
    "another method": {"method": "ia3"},
    "again": {"method": "lora", "lora.rank": 8},
}


def measure(model: str, setting: Setting, *, steps: int) -> list[dict[str, Any]]:
    """Train each of the trials a few steps, not compiled and compiled; gives a row a trial."""
    import torch

    from autopeft.candidates import Recipe
    from autopeft.execute.protocol import make_runner
    from autopeft.trial.batches import train_parts
    from autopeft.trial.train import Learner

    worker: Any = make_runner(setting.spec())
    device = worker._device
    clock = time.process_time if device == "cpu" else time.perf_counter
    data = setting.assembly.data
    assert data is not None
    recipe = Recipe(1e-3, batch_size=setting.batch_size)
    parts = [worker._on_device(train_parts(data, step, recipe=recipe, seed=SEED)) for step in range(steps)]

    def train(values: dict[str, Any], wrap: Callable[[Any], Any]) -> dict[str, Any]:
        unit = setting.unit(values, steps=steps)
        assert unit.plan is not None
        base = worker._bases.get(unit.plan.base)
        adapted = worker._attach(unit, base, parts)
        learner = Learner(adapted, steps=steps, recipe=recipe, device=device)
        adapted.train()
        learner.adapted = wrap(adapted)
        seconds = []
        for step in range(steps):
            start, wall = clock(), time.perf_counter()
            learner.step(parts[step])  # reads its loss, for which CUDA must have come so far
            seconds.append((clock() - start, time.perf_counter() - wall))
        base.resident.detach()
        first, wall = seconds[0]
        usual = statistics.median(second for second, _ in seconds[steps // 2 :])
        return {"first": first, "wall": wall, "step": usual, "loss": learner.losses[-1]}

    rows = []
    for name, values in TRIALS.items():
        eager = train(values, lambda adapted: adapted)
        compiled = train(values, torch.compile)
        saved = eager["step"] - compiled["step"]
        rows.append({
            "model": model,
            "device": device,
            "trial": name,
            "compile_seconds": round(compiled["first"], 2),
            "compile_wall_seconds": round(compiled["wall"], 2),
            "step_ms": round(1e3 * eager["step"], 2),
            "compiled_step_ms": round(1e3 * compiled["step"], 2),
            "steps_to_earn_it": round(compiled["first"] / saved) if saved > 0 else "never",
            "loss_difference": abs(eager["loss"] - compiled["loss"]),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=["stories260k"])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compiled.csv")
    args = parser.parse_args()
    for model in args.models:
        with tempfile.TemporaryDirectory(prefix="compiled-") as folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "cache")
            setting = make_setting(model, Path(folder), steps=args.steps)
            rows = measure(model, setting, steps=args.steps)
        for row in rows:
            print(row, flush=True)
        write_rows(args.out, rows)


if __name__ == "__main__":
    main()
