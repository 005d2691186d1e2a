"""Engines compared on the recorded table: the volume that their front dominates, over training steps spent.

Every engine searches the same space under the same budget, on trainings that `surrogate.py` predicts, noise of seeds
included. What counts is steps, not trials. Engines of peers are what their users run:

    random          feasible configurations at random
    nsga2, tpe      plain Optuna with its constraint: an infeasible draw is told to the sampler, and never trained
    optunasearch    Ray Tune's OptunaSearch as documented: Optuna's default TPE on all objectives, no constraint. What
                    is above the budget is trained like anything else, and counts for nothing
    optunasearch-asha
                    the same on the loss alone with ASHAScheduler (grace period a ninth of the horizon, reduction 3);
                    what it stops is told as complete, with the last loss that it had, as OptunaSearch does
    study:NAME      autopeft's own: SAMPLERS[NAME] through its Study and loop, with the space's configurations first;
                    "study:NAME-cold" without these, so that what they are worth can be told from what the engine is;
                    "study:known-cost-no-PART" without that part. AutoPEFT's own engine is among SAMPLERS; it knows no
                    warm start, so its "-cold" is what a user of AutoPEFT has

Peers are treated well: all have the learning rate relative to the method and the space's conditions, and plain Optuna
asks before it trains. On Ray Tune a configuration that cannot be built (a block that does not divide a layer, nothing
trained) is found out by an error, which costs the start-up of a trial, a ninth of a training here; measured
(`trials_per_hour.py`), it is more than a short training. All run one training at a time.

    python benchmarks/engines.py --seeds 10 --engines random tpe study:tpe
    python benchmarks/engines.py --plot
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from landscape import Landscape, PaperRunner, Spent, Trainer, make_landscape
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from plots import front_plot
from recorded import read_table, subjects
from results import write_rows
from surrogate import Surrogate

from autopeft.execute.local import LocalExecutor
from autopeft.limits import Limits
from autopeft.loop import search
from autopeft.problem import Problem
from autopeft.records import Candidate, RunInfo
from autopeft.request import make_request
from autopeft.search.codec import decoded, suggest
from autopeft.search.engine_sampler import EngineSampler
from autopeft.search.known_cost import KnownCost, Options
from autopeft.search.sampler import SAMPLERS
from autopeft.search.study import Study, sqlite_url
from autopeft.space import Space
from autopeft.store import RunDirectory
from autopeft.view import PlainView

EQUIVALENTS = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192)
"""Whole trainings after which an engine is looked at."""

SHARES = {"stories260k-e2e": 0.05, "minilm-docstrings": 0.01}
"""The budgets of the searches."""

START_UP = 9
"""What part of a training a trial costs that cannot be built."""

DRAWS = 400
"""Infeasible draws in a row after which an engine of a peer is given up."""

Engine = Callable[[Landscape, Trainer, int], None]
"""Searches with a trainer until its steps are spent; the last argument is the seed."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


# --- plain Optuna ----------------------------------------------------------------------------------------------------


def draw(trial: optuna.Trial, space: Space) -> Candidate:
    """Let a trial of plain Optuna choose a configuration, define-by-run: what is not active is not drawn."""
    values: dict[str, Any] = {}
    for parameter in space:
        if all(values.get(name) in allowed for name, allowed in parameter.when.items()):
            value = suggest(trial, parameter)
            values[parameter.name] = decoded(parameter, value)
    return space.complete(values)


def constrained(sampler: Callable[[int], BaseSampler]) -> Engine:
    """Make an engine of a sampler that knows constraints: the logarithm of parameters over the budget.

    An infeasible draw is told as complete with the reference's values and its violation, and costs no steps.
    """

    def engine(landscape: Landscape, trainer: Trainer, seed: int) -> None:
        problem = landscape.problem
        study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler(seed))
        infeasible = 0
        while infeasible < DRAWS:
            trial = study.ask()
            candidate = draw(trial, problem.space)
            violation = _violation(problem, candidate)
            trial.set_constraint("budget", violation)
            if violation > 0:
                infeasible += 1
                study.tell(trial, landscape.reference.tolist())
                continue
            infeasible = 0
            study.tell(trial, list(trainer.train(candidate)))

    return engine


