"""BitFit: train the biases of the linears and the norms, and nothing else.

Source: Zaken et al., arXiv:2106.10199. Many models of today have no biases; `new` gives one, from zero, to each linear
that lacks it.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy, Bias
from autopeft.methods.method import Build, Method, Settings, is_amount, is_switch, number
from autopeft.space import setting_at


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Train every bias whose layer and kind are on; `norms` and `outer` say of those that are of no kind or layer."""
    own, new = _trained(settings, anatomy)
    config = {
        "adapter_type": "biases",
        "biases": [bias.name for bias in own],
        "new": [[bias.name.removesuffix(".bias"), bias.params] for bias in new],
    }
    trained = own + new
    return Build({bias.name: 1 for bias in trained}, sum(bias.params for bias in trained), config)


def count(settings: Settings, anatomy: Anatomy) -> int:
    """Count what `build` would train."""
    return sum(bias.params for trained in _trained(settings, anatomy) for bias in trained)


def _trained(settings: Settings, anatomy: Anatomy) -> tuple[list[Bias], list[Bias]]:
    """Give the biases that are on: those that the model has, and those that it lacks."""
    own = [bias for bias in anatomy.biases if _is_on(bias, settings)]
    if not settings.get("new", True):
        return own, []
    has = {bias.name for bias in anatomy.biases}
    lacking = ((name, x) for x in anatomy.linears if (name := f"{x.name}.bias") not in has)
    new = (Bias(name, x.kind, x.layer, x.fan_out) for name, x in lacking)
    return own, [bias for bias in new if _is_on(bias, settings)]


def _is_on(bias: Bias, settings: Settings) -> bool:
    if bias.kind == "norm" and not settings.get("norms", True):
        return False
    if bias.layer is None:
        return bool(settings.get("outer", True))
    kind = 1 if bias.kind == "norm" else number(setting_at(settings.get("kinds", 1), kind=bias.kind), 1)
    return kind * number(setting_at(settings.get("layers", 1), layer=bias.layer), 1) > 0


METHOD = Method(
    name="bitfit",
    title="BitFit",
    source="arXiv:2106.10199",
    learning_rate=1e-3,
    learning_rate_source="Zaken et al. 2022: the largest of their grid",
    settings={
        "layers": "1 where a layer's biases are trained",
        "kinds": "1 where the biases of a kind of module are trained",
        "norms": "train the biases of the norms too",
        "outer": "train the biases outside the layers too",
        "new": "give a bias to each linear of the layers that has none",
    },
    allowed={"layers": is_amount, "kinds": is_amount, "norms": is_switch, "outer": is_switch, "new": is_switch},
    build=build,
    count=count,
    spread={"layers": ("layers",), "kinds": ("kinds",)},
)
