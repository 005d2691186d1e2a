"""LoHa: the elementwise product of two low-rank products beside each linear, of rank up to rank * rank.

Source: Hyeon-Woo et al., arXiv:2108.06098 (FedPara).
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import (
    RANKS,
    RANKS_ALLOWED,
    RANKS_SPREAD,
    rank_fields,
    ranks_at,
    transposed,
    usual_and_other,
)
from autopeft.methods.lora import alpha_of, is_alpha
from autopeft.methods.method import Build, Method, Settings


def trainable_params(fan_in: int, fan_out: int, *, rank: int) -> int:
    """Count one linear's trained scalars: two products, ``2 * rank * (fan_in + fan_out)``.

    >>> trainable_params(4096, 1024, rank=8)
    81920
    """
    return 2 * rank * (fan_in + fan_out)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place a rank on every linear that is on."""
    ranks = ranks_at(settings, anatomy)
    rule = settings.get("alpha", "r")
    alpha, others = usual_and_other({name: alpha_of(rule, rank) for name, rank in ranks.items()}, 1)
    params = sum(trainable_params(x.fan_in, x.fan_out, rank=ranks[x.name]) for x in anatomy.linears if x.name in ranks)
    config = {"peft_type": "LOHA", **rank_fields(ranks), "alpha": alpha, "alpha_pattern": others}
    return Build(ranks, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """PEFT has it for nn.Linear only."""
    ranks = ranks_at(settings, anatomy)
    return transposed((linear for linear in anatomy.linears if linear.name in ranks), "LoHa")


METHOD = Method(
    name="loha",
    title="LoHa",
    source="arXiv:2108.06098",
    learning_rate=5e-4,
    learning_rate_source="as for LoRA",
    settings={**RANKS, "alpha": "r, 2r, or alpha itself"},
    allowed={**RANKS_ALLOWED, "alpha": is_alpha},
    build=build,
    spread=RANKS_SPREAD,
    refuses=refuses,
    # It takes its shape from the weight, which nf4 packs.
    bits=(8, 16, 32),
)
