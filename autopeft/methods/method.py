"""What a PEFT method is to the search: what it trains, exactly how much, and what it can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.anatomy import Anatomy, Linear
from autopeft.records import Scalar
from autopeft.space import setting_at

Settings = Mapping[str, Scalar | Mapping[str, Scalar]]
"""What a candidate says of its method: setting -> value, or value per group of layers, per kind of module, or both."""


@dataclass(frozen=True, slots=True)
class Build:
    """An adapter for one model.

    Attributes:
        sizes: Module name -> rank, or 1 for a vector; empty for the prompt methods.
        params: Trained scalars, without a task head.
        config: Fields of PEFT's adapter configuration, `peft_type` among them.
    """

    sizes: Mapping[str, int]
    params: int
    config: Mapping[str, Any]


def _never(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Method:
    """One PEFT method.

    Attributes:
        source: Where it comes from.
        learning_rate: The customary peak learning rate with Adam; a search tries multiples of it.
        learning_rate_source: Who used it.
        settings: Setting -> what it means; a search space may set these.
        build: (settings, anatomy) -> the adapter. Pure; an adapter of no parameters is no candidate.
        refuses: (settings, bits, anatomy) -> why this cannot be trained on that base; "" if it can.
        bits: Bits of a base weight on which its gradients are right.
        mergeable: Whether it can be folded into the base's weights, so that inference costs nothing more.
        starts_at_identity: Whether the untrained adapter leaves the model's output as it was.
        reaches_kinds: Whether it is placed on kinds of module and layers (the prompt methods are not).
    """

    name: str
    title: str
    source: str
    learning_rate: float
    learning_rate_source: str
    settings: Mapping[str, str]
    build: Callable[[Settings, Anatomy], Build]
    refuses: Callable[[Settings, int, Anatomy], str] = _never
    bits: tuple[int, ...] = (4, 8, 16, 32)
    tasks: tuple[str, ...] = ("text-classification", "causal-lm")
    mergeable: bool = True
    starts_at_identity: bool = True
    reaches_kinds: bool = True


def number(setting: Scalar | Mapping[str, Scalar] | None, default: float) -> float:
    """Read a setting that is one number for the whole model."""
    return default if setting is None or isinstance(setting, Mapping | str) else float(setting)


def chosen(linears: Iterable[Linear], settings: Settings, *names: str) -> dict[str, float]:
    """Give the linears that are on: module name -> product of the named settings there.

    A setting that is not given counts as 1; a linear at which one of them is 0 is off.
    """
    at: dict[str, float] = {}
    for linear in linears:
        factor = 1.0
        for name in names:
            value = setting_at(settings.get(name, 1), layer=linear.layer, kind=linear.kind)
            factor *= number(value, 1)
        if factor > 0:
            at[linear.name] = factor
    return at
