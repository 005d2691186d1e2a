"""What a PEFT method is to the search: what it trains, exactly how much, and what it can do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autopeft.anatomy import Anatomy, Linear
from autopeft.candidates import Scalar
from autopeft.space import Per, places_of

Settings = Mapping[str, Scalar | Mapping[str, Scalar]]
"""What a candidate says of its method: setting -> value, or value per group of layers, per kind of module, or both."""


@dataclass(frozen=True, slots=True)
class Build:
    """An adapter for one model.

    Attributes:
        sizes: Module name -> rank, or 1 for a vector; empty for the prompt methods.
        params: Trained scalars, without a task head.
        config: Fields of PEFT's adapter configuration, `peft_type` among them; or of one of ours; see `AdapterPlan`.
    """

    sizes: Mapping[str, int]
    params: int
    config: Mapping[str, Any]


Allowed = Callable[[Scalar], bool]


def is_switch(value: Scalar) -> bool:
    """Tell a value that is on or off."""
    return isinstance(value, bool)


def is_count(value: Scalar) -> bool:
    """Tell a whole number from 1."""
    return is_amount(value) and value == int(value) > 0


def is_amount(value: Scalar) -> bool:
    """Tell a number from 0, which is "off"."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _never(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Method:
    """One PEFT method.

    Attributes:
        source: Where it comes from.
        learning_rate: The customary peak learning rate with Adam; a search tries multiples of it.
        learning_rate_source: Who used it.
        settings: Setting -> what it is; a search space may set these.
        allowed: Setting -> tells whether a value is one that it can have.
        spread: Setting -> what it may differ over; a setting that is not here has one value for the whole model.
        build: (settings, anatomy) -> the adapter. Pure; an adapter of no parameters is no candidate.
        count: (settings, anatomy) -> the parameters of that adapter, where this takes less time than to build it:
            hundreds of candidates a proposal are counted.
        refuses: (settings, bits, anatomy) -> why this cannot be trained on that base; "" if it can.
        bits: Bits of a base weight on which its gradients are right.
        mergeable: Whether it can be folded into the base's weights, so that inference costs nothing more.
        starts_at_identity: Whether the untrained adapter leaves the model's output as it was.
        reaches_kinds: Whether it is placed on kinds of module and layers (the prompt methods are not).
        takes_positions: Whether its setting `tokens` takes positions of the model, before the text.
        reference: Whether it is there to be compared with, and never searched under a parameter budget.
    """

    name: str
    title: str
    source: str
    learning_rate: float
    learning_rate_source: str
    settings: Mapping[str, str]
    allowed: Mapping[str, Allowed]
    build: Callable[[Settings, Anatomy], Build]
    spread: Mapping[str, tuple[Per, ...]] = field(default_factory=dict)
    refuses: Callable[[Settings, int, Anatomy], str] = _never
    bits: tuple[int, ...] = (4, 8, 16, 32)
    count: Callable[[Settings, Anatomy], int] | None = None
    tasks: tuple[str, ...] = ("text-classification", "causal-lm", "seq2seq-lm")
    mergeable: bool = True
    starts_at_identity: bool = True
    reaches_kinds: bool = True
    takes_positions: bool = False
    reference: bool = False

    def params(self, settings: Settings, anatomy: Anatomy) -> int:
        """Count the parameters of the adapter that would be built."""
        return self.count(settings, anatomy) if self.count else self.build(settings, anatomy).params


def number(setting: Scalar | Mapping[str, Scalar] | None, default: float) -> float:
    """Read a setting that is one number for the whole model."""
    return default if setting is None or isinstance(setting, str | dict) else float(setting)  # type: ignore[arg-type]


def chosen(linears: Iterable[Linear], settings: Settings, *names: str) -> dict[str, float]:
    """Give the linears that are on: module name -> product of the named settings there.

    A setting that is not given counts as 1; a linear at which one of them is 0 is off.
    """
    linears = list(linears)
    factors = [1.0] * len(linears)
    for setting in (settings.get(name, 1) for name in names):
        said = _at_each(setting, linears) if isinstance(setting, Mapping) else [number(setting, 1)] * len(linears)
        factors = [factor * value for factor, value in zip(factors, said, strict=True)]
    return {linear.name: factor for linear, factor in zip(linears, factors, strict=True) if factor > 0}


def _at_each(setting: Mapping[str, Scalar], linears: Iterable[Linear]) -> list[float]:
    """Read a setting at each linear: `setting_at`, for many places at once."""
    said: dict[tuple[int | None, str | None], float] = {}
    for key, value in setting.items():
        for place in places_of(key):
            said.setdefault(place, number(value, 1))
    read = said.get
    if all(kind is None for _, kind in said):  # of most settings, and hundreds of candidates a proposal are counted
        return [read((x.layer, None), 0.0) for x in linears]
    if all(layer is None for layer, _ in said):
        return [read((None, x.kind), 0.0) for x in linears]
    return [read((x.layer, x.kind), read((x.layer, None), read((None, x.kind), 0.0))) for x in linears]
