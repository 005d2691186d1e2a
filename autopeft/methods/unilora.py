"""Uni-LoRA: all entries of low-rank products everywhere are read from one trained vector.

Source: Li et al., arXiv:2506.00799.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place products on every linear that is on; `length` scalars are trained for the whole model."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 4)
    length = one_size(settings, "length", 256)
    config = {
        "peft_type": "UNILORA",
        "r": rank,
        "theta_d_length": length,
        "unilora_dropout": number(settings.get("dropout"), 0.0),
        "target_modules": names_of(targets),
    }
    return Build({linear.name: rank for linear in targets}, length if targets else 0, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """Every scalar of the vector must be an entry of some product."""
    rank, length = one_size(settings, "rank", 4), one_size(settings, "length", 256)
    entries = rank * sum(linear.fan_in + linear.fan_out for linear in targets_of(settings, anatomy))
    return f"length {length} is more than the {entries} entries of all products" if 0 < entries < length else ""


METHOD = Method(
    name="unilora",
    title="Uni-LoRA",
    source="arXiv:2506.00799",
    learning_rate=2e-3,
    learning_rate_source="PEFT's method comparison (MetaMathQA, Llama-3.2-3B)",
    settings={
        "rank": "rank of the products, a whole number",
        "length": "length of the trained vector",
        "dropout": "dropout before the product",
        **PLACES,
    },
    allowed={
        "rank": is_count,
        "length": is_count,
        "dropout": lambda value: is_amount(value) and float(value) < 1,
        **PLACES_ALLOWED,
    },
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
    # It keeps its scales in the type of the weight, which is a whole number on a quantised base.
    bits=(16, 32),
    starts_at_identity=False,
)
