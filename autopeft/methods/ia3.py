"""IA3: one trained vector that scales the output of a linear, or the input of those that narrow (feed-forward out).

Source: Liu et al., arXiv:2205.05638.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, targets_of
from autopeft.methods.method import Build, Method, Settings


def trainable_params(linear: Linear) -> int:
    """Count one linear's trained scalars: its outputs, or its inputs where the input is scaled.

    >>> trainable_params(Linear("mlp.down_proj", "down", 0, fan_in=11008, fan_out=4096))
    11008
    """
    return linear.fan_in if linear.kind == "down" else linear.fan_out


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place a vector on every linear whose layer and kind are on."""
    targets = targets_of(settings, anatomy)
    config = {
        "peft_type": "IA3",
        "target_modules": names_of(targets),
        "feedforward_modules": [linear.name for linear in targets if linear.kind == "down"],
    }
    return Build({linear.name: 1 for linear in targets}, sum(map(trainable_params, targets)), config)


METHOD = Method(
    name="ia3",
    title="IA3",
    source="arXiv:2205.05638",
    learning_rate=3e-3,
    learning_rate_source="Liu et al. 2022 (T-Few)",
    settings=PLACES,
    allowed=PLACES_ALLOWED,
    build=build,
    spread=PLACES_SPREAD,
)
