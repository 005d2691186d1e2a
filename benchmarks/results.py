"""Figures of a benchmark as CSV: appended, each row with the command and the versions that gave it."""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.machine import hardware, versions


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file, with a header if it is new."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    made = {
        "command": command,
        "cpu": hardware().get("cpu", ""),
        "versions": " ".join(f"{package}={version}" for package, version in versions().items()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *made], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({**row, **made} for row in rows)
