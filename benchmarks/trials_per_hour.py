"""The same 24 LoRA trainings by five ways: how many an hour, at what CPU time, with which losses.

    naive   Ray Tune + OptunaSearch + Hugging Face Trainer, as their documentation shows: the model is loaded per trial
    reuse   the same with `reuse_actors=True`: the process stays, and with it the imports
    ray     autopeft on Ray Tune, one worker
    local   autopeft in one process
    together
            the same with `together`: up to 8 candidates in one pass of the base, where that pays

Every way trains the same configurations (given to OptunaSearch as `points_to_evaluate`, to autopeft as the space's
`start`) on the same tokens in the same order, with fused AdamW, the same schedule and the same initial adapter, so the
losses on the held-out rows must agree; autopeft also counts memory, checks the base, saves adapters and writes its
report. Each way is a process tree of its own, held on one core and one thread; its CPU seconds are those of every
process in it, Ray's own among them. "per trial" is what a trial adds once the first is done; the whole has all the
starting in it; "least" is what its matrix products alone would take at the rate of large ones. On a shared machine
believe the CPU seconds, not the wall.

    python benchmarks/trials_per_hour.py --models llama25m minilm stories260k --steps 30
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from documented import search_documented
from lower_bound import trial_flops
from results import write_rows
from subjects import CUSTOMARY_RATE, SEED, SUBJECTS, TARGETS, Subject, configurations, request_fields, space, write_data
from tree_clock import TreeClock, adopt_orphans


def prepare(subject: Subject, work: Path, *, steps: int, trials: int) -> str:
    """Write model, data and, for the peer, the tokens in the order in which autopeft reads them."""
    if reason := subject.make(work / "model"):
        return reason
    import datasets

    from autopeft.assembly import assemble
    from autopeft.candidates import Recipe
    from autopeft.request_fields import make_request
    from autopeft.trial.batches import train_parts

    write_data(subject, work / "data")
    configs = configurations(trials)
    request = make_request(request_fields(subject, work, steps=steps, trials=trials))
    assembly = assemble(request, space=space(configs))
    data, anatomy = assembly.data, assembly.problem.anatomy
    assert data is not None
    assert anatomy is not None
    rows: list[dict[str, Any]] = []
    recipe = Recipe(learning_rate=CUSTOMARY_RATE, batch_size=subject.batch_size)
    for step in range(steps):
        (batch,) = train_parts(data, step, recipe=recipe, seed=SEED)
        for i, kept in enumerate(batch["attention_mask"].bool()):
            rows.append({name: _row(tensor[i], kept) for name, tensor in batch.items()})
    datasets.Dataset.from_list(rows).save_to_disk(work / "tokens" / "train")
    held_out = data.validation.drop_columns([c for c in ("row", "answer_bytes") if c in data.validation.column_names])
    if "label" in held_out.column_names:
        held_out = held_out.rename_columns(["labels" if c == "label" else c for c in held_out.column_names])
    else:
        lengths = {len(row["input_ids"]) for row in [*rows, *held_out.select(["input_ids"]).to_pylist()]}
        assert lengths == {subject.max_length}, f"rows of other lengths: {lengths}"
    datasets.Dataset(held_out).save_to_disk(work / "tokens" / "eval")
    setup = {
        "steps": steps,
        "configs": configs,
        "targets": {
            name: [linear.name for linear in anatomy.linears if linear.kind in kinds] for name, kinds in TARGETS.items()
        },
        "n_labels": len(data.label_names),
        "flops": trial_flops(assembly, steps=steps, rows=subject.batch_size, seed=SEED),
    }
    (work / "setup.json").write_text(json.dumps(setup))
    return ""


def _row(tensor: Any, kept: Any) -> Any:
    return tensor[kept].tolist() if tensor.dim() else int(tensor)


class Clock:
    """A view that notes when each trial ended, and prints nothing."""

    def __init__(self) -> None:
        self.ended: list[dict[str, float]] = []

    def started(self, *_args: object) -> None:
        """Nothing."""

    note = proposed = closed = started

    def finished(self, record: Any, front: object) -> None:
        """Note it."""
        if record.state != "complete":
            sys.exit(f"trial {record.number} {record.state}: {record.reason}\n{record.traceback}")
        self.ended.append({"trial": record.number, "loss": record.measurement.metrics["loss"], "at": time.time()})


def search_ours(model: str, work: Path, *, trials: int, executor: str, together: int = 1) -> list[dict[str, float]]:
    """Search with autopeft, one trial at a time, or so many."""
    import autopeft

    setup = json.loads((work / "setup.json").read_text())
    clock = Clock()
    fields = request_fields(SUBJECTS[model], work, steps=setup["steps"], trials=trials)
    autopeft.search(
        **fields,
        space=space(setup["configs"]),
        executor=executor,
        workers=1,
        together=together,
        out=str(work / f"run-{executor}-{together}"),
        view=clock,
    )
    return sorted(clock.ended, key=lambda ended: ended["trial"])


TOGETHER = 8
"""Trials that end with the first one of `together`, of which it is tried how many at once pay."""

VARIANTS: dict[str, Callable[[str, Path, int], list[dict[str, float]]]] = {
    "naive": lambda model, work, trials: search_documented(model, work, trials=trials, reuse=False),
    "reuse": lambda model, work, trials: search_documented(model, work, trials=trials, reuse=True),
    "ray": lambda model, work, trials: search_ours(model, work, trials=trials, executor="ray"),
    "local": lambda model, work, trials: search_ours(model, work, trials=trials, executor="local"),
    "together": lambda model, work, trials: search_ours(
        model, work, trials=trials, executor="local", together=TOGETHER
    ),
}


def measure(variant: str, model: str, work: Path, *, core: int, trials: int) -> dict[str, Any]:
    """Run one way in a process tree of its own; gives its figures and losses."""
    out = work / f"{variant}.json"
    clock, start = TreeClock(), time.time()
    arguments = ["--only", variant, "--models", model, "--work", str(work), "--trials", str(trials)]
    with (work / f"{variant}.log").open("wb") as log:
        process = _pinned([__file__, *arguments], core, stdout=log, stderr=log)
        clock.start()
        if process.wait():
            sys.exit(f"{variant} failed:\n{(work / f'{variant}.log').read_text()[-4000:]}")
    ended = time.time()
    time.sleep(2)  # what is left of Ray ends
    clock.sample()
    clock.stop()
    found = json.loads(out.read_text())
    moments = sorted(trial["at"] for trial in found)
    ended_first = TOGETHER if variant == "together" else 1
    rest = len(moments) - ended_first
    return {
        "model": model,
        "variant": variant,
        "trials": len(found),
        "cpu_seconds": round(clock.samples[-1][1], 1),
        "wall_seconds": round(ended - start, 1),
        "cpu_per_trial": round((clock.at(moments[-1]) - clock.at(moments[ended_first - 1])) / rest, 3),
        "wall_per_trial": round((moments[-1] - moments[ended_first - 1]) / rest, 3),
        "losses": [trial["loss"] for trial in found],
    }


def _pinned(arguments: list[str], core: int, **options: Any) -> subprocess.Popen[bytes]:
    """Start a Python process on one core and one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "0"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        **options,
    )


