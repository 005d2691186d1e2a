"""Engines compared on the recorded table: the volume that their front dominates, over training steps spent.

Every engine searches the same space under the same budget, on trainings that `surrogate.py` predicts, noise of seeds
included, one at a time. What counts is steps, not trials, and only what was trained to its end. Engines of peers
(`peers.py`) are what their users run:

    random          feasible configurations at random
    autopeft        AutoPEFT's engine, which knows no warm start and no rungs
    nsga2, tpe      plain Optuna with its constraint: an infeasible draw is told to the sampler, and never trained
    optunasearch    Ray Tune's OptunaSearch as documented: Optuna's default TPE on all objectives, no constraint. What
                    is above the budget is trained like anything else, and counts for nothing
    optunasearch-asha
                    the same on the loss alone with ASHAScheduler (grace period a ninth of the horizon, reduction 3)
    study:NAME      autopeft's own: SAMPLERS[NAME] through its Study and loop, with the space's configurations first and
                    the default rungs; "-cold" without the former, "-no-rungs" without the latter; of known-cost also
                    "-no-known-costs" and "-no-mutations"

    python benchmarks/engines.py --seeds 10 --engines random tpe study:known-cost
    python benchmarks/engines.py --plot     # results/engines-*.svg and ablation-*.svg, from the CSV
    python benchmarks/engines.py --table    # medians, and how far the aims are met, from the CSV
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from aims import EQUIVALENTS, OURS, USUAL, WITHOUT_RUNGS, Curves, ablation_table, aims_table, median_table
from landscape import PaperRunner, PaperTrainer, make_landscape
from optuna.samplers import BaseSampler
from peers import PEERS, Spent
from plots import front_plot
from recorded import read_table, subjects
from results import write_rows
from surrogate import Surrogate

from autopeft.execute.local import LocalExecutor
from autopeft.limits import Limits
from autopeft.loop import search
from autopeft.records import RunInfo
from autopeft.request_fields import make_request
from autopeft.search.engine_sampler import EngineSampler
from autopeft.search.known_cost import KnownCost, Options
from autopeft.search.sampler import SAMPLERS
from autopeft.search.storage import sqlite_url
from autopeft.search.study import Study
from autopeft.store import RunDirectory
from autopeft.view import PlainView

SHARES = {"stories260k-e2e": 0.05, "minilm-docstrings": 0.01}
"""The budgets of the searches."""

Engine = Callable[[PaperTrainer, int], None]
"""Searches with a trainer until its steps are spent; the last argument is the seed."""


def through_study(sampler: Callable[[int], BaseSampler], *, starts: bool = True, rungs: str = "auto") -> Engine:
    """Make an engine of a sampler of autopeft's, by its own Study and loop."""

    def engine(trainer: PaperTrainer, seed: int) -> None:
        problem, left = trainer.problem, trainer.limit - trainer.spent
        if not starts:
            problem = replace(problem, space=replace(problem.space, start=()))
        request = make_request({"executor": "local", "steps": trainer.full, "steps_total": left, "rungs": rungs})
        with tempfile.TemporaryDirectory() as scratch:
            run = RunDirectory.new(Path(scratch) / "run")
            run.make()
            run.begin(request, RunInfo({}, (), "", "", {}, {}))
            with run:
                url = sqlite_url(run.path / "study.db")
                study = Study(problem, url=url, sampler=sampler, seed=seed, rungs=request.pauses)
                with closing(study), closing(LocalExecutor(lambda: PaperRunner(trainer))) as executor:
                    search(
                        problem, study, executor, run, PlainView(io.StringIO()), limits=Limits(None, None, left),
                        steps=trainer.full, seed=seed, saves_adapters=False,
                    )  # fmt: skip

    return engine


WITHOUT = {"known-costs": Options(known_costs=False), "mutations": Options(mutations=False)}
"""Ablations: the engine without a part of it."""


def _without(options: Options, seed: int) -> BaseSampler:
    return EngineSampler(partial(KnownCost, options=options), seed=seed)


def engines() -> dict[str, Engine]:
    """Give the engines by name."""
    found: dict[str, Engine] = {
        name: through_study(SAMPLERS[name], starts=False, rungs="off") for name in ("random", "autopeft")
    }
    found |= PEERS
    for name, sampler in SAMPLERS.items():
        found[f"study:{name}"] = through_study(sampler)
        found[f"study:{name}-cold"] = through_study(sampler, starts=False)
        found[f"study:{name}-no-rungs"] = through_study(sampler, rungs="off")
    for part, options in WITHOUT.items():
        found[f"study:known-cost-no-{part}"] = through_study(partial(_without, options))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", default=subjects())
    parser.add_argument("--engines", nargs="+", default=None, help="by default all")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=None, help="take the first rows of the table only")
    parser.add_argument("--equivalents", type=int, default=USUAL)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--plot", action="store_true", help="run nothing; draw what is in the CSV")
    parser.add_argument("--table", action="store_true", help="run nothing; print what is in the CSV")
    args = parser.parse_args()
    if args.plot:
        plot(args.out)
        return
    if args.table:
        curves = Curves.read(args.out / "engines.csv")
        tables = (median_table, ablation_table, aims_table)
        print("\n\n".join(table(curves, key) for key in curves.subjects for table in tables))
        return
    known = engines()
    for key in args.subjects:
        recorded = read_table(key, most=args.rows)
        landscape = make_landscape(recorded, Surrogate(recorded), share=SHARES[key])
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for name in args.engines or known:
                start = time.process_time()
                trainer = PaperTrainer(landscape, seed, args.equivalents * recorded.steps)
                with suppress(Spent):
                    known[name](trainer, seed)
                row: dict[str, Any] = {"subject": key, "recorded": len(recorded.complete), "engine": name, "seed": seed}
                row["finished"] = len(trainer.finished)
                for n in EQUIVALENTS:
                    steps, spent = n * recorded.steps, n <= args.equivalents
                    row[f"hv_{n}"] = round(trainer.volume(steps), 5) if spent else ""
                    row[f"linear_{n}"] = round(trainer.volume(steps, linear=True), 5) if spent else ""
                    row[f"best_{n}"] = round(trainer.best(steps), 5) if spent else ""
                row["cpu_seconds"] = round(time.process_time() - start, 1)
                write_rows(args.out / "engines.csv", [row])
                shown = ("engine", "seed", "finished", "hv_16", "hv_64", "hv_192", "cpu_seconds")
                print({name: row[name] for name in shown}, flush=True)


def plot(folder: Path) -> None:
    """Draw the median and the quartiles, for a subject the engines in one picture and the ablation in another."""
    curves = Curves.read(folder / "engines.csv")
    for key in curves.subjects:
        lines = {
            name: [
                (n, *np.quantile(values, [0.25, 0.5, 0.75]).tolist())
                for n in EQUIVALENTS
                if (values := curves.values(key, name, n))
            ]
            for name in curves.engines(key)
        }
        parts = {name: line for name, line in lines.items() if name.startswith(OURS)}
        others = {name: line for name, line in lines.items() if name not in parts or name in (OURS, WITHOUT_RUNGS)}
        for picture, drawn in (("engines", others), ("ablation", parts)):
            (folder / f"{picture}-{key}.svg").write_text(front_plot(drawn, title=key), encoding="utf-8")


if __name__ == "__main__":
    main()
