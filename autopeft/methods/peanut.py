"""PEANuT: a small network that reads each weight and writes its update.

Source: Zhong et al., arXiv:2410.01870.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of, transposed
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number


def trainable_params(linear: Linear, *, rank: int, depth: int = 0) -> int:
    """Count one linear's trained scalars: a network over the outputs, ``2 * rank * (fan_out + depth * rank)``.

    >>> trainable_params(Linear("q_proj", "query", 0, fan_in=4096, fan_out=1024), rank=8, depth=1)
    16512
    """
    return 2 * rank * (linear.fan_out + depth * rank)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place a network on every linear that is on."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 32)
    depth = one_size(settings, "depth", 0)
    config = {
        "peft_type": "PEANUT",
        "r": rank,
        "depth": depth,
        "scaling": number(settings.get("scaling"), 1.0),
        "target_modules": names_of(targets),
    }
    params = sum(trainable_params(linear, rank=rank, depth=depth) for linear in targets)
    return Build({linear.name: rank for linear in targets}, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """PEFT has it for nn.Linear only."""
    return transposed(targets_of(settings, anatomy), "PEANuT")


METHOD = Method(
    name="peanut",
    title="PEANuT",
    source="arXiv:2410.01870",
    learning_rate=5e-4,
    learning_rate_source="as for LoRA",
    settings={
        "rank": "hidden width of the network, a whole number",
        "depth": "hidden layers on each side of the network",
        "scaling": "factor of the update",
        **PLACES,
    },
    allowed={
        "rank": is_count,
        "depth": lambda value: value == 0 or is_count(value),
        "scaling": lambda value: is_amount(value) and float(value) > 0,
        **PLACES_ALLOWED,
    },
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
    # It reads the weight as it is stored.
    bits=(16, 32),
)
