"""RandLoRA: a sum of frozen random products of full rank together, shared by all linears, whose scales are trained.

Source: Albert et al., arXiv:2502.00987.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number

ALPHA = 20
"""Alpha as a multiple of the rank (Albert et al. 2025; PEFT's default is this at its default rank)."""


def trainable_params(linear: Linear, *, rank: int) -> int:
    """Count one linear's trained scalars: of each of its ``min / rank`` products (rounded up) ``rank + min`` scales.

    A higher rank means fewer products, and so fewer scalars.

    >>> trainable_params(Linear("q_proj", "query", 0, fan_in=4096, fan_out=1024), rank=32)
    33792
    """
    smaller = min(linear.fan_in, linear.fan_out)
    return -(-smaller // rank) * (rank + smaller)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place scales on every linear that is on."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 32)
    config = {
        "peft_type": "RANDLORA",
        "r": rank,
        "target_modules": names_of(targets),
        "randlora_alpha": ALPHA * rank,
        "randlora_dropout": number(settings.get("dropout"), 0.0),
    }
    params = sum(trainable_params(linear, rank=rank) for linear in targets)
    return Build({linear.name: rank for linear in targets}, params, config)


METHOD = Method(
    name="randlora",
    title="RandLoRA",
    source="arXiv:2502.00987",
    learning_rate=1e-4,
    learning_rate_source="PEFT's method comparison (MetaMathQA, Llama-3.2-3B)",
    settings={
        "rank": "rank of each random product, a whole number; a higher one trains less",
        "dropout": "dropout before the product",
        **PLACES,
    },
    allowed={"rank": is_count, "dropout": lambda value: is_amount(value) and float(value) < 1, **PLACES_ALLOWED},
    build=build,
    spread=PLACES_SPREAD,
)
