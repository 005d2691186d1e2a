"""LayerNorm tuning: train the weights and biases of the normalisation layers.

Source: Zhao et al., arXiv:2312.11420.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.method import Build, Method, Settings, is_amount, is_switch, number
from autopeft.space import setting_at


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Train every norm whose layer is on, and with `outer` those outside the layers."""
    layers, outer = settings.get("layers", 1), bool(settings.get("outer", True))
    norms = [
        norm
        for norm in anatomy.norms
        if (outer if norm.layer is None else number(setting_at(layers, layer=norm.layer), 1) > 0)
    ]
    config = {"peft_type": "LN_TUNING", "target_modules": [norm.name for norm in norms]}
    return Build({norm.name: 1 for norm in norms}, sum(norm.params for norm in norms), config)


METHOD = Method(
    name="ln_tuning",
    title="LayerNorm tuning",
    source="arXiv:2312.11420",
    learning_rate=3e-3,
    learning_rate_source="as for IA3: it too trains vectors that scale activations",
    settings={"layers": "1 where a layer's norms are trained", "outer": "train the norms outside the layers too"},
    allowed={"layers": is_amount, "outer": is_switch},
    build=build,
    spread={"layers": ("layers",)},
)
