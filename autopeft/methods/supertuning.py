"""Super-Tuning: trains the largest entries of each weight; with a rank, a low-rank product too (Supra).

Source: arXiv:2607.09287.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of, transposed
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, is_switch, number


def trainable_params(linear: Linear, *, sparsity: float, rank: int = 0) -> int:
    """Count one linear's trained scalars: the share of its entries that is not sparse, rounded down, and the product's.

    >>> trainable_params(Linear("q_proj", "query", 0, fan_in=4096, fan_out=1024), sparsity=0.99, rank=8)
    82903
    """
    entries = int(linear.fan_in * linear.fan_out * (1 - sparsity))  # PEFT's own rounding
    return entries + rank * (linear.fan_in + linear.fan_out)


def _sparsity(settings: Settings) -> float:
    return 1.0 - number(settings.get("density"), 0.01)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Train entries of every linear that is on."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 0)
    config = {
        "peft_type": "SUPERTUNING",
        "sparsity": _sparsity(settings),
        "select_top": bool(settings.get("largest", True)),
        "r": rank or None,
        "lora_alpha": float(2 * rank) if rank else None,
        "target_modules": names_of(targets),
    }
    params = sum(trainable_params(linear, sparsity=_sparsity(settings), rank=rank) for linear in targets)
    return Build({linear.name: 1 for linear in targets}, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """Some entry must be trained; PEFT has it for nn.Linear only."""
    targets = targets_of(settings, anatomy)
    for linear in targets:
        if trainable_params(linear, sparsity=_sparsity(settings)) < 1:
            return f"a density of {number(settings.get('density'), 0.01)} is no entry of {linear.name}"
    return transposed(targets, "Super-Tuning")


METHOD = Method(
    name="supertuning",
    title="Super-Tuning",
    source="arXiv:2607.09287",
    learning_rate=1e-4,
    learning_rate_source="PEFT's method comparison (MetaMathQA, Llama-3.2-3B)",
    settings={
        "density": "share of each weight's entries that is trained, above 0 and at most 1",
        "largest": "train the largest entries, not the smallest",
        "rank": "rank of a product beside, 0 for none",
        **PLACES,
    },
    allowed={
        "density": lambda value: is_amount(value) and 0 < float(value) <= 1,
        "largest": is_switch,
        "rank": lambda value: value == 0 or is_count(value),
        **PLACES_ALLOWED,
    },
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
    # It selects entries of the weight as it is stored.
    bits=(16, 32),
)
