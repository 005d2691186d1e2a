"""TinyLoRA: a handful of scalars choose an update within the largest singular directions of each weight.

Source: Morris et al., arXiv:2602.04118.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number


def trainable_params(linears: int, *, scalars: int, tying: float) -> int:
    """Count the trained scalars of a model: one vector for each group of linears that share it.

    >>> trainable_params(20, scalars=13, tying=0.0), trainable_params(20, scalars=13, tying=1.0)
    (260, 13)
    """
    return scalars * max(1, round(linears * (1.0 - tying))) if linears else 0


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place an update on every linear that is on."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 2)
    scalars, tying = one_size(settings, "scalars", 32), number(settings.get("tying"), 0.0)
    config = {
        "peft_type": "TINYLORA",
        "r": rank,
        "u": scalars,
        "weight_tying": tying,
        "tinylora_dropout": number(settings.get("dropout"), 0.0),
        "target_modules": names_of(targets),
    }
    sizes = {x.name: min(rank, x.fan_in, x.fan_out) for x in targets}
    return Build(sizes, trainable_params(len(targets), scalars=scalars, tying=tying), config)


METHOD = Method(
    name="tinylora",
    title="TinyLoRA",
    source="arXiv:2602.04118",
    learning_rate=5e-3,
    learning_rate_source="ours: ten times LoRA's, since it trains a handful of scalars; no published value was found",
    settings={
        "rank": "singular directions of each weight, a whole number",
        "scalars": "trained scalars of a group of linears",
        "tying": "share of the linears that have no vector of their own, 0 to 1",
        "dropout": "dropout before the update",
        **PLACES,
    },
    allowed={
        "rank": is_count,
        "scalars": is_count,
        "tying": lambda value: is_amount(value) and float(value) <= 1,
        "dropout": lambda value: is_amount(value) and float(value) < 1,
        **PLACES_ALLOWED,
    },
    build=build,
    spread=PLACES_SPREAD,
    # It decomposes the weight as it is stored.
    bits=(16, 32),
)
