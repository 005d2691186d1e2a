"""RoAd: the outputs of a linear are rotated in pairs, and scaled, by trained angles and factors.

Source: Liao and Monz, arXiv:2409.00119.
"""

from __future__ import annotations

import math

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, targets_of, transposed
from autopeft.methods.method import Build, Method, Settings

VARIANTS = {"1": 1, "2": 2, "4": 4}
"""How many angles and as many factors each pair of outputs has."""

_GROUP = 64
"""Largest distance of a pair's outputs; which of them make a pair does not matter to what can be learnt."""


def trainable_params(fan_out: int, *, variant: str) -> int:
    """Count one linear's trained scalars: for each pair of outputs, `variant` angles and as many factors.

    >>> trainable_params(4096, variant="1"), trainable_params(4096, variant="4")
    (4096, 16384)
    """
    return 2 * VARIANTS[variant] * (fan_out // 2)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place rotations on every linear whose layer and kind are on."""
    variant, targets = str(settings.get("variant", "1")), targets_of(settings, anatomy)
    common = math.gcd(_GROUP, *(linear.fan_out for linear in targets))
    config = {
        "peft_type": "ROAD",
        "variant": f"road_{variant}",
        "group_size": common,
        "target_modules": names_of(targets),
    }
    params = sum(trainable_params(linear.fan_out, variant=variant) for linear in targets)
    return Build({linear.name: 1 for linear in targets}, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """Outputs must come in pairs, and PEFT has no RoAd for GPT-2's Conv1D."""
    targets = targets_of(settings, anatomy)
    for linear in targets:
        if linear.fan_out % 2:
            return f"the outputs of {linear.name!r}, {linear.fan_out}, do not make pairs; turn its kind off"
    return transposed(targets, "RoAd")


METHOD = Method(
    name="road",
    title="RoAd",
    source="arXiv:2409.00119",
    learning_rate=1e-3,
    learning_rate_source="PEFT's documentation of RoAd",
    settings={**PLACES, "variant": "1, 2 or 4: angles, and factors, of a pair of outputs"},
    allowed={**PLACES_ALLOWED, "variant": lambda value: isinstance(value, str) and value in VARIANTS},
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
)
