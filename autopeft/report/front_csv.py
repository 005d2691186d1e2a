"""Writes the front as CSV: one row for each trial on it, best quality first."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from autopeft.objectives import Objective
from autopeft.pareto import front
from autopeft.records import TrialRecord
from autopeft.report.words import bits_of, method_of


def write_csv(
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    path: Path,
    *,
    named: Mapping[str, int],
    adapter_dirs: Mapping[int, str] | None = None,
) -> None:
    """Write number, picks, objectives, method, bits, learning rate, adapter directory and every candidate value.

    A candidate's value whose name is another column's already is written as "candidate.<name>".

    Args:
        records: Every trial; only those on the front are written.
        objectives: What was optimised, in order.
        path: The file to write; UTF-8.
        named: Pick -> trial number.
        adapter_dirs: Trial number -> directory of its adapter.
    """
    points = front(records, objectives)
    fixed = ["number", "picks", *(o.name for o in objectives), "method", "bits", "learning_rate", "adapter_dir"]
    # The plan says method and bits for every trial, the candidate only where they were free to choose.
    names = list(dict.fromkeys(n for r in points for n in r.candidate.values if n not in ("method", "bits")))
    columns = {name: f"candidate.{name}" if name in fixed else name for name in names}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*fixed, *columns.values()])
        writer.writeheader()
        for record in points:
            row: dict[str, object] = {
                "number": record.number,
                "picks": " ".join(name for name, number in named.items() if number == record.number),
                **{o.name: record.values[o.name] for o in objectives},
                "method": method_of(record),
                "bits": bits_of(record),
                "learning_rate": record.plan.learning_rate if record.plan else None,
                "adapter_dir": (adapter_dirs or {}).get(record.number, ""),
            }
            writer.writerow(row | {columns[n]: v for n, v in record.candidate.values.items() if n in columns})
