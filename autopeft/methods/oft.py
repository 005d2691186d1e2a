"""OFT: the inputs of a linear are rotated, block by block, by trained orthogonal matrices.

Sources: Qiu et al., arXiv:2306.07280; Qiu et al., arXiv:2506.19847 (on the inputs, with the Cayley-Neumann series).
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import (
    PLACES,
    PLACES_ALLOWED,
    PLACES_SPREAD,
    names_of,
    one_size,
    targets_of,
    transposed,
)
from autopeft.methods.method import Build, Method, Settings, is_count, is_switch


def block_at(fan_in: int, block: int) -> int:
    """Give the block that PEFT makes of a wanted one: the nearest divisor of the inputs, the smaller of two as near.

    >>> block_at(384, 32), block_at(172, 32), block_at(112, 32), block_at(16, 32)
    (32, 43, 28, 16)
    """
    if block >= fan_in:
        return fan_in
    lower = next(size for size in range(block, 0, -1) if fan_in % size == 0)
    higher = next(size for size in range(block, fan_in + 1) if fan_in % size == 0)
    return lower if block - lower <= higher - block else higher


def trainable_params(fan_in: int, *, block: int, shared: bool = False) -> int:
    """Count one linear's trained scalars: a skew-symmetric matrix for each block, or one for all of them.

    >>> trainable_params(4096, block=32), trainable_params(4096, block=32, shared=True)
    (63488, 496)
    """
    return (1 if shared else fan_in // block) * (block * (block - 1) // 2)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place rotations on every linear whose layer and kind are on, of the block nearest to the wanted one."""
    wanted, shared = one_size(settings, "block", 32), bool(settings.get("shared", False))
    targets = targets_of(settings, anatomy)
    blocks = {linear.name: block_at(linear.fan_in, wanted) for linear in targets}
    params = sum(trainable_params(x.fan_in, block=blocks[x.name], shared=shared) for x in targets)
    config = {
        "peft_type": "OFT",
        "r": 0,
        "oft_block_size": wanted,
        "block_share": shared,
        "target_modules": names_of(targets),
    }
    return Build(blocks, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """A block of one input cannot be rotated, and PEFT has no OFT for GPT-2's Conv1D."""
    targets, wanted = targets_of(settings, anatomy), one_size(settings, "block", 32)
    for linear in targets:
        if block_at(linear.fan_in, wanted) == 1:
            return f"{linear.name!r} has {linear.fan_in} inputs, which no block near {wanted} divides; choose another"
    return transposed(targets, "OFT")


METHOD = Method(
    name="oft",
    title="OFT",
    source="arXiv:2306.07280",
    learning_rate=5e-4,
    learning_rate_source="as for LoRA",
    settings={
        **PLACES,
        "block": "inputs rotated together; a linear takes the nearest number that divides its inputs",
        "shared": "one rotation for all blocks of a linear",
    },
    allowed={**PLACES_ALLOWED, "block": lambda value: is_count(value) and value != 1, "shared": is_switch},
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
)
