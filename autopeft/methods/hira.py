"""HiRA: a low-rank product that scales each weight, so that the update is of high rank.

Source: Huang et al., ICLR 2025 (openreview TwJrTz9cRS).
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number


def trainable_params(fan_in: int, fan_out: int, *, rank: int) -> int:
    """Count one linear's trained scalars, as many as LoRA's: ``rank * (fan_in + fan_out)``.

    >>> trainable_params(4096, 1024, rank=8)
    40960
    """
    return rank * (fan_in + fan_out)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place a product on every linear that is on; PEFT 0.21 has a `rank_pattern` here and gives all the same rank."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 32)
    config = {
        "peft_type": "HIRA",
        "r": rank,
        "hira_dropout": number(settings.get("dropout"), 0.0),
        "target_modules": names_of(targets),
    }
    params = sum(trainable_params(x.fan_in, x.fan_out, rank=rank) for x in targets)
    return Build({linear.name: rank for linear in targets}, params, config)


METHOD = Method(
    name="hira",
    title="HiRA",
    source="openreview TwJrTz9cRS",
    learning_rate=4.5e-3,
    learning_rate_source="PEFT's method comparison (MetaMathQA, Llama-3.2-3B)",
    settings={"rank": "rank of the product, a whole number", "dropout": "dropout before the product", **PLACES},
    allowed={"rank": is_count, "dropout": lambda value: is_amount(value) and float(value) < 1, **PLACES_ALLOWED},
    build=build,
    spread=PLACES_SPREAD,
)
