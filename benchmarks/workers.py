"""A worker of autopeft on one of the subjects, without a search around it, and units of work for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from subjects import SUBJECTS, request_fields, space, write_data

from autopeft.assembly import Assembly, assemble
from autopeft.candidates import Candidate, Recipe
from autopeft.plans import plan_of
from autopeft.request_fields import make_request
from autopeft.work import WorkerSpec, WorkUnit
from autopeft.workers import worker_spec


@dataclass(frozen=True, slots=True)
class Setting:
    """What workers and their units are made of."""

    assembly: Assembly
    run_dir: Path
    batch_size: int

    def spec(self, **settings: Any) -> WorkerSpec:
        """Say how a worker of one thread is made."""
        spec = worker_spec(self.assembly.info, self.run_dir, threads=1)
        return WorkerSpec(spec.entry, {**spec.settings, **settings})

    def unit(self, values: Mapping[str, Any], *, steps: int, trial: int = 0, adapter_dir: str = "") -> WorkUnit:
        """Make a unit that trains a candidate on a base of 32 bits."""
        anatomy = self.assembly.problem.anatomy
        assert anatomy is not None
        candidate = Candidate({"bits": 32, **values})
        plan = plan_of(candidate, anatomy, recipe=Recipe(0.0, batch_size=self.batch_size))
        return WorkUnit(
            trial=trial,
            candidate=candidate,
            steps=steps,
            seed=0,
            plan=plan,
            head_params=anatomy.head_params,
            adapter_dir=adapter_dir,
        )


def make_setting(model: str, work: Path, *, steps: int, eval_rows: int | None = None) -> Setting:
    """Write the model and the data of a subject, and prepare a run directory.

    Args:
        eval_rows: Rows to judge on; by default the subject's.

    Raises:
        FileNotFoundError: If the model cannot be had.
    """
    from autopeft.trial.prepared import write

    subject = replace(SUBJECTS[model], eval_rows=eval_rows or SUBJECTS[model].eval_rows)
    if reason := subject.make(work / "model"):
        raise FileNotFoundError(reason)
    write_data(subject, work / "data")
    request = make_request(request_fields(subject, work, steps=steps, trials=1))
    assembly = assemble(request, space=space([{"r": 8, "targets": "all", "lr": 5e-4}]))
    assert assembly.data is not None
    run_dir = work / "run"
    write(assembly.data, run_dir / "data")
    (run_dir / "request.yaml").write_text("{}\n")
    return Setting(assembly, run_dir, subject.batch_size)
