"""Prints for a person or a program: tables on a terminal, or one JSON document on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autopeft.estimate import Estimate
    from autopeft.result import Result

_WIDTH_OF_A_FILE = 200


@contextmanager
def stdout_kept(as_json: bool) -> Iterator[None]:
    """Send what libraries print to stderr, where stdout is for one JSON document."""
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        yield


def print_json(value: object) -> None:
    """Print one JSON document."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=1)
    print()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; lists are joined, truths are "yes" and "no"."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_A_FILE)
    console.print(table)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def print_result(result: Result, *, as_json: bool) -> None:
    """Print the front of a run with its picks, and where the report is."""
    if as_json:
        print_json(result.to_dict())
        return
    from autopeft.labels import describe, show_value

    named: dict[int, list[str]] = {}
    for name, pick in result.picks.items():
        named.setdefault(pick.record.number, []).append(name)
    by_number = {record.number: record for record in result.records}
    front = [by_number[int(number)] for number in result.front["trial"]]
    print_table(
        ["trial", "", *(o.name for o in result.objectives), "configuration"],
        [
            [
                record.number,
                named.get(record.number, []),
                *(show_value(record.values[o.name], o.unit) for o in result.objectives),
                describe(record),
            ]
            for record in front
        ],
    )
    if result.verdict:
        print(f"\n{result.verdict}")
    print(f"\nreport: {result.path / 'report.html'}")


def print_estimates(rows: Sequence[Estimate], *, as_json: bool) -> None:
    """Print what configurations cost."""
    from autopeft.units import show_bytes, show_percent, show_seconds

    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    limited = any(row.largest_batch is not None for row in rows)
    columns = ["configuration", "adapter", "head", "of the model", "GPU memory", "file", "a trial here"]
    print_table(
        [*columns, *(["rows that fit"] if limited else []), "fits"],
        [
            [
                row.configuration,
                f"{row.cost.adapter_params:,}",
                f"{row.cost.head_params:,}",
                show_percent(row.cost.trainable_params / row.base_params),
                show_bytes(row.cost.memory_bytes) if row.cost.memory_bytes else "",
                show_bytes(row.adapter_bytes) if row.adapter_bytes else "",
                show_seconds(row.seconds) if row.seconds else "",
                *([row.largest_batch] if limited else []),
                row.refusal or "yes",
            ]
            for row in rows
        ],
    )
