"""Where a plan adapts a model, layer by layer, as numbers that memory depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autopeft.anatomy import Anatomy
from autopeft.candidates import AdapterPlan
from autopeft.layers import number_layers, place_of
from autopeft.methods.bottleneck import sites as blocks_of
from autopeft.trial.prediction.parts import PLACES, TOKENS, WIDTH, names_of, size_field, sizes_of

Adapted = Mapping[str, float]
"""The adapted sites of one layer and their sizes. A site is a name in `plan.sizes` without the index of its layer."""
Features = Mapping[str, float]

# Fields of configurations that say where an adapter is and how large, or that take no memory.
_SPREAD = frozenset(
    [
        *(*PLACES, TOKENS, WIDTH, "adapter_layers", "target_r"),
        *("alpha", "lora_alpha", "randlora_alpha", "use_rslora", "init_lora_weights"),
    ]
)
_SHARES_PROJECTIONS = ("VERA", "PVERA", "RANDLORA")
"""Methods whose frozen projections are one pair for the model, as wide as the widest linear that they adapt; RandLoRA
has as many as the full rank of a linear needs."""
# Modules of a layer that read the same input, by kind.
_SHARES_INPUT = {"query": "attention", "key": "attention", "value": "attention", "qkv": "attention"} | dict.fromkeys(
    ("gate", "up", "router"), "feed-forward"
)


def structure_of(plan: AdapterPlan) -> tuple[Any, ...]:
    """Give what plans have in common that differ in places, sizes, rows of a batch and rates only.

    A rate, such as that of dropout, counts as on or off.
    """
    kept = [
        (part, name, repr(value > 0 if isinstance(value, float) else value))
        for part, config in enumerate(plan.configs)
        for name, value in config.items()
        if name not in _SPREAD and name != size_field(config) and not name.endswith("_pattern")
    ]
    recipe = plan.recipe
    accumulates = recipe.gradient_accumulation_steps > 1
    loop = accumulates, recipe.gradient_checkpointing, recipe.optimizer, recipe.max_length, recipe.packing
    return plan.base, loop, tuple(sorted(kept))


def prompt_of(plan: AdapterPlan) -> Features:
    """Give the sizes of a plan's virtual tokens; empty where it has none."""
    for config in plan.configs:
        if TOKENS in config:
            tokens, width = float(config[TOKENS]), float(config.get(WIDTH) or 0)
            return {"tokens": tokens, "width": width, "tokens by width": tokens * width}
    return {}


def lengthens_by(plan: AdapterPlan) -> int:
    """Give the virtual tokens that a layer computes; those of a prefix are only read."""
    return sum(config[TOKENS] for config in plan.configs if config.get("peft_type") in ("PROMPT_TUNING", "P_TUNING"))


_place_of = lru_cache(maxsize=100_000)(place_of)
"""Asked for the same few hundred names in every answer."""


