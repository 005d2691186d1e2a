"""What goes to a worker and what comes back: a unit of work, what its training measured, or why there is nothing.

These cross processes; whoever trains otherwise than autopeft does, as a custom runner, gives a Measurement too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from autopeft.candidates import AdapterPlan, Candidate
from autopeft.plain import Plain

TrialState = Literal["complete", "paused", "failed", "infeasible", "stopped", "duplicate"]
Split = Literal["validation", "test"]

_COUNTS = (
    "trainable_params", "memory_bytes", "predicted_bytes", "head_params", "reserved_bytes", "adapter_bytes", "steps",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measurement(Plain):
    """What one training gave.

    Attributes:
        quality: The value of the request's metric on held-out data, in the metric's own direction; must be finite.
        trainable_params: Trained scalars, counted on the real model (adapter and head).
        memory_bytes: Peak memory of training; see `memory_kind` for what exactly was measured.
        memory_kind: "cuda_allocated" (torch.cuda.max_memory_allocated), "tensor_storage" (peak of the tensors alive
            in one training step on CPU: weights, gradients, optimiser, activations), or "" for a custom runner.
        head_params: Those of `trainable_params` that belong to a new task head.
        predicted_bytes: What that memory was predicted to be; 0 where nothing was predicted.
        reserved_bytes: Peak of torch.cuda.max_memory_reserved; 0 on CPU.
        adapter_bytes: Size of the saved adapter on disk.
        steps: Optimiser steps taken.
        train_seconds, eval_seconds: Wall time of training and of evaluation.
        metrics: Every metric by name, and anything that a custom objective needs; those of a second split have its
            name before them, as in "validation_accuracy".
        curve: Pairs (step, training loss).
        base_checksum: Checksum of the frozen base, the same before and after; "" for a custom runner. CPU and CUDA give
            different ones for equal weights: it is comparable within a kind of device only.
        restarted: Whether the state to go on from was missing or damaged, so that all was trained again.
    """

    quality: float
    trainable_params: int = 0
    memory_bytes: int = 0
    memory_kind: str = ""
    predicted_bytes: int = 0
    head_params: int = 0
    reserved_bytes: int = 0
    adapter_bytes: int = 0
    steps: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    base_checksum: str = ""
    restarted: bool = False

    def __post_init__(self) -> None:
        # A runner may give scalars of NumPy or torch, JSON gives lists; `float` reads what `to_dict` writes.
        for name in ("quality", "train_seconds", "eval_seconds"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in _COUNTS:
            object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "metrics", {str(k): float(v) for k, v in self.metrics.items()})
        object.__setattr__(self, "curve", tuple((int(s), float(v)) for s, v in self.curve))


@dataclass(frozen=True, slots=True)
class WorkUnit(Plain):
    """Train one candidate from step `first` to `steps`, evaluate on `splits`, save the adapter under `adapter_dir`.

    Attributes:
        plan: The adapter to build; None for a custom runner, which reads the candidate itself.
        steps: Optimiser steps that the candidate has taken at the end of the unit.
        seed: Of the adapter's start and dropout.
        data_seed: Of the order of the data.
        splits: What it is judged on; its quality is that of the first.
        adapter_dir: Where the adapter is saved, relative to the run directory; "" for nowhere.
        first: Steps that an earlier unit has taken; this one goes on from the state that it left.
        horizon: Steps of the whole training, which the schedule spans; 0 for `steps`.
        state_dir: Where the state at `first` lies, and that at `steps` is left if the training is not over then,
            relative to the run directory; "" for nowhere.
    """

    trial: int
    candidate: Candidate
    steps: int
    seed: int
    plan: AdapterPlan | None = None
    head_params: int = 0
    data_seed: int = 0
    splits: tuple[Split, ...] = ("validation",)
    adapter_dir: str = ""
    first: int = 0
    horizon: int = 0
    state_dir: str = ""

    @property
    def whole(self) -> int:
        """Steps of the whole training."""
        return self.horizon or self.steps

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`."""
        unit = super(WorkUnit, cls).from_dict(data)
        return replace(
            unit,
            splits=tuple(unit.splits),
            candidate=Candidate.from_dict(data["candidate"]),
            plan=AdapterPlan.from_dict(data["plan"]) if data.get("plan") else None,
        )


@dataclass(frozen=True, slots=True)
class WorkerSpec(Plain):
    """How a worker process makes its runner: `entry` ("module:name") called with `settings` as keywords."""

    entry: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome(Plain):
    """What an executor says of a work unit: a measurement, or the reason why there is none.

    Attributes:
        exhausted_bytes: Memory that was in use when it ran out, 1 where that is not known; 0 if it did not.
    """

    trial: int
    state: TrialState
    measurement: Measurement | None = None
    reason: str = ""
    traceback: str = ""
    worker: str = ""
    seconds: float = 0.0
    exhausted_bytes: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`."""
        outcome = super(Outcome, cls).from_dict(data)
        measurement = Measurement.from_dict(data["measurement"]) if data.get("measurement") else None
        return replace(outcome, measurement=measurement)
