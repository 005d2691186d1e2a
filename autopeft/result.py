"""The result of a run: its trials, its front, its picks; read from the run directory, at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.assembly import stored_objectives
from autopeft.candidates import Candidate
from autopeft.finals import kept, picked
from autopeft.labels import describe
from autopeft.objectives import Objective
from autopeft.pareto import front
from autopeft.records import RunInfo, TrialRecord
from autopeft.registry import unknown
from autopeft.report import COLUMNS, Context, render, table, verdict, write_csv
from autopeft.store import RunDirectory, adapter_dir, replace_file

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Pick:
    """One configuration of the front."""

    record: TrialRecord
    run_dir: Path

    @property
    def candidate(self) -> Candidate:
        """What was tried."""
        return self.record.candidate

    @property
    def adapter_dir(self) -> Path:
        """Where its adapter lies; `PeftModel.from_pretrained(base, adapter_dir)` loads it too."""
        return self.run_dir / adapter_dir(self.record.number)

    @property
    def config(self) -> Mapping[str, Any]:
        """The fields of PEFT's adapter configuration; empty with a custom runner."""
        return {} if self.record.plan is None else self.record.plan.config

    def load(self, *, device: str = "cpu") -> Any:
        """Load the PEFT model on its base, as it was judged.

        Raises:
            SourceError: If there is no adapter (a custom runner saves none), or the base cannot be read.
        """
        from autopeft.trial.adapters import load_adapter

        return load_adapter(self.adapter_dir, device=device)


class Result:
    """A run: its trials, its front, its picks. Reads the run directory, so it can be had of any run at any time."""

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir)
        run = RunDirectory.existing(self.path)
        self.info: RunInfo = run.read_info()
        self.objectives: tuple[Objective, ...] = stored_objectives(self.info)
        self.records: tuple[TrialRecord, ...] = tuple(run.records)
        self.finals: tuple[TrialRecord, ...] = tuple(run.finals)

    @property
    def front(self) -> pd.DataFrame:
        """The Pareto front, best quality first: one row a trial, its objectives, then its configuration."""
        return self._frame(front(self.records, self.objectives))

    @property
    def trials(self) -> pd.DataFrame:
        """Every trial in the order in which it ended, with its state and reason."""
        return self._frame(self.records)

    def _frame(self, records: Sequence[TrialRecord]) -> pd.DataFrame:
        import pandas as pd

        names = [o.name for o in self.objectives]
        rows = [
            {
                "trial": r.number,
                **{name: r.values.get(name) for name in names},
                "configuration": describe(r),
                "state": r.state,
                "reason": r.reason,
                "seconds": r.seconds,
                **r.candidate.values,
            }
            for r in records
        ]
        columns = ["trial", *names, "configuration", "state", "reason", "seconds"]
        return pd.DataFrame(rows, columns=[*columns, *(k for k in _keys(rows) if k not in columns)])

    @property
    def picks(self) -> dict[str, Pick]:
        """The named points of the front: "best", "knee", "smallest"; by their repeats, where there are such."""
        by_number = {r.number: r for r in self.records}
        named = picked(self.records, self.finals, self.objectives)
        return {name: Pick(by_number[n], self.path) for name, n in named.items()}

    @property
    def finalists(self) -> pd.DataFrame:
        """What was trained again with other seeds, best first: one row a finalist, as in the report."""
        import pandas as pd

        return pd.DataFrame(table(self._context), columns=COLUMNS)

    @property
    def verdict(self) -> str:
        """What the repeats say of the best configuration against plain LoRA; "" without repeats."""
        return verdict(self._context)

    @property
    def _context(self) -> Context:
        return Context(self.info, self.records, self.objectives, finals=self.finals)

    def best(self, name: str = "knee") -> Pick:
        """Give a named point of the front.

        Raises:
            UnknownNameError: If there is none of that name.
        """
        named = self.picks
        if name not in named:
            raise unknown(name, named, what="pick")
        return named[name]

    def report(self) -> Path:
        """Write front.csv and report.html anew; gives the latter's path."""
        folders = {n: self.path / adapter_dir(n) for n in kept(self.records, self.objectives)}
        saved = {n: str(folder) for n, folder in folders.items() if folder.is_dir()}
        write_csv(
            self.records,
            self.objectives,
            self.path / "front.csv",
            named=picked(self.records, self.finals, self.objectives),
            adapter_dirs={n: adapter_dir(n) for n in saved},
        )
        page = render(self.info, self.records, self.objectives, adapter_dirs=saved, finals=self.finals)
        replace_file(self.path / "report.html", page)
        return self.path / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Give the result as plain values, for JSON."""
        named: dict[int, list[str]] = {}
        for name, pick in self.picks.items():
            named.setdefault(pick.record.number, []).append(name)
        states = [r.state for r in self.records]
        return {
            "run_dir": str(self.path),
            "report": str(self.path / "report.html"),
            "objectives": [dict(o) for o in self.info.objectives],
            "parameter_limit": self.info.parameter_limit,
            "trials": {state: states.count(state) for state in dict.fromkeys(states)},
            "verdict": self.verdict,
            "finalists": table(self._context),
            "front": [
                {
                    "trial": r.number,
                    "picks": named.get(r.number, []),
                    "values": dict(r.values),
                    "configuration": describe(r),
                    "candidate": dict(r.candidate.values),
                    "adapter_config": dict(r.plan.config) if r.plan else None,
                    "adapter_dir": str(self.path / adapter_dir(r.number)) if r.plan else None,
                }
                for r in front(self.records, self.objectives)
            ],
        }


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