@dataclass(frozen=True, slots=True)
class Sites:
    """Where a model can be adapted.

    Attributes:
        layers: Stack and index in it -> layer.
        order: Linear's or norm's site -> its place in the order of computation; a parallel adapter's -> that of the
            linear whose input it reads.
        inputs: Linear's site -> the input that it reads; modules that read the same share what is saved of it.
        passed: Module outside the layers -> how many layers lie before it.
        stacks: The stack of each layer.
        fans: Linear -> how many values it reads, and how many it gives.
    """

    layers: Mapping[tuple[str, int], int]
    order: Mapping[str, int]
    inputs: Mapping[str, str]
    passed: Mapping[str, int]
    stacks: tuple[str, ...]
    fans: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, anatomy: Anatomy) -> Sites:
        """Read them off an anatomy."""
        reads = {linear.name: _SHARES_INPUT.get(linear.kind, linear.kind) for linear in anatomy.linears}
        names = [*reads, *(norm.name for norm in anatomy.norms if norm.layer is not None)]
        places = {name: place for name in names if (place := place_of(name)) is not None}
        layers = number_layers(places.values())
        order: dict[str, int] = {}
        inputs: dict[str, str] = {}
        for name, place in places.items():
            site = f"{place.stack}:{place.rest}"
            order.setdefault(site, len(order))
            if name in reads:
                inputs[site] = f"{place.stack}:{place.rest.rpartition('.')[0]}:{reads[name]}"
        for block in blocks_of(anatomy):
            if block.reader is not None and {block.reader.name, block.writer.name} <= places.keys():
                reader, writer = (places[end.name] for end in (block.reader, block.writer))
                order[f"{writer.stack}:{writer.rest}.parallel"] = order[f"{reader.stack}:{reader.rest}"]
        passed: dict[str, int] = {}
        for modules in (anatomy.norms, anatomy.biases):
            before = 0
            for module in modules:
                if module.layer is None:
                    passed[_module(module.name)] = before
                else:
                    before = module.layer + 1
        stacks = [stack for (stack, _), _ in sorted(layers.items(), key=lambda item: item[1])]
        fans = {linear.name: (linear.fan_in, linear.fan_out) for linear in anatomy.linears}
        return cls(layers, order, inputs, passed, tuple(stacks), fans)

    @property
    def count(self) -> int:
        """How many layers there are."""
        return len(self.stacks)

    def place(self, name: str) -> tuple[int, str] | None:
        """Give the layer and the site of a name in `plan.sizes`; None outside the layers."""
        place = _place_of(name)
        layer = None if place is None else self.layers.get((place.stack, place.index))
        return None if place is None or layer is None else (layer, f"{place.stack}:{place.rest}")

    def adapted(self, plan: AdapterPlan) -> dict[int, dict[str, float]]:
        """Sort a plan's sizes by layer."""
        layers: dict[int, dict[str, float]] = {}
        for name, size in sizes_of(plan).items():
            if (found := self.place(name)) is not None:
                layers.setdefault(found[0], {})[found[1]] = size
        return layers

    def whole_from(self, plan: AdapterPlan) -> int:
        """Give the layer from which on all lie above an adapter outside the layers; their count if there is none."""
        if prompt_of(plan):
            return 0
        outside = [self.passed.get(_module(name), 0) for name in plan.sizes if self.place(name) is None]
        return min(outside, default=self.count)

    def first(self, adapted: Adapted) -> str:
        """Give the input that an adapted layer reads first: its graph begins there if it is the lowest."""
        return self.input(min(adapted, key=self.rank))

    def rank(self, site: str) -> int:
        """Give the place of a site in the order of computation."""
        return self.order.get(site, self.order.get(_module(site), 0))

    def input(self, site: str) -> str:
        """Give the input that is read at a site; adapters that are no linear's have their own."""
        return self.inputs.get(site, site)

    def inside(self, module: str) -> str | None:
        """Give the site that holds a module of a layer, such as an adapter's factor; None if none does."""
        outer, at = module, ""
        while (outer := outer.rpartition(".")[0]) and not at:
            at = next((site for site in self.inputs if site.partition(":")[2] == outer), "")
        position = module[len(at.partition(":")[2]) + 1 :].partition(".")[0]
        return (f"{at}.{position}" if position in ("serial", "parallel") else at) or None

    def features(self, stack: str, adapted: Adapted) -> dict[str, float]:
        """Give a layer as numbers: which inputs an adapter reads, which sites have one, and their sizes."""
        features: dict[str, float] = {stack: 1.0}
        for site, size in adapted.items():
            features[self.input(site)] = 1.0
            features[f"on {site}"] = 1.0
            features[f"size {site}"] = size
        return features


def plan_features(plan: AdapterPlan, trained: int, sites: Sites) -> Mapping[str, Features]:
    """Give a plan beside its layers as numbers: "static" tells what is held between two steps, "trained" the optimiser.

    Args:
        trained: Scalars that are trained, a head's included.
    """
    static: dict[str, float] = {"1": 1.0}
    static |= {f"outside {name}": 1.0 for name in plan.sizes if sites.place(name) is None}
    for part, config in enumerate(plan.configs):
        if config.get("peft_type") in _SHARES_PROJECTIONS:
            field = size_field(config)
            fans = [sites.fans[name] for name in names_of(config)]
            widest = [max(side) for side in zip(*fans, strict=True)]
            size = float(config[field]) if field else max(map(min, fans))
            static |= {f"read by {part}": size * widest[0], f"given by {part}": size * widest[1]}
    if prompt_of(plan):
        # Its tensors are no layer's, the others are.
        static |= prompt_of(plan) if plan.sizes else {"params": float(trained)}
    return {"static": static, "trained": {"1": 1.0, "params": float(trained)}}


def _module(site: str) -> str:
    """Give a site or name without what stands for an adapter or a parameter of it, such as ".bias"."""
    for ending in (".bias", ".serial", ".parallel"):
        site = site.removesuffix(ending)
    return site
