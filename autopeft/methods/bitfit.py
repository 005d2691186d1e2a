"""BitFit: train the biases of the linears and the norms, and nothing else.

Source: Zaken et al., arXiv:2106.10199. Many models of today have no biases; `new` gives one, from zero, to each linear
that lacks it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

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
    is_on = _judge(settings)
    own = [bias for bias in anatomy.biases if is_on(bias)]
    if not settings.get("new", True):
        return own, []
    has = {bias.name for bias in anatomy.biases}
    lacking = ((name, x) for x in anatomy.linears if (name := f"{x.name}.bias") not in has)
    new = (Bias(name, x.kind, x.layer, x.fan_out) for name, x in lacking)
    return own, [bias for bias in new if is_on(bias)]


def _judge(settings: Settings) -> Callable[[Bias], bool]:
    """Tell of biases whether they are on; a setting is read once a layer and once a kind, not once a bias."""
    kinds, layers = settings.get("kinds", 1), settings.get("layers", 1)
    norms, outer = bool(settings.get("norms", True)), bool(settings.get("outer", True))
    of_kind = cache(lambda kind: number(setting_at(kinds, kind=kind), 1) > 0)
    of_layer = cache(lambda layer: number(setting_at(layers, layer=layer), 1) > 0)

    def is_on(bias: Bias) -> bool:
        if not (norms if bias.kind == "norm" else bias.layer is None or of_kind(bias.kind)):
            return False
        return outer if bias.layer is None else of_layer(bias.layer)

    return is_on


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