def _rate(core: int) -> float:
    """Measure the rate of matrix products on a core."""
    said, _ = _pinned([str(Path(__file__).parent / "lower_bound.py")], core, stdout=subprocess.PIPE).communicate()
    return float(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--peer-trials", type=int, help="the first so many for naive and reuse, which take long")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trials_per_hour.csv")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        (model,) = args.models
        found = VARIANTS[args.only](model, args.work, args.trials)
        (args.work / f"{args.only}.json").write_text(json.dumps(found))
        return
    adopt_orphans()
    for model in args.models:
        with tempfile.TemporaryDirectory(prefix="tph-") as folder:
            work = Path(folder)
            if reason := prepare(SUBJECTS[model], work, steps=args.steps, trials=args.trials):
                print(f"{model}: skipped: {reason}")
                continue
            flops, rate = json.loads((work / "setup.json").read_text())["flops"], _rate(args.core)
            first: list[float] = []
            for variant in args.variants:
                if variant == "together" and args.trials <= TOGETHER:
                    print(f"{model}, together: skipped: of {args.trials} trials all would end with the first")
                    continue
                trials = args.peer_trials if args.peer_trials and variant in ("naive", "reuse") else args.trials
                row = measure(variant, model, work, core=args.core, trials=trials)
                losses = row["losses"]
                first = first or losses
                row["steps"] = args.steps
                row["loss_difference"] = max(abs(a - b) for a, b in zip(losses, first, strict=False))
                row["gflop_per_trial"] = round(flops / 1e9, 1)
                row["gflop_per_second"] = round(rate / 1e9, 1)
                row["least_cpu_per_trial"] = round(flops / rate, 3)
                row["losses"] = " ".join(f"{loss:.6f}" for loss in losses)
                print({name: value for name, value in row.items() if name != "losses"}, flush=True)
                write_rows(args.out, [row])  # as they come: the whole takes long


if __name__ == "__main__":
    main()
