"""GraLoRA: each weight cut into blocks, with a low-rank product beside each block.

Source: Jung et al., arXiv:2505.20355.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number


def trainable_params(fan_in: int, fan_out: int, *, rank: int, whole_rank: int = 0) -> int:
    """Count one linear's trained scalars: ``(rank + whole_rank) * (fan_in + fan_out)`` however many blocks there are.

    >>> trainable_params(4096, 1024, rank=8)
    40960
    """
    return (rank + whole_rank) * (fan_in + fan_out)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place products on every linear that is on, and with `whole_rank` a plain one over all blocks."""
    targets = targets_of(settings, anatomy)
    rank, blocks = one_size(settings, "rank", 32), one_size(settings, "blocks", 2)
    whole_rank = one_size(settings, "whole_rank", 0)
    config = {
        "peft_type": "GRALORA",
        "r": rank,
        "hybrid_r": whole_rank,
        "gralora_k": blocks,
        # PEFT scales by alpha over both ranks; this keeps the scaling at 2 as its defaults do.
        "alpha": 2 * (rank + whole_rank),
        "gralora_dropout": number(settings.get("dropout"), 0.0),
        "target_modules": names_of(targets),
    }
    params = sum(trainable_params(x.fan_in, x.fan_out, rank=rank, whole_rank=whole_rank) for x in targets)
    return Build({linear.name: rank for linear in targets}, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """The blocks must divide the rank and both sides of every weight.

    PEFT adds in place to a linear's output, which bitsandbytes does not allow where it has added a bias.
    """
    rank, blocks = one_size(settings, "rank", 32), one_size(settings, "blocks", 2)
    if rank % blocks:
        return f"{blocks} blocks do not divide rank {rank}"
    for linear in targets_of(settings, anatomy):
        if linear.fan_in % blocks or linear.fan_out % blocks:
            return f"{blocks} blocks do not divide {linear.name}, {linear.fan_out} x {linear.fan_in}"
        if linear.bias and bits < 16:
            return f"GraLoRA does not train on a quantised linear with a bias, which {linear.name} has"
    return ""


METHOD = Method(
    name="gralora",
    title="GraLoRA",
    source="arXiv:2505.20355",
    learning_rate=2e-4,
    learning_rate_source="PEFT's method comparison (MetaMathQA, Llama-3.2-3B)",
    settings={
        "rank": "rank of the products of the blocks together, a whole number",
        "blocks": "blocks on each side of a weight",
        "whole_rank": "rank of a plain product over all blocks; 0 for none",
        "dropout": "dropout before the product",
        **PLACES,
    },
    allowed={
        "rank": is_count,
        "blocks": is_count,
        "whole_rank": lambda value: value == 0 or is_count(value),
        "dropout": lambda value: is_amount(value) and float(value) < 1,
        **PLACES_ALLOWED,
    },
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
)
