"""LoRA: a trained low-rank product beside each chosen linear; with rank-stabilised scaling and DoRA.

Sources: Hu et al., arXiv:2106.09685; Kalajdzievski, arXiv:2312.03732 (rsLoRA); Liu et al., arXiv:2402.09353 (DoRA).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autopeft.anatomy import Anatomy
from autopeft.candidates import Scalar
from autopeft.methods.linears import RANKS, RANKS_ALLOWED, RANKS_SPREAD, rank_fields, ranks_at, usual_and_other
from autopeft.methods.method import Build, Method, Settings, is_amount, is_switch, number

ALPHA_RULES = ("r", "2r")
"""Alpha as a multiple of each module's own rank; any other value of the setting is alpha itself."""


INITS = ("default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora", "eva", "loftq")
"""How the product begins: at zero (the first three), with the largest part of the weight, which is taken out of the
base (pissa, exactly or nearly, and olora), at zero with A along the inputs of the linear (eva), or with the largest
part of what a base of 4 bits has lost (loftq)."""
BIASES = ("none", "product", "linears")
"""No bias is trained; one of the product; those of the adapted linears, in place."""
_FROM_WEIGHTS = ("pissa", "pissa_niter_4", "olora")


def trainable_params(fan_in: int, fan_out: int, *, rank: int, dora: bool = False, bias: bool = False) -> int:
    """Count one linear's trained scalars: ``rank * (fan_in + fan_out)``; DoRA's magnitude and a bias add ``fan_out``.

    >>> trainable_params(4096, 1024, rank=8)
    40960
    """
    return rank * (fan_in + fan_out) + fan_out * (dora + bias)


def alpha_of(rule: object, rank: int) -> float:
    """Give alpha by rule. PEFT scales by alpha / r (rank-stabilised: alpha / sqrt(r)), so alpha goes with the rank.

    >>> alpha_of("2r", 8), alpha_of("16", 8), alpha_of("0.5", 8)
    (16, 16, 0.5)
    """
    alpha = {"r": rank, "2r": 2 * rank}.get(str(rule)) or float(str(rule))
    # 16 and 16.0 are one training, and must be one text.
    return int(alpha) if alpha == int(alpha) else alpha


def is_alpha(value: Scalar) -> bool:
    """Tell a rule for alpha, or alpha itself."""
    try:
        return value in ALPHA_RULES or 0 < float(value) < math.inf
    except ValueError:
        return False


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place a rank on every linear that is on: the layer's `rank` times the kind's `share`, rounded, at least 1."""
    ranks = ranks_at(settings, anatomy)
    bias, init = str(settings.get("bias", "none")), str(settings.get("init", "default"))
    rule = settings.get("alpha", "2r")
    alphas = {name: alpha_of(rule, rank) for name, rank in ranks.items()}
    alpha, other_alphas = usual_and_other(alphas, alpha_of(rule, 1))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        **rank_fields(ranks),
        "lora_alpha": alpha,
        "alpha_pattern": other_alphas,
        "lora_dropout": number(settings.get("dropout"), 0.0),
        "use_rslora": bool(settings.get("rslora", False)),
        "use_dora": bool(settings.get("dora", False)),
    }
    if init != "default":
        config["init_lora_weights"] = init
    if bias != "none":
        config |= {"lora_bias": True} if bias == "product" else {"bias": "lora_only"}
    return Build(ranks, _params_at(ranks, settings, anatomy), config)


def count(settings: Settings, anatomy: Anatomy) -> int:
    """Count what `build` would train."""
    return _params_at(ranks_at(settings, anatomy), settings, anatomy)


def _params_at(ranks: Mapping[str, int], settings: Settings, anatomy: Anatomy) -> int:
    dora, bias = bool(settings.get("dora", False)), settings.get("bias", "none")
    return sum(
        trainable_params(
            x.fan_in,
            x.fan_out,
            rank=ranks[x.name],
            dora=dora,
            bias=bias == "product" or (bias == "linears" and x.bias),
        )
        for x in anatomy.linears
        if x.name in ranks
    )


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """DoRA needs the weight's norm, which PEFT cannot take from bitsandbytes' int8; an init or a bias may not fit."""
    dora, init = bool(settings.get("dora")), str(settings.get("init", "default"))
    bias = str(settings.get("bias", "none"))
    ranks = ranks_at(settings, anatomy)
    targets = [linear for linear in anatomy.linears if linear.name in ranks]
    if bits == 8 and dora:
        return "DoRA does not train on an 8-bit base; choose 4 or 16 bits"
    if bits < 16 and init in (*_FROM_WEIGHTS, "orthogonal"):
        return f"init {init} does not go with a quantised base; choose 16 bits, or another init"
    if init == "loftq" and bits != 4:
        return "init loftq makes up for what 4 bits lose; choose bits 4, or another init"
    if init == "loftq" and dora:
        return "init loftq does not go with DoRA"
    if init in _FROM_WEIGHTS and (dora or bias != "none"):
        return f"init {init} goes neither with DoRA nor with a bias"
    if bias == "product" and (dora or init != "default"):
        return "a bias of the product goes neither with DoRA nor with an init"
    if bias == "product" and not all(linear.bias for linear in targets):
        return "a bias of the product cannot be merged into linears that have none"
    for linear in targets:
        rank = ranks[linear.name]
        if init == "orthogonal" and rank % 2:
            return f"init orthogonal needs even ranks; {linear.name} has {rank}"
        if init in (*_FROM_WEIGHTS, "eva", "loftq") and rank > min(linear.fan_in, linear.fan_out):
            return f"init {init} has no {rank} directions in {linear.name}, {linear.fan_out} x {linear.fan_in}"
        if init == "olora" and linear.transposed:
            return f"PEFT has no init olora for a Conv1D, which {linear.name!r} is"
    return ""


METHOD = Method(
    name="lora",
    title="LoRA",
    source="arXiv:2106.09685",
    learning_rate=5e-4,
    learning_rate_source="Hu et al. 2021, table 9 (RoBERTa-base)",
    settings={
        **RANKS,
        "alpha": "r, 2r, or alpha itself",
        "rslora": "scale by alpha / sqrt(r)",
        "dora": "train a magnitude beside the direction",
        "dropout": "dropout before the product",
        "init": f"how the product begins: {', '.join(INITS)}",
        "bias": f"whose biases are trained: {', '.join(BIASES)}",
    },
    allowed={
        **RANKS_ALLOWED,
        "alpha": is_alpha,
        "rslora": is_switch,
        "dora": is_switch,
        "dropout": lambda value: is_amount(value) and float(value) < 1,
        "init": lambda value: value in INITS,
        "bias": lambda value: value in BIASES,
    },
    build=build,
    count=count,
    spread=RANKS_SPREAD,
    refuses=refuses,
)
