"""GLoRA: scales and shifts each weight by low-rank products or vectors, and its bias too.

Source: Chavan et al., arXiv:2306.07967.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, one_size, targets_of
from autopeft.methods.method import Build, Method, Settings, is_count

WEIGHTS = ("lora", "vector", "constant")
READS = ("lora", "vector", "none")
BIASES = ("vector", "constant", "none")


def trainable_params(linear: Linear, *, rank: int, weight: str, read: str, bias: str) -> int:
    """Count one linear's trained scalars: two terms of the weight, and where it has a bias three of that.

    >>> linear = Linear("q_proj", "query", 0, fan_in=64, fan_out=32, bias=True)
    >>> trainable_params(linear, rank=4, weight="lora", read="lora", bias="constant")  # 2*4*96 + 4*65 + 2
    1030
    """
    count = 2 * {"lora": rank * (linear.fan_in + linear.fan_out), "vector": linear.fan_out, "constant": 1}[weight]
    if linear.bias:
        count += {"lora": rank * (linear.fan_in + 1), "vector": linear.fan_in, "none": 0}[read]
        count += 2 * {"vector": linear.fan_out, "constant": 1, "none": 0}[bias]
    return count


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place the terms on every linear that is on."""
    targets, rank = targets_of(settings, anatomy), one_size(settings, "rank", 8)
    weight, read = str(settings.get("weight", "lora")), str(settings.get("read", "lora"))
    bias = str(settings.get("bias", "constant"))
    config = {
        "peft_type": "GLORA",
        "r": rank,
        "config_A_B": weight,
        "config_C": read,
        "config_D_E": bias,
        "target_modules": names_of(targets),
    }
    params = sum(trainable_params(x, rank=rank, weight=weight, read=read, bias=bias) for x in targets)
    return Build({linear.name: rank for linear in targets}, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """PEFT has it for nn.Linear itself only, not for the classes made of it."""
    other = next((linear.name for linear in targets_of(settings, anatomy) if not linear.plain), "")
    return f"PEFT has GLoRA for a plain nn.Linear only, which {other!r} is not" if other else ""


METHOD = Method(
    name="glora",
    title="GLoRA",
    source="arXiv:2306.07967",
    learning_rate=5e-4,
    learning_rate_source="PEFT's method comparison (MetaMathQA, Llama-3.2-3B)",
    settings={
        "rank": "rank of the terms that are products, a whole number",
        "weight": f"how a weight is scaled and shifted: {', '.join(WEIGHTS)}",
        "read": f"what of the weight is added to the bias: {', '.join(READS)}",
        "bias": f"how a bias is scaled and shifted: {', '.join(BIASES)}",
        **PLACES,
    },
    allowed={
        "rank": is_count,
        "weight": lambda value: value in WEIGHTS,
        "read": lambda value: value in READS,
        "bias": lambda value: value in BIASES,
        **PLACES_ALLOWED,
    },
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
    # PEFT has it for plain nn.Linear only.
    bits=(16, 32),
)
