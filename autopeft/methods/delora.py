"""DeLoRA: a low-rank product whose directions and strength are trained apart; the strength bounds the update.

Source: Bini et al., arXiv:2503.18225.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import RANKS, RANKS_ALLOWED, RANKS_SPREAD, rank_fields, ranks_at, transposed
from autopeft.methods.method import Build, Method, Settings, is_amount, number


def trainable_params(fan_in: int, fan_out: int, *, rank: int) -> int:
    """Count one linear's trained scalars: the directions and one strength, ``rank * (fan_in + fan_out) + 1``.

    >>> trainable_params(4096, 1024, rank=8)
    40961
    """
    return rank * (fan_in + fan_out) + 1


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place a rank on every linear that is on."""
    ranks = ranks_at(settings, anatomy)
    params = sum(trainable_params(x.fan_in, x.fan_out, rank=ranks[x.name]) for x in anatomy.linears if x.name in ranks)
    config = {"peft_type": "DELORA", **rank_fields(ranks), "delora_lambda": number(settings.get("strength"), 15.0)}
    return Build(ranks, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """PEFT has it for nn.Linear only."""
    ranks = ranks_at(settings, anatomy)
    return transposed((linear for linear in anatomy.linears if linear.name in ranks), "DeLoRA")


METHOD = Method(
    name="delora",
    title="DeLoRA",
    source="arXiv:2503.18225",
    learning_rate=5e-4,
    learning_rate_source="as for LoRA",
    settings={**RANKS, "strength": "strength of the update at the start"},
    allowed={**RANKS_ALLOWED, "strength": lambda value: is_amount(value) and float(value) > 0},
    build=build,
    spread=RANKS_SPREAD,
    refuses=refuses,
    # It takes the norms of the weight as it is stored.
    bits=(16, 32),
)
