"""Rules of promotion beside each other on a made-up problem: what the ladder gains, and what another rule would.

Candidates are drawn at random: a size, a learning rate, memory that grows with the size. The final loss sinks with the
size and rises with the distance from the best rate; the curve to it is a power law with noise, so that early rungs
mislead. Counted is the hypervolume of (loss, log size, memory) of what was trained to its end, by steps spent. The
problem says nothing of real trainings; it compares rules in minutes.

    python benchmarks/promotion.py --seeds 20
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from results import write_rows

from autopeft.candidates import Candidate
from autopeft.pareto import hypervolume
from autopeft.records import RungResult
from autopeft.search.rungs import Ladder, Standing

STEPS, RUNGS = 90, (10, 30)
REFERENCE = np.array([2.0, 6.2, 1200.0])
BUDGETS = (8, 16, 32)


class Quota(Ladder):
    """Lets go on as many as keeps those that went on from a rung at a third of those that got there."""

    def _best(self, step: int, *, closing: bool) -> list[Standing]:
        everyone = self._reached[step].values()
        gone = sum(standing.number not in self._paused for standing in everyone)
        return super()._best(step, closing=closing)[: max(0, len(everyone) // self._eta - gone)]


RULES: dict[str, Callable[[], Ladder]] = {
    "no rungs": Ladder,
    "best third": lambda: Ladder(RUNGS),
    "quota": lambda: Quota(RUNGS),
}


def draw(chance: np.random.Generator) -> tuple[float, float, float]:
    """Draw a candidate: its size, its memory, the loss that it comes to."""
    size = 10 ** chance.uniform(3, 6)
    rate, luck = chance.normal(), chance.normal(0, 0.15)
    loss = 1.0 - 0.125 * (np.log10(size) - 3) + 0.15 * rate**2 + abs(luck)
    return size, 100 + size**0.5 * chance.uniform(0.5, 1.5), loss


def loss_at(step: int, final: float, chance: np.random.Generator) -> float:
    """Give a held-out loss on the way to the final one."""
    early = 0.75 * (step / 5) ** -0.9 * (1 + 0.2 * chance.normal() * (step < STEPS))
    return float(final + early + 0.01 * chance.normal())


def search(rule: str, *, seed: int, budget: int) -> tuple[float, int, int]:
    """Search until the steps are spent; gives the hypervolume, and how many were begun and done."""
    chance, ladder = np.random.default_rng(seed), RULES[rule]()
    candidates: list[tuple[float, float, float]] = []
    done: list[Sequence[float]] = []
    spent = 0
    while True:
        standing = ladder.promote()
        first = 0 if standing is None else standing.result.step
        if standing is None:
            candidates.append(draw(chance))
        number = len(candidates) - 1 if standing is None else standing.number
        last = ladder.after(first) or STEPS
        if (spent := spent + last - first) > budget * STEPS:
            return hypervolume(done, REFERENCE) if done else 0.0, len(candidates), len(done)
        size, memory, final = candidates[number]
        loss = loss_at(last, final, chance)
        result = RungResult(last, loss, (size, memory))
        ladder.reach(Standing(number, Candidate({"number": number}), result), pauses=last < STEPS)
        if last == STEPS:
            done.append((loss, float(np.log10(size)), memory))


def main() -> None:
    """Search by each rule, print means, write every search down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "promotion.csv")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for budget in BUDGETS:
        for rule in RULES:
            found = [search(rule, seed=seed, budget=budget) for seed in range(options.seeds)]
            for seed, (volume, begun, done) in enumerate(found):
                about = {"budget": budget, "rule": rule, "seed": seed}
                rows.append({**about, "hypervolume": round(volume, 2), "begun": begun, "done": done})
            volumes, n_begun, n_done = np.array(found).T
            error = volumes.std(ddof=1) / len(volumes) ** 0.5
            counts = f"{n_begun.mean():.0f} begun, {n_done.mean():.0f} done"
            print(f"{budget:3} {rule:10} {volumes.mean():.0f} +- {error:.0f}, {counts}", flush=True)
    options.csv.unlink(missing_ok=True)
    write_rows(options.csv, rows)


if __name__ == "__main__":
    main()
