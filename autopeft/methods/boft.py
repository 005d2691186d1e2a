"""BOFT: a weight is rotated, block by block of its inputs, by trained orthogonal matrices, and its outputs scaled.

PEFT uses several butterfly factors only with a CUDA extension that it compiles on first use, and silently one without;
so that a configuration means the same everywhere, one is used here.

Source: Liu et al., arXiv:2311.06243.
"""

from __future__ import annotations

import math

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
from autopeft.methods.method import Build, Method, Settings, is_count


def trainable_params(fan_in: int, fan_out: int, *, block: int) -> int:
    """Count one linear's trained scalars: a square matrix for each block of inputs, and a scale for each output.

    >>> trainable_params(4096, 1024, block=4)
    17408
    """
    return fan_in * block + fan_out


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place rotations of one block size on every linear whose layer and kind are on."""
    block, targets = one_size(settings, "block", 4), targets_of(settings, anatomy)
    params = sum(trainable_params(linear.fan_in, linear.fan_out, block=block) for linear in targets)
    config = {
        "peft_type": "BOFT",
        "boft_block_size": block,
        "boft_n_butterfly_factor": 1,
        "target_modules": names_of(targets),
    }
    return Build({linear.name: block for linear in targets}, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """The blocks must cut every linear's inputs without a rest, and PEFT has no BOFT for GPT-2's Conv1D."""
    targets, block = targets_of(settings, anatomy), one_size(settings, "block", 4)
    for linear in targets:
        if linear.fan_in % block:
            common = math.gcd(*(x.fan_in for x in targets))
            return f"blocks of {block} do not cut the {linear.fan_in} inputs of {linear.name!r}; {common} cuts all"
    return transposed(targets, "BOFT")


METHOD = Method(
    name="boft",
    title="BOFT",
    source="arXiv:2311.06243",
    learning_rate=5e-4,
    learning_rate_source="as for LoRA",
    settings={**PLACES, "block": "inputs rotated together; must divide the inputs of every linear"},
    allowed={**PLACES_ALLOWED, "block": lambda value: is_count(value) and value % 2 == 0},
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
)
