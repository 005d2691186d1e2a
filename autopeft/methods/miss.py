"""MiSS: one small trained block beside each linear, repeated along the inputs; "bat" lets the weight act on it too.

Source: Kang and Yin, arXiv:2409.15371.
"""

from __future__ import annotations

from typing import Any

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of, transposed
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number

FORMS = ("balance", "bat", "mini")
"""The plain block; one that also multiplies with the weight; one that is repeated along the outputs as well."""


def trainable_params(linear: Linear, *, rank: int, form: str = "balance", width: int = 1) -> int:
    """Count one linear's trained scalars: ``rank * fan_out``; "mini" has a block of `width` outputs.

    >>> trainable_params(Linear("q_proj", "query", 0, fan_in=4096, fan_out=1024), rank=8)
    8192
    """
    return rank * (width if form == "mini" else linear.fan_out)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place a block on every linear that is on."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 64)
    form, width = str(settings.get("form", "balance")), one_size(settings, "width", 1)
    config: dict[str, Any] = {
        "peft_type": "MISS",
        "r": rank,
        "target_modules": names_of(targets),
        "init_weights": True if form == "balance" else form,
        "mini_r": width,
        "miss_dropout": number(settings.get("dropout"), 0.0),
    }
    params = sum(trainable_params(linear, rank=rank, form=form, width=width) for linear in targets)
    return Build({linear.name: rank for linear in targets}, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """A block must fit the weight, of "bat" and "mini" whole times; PEFT has it for nn.Linear only."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 64)
    form, width = str(settings.get("form", "balance")), one_size(settings, "width", 1)
    for x in targets:
        if rank > x.fan_in:
            return f"rank {rank} is more than the {x.fan_in} inputs of {x.name}"
        if form == "bat" and (x.fan_in % rank or x.fan_out % rank):
            return f"rank {rank} does not divide {x.name}, {x.fan_out} x {x.fan_in}, as MiSS's bat needs"
        if form == "mini" and x.fan_out % width:
            return f"width {width} does not divide the {x.fan_out} outputs of {x.name}, as MiSS's mini needs"
    return transposed(targets, "MiSS")


METHOD = Method(
    name="miss",
    title="MiSS",
    source="arXiv:2409.15371",
    learning_rate=5e-4,
    learning_rate_source="as for LoRA",
    settings={
        "rank": "height of the block, a whole number",
        "form": f"one of {', '.join(FORMS)}",
        "width": "outputs of a block of the form mini",
        "dropout": "dropout before the block",
        **PLACES,
    },
    allowed={
        "rank": is_count,
        "form": lambda value: value in FORMS,
        "width": is_count,
        "dropout": lambda value: is_amount(value) and float(value) < 1,
        **PLACES_ALLOWED,
    },
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
)
