"""The values that cross a process or a file boundary: frozen, plain, JSON both ways, with one schema version."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

SCHEMA_VERSION = 2
"""Raised when a stored value changes its meaning; a run directory of another version is refused, never guessed at."""

MAY_CHANGE = (
    "trials", "time", "steps_total", "until_converged", "final_seeds", "executor", "workers", "together",
    "gpus_per_worker", "ray_address",
)  # fmt: skip
"""Fields of a request that may differ when a run goes on; all others stay what it was started with."""

Scalar = str | int | float | bool
TrialState = Literal["complete", "paused", "failed", "infeasible", "stopped", "duplicate"]
Split = Literal["validation", "test"]


def canonical_json(value: object) -> str:
    """Write a plain value so that equal values give equal text (keys sorted, no spaces, no NaN)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """Give 16 hex digits that identify a plain value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


class _Plain:
    """JSON both ways for a frozen dataclass of plain fields; unknown keys are ignored, so newer records can be read."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Give plain values; what is not finite, as the perplexity of a bad model, is text, for JSON has none."""
        return _finite_or_text(asdict(self))  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Candidate(_Plain):
    """One configuration to try: the active parameters of a space and their values.

    >>> Candidate({"rank": 8, "method": "lora"})["method"]
    'lora'
    """

    values: Mapping[str, Scalar]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", dict(sorted(self.values.items())))

    def __getitem__(self, name: str) -> Scalar:
        return self.values[name]

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> str:
        """16 hex digits, equal for equal values."""
        return digest(self.values)


@dataclass(frozen=True, slots=True)
class BaseFormat(_Plain):
    """How the frozen base is held while training.

    Attributes:
        bits: Bits of a weight: 32 and 16 are fp32 and bf16, 8 is LLM.int8, 4 is a type of bitsandbytes.
        quant_type: Which one: "nf4" or "fp4"; of no meaning with other bits.
        double_quant: Whether the scales of 4-bit weights are quantised too.
        compute_dtype: What a quantised base computes in: "bfloat16", "float16", "float32"; "auto" is bf16 on CUDA,
            fp32 on a CPU.
    """

    bits: int
    quant_type: str = "nf4"
    double_quant: bool = True
    compute_dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class Recipe(_Plain):
    """How a candidate is trained.

    Attributes:
        learning_rate: Peak learning rate, absolute.
        batch_size: Rows an optimiser step.
        gradient_accumulation_steps: Parts that the rows of a step are cut into, one forward and backward pass each.
        gradient_checkpointing: Whether layers are computed again in the backward pass to save memory.
        optimizer: A name in OPTIMIZERS.
        weight_decay: Decoupled weight decay of what is trained.
        warmup_ratio: Share of the steps over which the learning rate rises.
        lr_scheduler: How it falls after: "linear", "cosine", or "constant".
        max_length: Tokens a row is cut to; 0 for as many as the data was prepared with.
        packing: Whether short texts share a row.
    """

    learning_rate: float
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    warmup_ratio: float = 0.06
    lr_scheduler: str = "linear"
    max_length: int = 0
    packing: bool = False


@dataclass(frozen=True, slots=True)
class AdapterPlan(_Plain):
    """What a candidate means on one model: the adapter to build, its exact size, and how it is trained.

    Attributes:
        method: A name in METHODS.
        sizes: Module name -> rank (or 1 for a vector) that must be found there after attaching.
        config: Fields of PEFT's adapter configuration, `peft_type` among them; or of one of ours, with `adapter_type`;
            or, of a hybrid, {"parts": list of such}.
        adapter_params: Trained scalars of the adapter, without a task head.
    """

    method: str
    sizes: Mapping[str, int]
    config: Mapping[str, Any]
    adapter_params: int
    base: BaseFormat
    recipe: Recipe

    @property
    def bits(self) -> int:
        """Bits of a base weight while training."""
        return self.base.bits

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, absolute."""
        return self.recipe.learning_rate

    @property
    def configs(self) -> tuple[Mapping[str, Any], ...]:
        """The configurations of the adapters that make up this one, in the order in which they are attached."""
        return tuple(self.config.get("parts", (self.config,)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`."""
        plan = super(AdapterPlan, cls).from_dict(data)
        return replace(plan, base=BaseFormat.from_dict(data["base"]), recipe=Recipe.from_dict(data["recipe"]))


@dataclass(frozen=True, slots=True)
class Cost(_Plain):
    """What is known of a candidate before training; None where it is not known.

    Attributes:
        memory_bytes: Predicted peak memory of training; 0 where nothing was predicted.
    """

    adapter_params: int
    head_params: int = 0
    memory_bytes: int = 0

    @property
    def trainable_params(self) -> int:
        """Everything that is trained: the adapter and a new task head."""
        return self.adapter_params + self.head_params


