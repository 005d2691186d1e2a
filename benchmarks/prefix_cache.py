"""What it saves to compute frozen layers once: LoRA on the layers above a cut, with and without their reuse.

Each cut is trained three times by workers that differ in nothing else: one that computes everything, one that meets the
cut for the first time and keeps what the layers below give, and the same again, which reuses it. CPU seconds of one
thread, training and evaluation together; losses, metrics and memory must be equal.

    python benchmarks/prefix_cache.py --steps 30
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from results import write_rows
from subjects import SUBJECTS, USUAL
from workers import Setting, make_setting

CUTS = (0.25, 0.5, 0.75, 0.9)


def measure(model: str, setting: Setting, cut: int, *, steps: int, repeats: int) -> dict[str, Any]:
    """Train above one cut; gives its figures.

    Raises:
        AssertionError: If reuse changed anything but the time.
    """
    from autopeft.execute.protocol import make_runner

    layers = _layers(setting)
    ranks = {f"lora.rank[{layer}]": 8 * (layer >= cut) for layer in range(layers)}
    unit = setting.unit({"method": "lora", **ranks}, steps=steps)
    times: dict[str, list[float]] = {"computed": [], "kept": [], "reused": []}
    told = []
    computing: Any = make_runner(setting.spec(reuse=False))
    computing.run(replace(unit, steps=1))  # loads the model
    for _ in range(repeats):
        reusing: Any = make_runner(setting.spec())
        reusing.run(replace(unit, steps=0, plan=_other(setting)))
        for name, worker in (("computed", computing), ("kept", reusing), ("reused", reusing)):
            start = time.process_time()
            measurement = worker.run(unit)
            times[name].append(time.process_time() - start)
            told.append(replace(measurement, train_seconds=0.0, eval_seconds=0.0))
    assert all(one == told[0] for one in told), f"{model}: reuse changed a result"
    computed, kept, reused = (min(times[name]) for name in times)
    return {
        "model": model,
        "layers": layers,
        "frozen": cut,
        "steps": steps,
        "cpu_computed": round(computed, 3),
        "cpu_kept": round(kept, 3),
        "cpu_reused": round(reused, 3),
        "first_time_ratio": round(computed / kept, 2),
        "reused_ratio": round(computed / reused, 2),
        "kept_mib": round(reusing._states.held_bytes / 2**20, 1),
    }


def _layers(setting: Setting) -> int:
    assert setting.assembly.problem.anatomy is not None
    return setting.assembly.problem.anatomy.n_layers


def _other(setting: Setting) -> Any:
    """Give the plan of an adapter that leaves no layer frozen."""
    return setting.unit({"method": "lora", "lora.rank": 8}, steps=0).plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(USUAL))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "prefix_cache.csv")
    args = parser.parse_args()
    for model in args.models:
        with tempfile.TemporaryDirectory(prefix="prefix-") as folder:
            setting = make_setting(model, Path(folder), steps=args.steps)
            layers = _layers(setting)
            cuts = sorted({min(layers - 1, round(share * layers)) for share in CUTS})
            rows = [measure(model, setting, cut, steps=args.steps, repeats=args.repeats) for cut in cuts]
        for row in rows:
            print(row, flush=True)
        write_rows(args.out, rows)


if __name__ == "__main__":
    main()
