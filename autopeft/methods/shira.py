"""SHiRA: trains a random one to two percent of each weight's entries, as many as LoRA of that rank would train.

Source: Bhardwaj et al., arXiv:2406.13175.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of, transposed
from autopeft.methods.method import Build, Method, Settings, is_count


def trainable_params(fan_in: int, fan_out: int, *, rank: int) -> int:
    """Count one linear's trained scalars, as many as LoRA's: ``rank * (fan_in + fan_out)``.

    >>> trainable_params(4096, 1024, rank=8)
    40960
    """
    return rank * (fan_in + fan_out)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Train entries of every linear that is on."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 8)
    config = {"peft_type": "SHIRA", "r": rank, "target_modules": names_of(targets)}
    params = sum(trainable_params(x.fan_in, x.fan_out, rank=rank) for x in targets)
    return Build({linear.name: rank for linear in targets}, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """It cannot train more entries than there are; PEFT has it for nn.Linear only."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 8)
    for x in targets:
        if trainable_params(x.fan_in, x.fan_out, rank=rank) > x.fan_in * x.fan_out:
            return f"rank {rank} is more than all entries of {x.name}, {x.fan_out} x {x.fan_in}"
    return transposed(targets, "SHiRA")


METHOD = Method(
    name="shira",
    title="SHiRA",
    source="arXiv:2406.13175",
    learning_rate=3e-4,
    learning_rate_source="PEFT's method comparison (MetaMathQA, Llama-3.2-3B)",
    settings={"rank": "rank of the LoRA that would train as many entries, a whole number", **PLACES},
    allowed={"rank": is_count, **PLACES_ALLOWED},
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
)
