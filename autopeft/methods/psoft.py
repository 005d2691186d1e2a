"""PSOFT: the principal directions of a weight are rotated and scaled by a trained small matrix.

Source: the PSOFT paper (https://openreview.net/forum?id=FSHrinMArK).
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of, transposed
from autopeft.methods.method import Build, Method, Settings, is_count


def trainable_params(*, rank: int) -> int:
    """Count one linear's trained scalars: a skew-symmetric matrix, and two vectors of scales.

    >>> trainable_params(rank=32)
    560
    """
    return rank * (rank - 1) // 2 + 2 * rank


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Rotate equally many directions of every linear whose layer and kind are on."""
    rank, targets = one_size(settings, "rank", 32), targets_of(settings, anatomy)
    config = {
        "peft_type": "PSOFT",
        "r": rank,
        "psoft_alpha": rank,  # it cancels out: the directions are divided by what the product is multiplied with
        "target_modules": names_of(targets),
    }
    return Build({linear.name: rank for linear in targets}, len(targets) * trainable_params(rank=rank), config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """A weight has no more directions than inputs or outputs, and PEFT has no PSOFT for GPT-2's Conv1D."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 32)
    for linear in targets:
        if rank > min(linear.fan_in, linear.fan_out):
            return f"{linear.name!r} has {min(linear.fan_in, linear.fan_out)} directions; {rank} cannot be rotated"
    return transposed(targets, "PSOFT")


METHOD = Method(
    name="psoft",
    title="PSOFT",
    source="openreview:FSHrinMArK",
    learning_rate=5e-4,
    learning_rate_source="as for LoRA",
    settings={**PLACES, "rank": "how many principal directions of a weight are rotated"},
    allowed={**PLACES_ALLOWED, "rank": is_count},
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
    # PEFT takes the directions from the weight as it is stored, which integers do not give.
    bits=(16, 32),
)
