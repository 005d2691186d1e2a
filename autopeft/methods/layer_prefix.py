"""Prefixes at chosen layers: trained keys and values of an attention, as in prefix tuning (Li and Liang,
arXiv:2101.00190), with their number chosen layer by layer, as in AutoPEFT (Zhou et al., arXiv:2301.12132)."""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number
from autopeft.space import setting_at

DEFAULT_TOKENS = 16


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Train ``tokens * heads * (key_dim + value_dim)`` scalars at each attention that is on."""
    placed = []
    for attention in anatomy.attentions:
        on = number(setting_at(settings.get("layers", 1), layer=attention.layer), 1)
        tokens = int(number(setting_at(settings.get("tokens", DEFAULT_TOKENS), layer=attention.layer), 0))
        if on and tokens:
            placed.append((attention, tokens))
    return Build(
        {f"{attention.name}.prefix": tokens for attention, tokens in placed},
        sum(tokens * attention.heads * (attention.key_dim + attention.value_dim) for attention, tokens in placed),
        {
            "adapter_type": "prefix",
            "sites": [[a.name, tokens, a.heads, a.key_dim, a.value_dim] for a, tokens in placed],
        },
    )


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """An attention must be reached through transformers' interface."""
    return "" if anatomy.attentions else f"the attention of this {anatomy.model_type} takes no keys from outside"


METHOD = Method(
    name="layer_prefix",
    title="Prefixes at chosen layers",
    source="arXiv:2101.00190, arXiv:2301.12132",
    learning_rate=1e-2,
    learning_rate_source="as for prefix tuning",
    settings={"tokens": "how many keys and values, 0 for none", "layers": "1 where a layer has them"},
    allowed={"tokens": lambda value: value == 0 or is_count(value), "layers": is_amount},
    build=build,
    spread={"tokens": ("layers",), "layers": ("layers",)},
    refuses=refuses,
    tasks=("text-classification", "causal-lm"),
    mergeable=False,
    starts_at_identity=False,
)
