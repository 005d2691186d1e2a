"""What is known of a training before it runs: its peak memory on a device, and how long it takes on this one."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Literal

from autopeft.anatomy import Anatomy
from autopeft.candidates import AdapterPlan, BaseFormat
from autopeft.compute import training_flops
from autopeft.plain import canonical_json
from autopeft.records import RunInfo

if TYPE_CHECKING:
    from autopeft.trial.prediction import MemoryPredictor

Device = Literal["cpu", "cuda"]


def prediction(info: RunInfo, anatomy: Anatomy) -> Callable[[AdapterPlan], int] | None:
    """Give what predicts a plan's peak memory: where that is limited, and on CUDA to stand beside the measured one."""
    device: Device = "cuda" if info.model["cuda"] else "cpu"
    if info.memory_limit_bytes is not None:
        return lambda plan: memory_predictor(info, anatomy, device).peak(plan)
    if device == "cuda":
        # One trace for each trial; what answers at once has to learn from several.
        return lambda plan: memory_predictor(info, anatomy, device).trace(plan).peak_bytes
    return None


def memory_predictor(info: RunInfo, anatomy: Anatomy, device: Device) -> MemoryPredictor:
    """Give what predicts the memory of a run's trainings; the same one each time, for it learns."""
    return _predictor(canonical_json([info.model["source"], anatomy.to_dict()]), info.data["longest"], device)


@cache
def _predictor(what: str, longest: int, device: Device) -> MemoryPredictor:
    # Heavy, and of no use where memory is neither limited nor asked for.
    from autopeft.trial.model import ModelSource, load_config
    from autopeft.trial.prediction import MemoryPredictor

    source, anatomy = json.loads(what)
    return MemoryPredictor(
        load_config(ModelSource.from_dict(source)), Anatomy.from_dict(anatomy), length=longest, device=device
    )


def seconds_of(info: RunInfo, anatomy: Anatomy, plan: AdapterPlan, *, length: int, steps: int) -> float:
    """Estimate how long a training takes on this machine, alone on it: its operations at the pace of a short probe."""
    rows = plan.recipe.batch_size
    part = -(-rows // plan.recipe.gradient_accumulation_steps)
    flops = training_flops(anatomy, plan, rows=rows, length=length)
    return steps * flops * _pace(canonical_json(info.model["source"]), plan.base, part, length)


@cache
def _pace(what: str, base: BaseFormat, rows: int, length: int) -> float:
    from autopeft.trial.device import cuda_available
    from autopeft.trial.model import ModelSource
    from autopeft.trial.pace import seconds_per_flop

    device = "cuda" if cuda_available() else "cpu"
    return seconds_per_flop(ModelSource.from_dict(json.loads(what)), base, rows=rows, length=length, device=device)
