"""What `results/engines.csv` says: medians over seeds, and how far the aims of the search engine are met."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

EQUIVALENTS = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384)
"""Whole trainings after which an engine is looked at."""
USUAL = 192
"""What an engine has, unless asked otherwise; peers are compared there."""

OURS, WITHOUT_RUNGS = "study:known-cost", "study:known-cost-no-rungs"
DOCUMENTED = "optunasearch"


@dataclass(frozen=True, slots=True)
class Curves:
    """The rows of the comparison, one an engine and seed; a search that had fewer steps has no later values."""

    rows: Sequence[Mapping[str, str]]

    @classmethod
    def read(cls, path: Path) -> Curves:
        """Read the CSV."""
        with path.open(encoding="utf-8") as file:
            return cls(list(csv.DictReader(file)))

    @property
    def subjects(self) -> list[str]:
        """What was searched."""
        return sorted({row["subject"] for row in self.rows})

    def engines(self, subject: str) -> list[str]:
        """Give the names of the engines."""
        return list(dict.fromkeys(row["engine"] for row in self.rows if row["subject"] == subject))

    def by_seed(self, subject: str, engine: str, n: int, *, figure: str = "hv") -> dict[str, float]:
        """Give a figure after so many whole trainings: ``hv``, ``linear`` (hypervolumes) or ``best`` (loss)."""
        of = [row for row in self.rows if (row["subject"], row["engine"]) == (subject, engine)]
        return {row["seed"]: float(row[f"{figure}_{n}"]) for row in of if row.get(f"{figure}_{n}")}

    def values(self, subject: str, engine: str, n: int, *, figure: str = "hv") -> list[float]:
        """Give the same without the seeds."""
        return list(self.by_seed(subject, engine, n, figure=figure).values())

    def median(self, subject: str, engine: str, n: int, *, figure: str = "hv") -> float:
        """Give its median over seeds; NaN where nobody got there."""
        values = self.values(subject, engine, n, figure=figure)
        return statistics.median(values) if values else math.nan

    def steps_to(self, subject: str, engine: str, volume: float) -> float:
        """Give the whole trainings after which the median reaches a volume, between those looked at by a straight line.

        Infinite if it never does.
        """
        before = (0, 0.0)
        for n in EQUIVALENTS:
            at = self.median(subject, engine, n)
            if at >= volume:
                return before[0] + (n - before[0]) * (volume - before[1]) / (at - before[1])
            before = (n, at)
        return math.inf


def median_table(curves: Curves, subject: str, *, shown: Sequence[int] = (16, 32, 64, 128, 192)) -> str:
    """Give the medians as Markdown: hypervolume by ratio, then by difference and the best loss at 64."""
    lines = [
        "| engine | " + " | ".join(map(str, shown)) + " | by difference, 64 | best loss, 64 | seeds |",
        "|---" * (len(shown) + 4) + "|",
    ]
    for name in sorted(curves.engines(subject), key=lambda name: -curves.median(subject, name, 64)):
        cells = [curves.median(subject, name, n) for n in shown]
        cells += [curves.median(subject, name, 64, figure=figure) for figure in ("linear", "best")]
        seeds = len(curves.values(subject, name, EQUIVALENTS[0]))
        texts = ["-" if math.isnan(cell) else f"{cell:.3f}" for cell in cells]
        lines.append(f"| {name} | " + " | ".join(texts) + f" | {seeds} |")
    return "\n".join(lines)


def ablation_table(curves: Curves, subject: str, *, n: int = 64) -> str:
    """Give as Markdown what is gained where a part is left out: the mean over common seeds and its standard error."""
    lines = [f"| after {n}, beside {OURS} | by ratio | by difference | best loss | seeds |", "|---|---|---|---|---|"]
    for name in curves.engines(subject):
        if not name.startswith(f"{OURS}-"):
            continue
        cells, gained = [], list[float]()
        for figure in ("hv", "linear", "best"):
            whole, without = (curves.by_seed(subject, engine, n, figure=figure) for engine in (OURS, name))
            gained = [without[seed] - whole[seed] for seed in without if seed in whole]
            error = statistics.stdev(gained) / math.sqrt(len(gained)) if len(gained) > 1 else math.nan
            cells.append(f"{statistics.mean(gained):+.3f} ± {error:.3f}")
        lines.append(f"| {name.removeprefix(OURS + '-')} | {' | '.join(cells)} | {len(gained)} |")
    return "\n".join(lines)


def aims_table(curves: Curves, subject: str) -> str:
    """Give the aims as Markdown, each beside what was found; peers are those that were run to the end."""
    at_end = {name: curves.median(subject, name, USUAL) for name in curves.engines(subject)}
    best = max(
        (name for name, volume in at_end.items() if not name.startswith("study:") and not math.isnan(volume)),
        key=lambda name: at_end[name],
    )
    rows = []
    for name in (OURS, WITHOUT_RUNGS):
        ours = curves.median(subject, name, 64)
        found = f"{ours:.3f} and {at_end[best]:.3f}: {_met(ours >= at_end[best])}"
        rows.append((f"{name} after 64 has what the best peer, {best}, has after {USUAL}", found))
    for n in (32, 64):
        needed = curves.steps_to(subject, DOCUMENTED, curves.median(subject, OURS, n))
        found = f"{needed / n:.1f} times: {_met(needed >= 6 * n)}"
        if math.isinf(needed):
            last = max(n for n in EQUIVALENTS if curves.values(subject, DOCUMENTED, n))
            found = f"not reached after {last}, so more than {last / n:.1f} times: {'met' if last >= 6 * n else 'open'}"
        rows.append((f"{DOCUMENTED} needs 6 times the training for what {OURS} has after {n}", found))
    needed = curves.steps_to(subject, OURS, curves.median(subject, WITHOUT_RUNGS, 64))
    found = "not reached: missed" if math.isinf(needed) else f"after {needed:.1f}: {_met(needed <= 20)}"
    rows.append((f"{OURS} after 20 has what {WITHOUT_RUNGS} has after 64", found))
    return "\n".join(["| aim | found |", "|---|---|", *(f"| {aim} | {found} |" for aim, found in rows)])


def _met(is_so: bool) -> str:
    return "met" if is_so else "missed"
