"""Hybrids: several methods on one model as one configuration, with one count, one budget and one export.

A part's settings go by "<part>.<setting>", so that a space says `lora+bitfit.lora.rank`; a part of size 0 is off. What
a hybrid fixes, as where a part stands, cannot be set. All parts have one learning rate, as in AutoPEFT (Zhou et al.,
arXiv:2301.12132) and the mix-and-match adapter (He et al., arXiv:2110.04366).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopeft.anatomy import Anatomy
from autopeft.candidates import Scalar
from autopeft.methods import bitfit, bottleneck, ia3, layer_prefix, lora, prompts
from autopeft.methods.method import Allowed, Build, Method, Settings, is_amount

_SIZES = ("rank", "attention", "feed_forward", "tokens")
"""Settings of which 0 turns a part off."""

_ATTENTION = {"query": 1, "key": 1, "value": 1, "qkv": 1, "output": 1}
_FEED_FORWARD = {"gate": 1, "up": 1, "down": 1}


@dataclass(frozen=True, slots=True)
class Part:
    """One method in a hybrid.

    Attributes:
        name: What it goes by there.
        offers: Its settings that can be set.
        fixed: Those that cannot, and what they are.
    """

    name: str
    method: Method
    offers: tuple[str, ...]
    fixed: Mapping[str, Scalar | Mapping[str, Scalar]] = field(default_factory=dict)

    def settings(self, settings: Settings) -> Settings:
        """Give what a hybrid's settings say to this part; its own `layers` go for every part that has them."""
        own = {name: settings[f"{self.name}.{name}"] for name in self.offers if f"{self.name}.{name}" in settings}
        if "layers" in settings and "layers" in self.method.settings:
            own["layers"] = settings["layers"]
        return {**own, **self.fixed}

    def is_off(self, settings: Settings) -> bool:
        """Tell whether every size of this part is said, and 0."""
        said = self.settings(settings)
        sizes = [said.get(name) for name in _SIZES if name in self.method.settings]
        values = [v for size in sizes for v in (size.values() if isinstance(size, Mapping) else [size])]
        return bool(values) and all(value == 0 for value in values)


def build(parts: tuple[Part, ...], settings: Settings, anatomy: Anatomy) -> Build:
    """Build every part that is on; their parameters add up, and no two have a size at one module."""
    builds = [part.method.build(part.settings(settings), anatomy) for part in parts if not part.is_off(settings)]
    builds = [built for built in builds if built.params]
    sizes = {name: size for built in builds for name, size in built.sizes.items()}
    assert len(sizes) == sum(len(built.sizes) for built in builds), "two parts of a hybrid at one module"
    configs = [dict(built.config) for built in builds]
    # Of one part that is on it is that part, and PEFT's own format where that is PEFT's.
    config = configs[0] if len(configs) == 1 else {"parts": configs}
    return Build(sizes, sum(built.params for built in builds), config)


def count(parts: tuple[Part, ...], settings: Settings, anatomy: Anatomy) -> int:
    """Count what `build` would train."""
    return sum(part.method.params(part.settings(settings), anatomy) for part in parts if not part.is_off(settings))


def hybrid(*parts: Part, title: str, source: str, with_layers: bool = False) -> Method:
    """Make the method of a hybrid; it can do what all of its parts can.

    Args:
        with_layers: Whether one more setting, `layers`, turns all parts on and off at a layer.
    """

    def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
        for part in parts:
            if part.is_off(settings):
                continue
            if reason := part.method.refuses(part.settings(settings), bits, anatomy):
                return f"{part.method.title}: {reason}"
        return ""

    def allowed(part: Part, setting: str) -> Allowed:
        own = part.method.allowed[setting]
        return (lambda value: value == 0 or own(value)) if setting in _SIZES else own

    offered = {f"{p.name}.{s}": (p, s) for p in parts for s in p.offers}
    spread = {name: p.method.spread[s] for name, (p, s) in offered.items() if s in p.method.spread}
    first = parts[0].method
    return Method(
        name="+".join(part.name for part in parts),
        title=title,
        source=source,
        learning_rate=first.learning_rate,
        learning_rate_source=f"that of {first.title}, for all parts",
        settings={name: p.method.settings[s] for name, (p, s) in offered.items()}
        | ({"layers": "1 where a layer is adapted"} if with_layers else {}),
        allowed={name: allowed(p, s) for name, (p, s) in offered.items()}
        | ({"layers": is_amount} if with_layers else {}),
        build=lambda settings, anatomy: build(parts, settings, anatomy),
        count=lambda settings, anatomy: count(parts, settings, anatomy),
        spread=spread | ({"layers": ("layers",)} if with_layers else {}),
        refuses=refuses,
        bits=tuple(b for b in first.bits if all(b in part.method.bits for part in parts)),
        tasks=tuple(t for t in first.tasks if all(t in part.method.tasks for part in parts)),
        mergeable=all(part.method.mergeable for part in parts),
        starts_at_identity=all(part.method.starts_at_identity for part in parts),
        reaches_kinds=any(part.method.reaches_kinds for part in parts),
    )


_LORA = ("rank", "share", "alpha", "rslora", "dora", "dropout")
_WIDTH = ("feed_forward", "activation", "scaling")


def _lora(*, only: Mapping[str, Scalar] | None = None) -> Part:
    if only is None:
        return Part("lora", lora.METHOD, _LORA)
    return Part("lora", lora.METHOD, tuple(s for s in _LORA if s != "share"), {"share": only})


def _beside(name: str, method: Method) -> Part:
    """An adapter at the feed-forward only."""
    return Part(name, method, _WIDTH, {"attention": 0})


_SERIAL, _PARALLEL = _beside("serial", bottleneck.SERIAL), _beside("parallel", bottleneck.PARALLEL)
_PREFIX = Part("prefix", layer_prefix.METHOD, ("tokens",))
_AUTOPEFT, _MIX = "arXiv:2301.12132", "arXiv:2110.04366"

HYBRIDS = (
    hybrid(_SERIAL, _PARALLEL, _PREFIX, title="AutoPEFT's adapters and prefix", source=_AUTOPEFT, with_layers=True),
    hybrid(_PARALLEL, _PREFIX, title="Mix-and-match adapter", source=_MIX),
    hybrid(
        _lora(),
        Part("bitfit", bitfit.METHOD, ("layers", "kinds", "norms", "outer", "new")),
        title="LoRA and BitFit",
        source="arXiv:2106.09685, arXiv:2106.10199",
    ),
    hybrid(_lora(only=_ATTENTION), _SERIAL, title="LoRA in attention, serial adapters in feed-forward", source=_MIX),
    hybrid(
        _lora(only=_ATTENTION), _PARALLEL, title="LoRA in attention, parallel adapters in feed-forward", source=_MIX
    ),
    hybrid(
        _lora(),
        Part("prompt", prompts.PROMPT_TUNING, ("tokens",)),
        title="LoRA and prompt tuning",
        source="arXiv:2106.09685, arXiv:2104.08691",
    ),
    hybrid(
        _lora(only=_FEED_FORWARD),
        Part("ia3", ia3.METHOD, ("layers",), {"kinds": {"key": 1, "value": 1, "qkv": 1}}),
        title="LoRA in feed-forward, IA3 in attention",
        source="arXiv:2106.09685, arXiv:2205.05638",
    ),
)
