"""OSF: trains the smallest singular directions of each weight, and keeps the update orthogonal to the largest.

Source: Nayak et al., arXiv:2504.07097.
"""

from __future__ import annotations

from typing import Any

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import (
    RANKS,
    RANKS_ALLOWED,
    RANKS_SPREAD,
    ranks_at,
    transposed,
    usual_and_other,
)
from autopeft.methods.method import Build, Method, Settings


def trainable_params(fan_in: int, fan_out: int, *, rank: int) -> int:
    """Count one linear's trained scalars: its `rank` smallest singular triplets, ``rank * (fan_in + fan_out + 1)``.

    >>> trainable_params(4096, 1024, rank=8)
    40968
    """
    return rank * (fan_in + fan_out + 1)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Train so many directions of every linear that is on; PEFT is told how many are kept."""
    ranks = ranks_at(settings, anatomy)
    targets = [linear for linear in anatomy.linears if linear.name in ranks]
    kept = {x.name: min(x.fan_in, x.fan_out) - ranks[x.name] for x in targets}
    usual, others = usual_and_other(kept, 1)
    config: dict[str, Any] = {
        "peft_type": "OSF",
        "target_modules": list(kept),
        "effective_rank": usual,
        "rank_pattern": others,
    }
    params = sum(trainable_params(x.fan_in, x.fan_out, rank=ranks[x.name]) for x in targets)
    return Build(kept, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """Some direction must be kept; PEFT has it for nn.Linear only."""
    ranks = ranks_at(settings, anatomy)
    targets = [linear for linear in anatomy.linears if linear.name in ranks]
    for linear in targets:
        if ranks[linear.name] >= min(linear.fan_in, linear.fan_out):
            return f"rank {ranks[linear.name]} leaves no direction of {linear.name} to keep"
    return transposed(targets, "OSF")


METHOD = Method(
    name="osf",
    title="OSF",
    source="arXiv:2504.07097",
    learning_rate=5e-5,
    learning_rate_source="PEFT's method comparison (MetaMathQA, Llama-3.2-3B)",
    settings=RANKS,
    allowed=RANKS_ALLOWED,
    build=build,
    spread=RANKS_SPREAD,
    refuses=refuses,
    # It decomposes the weight as it is stored.
    bits=(16, 32),
)
