"""Where a model can be adapted, and where a plan adapts it: layer by layer, as numbers that memory depends on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import peft

from autopeft.anatomy import Anatomy, number_layers, place_of
from autopeft.records import AdapterPlan

Adapted = Mapping[str, int]
"""The adapted sites of one layer and their ranks. A site is a module's name without the index of its layer."""
Features = Mapping[str, float]

TOKENS, WIDTH = "num_virtual_tokens", "encoder_hidden_size"
# Fields of PEFT's configurations that say where an adapter is and how large, but do not change its structure.
_SPREAD = frozenset(
    ["target_modules", "feedforward_modules", "r", "rank_pattern", "alpha_pattern", "lora_alpha", "alpha", "use_rslora"]
)
# Modules of a layer that read the same input, by kind.
_SHARES_INPUT = {"query": "attention", "key": "attention", "value": "attention", "qkv": "attention"} | dict.fromkeys(
    ("gate", "up", "router"), "feed-forward"
)


def structure_of(plan: AdapterPlan) -> tuple[Any, ...]:
    """Give what plans have in common that differ in places, sizes and rates only.

    A rate, such as that of dropout, counts as on or off.
    """
    kept = {
        name: value > 0 if isinstance(value, float) else value
        for name, value in plan.config.items()
        if name not in _SPREAD and name not in (TOKENS, WIDTH)
    }
    outside = tuple(sorted(name for name in plan.sizes if place_of(name) is None))
    return plan.bits, outside, tuple(sorted((name, repr(value)) for name, value in kept.items()))


def has_rank(plan: AdapterPlan) -> bool:
    """Tell whether a plan's method has a rank."""
    return "r" in plan.config


def sized_by_module(plan: AdapterPlan) -> bool:
    """Tell whether PEFT can be told where this method goes and how large it is there, for each module."""
    known = {f.name for f in fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[plan.config["peft_type"]])}
    return "target_modules" in plan.config and bool(plan.sizes) and ("r" not in known or "rank_pattern" in known)


@dataclass(frozen=True, slots=True)
class Sites:
    """Where a model can be adapted.

    Attributes:
        at: Module name -> (layer, site).
        order: Site -> its place in the order of computation.
        shares: Site -> the input that it reads; modules that read the same input share what is saved of it.
        stacks: Layer -> the stack that it belongs to.
        outside: Norm outside the layers -> how many layers lie before it.
        norms: Names of norms inside the layers.
        scales_input: Modules of which IA3 scales what they read, not what they give.
    """

    at: Mapping[str, tuple[int, str]]
    order: Mapping[str, int]
    shares: Mapping[str, str]
    stacks: Mapping[int, str]
    outside: Mapping[str, int]
    norms: frozenset[str]
    scales_input: frozenset[str]

    @classmethod
    def of(cls, anatomy: Anatomy) -> Sites:
        """Read them off an anatomy."""
        reads = {linear.name: _SHARES_INPUT.get(linear.kind, linear.kind) for linear in anatomy.linears}
        norms = {norm.name: norm.name for norm in anatomy.norms if norm.layer is not None}
        places = {name: place for name in {**reads, **norms} if (place := place_of(name)) is not None}
        numbers = number_layers(places.values())
        at: dict[str, tuple[int, str]] = {}
        order: dict[str, int] = {}
        shares: dict[str, str] = {}
        for name, place in places.items():
            site = f"{place.stack}:{place.rest}"
            at[name] = (numbers[place.stack, place.index], site)
            order.setdefault(site, len(order))
            block = place.rest.rpartition(".")[0]
            shares[site] = site if name in norms else f"{place.stack}:{block}:{reads[name]}"
        outside, passed = {}, 0
        for norm in anatomy.norms:
            if norm.layer is None:
                outside[norm.name] = passed
            else:
                passed = norm.layer + 1
        return cls(
            at=at,
            order=order,
            shares=shares,
            stacks={layer: site.partition(":")[0] for layer, site in at.values()},
            outside=outside,
            norms=frozenset(norms),
            scales_input=frozenset(linear.name for linear in anatomy.linears if linear.kind == "down"),
        )

    @property
    def count(self) -> int:
        """How many layers there are."""
        return len(self.stacks)

    def layers(self, plan: AdapterPlan) -> dict[int, dict[str, int]]:
        """Sort a plan's modules by layer."""
        layers: dict[int, dict[str, int]] = {}
        for name, rank in plan.sizes.items():
            if name in self.at:
                layer, site = self.at[name]
                layers.setdefault(layer, {})[site] = rank
        return layers

    def whole_from(self, plan: AdapterPlan) -> int:
        """Give the layer from which on all lie above an adapter outside the layers; their count if there is none."""
        return min((self.outside.get(name, 0) for name in plan.sizes if name not in self.at), default=self.count)

    def first(self, adapted: Adapted) -> str:
        """Give the input that an adapted layer reads first: its graph begins there if it is the lowest."""
        return self.shares[min(adapted, key=self.order.__getitem__)]

    def features(self, layer: int, adapted: Adapted) -> dict[str, float]:
        """Give a layer as numbers: which inputs an adapter reads, which modules have one, and their ranks."""
        features: dict[str, float] = {self.stacks[layer]: 1.0}
        for site, rank in adapted.items():
            features[self.shares[site]] = 1.0
            features[f"on {site}"] = 1.0
            features[f"rank {site}"] = rank
        return features

    def like(self, plan: AdapterPlan) -> dict[int, list[str]]:
        """Give the modules, by layer, that plans of this structure may adapt: any linear, or any norm."""
        found: dict[int, list[str]] = {}
        for name, (layer, _) in self.at.items():
            if (name in self.norms) == any(chosen in self.norms for chosen in plan.sizes):
                found.setdefault(layer, []).append(name)
        return found

    def moved(self, plan: AdapterPlan, sizes: Mapping[str, int]) -> AdapterPlan:
        """Put a plan's adapter at other places, in other sizes."""
        config = {**plan.config, "target_modules": list(sizes)}
        if "feedforward_modules" in config:
            config["feedforward_modules"] = [name for name in sizes if name in self.scales_input]
        if has_rank(plan):
            config["rank_pattern"] = {f"^{re.escape(name)}$": rank for name, rank in sizes.items()}
        config.pop("alpha_pattern", None)
        return replace(plan, sizes=dict(sizes), config=config)
