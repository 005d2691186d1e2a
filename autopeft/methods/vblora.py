"""VB-LoRA: low-rank products put together of vectors of one bank that the whole model shares; logits choose them.

Source: Li et al., arXiv:2405.15179.
"""

from __future__ import annotations

import math

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number


def trainable_params(targets: list[Linear], *, rank: int, vectors: int, length: int) -> int:
    """Count the trained scalars of a model: the bank, and for each piece of each product one logit a vector.

    >>> trainable_params([Linear("q_proj", "query", 0, fan_in=512, fan_out=256)], rank=4, vectors=16, length=256)
    4288
    """
    pieces = sum(rank * (linear.fan_in + linear.fan_out) // length for linear in targets)
    return vectors * (length + pieces) if targets else 0


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place products on every linear that is on; a vector is as long as can be, up to `length`, to divide each side."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 4)
    vectors = one_size(settings, "vectors", 256)
    length = math.gcd(one_size(settings, "length", 256), *(size for x in targets for size in (x.fan_in, x.fan_out)))
    config = {
        "peft_type": "VBLORA",
        "r": rank,
        "num_vectors": vectors,
        "vector_length": length,
        "topk": min(2, vectors),
        "vblora_dropout": number(settings.get("dropout"), 0.0),
        "target_modules": names_of(targets),
    }
    params = trainable_params(targets, rank=rank, vectors=vectors, length=length)
    return Build({linear.name: rank for linear in targets}, params, config)


METHOD = Method(
    name="vblora",
    title="VB-LoRA",
    source="arXiv:2405.15179",
    learning_rate=5e-4,
    learning_rate_source="PEFT's method comparison (MetaMathQA, Llama-3.2-3B)",
    settings={
        "rank": "rank of the products, a whole number",
        "vectors": "vectors in the bank",
        "length": "length of a vector; taken is its greatest common divisor with the sides of the weights",
        "dropout": "dropout before the product",
        **PLACES,
    },
    allowed={
        "rank": is_count,
        "vectors": is_count,
        "length": is_count,
        "dropout": lambda value: is_amount(value) and float(value) < 1,
        **PLACES_ALLOWED,
    },
    build=build,
    spread=PLACES_SPREAD,
    starts_at_identity=False,
)
