"""Reads the recorded table: rows as pandas, and the search problem that they belong to, without model or data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import yaml

from autopeft.anatomy import Anatomy
from autopeft.binding import bind_space
from autopeft.candidates import AdapterPlan, Candidate
from autopeft.objectives import METRICS, OBJECTIVES, quality_of
from autopeft.problem import Problem
from autopeft.recipe import defaults
from autopeft.records import RunInfo
from autopeft.space_file import parse_space

TABLE = Path(__file__).parent / "table"


@dataclass(frozen=True, slots=True)
class Recorded:
    """One subject of the table.

    Attributes:
        rows: One a training; failures are among them.
        info: What was trained on what, with which versions.
        untrained: Metrics of the base on the validation split.
    """

    key: str
    rows: pd.DataFrame
    info: RunInfo
    untrained: Mapping[str, float]

    @property
    def complete(self) -> pd.DataFrame:
        """The rows of trainings that came to their end."""
        return self.rows[self.rows["state"] == "complete"]

    @property
    def anatomy(self) -> Anatomy:
        """What the model is made of."""
        assert self.info.anatomy is not None
        return Anatomy.from_dict(self.info.anatomy)

    @property
    def steps(self) -> int:
        """All steps of a training."""
        return int(self.info.request["steps"])

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps after which a training was judged; the last is its end."""
        return tuple(int(step) for step in self.complete["rung_steps"].iloc[0])

    def problem(
        self,
        *,
        share: float | None = None,
        bits: tuple[int, ...] | None = None,
        predicted_bytes: Callable[[AdapterPlan], int] | None = None,
    ) -> Problem:
        """Give the search problem: held-out loss, trained parameters, peak memory.

        Args:
            share: Budget as a share of the base's parameters, the head on top; None for none.
            bits: Those of the base to search; by default all that were recorded.
            predicted_bytes: As of a Problem.
        """
        anatomy, request = self.anatomy, self.info.request
        longest = self.info.data["max_length"]
        recipe, form = defaults(request, max_length=longest)
        space = bind_space(
            parse_space(yaml.safe_load(self.info.space)), anatomy, cuda=False, bits=bits or request["bits"],
            max_length=longest,
        )  # fmt: skip
        limit = None if share is None else anatomy.head_params + round(share * anatomy.base_params)
        known = {**OBJECTIVES, "quality": quality_of(METRICS["loss"])}
        return Problem(
            space,
            tuple(known[name] for name in ("quality", "params", "memory")),
            anatomy,
            None,
            limit,
            recipe=recipe,
            base=replace(form, bits=anatomy.dtype_bits),
            predicted_bytes=predicted_bytes,
        )


def read_table(key: str, folder: Path = TABLE, *, most: int | None = None) -> Recorded:
    """Read a subject of the table.

    Args:
        most: Read its first rows only, so many, as if no more had been recorded.

    Raises:
        FileNotFoundError: If it was not recorded.
    """
    table = pq.read_table(folder / f"{key}.parquet")
    info = RunInfo.from_dict(json.loads(table.schema.metadata[b"autopeft.run"]))
    return Recorded(
        key, table.to_pandas().head(most or len(table)), info, json.loads(table.schema.metadata[b"autopeft.untrained"])
    )


def subjects(folder: Path = TABLE) -> list[str]:
    """Give the keys of what was recorded."""
    return sorted(path.stem for path in folder.glob("*.parquet"))


def candidate_of(text: str) -> Candidate:
    """Read a candidate from its column."""
    return Candidate(json.loads(text))
