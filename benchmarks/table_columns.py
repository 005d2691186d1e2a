"""The columns of the recorded table: of a candidate, of its curve, and as they are kept in files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.candidates import Candidate
from autopeft.compute import lowest_layer
from autopeft.plain import canonical_json
from autopeft.problem import Problem
from autopeft.records import RunInfo

_PATHS = ("model", "data", "path", "name")


def flat(candidate: Candidate, problem: Problem) -> dict[str, Any]:
    """Give a candidate's columns: all of it as JSON, and what most people ask for."""
    plan = problem.plan(candidate)
    assert plan is not None
    assert problem.anatomy is not None
    head = problem.anatomy.head_params
    ranks = list(plan.sizes.values())
    return {
        "candidate": canonical_json(candidate.values),
        "method": plan.method,
        "bits": plan.bits,
        "lr_multiple": float(candidate["lr_multiple"]),
        "learning_rate": plan.learning_rate,
        "modules": len(ranks),
        "mean_rank": round(sum(ranks) / len(ranks), 4) if ranks else 0.0,
        "lowest_layer": lowest_layer(problem.anatomy, plan),
        "adapter_params": plan.adapter_params,
        "head_params": head,
        "trainable_params": plan.adapter_params + head,
    }


def curve_columns(curve: Mapping[int, Mapping[str, float]]) -> dict[str, list[float]]:
    """Turn a curve into columns: `rung_steps`, and of each metric `curve_<metric>`, all equally long."""
    metrics = sorted({name for values in curve.values() for name in values} - {"perplexity"})
    columns: dict[str, list[float]] = {"rung_steps": sorted(curve)}
    for name in metrics:
        columns[f"curve_{name}"] = [rounded(curve[step][name]) for step in sorted(curve)]
    return columns


def rounded(value: float) -> Any:
    """Keep seven digits; JSON has no others than finite numbers."""
    return float(f"{value:.7g}") if abs(value) < float("inf") else None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read what is recorded; a last line that a kill has torn is dropped."""
    rows = []
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        path.write_text("".join(canonical_json(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def write_parquet(
    path: Path, rows: Sequence[Mapping[str, Any]], *, dataset: str, run: RunInfo, untrained: Mapping[str, float]
) -> None:
    """Write the rows of a subject, and in the file's metadata the untrained base and what its problem is built of.

    Args:
        run: What was assembled; folders and notes of one machine are left out.
        untrained: What every training has to beat, metric -> value.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    info = run.to_dict()
    for section in (
        info["request"],
        info["data"],
        info["model"],
        info["model"]["source"],
    ):  # folders of one machine mean nothing
        section.update({name: Path(str(v)).name for name, v in section.items() if name in _PATHS and v})
    info["data"].pop("notes", None)
    rows = [{"dataset": dataset, **row} for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    about = {"autopeft.run": canonical_json(info), "autopeft.untrained": canonical_json(untrained)}
    table = table.replace_schema_metadata(about)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", compression_level=19)
    print(f"{path}: {len(rows)} rows, {path.stat().st_size / 1e6:.2f} MB")
