"""Plans like a given one that teach much: every layer adapted differently, so that each is a sample of its own."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import peft

from autopeft.anatomy import Anatomy
from autopeft.records import AdapterPlan
from autopeft.trial.prediction.sites import Sites

_RANKS = (2, 8, 32, 64)
_LEAST, _MOST = 4, 20
_SAMPLES_PER_UNKNOWN = 1.3


def designs(plan: AdapterPlan, anatomy: Anatomy, sites: Sites) -> list[AdapterPlan]:
    """Give plans of the structure of a plan; none where it is not known how to make them.

    They begin at several inputs of the lowest layer, as what that layer saves depends on it; where a plan begins at
    another one, its own trace tells.
    """
    if len(plan.configs) > 1 or not plan.sizes or not _has_rank_by_module(plan):
        return []
    norms = {norm.name for norm in anatomy.norms}
    names = norms if any(name in norms for name in plan.sizes) else {linear.name for linear in anatomy.linears}
    places: dict[int, dict[str, str]] = {}
    for name in [*(x.name for x in anatomy.linears), *(x.name for x in anatomy.norms)]:
        if name in names and (found := sites.place(name)) is not None:
            places.setdefault(found[0], {})[name] = found[1]
    used = list(dict.fromkeys(site for layer in places.values() for site in layer.values()))
    inputs = list(dict.fromkeys(sites.input(site) for site in used))
    sized = "r" in plan.config
    # Each counts with and without the rows of the batch; the lowest adapted layer is no sample of a whole one.
    unknowns = 2 * (1 + len(inputs) + (2 if sized else 1) * len(used))
    count = max(_LEAST, round(_SAMPLES_PER_UNKNOWN * unknowns / max(1, len(places) - 1)))
    # IA3 scales what the last linear of a feed-forward reads, not what it gives.
    scales_input = frozenset(linear.name for linear in anatomy.linears if linear.kind == "down")
    return list(_moved(plan, places, sites, inputs, scales_input, min(count, _MOST)))


def _has_rank_by_module(plan: AdapterPlan) -> bool:
    """Tell whether PEFT can be told where this method goes and how large it is there, for each module."""
    if "peft_type" not in plan.config or "target_modules" not in plan.config:
        return False
    known = {field.name for field in fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[plan.config["peft_type"]])}
    sized = "r" in plan.config or any(size != 1 for size in plan.sizes.values())
    return not sized or ("r" in plan.config and "rank_pattern" in known)


def _moved(
    plan: AdapterPlan,
    places: Mapping[int, Mapping[str, str]],
    sites: Sites,
    inputs: list[str],
    scales_input: frozenset[str],
    count: int,
) -> Iterator[AdapterPlan]:
    layers = sorted(places)
    outside = {name: size for name, size in plan.sizes.items() if sites.place(name) is None}
    for i in range(count):
        draw = random.Random(i)
        # Twice, for both sizes of a batch, a layer below stays as it is, to see what its output costs.
        lowest = layers[min(1, len(layers) - 1)] if i < 2 else layers[0]
        sizes = dict(outside)
        for layer in layers[layers.index(lowest) :]:
            names = list(places[layer])
            chosen = {name for name in names if draw.random() < 0.5}
            if layer == lowest:
                begin = inputs[(i if i < 2 else i - 2) % len(inputs)]
                starts = [n for n in names if sites.input(places[layer][n]) == begin] or names[:1]
                order = [sites.order[places[layer][name]] for name in names]
                least = sites.order[places[layer][starts[0]]]
                chosen = {name for name, at in zip(names, order, strict=True) if name in chosen and at >= least}
                chosen.add(starts[0])
            for name in names:
                if name in chosen:
                    sizes[name] = draw.choice(_RANKS) if "r" in plan.config else 1
        yield _with_sizes(plan, sizes, scales_input)


def _with_sizes(plan: AdapterPlan, sizes: Mapping[str, int], scales_input: frozenset[str]) -> AdapterPlan:
    config: dict[str, Any] = {**plan.config, "target_modules": list(sizes)}
    if "feedforward_modules" in config:
        config["feedforward_modules"] = [name for name in sizes if name in scales_input]
    if "r" in config:
        config["rank_pattern"] = {f"^{re.escape(name)}$": rank for name, rank in sizes.items()}
    config.pop("alpha_pattern", None)
    return replace(plan, sizes=dict(sizes), config=config)
