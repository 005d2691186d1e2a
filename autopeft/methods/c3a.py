"""C3A: beside a linear runs another whose weight is made of circulant blocks, each given by one trained row.

Source: Chen et al., arXiv:2407.19342.
"""

from __future__ import annotations

import math

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import (
    PLACES,
    PLACES_ALLOWED,
    PLACES_SPREAD,
    names_of,
    one_size,
    targets_of,
    transposed,
    usual_and_named,
)
from autopeft.methods.method import Build, Method, Settings, is_count


def block_at(linear: Linear, block: int) -> int:
    """Give the largest block up to the wanted one that cuts both inputs and outputs without a rest.

    >>> block_at(Linear("up", "up", 0, fan_in=64, fan_out=112), 32)
    16
    """
    common = math.gcd(linear.fan_in, linear.fan_out)
    return next(size for size in range(min(block, common), 0, -1) if common % size == 0)


def trainable_params(fan_in: int, fan_out: int, *, block: int) -> int:
    """Count one linear's trained scalars: a row for each of its square blocks.

    >>> trainable_params(4096, 1024, block=256)
    16384
    """
    return fan_in * fan_out // block


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place circulant blocks on every linear whose layer and kind are on; larger blocks train less."""
    wanted, targets = one_size(settings, "block", 128), targets_of(settings, anatomy)
    blocks = {linear.name: block_at(linear, wanted) for linear in targets}
    usual, other = usual_and_named(blocks, wanted)
    config = {
        "peft_type": "C3A",
        "block_size": usual,
        "block_size_pattern": other,
        "target_modules": names_of(targets),
    }
    params = sum(trainable_params(x.fan_in, x.fan_out, block=blocks[x.name]) for x in targets)
    return Build(blocks, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """PEFT has no C3A for GPT-2's Conv1D, and fails where a quantised linear has a bias: it writes into its output."""
    targets = targets_of(settings, anatomy)
    biased = next((linear.name for linear in targets if linear.bias), "")
    if biased and bits in (4, 8):
        return f"C3A fails on a quantised linear with a bias, which {biased!r} is; choose 16 or 32 bits"
    return transposed(targets, "C3A")


METHOD = Method(
    name="c3a",
    title="C3A",
    source="arXiv:2407.19342",
    learning_rate=1e-1,
    learning_rate_source="PEFT's documentation of C3A",
    settings={
        **PLACES,
        "block": "size of a block, more of which trains less; a linear takes the largest up to it that fits",
    },
    allowed={**PLACES_ALLOWED, "block": is_count},
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
    starts_at_identity=False,
)