_COUNTS = (
    "trainable_params", "memory_bytes", "predicted_bytes", "head_params", "reserved_bytes", "adapter_bytes", "steps",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measurement(_Plain):
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
class WorkUnit(_Plain):
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
class WorkerSpec(_Plain):
    """How a worker process makes its runner: `entry` ("module:name") called with `settings` as keywords."""

    entry: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome(_Plain):
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
        return replace(outcome, measurement=_measurement(data.get("measurement")))


@dataclass(frozen=True, slots=True)
class RungResult(_Plain):
    """How a trial stood at the end of a work unit.

    Attributes:
        step: Optimiser steps taken by then.
        loss: Held-out loss; of a custom runner that gives none, its quality so that smaller is better.
        costs: The other objectives in their order, so that smaller is better.
    """

    step: int
    loss: float
    costs: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`, or from JSON, which knows no tuples."""
        return cls(int(data["step"]), float(data["loss"]), tuple(map(float, data["costs"])))


@dataclass(frozen=True, slots=True)
class TrialRecord(_Plain):
    """Everything that is kept of one trial; a line of `records.jsonl` a work unit, the last of which counts.

    Attributes:
        values: Objective name -> value, for a complete trial.
        reason: Why there is no value, for any other.
        measurement: What the last work unit gave.
        seconds: Time of all its work units.
        steps: Optimiser steps that these took, those trained again included.
        rungs: How it stood at the end of each.
        plan: Adapter that was trained; None for a custom runner.
        exhausted_bytes: Memory that was in use when it ran out, 1 where that is not known; 0 if it did not.
    """

    number: int
    state: TrialState
    candidate: Candidate
    seed: int
    cost: Cost | None = None
    plan: AdapterPlan | None = None
    measurement: Measurement | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    traceback: str = ""
    worker: str = ""
    seconds: float = 0.0
    finished_at: str = ""
    exhausted_bytes: int = 0
    steps: int = 0
    rungs: tuple[RungResult, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`."""
        record = super(TrialRecord, cls).from_dict(data)
        return replace(
            record,
            candidate=Candidate.from_dict(data["candidate"]),
            cost=Cost.from_dict(data["cost"]) if data.get("cost") else None,
            plan=AdapterPlan.from_dict(data["plan"]) if data.get("plan") else None,
            measurement=_measurement(data.get("measurement")),
            rungs=tuple(map(RungResult.from_dict, data.get("rungs", ()))),
        )


@dataclass(frozen=True, slots=True)
class Prior(_Plain):
    """What an earlier run says of candidates of this one: which were the better ones there, and no result of any.

    Attributes:
        run: Where it was read; it is not needed any more.
        candidates: ``(n_trials,)``: of the space of this run.
        scores: ``(n_trials,)``: how good each was in that run, smaller is better: the standard normal's quantile at
            its rank, so that neither the metric's scale nor the length of the trainings matters.
        skipped: Its trials that say nothing here: without a result that counts, or not of this run's space.
        differs: In what that run was another, in words.
    """

    run: str
    candidates: tuple[Candidate, ...]
    scores: tuple[float, ...]
    skipped: int = 0
    differs: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`, or from JSON, which knows no tuples."""
        prior = super(Prior, cls).from_dict(data)
        candidates = tuple(map(Candidate.from_dict, data["candidates"]))
        return replace(prior, candidates=candidates, scores=tuple(prior.scores), differs=tuple(prior.differs))


@dataclass(frozen=True, slots=True)
class RunInfo(_Plain):
    """What was run: everything about a run that is not a trial; `run.json` in the run directory.

    Attributes:
        request: The whole request, field -> value.
        objectives: For each objective its name, goal ("maximize" or "minimize") and unit, in order.
        space: The search space as YAML text.
        anatomy: Anatomy of the model as plain values; None with a custom runner.
        data: What the data is: name, rows a split, labels, fingerprint, notes of what was done to it; empty with a
            custom runner.
        model: What the model is: name, checksum of the base's weights, bits of its checkpoint; empty likewise.
        parameter_limit, memory_limit_bytes: The budget as numbers; None for no limit.
        versions: Package -> version.
        hardware: What the machine is, name -> text.
        prior: What was taken from earlier runs.
    """

    request: Mapping[str, Any]
    objectives: tuple[Mapping[str, str], ...]
    space: str
    created_at: str
    versions: Mapping[str, str]
    hardware: Mapping[str, str]
    anatomy: Mapping[str, Any] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    parameter_limit: int | None = None
    memory_limit_bytes: int | None = None
    prior: tuple[Prior, ...] = ()
    schema: int = SCHEMA_VERSION

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`, or from JSON, which knows no tuples."""
        info = super(RunInfo, cls).from_dict(data)
        return replace(
            info, objectives=tuple(info.objectives), prior=tuple(map(Prior.from_dict, data.get("prior", ())))
        )


def _finite_or_text(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _finite_or_text(v) for k, v in value.items()}
    return type(value)(map(_finite_or_text, value)) if isinstance(value, list | tuple) else value


def _measurement(data: Mapping[str, Any] | None) -> Measurement | None:
    return Measurement.from_dict(data) if data else None
