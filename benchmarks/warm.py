"""A search that knows of an earlier one (`--warm-from`) beside one that does not, on the recorded table.

Both are the default engine on trainings that `surrogate.py` predicts. The earlier search had so many trainings of
another seed on a third of the steps, so that it was judged by other losses, of shorter trainings:

    cold      knows nothing
    shorter   knows that search
    reversed  knows it with the order of its losses turned round: what was worst is said to have been best
    shuffled  knows its configurations, and of their losses nothing: they are drawn

With the space's own configurations, which run first in all of them, and without.

    python benchmarks/warm.py --seeds 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from engines import SHARES, through_study
from landscape import Landscape, PaperTrainer, make_landscape
from peers import Spent
from recorded import read_table
from results import write_rows
from surrogate import Surrogate

from autopeft.candidates import Candidate
from autopeft.earlier import normal_scores
from autopeft.records import Prior
from autopeft.search.sampler import SAMPLERS

EQUIVALENTS = (8, 16, 32, 64)
OTHER_SEEDS = 1000
"""What an earlier search adds to the seed."""


class ShortTrainer(PaperTrainer):
    """Judges a training after a third of its steps."""

    def train(self, candidate: Candidate, *, first: int = 0, last: int | None = None) -> tuple[float, int, int]:
        """Give the loss there in the last one's place."""
        loss, params, memory = PaperTrainer.train(self, candidate, first=first, last=last)
        return loss if last not in (None, self.full) else self.early_loss(candidate), params, memory

    def early_loss(self, candidate: Candidate) -> float:
        """Give the loss after a third of the steps, as measured."""
        surrogate = self.landscape.surrogate
        return float(surrogate.noisy_curve(candidate, seed=self.seed)[surrogate.rungs.index(self.full // 3)])


def earlier(landscape: Landscape, seed: int, trainings: int) -> Prior:
    """Search with short trainings; gives what a later search may know of it."""
    trainer = ShortTrainer(landscape, seed + OTHER_SEEDS, trainings * landscape.surrogate.rungs[-1])
    with suppress(Spent):
        through_study(SAMPLERS["known-cost"])(trainer, trainer.seed)
    candidates = [candidate for _, candidate, _ in trainer.finished]
    scores = normal_scores([trainer.early_loss(candidate) for candidate in candidates])
    return Prior("earlier", tuple(candidates), tuple(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", default="stories260k-e2e")
    parser.add_argument("--priors", nargs="+", default=["cold", "shorter", "reversed", "shuffled"])
    parser.add_argument("--starts", nargs="+", default=["with", "without"], help="the space's own")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trainings", type=int, default=32, help="those of the earlier search")
    parser.add_argument("--equivalents", type=int, default=EQUIVALENTS[-1])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    recorded = read_table(args.subject)
    landscape = make_landscape(recorded, Surrogate(recorded), share=SHARES[args.subject])
    shown: dict[str, list[list[float]]] = defaultdict(list)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        prior = earlier(landscape, seed, args.trainings)
        turned = replace(prior, scores=tuple(-score for score in prior.scores))
        drawn = replace(prior, scores=tuple(np.random.default_rng(seed).permutation(prior.scores).tolist()))
        known = {"cold": (), "shorter": (prior,), "reversed": (turned,), "shuffled": (drawn,)}
        for starts in args.starts:
            for name in args.priors:
                begun = time.process_time()
                posed = replace(landscape, problem=replace(landscape.problem, prior=known[name]))
                trainer = PaperTrainer(posed, seed, args.equivalents * recorded.steps)
                with suppress(Spent):
                    through_study(SAMPLERS["known-cost"], starts=starts == "with")(trainer, seed)
                row: dict[str, Any] = {
                    "subject": args.subject,
                    "prior": name,
                    "starts": starts,
                    "seed": seed,
                    "trainings": args.trainings,
                }
                marks = [n for n in EQUIVALENTS if n <= args.equivalents]
                for n in marks:
                    row[f"hv_{n}"] = round(trainer.volume(n * recorded.steps), 5)
                    row[f"best_{n}"] = round(trainer.best(n * recorded.steps), 5)
                row["cpu_seconds"] = round(time.process_time() - begun, 1)
                write_rows(args.out / "warm.csv", [row])
                shown[f"{name}, {starts} starts"].append([row[f"hv_{n}"] for n in marks])
                print(row, flush=True)
    for case, volumes in shown.items():
        print(case, [f"{statistics.median(column):.3f}" for column in zip(*volumes, strict=True)])


if __name__ == "__main__":
    main()
