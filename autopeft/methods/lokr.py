"""LoKr: a Kronecker product of a small matrix with one that is itself of low rank, beside each linear.

Sources: Hyeon-Woo et al., arXiv:2108.06098; Yeh et al., arXiv:2309.14859 (LyCORIS).
"""

from __future__ import annotations

from functools import lru_cache

from autopeft.anatomy import Anatomy, Linear
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
from autopeft.methods.method import Build, Method, Settings, is_count, is_switch, number


@lru_cache(maxsize=4096)
def factors(size: int, factor: int) -> tuple[int, int]:
    """Give the two factors, smaller first, that PEFT cuts a size into: `factor` if it divides it, else near the root.

    >>> factors(128, 0), factors(128, 4), factors(127, 0), factors(96, 5)
    ((8, 16), (4, 32), (1, 127), (4, 24))
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = factor or size
    best = (1, size)
    while best[0] < best[1]:
        smaller = next(n for n in range(best[0] + 1, size + 1) if size % n == 0)
        if smaller + size // smaller > sum(best) or smaller > most:
            break
        best = (smaller, size // smaller)
    return min(best), max(best)


def trainable_params(linear: Linear, *, rank: int, factor: int = 0, both: bool = False) -> int:
    """Count one linear's trained scalars: of each factor matrix the low-rank form, or the whole where that is no less.

    PEFT takes the low-rank form where the rank is below half the matrix's longer side.

    >>> trainable_params(Linear("q_proj", "query", 0, fan_in=128, fan_out=64), rank=2)  # 8x8, and (8x2)(2x16)
    112
    """
    (out_small, out_large), (in_small, in_large) = factors(linear.fan_out, factor), factors(linear.fan_in, factor)
    first, second = out_small * in_small, out_large * in_large
    if both and rank < max(out_small, in_small) / 2:
        first = rank * (out_small + in_small)
    if rank < max(out_large, in_large) / 2:
        second = rank * (out_large + in_large)
    return first + second


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place a rank on every linear that is on."""
    ranks = ranks_at(settings, anatomy)
    rule = settings.get("alpha", "r")
    factor, both = int(number(settings.get("factor"), 0)), bool(settings.get("both", False))
    alpha, others = usual_and_other({name: alpha_of(rule, rank) for name, rank in ranks.items()}, 1)
    params = sum(
        trainable_params(linear, rank=ranks[linear.name], factor=factor, both=both)
        for linear in anatomy.linears
        if linear.name in ranks
    )
    config = {
        "peft_type": "LOKR",
        **rank_fields(ranks),
        "alpha": alpha,
        "alpha_pattern": others,
        "decompose_factor": factor or -1,
        "decompose_both": both,
    }
    return Build(ranks, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """PEFT has it for nn.Linear only."""
    ranks = ranks_at(settings, anatomy)
    return transposed((linear for linear in anatomy.linears if linear.name in ranks), "LoKr")


METHOD = Method(
    name="lokr",
    title="LoKr",
    source="arXiv:2309.14859",
    learning_rate=3e-3,
    learning_rate_source="PEFT's method comparison (MetaMathQA, Llama-3.2-3B)",
    settings={
        **RANKS,
        "alpha": "r, 2r, or alpha itself",
        "factor": "size of the small factor; 0 for one near the square root",
        "both": "give the small factor a low rank too",
    },
    allowed={
        **RANKS_ALLOWED,
        "alpha": is_alpha,
        "factor": lambda value: value == 0 or is_count(value),
        "both": is_switch,
    },
    build=build,
    spread=RANKS_SPREAD,
    refuses=refuses,
    # It multiplies with the packed weight's shape on nf4.
    bits=(8, 16, 32),
)
