"""Searches whose trials are not trained: their results come from a formula at once.

They have all that real ones have (plan, loss curve, metrics), so what is measured beside them is the driver's cost.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autopeft.assembly import Assembly, CostFunction, assemble
from autopeft.candidates import Candidate
from autopeft.request_fields import make_request
from autopeft.space_file import read_space
from autopeft.work import Measurement, WorkUnit

OWN_SPACE = {
    "parameters": {
        "depth": {"ordinal": [0, 1, 2, 4, 8], "default": 2},
        "kind": {"choices": ["a", "b", "c"]},
        **{f"x{i}": {"low": 1e-3, "high": 1.0, "log": True, "default": 0.1} for i in range(10)},
    }
}


def quality_of(candidate: Candidate) -> float:
    """Give a quality that depends on every value, with an optimum inside and noise that is always the same."""
    loss = 0.0
    for name, value in candidate.values.items():
        best = int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) / 65535
        at = value if isinstance(value, int | float) else len(str(value)) / 10
        loss += (math.tanh(float(at)) - best) ** 2
    noise = int(candidate.key[:6], 16) / 0xFFFFFF
    return 1 / (1 + loss) + 0.02 * noise


def own_cost(candidate: Candidate) -> int:
    """Count the parameters of a candidate of the own space."""
    return 1 + round(1000 * float(candidate["depth"]) * float(candidate["x0"]))


class Formula:
    """A Runner that gives what a training would have given, at once."""

    def run(self, unit: WorkUnit) -> Measurement:
        """Give the measurement of a work unit."""
        quality = quality_of(unit.candidate)
        params = unit.plan.adapter_params + unit.head_params if unit.plan else own_cost(unit.candidate)
        loss = 1 - quality
        return Measurement(
            quality=quality,
            trainable_params=params,
            memory_bytes=200_000_000 + 16 * params,
            memory_kind="tensor_storage",
            head_params=unit.head_params,
            adapter_bytes=4 * params,
            steps=unit.steps,
            train_seconds=2.5,
            eval_seconds=0.5,
            metrics={"accuracy": quality, "f1_macro": quality, "matthews": quality, "loss": loss},
            curve=tuple((step, loss * (1 + math.exp(-step / 20))) for step in range(0, 100, 2)),
            base_checksum="0" * 16,
        )


def assemble_case(space: str, sampler: str, trials: int, folder: Path) -> tuple[Any, Assembly]:
    """Put the search of a case together, as `autopeft.search` does; gives (request, assembly)."""
    fields: dict[str, Any] = {"trials": trials, "sampler": sampler, "executor": "local"}
    runner: Callable[[Candidate, int], Measurement] | None = None
    cost: CostFunction | None = None
    if space == "own":
        fields |= {"budget": "none", "objectives": ["quality", "params", "memory"]}
        runner, cost = _never, own_cost
        of = read_space(OWN_SPACE)
    else:
        from autopeft.trial.demo import LIBRARIES, demo_model

        rows = [{"text": f"text {i}", "label": LIBRARIES[i % len(LIBRARIES)]} for i in range(40 * len(LIBRARIES))]
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fields |= {"model": str(demo_model()), "data": str(data)}
        of = read_space("default")
    request = make_request(fields)
    return request, assemble(request, space=of, runner=runner, cost=cost)


def _never(candidate: Candidate, steps: int) -> Measurement:
    raise AssertionError("the executor of this benchmark does not call it")
