"""AdaLoRA: a product of three factors beside each linear, whose rank is allocated between the linears while training.

Training begins with half as much rank again as will remain, and prunes the least important triplets, of all linears
together, until `rank` remain on average. Counted is what the optimiser trains, so the rank at the beginning; what is
saved has the rank that remained.

Source: Zhang et al., arXiv:2303.10512.
"""

from __future__ import annotations

import math

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number

BEGIN = 1.5
"""The rank at the beginning, as a multiple of the average that remains (Zhang et al. 2023, appendix)."""


def trainable_params(linear: Linear, *, rank: int) -> int:
    """Count one linear's trained scalars, given the rank at the beginning: ``rank * (fan_in + fan_out + 1)``.

    >>> trainable_params(Linear("q_proj", "query", 0, fan_in=4096, fan_out=1024), rank=12)
    61452
    """
    return rank * (linear.fan_in + linear.fan_out + 1)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place triplets of the first rank on every linear that is on; the schedule is set when the steps are known."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 8)
    first = math.ceil(BEGIN * rank)
    config = {
        "peft_type": "ADALORA",
        "target_modules": names_of(targets),
        "init_r": first,
        "target_r": rank,
        # PEFT scales by alpha itself, not by alpha / r.
        "lora_alpha": number(settings.get("alpha"), 1.0),
        "orth_reg_weight": number(settings.get("orthogonality"), 0.1),
        "total_step": 1,
    }
    params = sum(trainable_params(linear, rank=first) for linear in targets)
    return Build({linear.name: first for linear in targets}, params, config)


METHOD = Method(
    name="adalora",
    title="AdaLoRA",
    source="arXiv:2303.10512",
    learning_rate=1e-3,
    learning_rate_source="Zhang et al. 2023, GLUE with DeBERTaV3-base (5e-4 to 2e-3)",
    settings={
        "rank": "average rank that remains, a whole number",
        "alpha": "factor of the update",
        "orthogonality": "weight of the penalty that keeps the factors orthogonal",
        **PLACES,
    },
    allowed={
        "rank": is_count,
        "alpha": lambda value: is_amount(value) and float(value) > 0,
        "orthogonality": is_amount,
        **PLACES_ALLOWED,
    },
    build=build,
    spread=PLACES_SPREAD,
)
