"""How candidates are trained, and how the base is held meanwhile: what a request fixes and a search space may vary.

One schema for both: `Dimensions` checks a field of a request and a value in a space alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from autopeft.candidates import BaseFormat, Candidate, Recipe, Scalar
from autopeft.registry import Table, unknown

BITS = (4, 8, 16, 32)
"""What a base weight can have while training."""


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimiser: where its class is ("module:name"), and what that is called with beside rate and weight decay."""

    title: str
    entry: str
    options: Mapping[str, Any] = field(default_factory=dict)


OPTIMIZERS = Table(
    adamw=Optimizer("AdamW, one fused kernel", "torch.optim:AdamW", {"fused": True}),
    # With an outside learning rate, as its authors of transformers recommend for fine-tuning (arXiv:1804.04235).
    adafactor=Optimizer(
        "Adafactor: the second moment as a row and a column, no first",
        "transformers.optimization:Adafactor",
        {"scale_parameter": False, "relative_step": False},
    ),
    # Blockwise 8-bit moments (arXiv:2110.02861); tensors below 4,096 scalars keep theirs in fp32.
    adamw_8bit=Optimizer("AdamW with moments of 8 bits", "bitsandbytes.optim:AdamW8bit"),
    paged_adamw_8bit=Optimizer(
        "the same, moments in memory that CUDA may move to the host", "bitsandbytes.optim:PagedAdamW8bit"
    ),
)
"""The optimisers by name."""


def _linear(step: int, warm: int, steps: int) -> float:
    return (steps - step) / max(1, steps - warm)


def _cosine(step: int, warm: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * max(0.0, (step - warm) / max(1, steps - warm))))


def _constant(step: int, warm: int, steps: int) -> float:
    return 1.0


SCHEDULERS: Mapping[str, Callable[[int, int, int], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
}
"""(step, steps of the warm-up, steps) -> learning rate after the warm-up, as a fraction of the peak; the formulas are
those of transformers' schedules with warm-up."""


def rate_at(step: int, steps: int, recipe: Recipe) -> float:
    """Give the learning rate of a step as a fraction of the peak; the warm-up's first step is not wasted on rate 0.

    >>> rate_at(0, 100, Recipe(1e-3)), rate_at(5, 100, Recipe(1e-3)), rate_at(100, 100, Recipe(1e-3))
    (0.16666666666666666, 1.0, 0.0)
    """
    warm = math.ceil(recipe.warmup_ratio * steps)
    return min((step + 1) / max(1, warm), SCHEDULERS[recipe.lr_scheduler](step, warm, steps))


def _optimizer(name: str) -> str:
    if name not in OPTIMIZERS:
        raise ValueError(str(unknown(name, OPTIMIZERS, what="optimizer")))
    return name


class Dimensions(BaseModel):
    """The fields of a request that a search space may vary as well; a space's parameter of the same name wins."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: Annotated[int, Field(ge=1)] = Field(8, description="rows an optimiser step")
    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens a row is cut to")
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = Field(
        1, description="parts that the rows of a step are cut into: the same step in less memory"
    )
    gradient_checkpointing: bool = Field(False, description="compute layers twice to save memory")
    packing: bool = Field(False, description="short texts share a row, unseen by each other; causal-lm only")
    optimizer: Annotated[str, AfterValidator(_optimizer)] = Field("adamw", description="what takes the steps")
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="decoupled weight decay")
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.06, description="share of the steps over which the learning rate rises"
    )
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field("linear", description="how it goes on after")
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="the kind of 4 bits")
    double_quant: bool = Field(True, description="whether the scales of 4-bit weights are quantised too")
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="what a base of 4, 8 or 16 bits computes in; auto suits the device"
    )


CUSTOMARY = Recipe(learning_rate=0.0)
"""What is done where nobody says otherwise; the learning rate is each method's own."""
_FORMAT = ("quant_type", "double_quant", "compute_dtype")


def _checker(info: FieldInfo) -> TypeAdapter[Any]:
    kind: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    return TypeAdapter(kind)


DIMENSIONS: Mapping[str, TypeAdapter[Any]] = {name: _checker(info) for name, info in Dimensions.model_fields.items()}
"""Parameter of a space -> what checks a value of it."""


def holds(name: str, value: Scalar) -> bool:
    """Tell whether a dimension can have a value.

    >>> holds("batch_size", 16), holds("batch_size", 0), holds("packing", True), holds("packing", 1)
    (True, False, True, False)
    """
    try:
        DIMENSIONS[name].validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def defaults(fields: Mapping[str, Any], *, max_length: int) -> tuple[Recipe, BaseFormat]:
    """Give what a request says of every candidate; the learning rate and the bits are each candidate's own.

    Args:
        fields: Those of the request; of one of an earlier version, some may be missing.
        max_length: Tokens that a row of the prepared data has at most.
    """
    said = Dimensions(**{name: fields[name] for name in DIMENSIONS if name in fields}).model_dump()
    base = BaseFormat(0, **{name: said.pop(name) for name in _FORMAT})
    return Recipe(learning_rate=0.0, **{**said, "max_length": max_length}), base


def recipe_of(candidate: Candidate, default: Recipe, *, learning_rate: float) -> Recipe:
    """Give a candidate's recipe: what it says itself, else the request's."""
    said = {n: _typed(n, v) for n, v in candidate.values.items() if n in DIMENSIONS and n not in _FORMAT}
    return replace(default, learning_rate=learning_rate, **said)


def format_of(candidate: Candidate, default: BaseFormat) -> BaseFormat:
    """Give the format of a candidate's base; what means nothing at its bits is left at its usual value.

    >>> format_of(Candidate({"bits": 16}), BaseFormat(32, quant_type="fp4", compute_dtype="float32"))
    BaseFormat(bits=16, quant_type='nf4', double_quant=True, compute_dtype='auto')
    """
    said = {n: _typed(n, v) for n, v in candidate.values.items() if n in _FORMAT}
    base = replace(default, bits=int(candidate.values.get("bits", default.bits)), **said)
    own_type = base.bits in (4, 8) or (base.bits == 16 and base.compute_dtype == "float16")
    return BaseFormat(
        base.bits,
        quant_type=base.quant_type if base.bits == 4 else "nf4",
        double_quant=base.double_quant if base.bits == 4 else True,
        compute_dtype=base.compute_dtype if own_type else "auto",
    )


def _typed(name: str, value: Scalar) -> Any:
    """Give a value its dimension's type: what came through Optuna or JSON must make equal plans."""
    return DIMENSIONS[name].validate_python(value)


def conflict(recipe: Recipe, *, task: str) -> str:
    """Say why a recipe contradicts itself or the task; "" if it does not."""
    parts, rows = recipe.gradient_accumulation_steps, recipe.batch_size
    if parts > rows:
        return (
            f"gradient_accumulation_steps: {parts} is more than the {rows} rows of a step; lower it or raise batch_size"
        )
    if recipe.packing and task != "causal-lm":
        return f"packing: it is for causal-lm, not for {task}; drop it"
    return ""


def conflict_with(recipe: Recipe, configs: Iterable[Mapping[str, Any]]) -> str:
    """Say why adapters cannot be trained by a recipe; "" if they can."""
    for config in configs:
        if recipe.packing and "num_virtual_tokens" in config:
            return "packing and a prompt do not go together: it stands before a row, not before each text in it"
        if recipe.gradient_checkpointing and config.get("peft_type") in ("PREFIX_TUNING", "CARTRIDGE"):
            return "gradient_checkpointing and trained keys and values do not go together: transformers drops them"
    return ""
