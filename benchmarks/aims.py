"""What `results/engines.csv` says: medians over seeds, and how far the aims of the search engine are met."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

EQUIVALENTS = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192)
"""Whole trainings after which an engine is looked at."""

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

    def values(self, subject: str, engine: str, n: int, *, figure: str = "hv") -> list[float]:
        """Give a figure after so many whole trainings: ``hv``, ``linear`` (hypervolumes) or ``best`` (loss)."""
        of = [row for row in self.rows if (row["subject"], row["engine"]) == (subject, engine)]
        return [float(row[f"{figure}_{n}"]) for row in of if row[f"{figure}_{n}"]]

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


def aims_table(curves: Curves, subject: str) -> str:
    """Give the aims as Markdown, each beside what was found."""
    peers = [name for name in curves.engines(subject) if not name.startswith("study:")]
    last = EQUIVALENTS[-1]
    best = max(peers, key=lambda name: curves.median(subject, name, last))
    rows = []
    for name in (OURS, WITHOUT_RUNGS):
        ours, theirs = curves.median(subject, name, 64), curves.median(subject, best, last)
        found = f"{ours:.3f}, and {theirs:.3f}: {_met(ours >= theirs)}"
        rows.append((f"{name} at 64 has what the best peer, {best}, has at {last}", found))
    for n in (32, 64):
        needed = curves.steps_to(subject, DOCUMENTED, curves.median(subject, OURS, n))
        ratio = needed / n
        said = f"{ratio:.1f} times: {_met(ratio >= 6)}"
        if math.isinf(needed):
            ratio = last / n
            said = f"not reached at {last}, so more than {ratio:.1f} times: {_met(True) if ratio >= 6 else 'not told'}"
        rows.append((f"{DOCUMENTED} needs 6 times the steps that {OURS} has at {n}", said))
    needed = curves.steps_to(subject, OURS, curves.median(subject, WITHOUT_RUNGS, 64))
    rows.append((f"{OURS} has what {WITHOUT_RUNGS} has at 64 at 20", f"at {needed:.1f}: {_met(needed <= 20)}"))
    return "\n".join(["| aim | found |", "|---|---|", *(f"| {aim} | {found} |" for aim, found in rows)])


def _met(is_so: bool) -> str:
    return "met" if is_so else "missed"
