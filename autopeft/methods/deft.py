"""DEFT: takes a small subspace out of each weight's outputs and trains what stands in it instead.

Source: as PEFT has it (DeftConfig).
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number


def rank_at(linear: Linear, rank: int) -> int:
    """Give the rank at a linear: a subspace of its outputs has no more than these."""
    return min(rank, linear.fan_out)


def trainable_params(linear: Linear, *, rank: int) -> int:
    """Count one linear's trained scalars: the subspace and what stands in it, ``rank * (fan_in + fan_out)``.

    >>> trainable_params(Linear("q_proj", "query", 0, fan_in=4096, fan_out=1024), rank=8)
    40960
    """
    return rank_at(linear, rank) * (linear.fan_in + linear.fan_out)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place a subspace on every linear that is on."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 8)
    config = {
        "peft_type": "DEFT",
        "r": rank,
        # Not qr: its factors are unique up to signs, which other libraries choose otherwise, and are not saved.
        "decomposition_method": "relu",
        "deft_dropout": number(settings.get("dropout"), 0.0),
        "target_modules": names_of(targets),
    }
    params = sum(trainable_params(linear, rank=rank) for linear in targets)
    return Build({linear.name: rank_at(linear, rank) for linear in targets}, params, config)


METHOD = Method(
    name="deft",
    title="DEFT",
    source="PEFT 0.21 (DeftConfig)",
    learning_rate=5e-4,
    learning_rate_source="as for LoRA",
    settings={
        "rank": "rank of the subspace, a whole number",
        "dropout": "dropout before the update",
        **PLACES,
    },
    allowed={
        "rank": is_count,
        "dropout": lambda value: is_amount(value) and float(value) < 1,
        **PLACES_ALLOWED,
    },
    build=build,
    spread=PLACES_SPREAD,
    # It multiplies with the weight as it is stored.
    bits=(16, 32),
)
