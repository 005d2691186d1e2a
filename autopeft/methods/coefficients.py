"""What the methods that train a few coefficients of a transformed weight share: how many, where, how PEFT is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import usual_and_named
from autopeft.methods.method import Allowed, Settings, chosen, is_amount, is_count, number
from autopeft.space import Per

COEFFICIENTS = {
    "coefficients": "trained coefficients of a linear's weight",
    "share": "share of the coefficients that a kind of module gets",
    "scaling": "factor of what is added to a weight",
}
COEFFICIENTS_ALLOWED: dict[str, Allowed] = {
    "coefficients": lambda value: value == 0 or is_count(value),
    "share": is_amount,
    "scaling": lambda value: is_amount(value) and float(value) > 0,
}
COEFFICIENTS_SPREAD: dict[str, tuple[Per, ...]] = {"coefficients": ("layers", "kinds"), "share": ("layers", "kinds")}

_USUAL = 1000
"""As many as PEFT takes when nobody says otherwise, after FourierFT's runs on RoBERTa."""


def coefficients_at(settings: Settings, anatomy: Anatomy) -> dict[str, int]:
    """Give every linear that is on its number: the layer's `coefficients` times the kind's `share`, rounded.

    At least 1, and at most as many as its weight has entries.
    """
    given = settings if "coefficients" in settings else {**settings, "coefficients": _USUAL}
    wanted = chosen(anatomy.linears, given, "coefficients", "share")
    entries = {linear.name: linear.fan_in * linear.fan_out for linear in anatomy.linears}
    return {name: min(max(1, int(amount + 0.5)), entries[name]) for name, amount in wanted.items()}


def coefficient_fields(counts: Mapping[str, int], settings: Settings, *, scaling: float) -> dict[str, Any]:
    """Give the fields by which PEFT's configurations are told the number of each module, and the scaling."""
    usual, other = usual_and_named(counts, _USUAL)
    return {
        "n_frequency": usual,
        "n_frequency_pattern": other,
        "target_modules": list(counts),
        "scaling": number(settings.get("scaling"), scaling),
    }
