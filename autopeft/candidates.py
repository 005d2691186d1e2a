"""What is tried: a candidate, and what it means on one model.

That is the adapter to build and its exact size, how the frozen base is held, how it is trained, and what is known of
its cost before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from autopeft.plain import Plain, digest

Scalar = str | int | float | bool
"""A value of a parameter."""


@dataclass(frozen=True, slots=True)
class Candidate(Plain):
    """One configuration to try: the active parameters of a space and their values.

    >>> Candidate({"rank": 8, "method": "lora"})["method"]
    'lora'
    """

    values: Mapping[str, Scalar]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", dict(sorted(self.values.items())))

    def __getitem__(self, name: str) -> Scalar:
        return self.values[name]

    def __eq__(self, other: object) -> bool:
        """Tell whether all values are equal; 1 and True, of which a choice may have both, are not."""
        if not isinstance(other, Candidate):
            return NotImplemented
        pairs = zip(self.values.values(), other.values.values(), strict=False)
        return self.values == other.values and all(isinstance(a, bool) == isinstance(b, bool) for a, b in pairs)

    def __hash__(self) -> int:
        return hash(tuple(self.values.items()))

    @property
    def key(self) -> str:
        """16 hex digits, equal for equal values."""
        return digest(self.values)

    @property
    def written_out(self) -> str:
        """Every value by name, for a fault that it caused."""
        return ", ".join(f"{name}={value}" for name, value in self.values.items())


@dataclass(frozen=True, slots=True)
class BaseFormat(Plain):
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
class Recipe(Plain):
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
class AdapterPlan(Plain):
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
class Cost(Plain):
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