def _violation(problem: Problem, candidate: Candidate) -> float:
    """Say how far a configuration is from what can be searched; <= 0 if it is feasible."""
    if not problem.refusal(candidate):
        return 0.0
    cost = problem.cost(candidate)
    assert cost is not None
    assert problem.parameter_limit is not None
    over = math.log(max(1, cost.trainable_params) / problem.parameter_limit)
    return over if over > 0 else 1.0


# --- Ray Tune as documented ------------------------------------------------------------------------------------------


def buildable(problem: Problem, candidate: Candidate) -> bool:
    """Tell whether a configuration could be trained if there were no budget."""
    return not replace(problem, parameter_limit=None).refusal(candidate)


def optunasearch(landscape: Landscape, trainer: Trainer, seed: int) -> None:
    """OptunaSearch(metric=[loss, params, memory], mode=["min"] * 3), which makes TPESampler(seed) and no constraint.

    A configuration that cannot be built fails and is told FAIL, of which TPE learns nothing: it may propose it again.
    It costs its start-up.
    """
    study = optuna.create_study(directions=["minimize"] * 3, sampler=TPESampler(seed=seed))
    while True:
        trial = study.ask()
        candidate = draw(trial, landscape.problem.space)
        if not buildable(landscape.problem, candidate):
            trainer.pay(trainer.full // START_UP)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        study.tell(trial, list(trainer.train(candidate, feasible=not landscape.problem.refusal(candidate))))


class Asha:
    """Ray Tune's ASHAScheduler in its default form: stop at a rung what is below its best 1/reduction so far.

    As in `ray.tune.schedulers.async_hyperband`: one bracket; the cutoff is a percentile of what was at the rung
    before, and the first that reaches it goes on. There is no way back for what was stopped.

    Args:
        milestones: Steps of the rungs, rising; at the last a training ends anyhow.
    """

    def __init__(self, milestones: Sequence[int], *, reduction: float = 3) -> None:
        self._losses: dict[int, list[float]] = {milestone: [] for milestone in milestones}
        self._reduction = reduction

    def goes_on(self, milestone: int, loss: float) -> bool:
        """Tell whether a training may go on after a rung, and remember it."""
        before = self._losses[milestone]
        # Ray takes the (1 - 1/reduction) percentile of rewards, which are losses with the other sign.
        cutoff = np.percentile(before, 100 / self._reduction) if before else math.inf
        before.append(loss)
        return bool(loss <= cutoff)


def optunasearch_asha(landscape: Landscape, trainer: Trainer, seed: int) -> None:
    """OptunaSearch(metric="loss", mode="min") with ASHAScheduler: a scheduler knows one metric only."""
    study = optuna.create_study(direction="minimize", sampler=TPESampler(seed=seed))
    full = trainer.full
    milestones = [step for step in (full // 9, full // 3, full) if step in landscape.surrogate.rungs]
    asha = Asha(milestones[:-1])
    while True:
        trial = study.ask()
        candidate = draw(trial, landscape.problem.space)
        if not buildable(landscape.problem, candidate):
            trainer.pay(trainer.full // START_UP)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        losses, at = trainer.losses(candidate), 0
        for milestone in milestones:
            trainer.pay(milestone - at)
            at = milestone
            if milestone < full and not asha.goes_on(milestone, losses[milestone]):
                break
        if at == full:
            trainer.finish(candidate, feasible=not landscape.problem.refusal(candidate))
        study.tell(trial, losses[at])


# --- autopeft --------------------------------------------------------------------------------------------------------


def through_study(sampler: Callable[[int], BaseSampler], *, starts: bool = True) -> Engine:
    """Make an engine of a sampler of autopeft's, by its own Study and loop."""

    def engine(landscape: Landscape, trainer: Trainer, seed: int) -> None:
        problem = landscape.problem
        if not starts:
            problem = replace(problem, space=replace(problem.space, start=()))
        with tempfile.TemporaryDirectory() as scratch:
            run = RunDirectory.new(Path(scratch) / "run")
            run.make()
            request = make_request({"trials": 1, "executor": "local"})
            run.begin(request, RunInfo({}, (), "", "", {}, {}))
            with run:
                study = Study(problem, url=sqlite_url(run.path / "study.db"), sampler=sampler, seed=seed)
                with closing(study), closing(LocalExecutor(lambda: PaperRunner(trainer))) as executor:
                    search(
                        problem, study, executor, run, PlainView(io.StringIO()),
                        limits=Limits((trainer.limit - trainer.spent) // trainer.full, None),
                        steps=trainer.full, seed=seed, saves_adapters=False,
                    )  # fmt: skip

    return engine


WITHOUT = {"known-costs": Options(known_costs=False), "mutations": Options(mutations=False)}
"""Ablations: the engine without a part of it; without warm starts it is `-cold`."""


def _without(options: Options, seed: int) -> BaseSampler:
    return EngineSampler(partial(KnownCost, options=options), seed=seed)


def engines() -> dict[str, Engine]:
    """Give the engines by name."""
    found: dict[str, Engine] = {
        "random": through_study(SAMPLERS["random"], starts=False),
        "nsga2": constrained(lambda seed: NSGAIISampler(seed=seed, population_size=16)),
        "tpe": constrained(lambda seed: TPESampler(seed=seed)),
        "optunasearch": optunasearch,
        "optunasearch-asha": optunasearch_asha,
    }
    for name, sampler in SAMPLERS.items():
        found[f"study:{name}"] = through_study(sampler)
        found[f"study:{name}-cold"] = through_study(sampler, starts=False)
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
    parser.add_argument("--equivalents", type=int, default=EQUIVALENTS[-1])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--plot", action="store_true", help="run nothing; draw what is in the CSV")
    args = parser.parse_args()
    if args.plot:
        plot(args.out)
        return
    known = engines()
    for key in args.subjects:
        recorded = read_table(key, most=args.rows)
        landscape = make_landscape(recorded, Surrogate(recorded), share=SHARES[key])
        for name in args.engines or known:
            for seed in range(args.first_seed, args.first_seed + args.seeds):
                start = time.process_time()
                trainer = Trainer(landscape, seed, args.equivalents * recorded.steps)
                with suppress(Spent):
                    known[name](landscape, trainer, seed)
                row: dict[str, Any] = {"subject": key, "recorded": len(recorded.complete), "engine": name, "seed": seed}
                row["finished"] = len(trainer.finished)
                for n in EQUIVALENTS:
                    steps = n * recorded.steps
                    row[f"hv_{n}"] = round(trainer.volume(steps), 5)
                    row[f"linear_{n}"] = round(trainer.volume(steps, linear=True), 5)
                    row[f"best_{n}"] = round(trainer.best(steps), 5)
                row["cpu_seconds"] = round(time.process_time() - start, 1)
                write_rows(args.out / "engines.csv", [row])
                print(
                    {k: v for k, v in row.items() if k in ("engine", "seed", "hv_16", "hv_64", "hv_192", "cpu_seconds")}
                )


def plot(folder: Path) -> None:
    """Draw the median and the quartiles of every engine, a picture a subject."""
    with (folder / "engines.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for key in sorted({row["subject"] for row in rows}):
        lines = {}
        for name in dict.fromkeys(row["engine"] for row in rows if row["subject"] == key):
            of = [row for row in rows if row["subject"] == key and row["engine"] == name]
            lines[name] = [
                (n, *np.quantile([float(row[f"hv_{n}"]) for row in of], [0.25, 0.5, 0.75]).tolist())
                for n in EQUIVALENTS
            ]
            shown = {n: f"{statistics.median(float(row[f'hv_{n}']) for row in of):.3f}" for n in (16, 32, 64, 128, 192)}
            print(f"| {name} | " + " | ".join(shown.values()) + f" | {len(of)} |")
        (folder / f"engines-{key}.svg").write_text(front_plot(lines, title=key), encoding="utf-8")


if __name__ == "__main__":
    main()
