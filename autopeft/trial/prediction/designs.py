"""Plans like a given one that teach much: every layer adapted differently, so that each is a sample of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autopeft.anatomy import Anatomy
from autopeft.candidates import AdapterPlan
from autopeft.methods import METHODS
from autopeft.trial.prediction.parts import (
    PLACES,
    TOKENS,
    WIDTH,
    Config,
    is_by_module,
    moved,
    names_of,
    site_sizes,
    size_field,
)
from autopeft.trial.prediction.sites import Sites

_RANKS = (2, 8, 32, 64)
_SIZES: Mapping[str | None, tuple[Any, ...]] = {
    "r": (8, 16, 32, 64),  # some methods cut it into pieces
    "init_r": (3, 12, 48, 96),
    "oft_block_size": (4, 16, 32, 64),
    "sparsity": (0.9, 0.99, 0.999),
    **dict.fromkeys(("VERA", "PVERA"), (16, 64, 256, 1024)),
}
"""Sizes of a part that has one for all modules, by the field that says it, or by the method that has others."""
_FREQUENCIES = (100, 300, 1000, 3000)
_SHARES = (0.2, 0.5, 0.8)
"""Of a layer's modules that are adapted; plans often leave a layer out, or adapt all of it."""
_TOKENS, _WIDTHS = (4, 64), (16, 256)
_LEAST, _MOST = 4, 20
_SAMPLES_PER_UNKNOWN = 1.3


def designs(plan: AdapterPlan, anatomy: Anatomy, sites: Sites) -> list[AdapterPlan]:
    """Give plans of the structure of a plan; none where it is not known how to make them.

    They begin at every input of the lowest layer, as what that layer saves depends on it, and twice with what a method
    can adapt outside the layers.
    """
    parts = [_everywhere(config, plan, anatomy) for config in plan.configs]
    if not all(names_of(part) or TOKENS in part for part in parts):
        return []
    places: dict[int, dict[str, str]] = {}
    outside = []
    for name in (name for part in parts for name in names_of(part)):
        if (found := sites.place(name)) is None:
            outside.append(name)
        else:
            places.setdefault(found[0], {})[name] = found[1]
    used = dict.fromkeys(site for layer in places.values() for site in layer.values())
    inputs = list(dict.fromkeys(sites.input(site) for site in sorted(used, key=sites.rank)))
    sized = sum(size_field(part) is not None or is_by_module(part) for part in parts)
    prompts = sum(field in part for part in parts for field in (TOKENS, WIDTH))
    # Each counts with and without the rows of the batch; the lowest adapted layer is no sample of a whole one.
    unknowns = 2 * (1 + len(inputs) + (1 + sized / len(parts)) * len(used))
    needed = round(_SAMPLES_PER_UNKNOWN * unknowns / max(1, len(places) - 1))
    count = min(max(_LEAST, needed, 2 + len(inputs), 2 ** (1 + prompts)), _MOST)
    made = []
    for i in range(count + 2 * bool(outside)):
        sizes = dict(_placed(i, places, sites, inputs))
        if i >= count:
            sizes |= dict.fromkeys(outside, 1)
        made.append(_with(plan, [_sized(part, i, sizes, sites) for part in parts]))
    return made


def _everywhere(config: Config, plan: AdapterPlan, anatomy: Anatomy) -> Config:
    """Give a part of a plan wherever its method can go, unless what it is at a module cannot be told from another's."""
    if not is_by_module(config) and any(name != "alpha_pattern" and name.endswith("_pattern") for name in config):
        return config
    whole = METHODS[plan.method].build({}, anatomy).config
    for part in whole.get("parts", (whole,)):
        if all(part.get(name) == config.get(name) for name in ("peft_type", "adapter_type", "position")):
            return {**config, **{name: part[name] for name in PLACES if name in part}}
    return config


def _placed(
    i: int, places: Mapping[int, Mapping[str, str]], sites: Sites, inputs: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """Choose modules, each with a number that says which of several sizes it has."""
    draw = random.Random(i)
    layers = sorted(places)
    # Twice, for both sizes of a batch, a layer below stays as it is, to see what its output costs.
    lowest = next(iter(layers[1:] if i < 2 else layers), None)
    for layer in layers:
        names = places[layer]
        share = draw.choice(_SHARES)
        chosen = {name for name in names if draw.random() < share}
        if layer == lowest:
            begin = inputs[(i if i < 2 else i - 2) % len(inputs)]
            start = next((name for name, site in names.items() if sites.input(site) == begin), next(iter(names)))
            least = sites.rank(names[start])
            chosen = {start, *(name for name in chosen if sites.rank(names[name]) >= least)}
        if lowest is None or layer >= lowest:
            yield from ((name, draw.randrange(len(_RANKS))) for name in names if name in chosen)


def _sized(config: Config, i: int, chosen: Mapping[str, int], sites: Sites) -> dict[str, Any]:
    draw = random.Random(-1 - i)
    if TOKENS in config:
        wide = {WIDTH: _WIDTHS[i // 4 % 2]} if WIDTH in config else {}
        return {**config, **wide, TOKENS: _TOKENS[i // 2 % 2]}
    field = size_field(config)
    if not is_by_module(config):
        one = {field: draw.choice(_SIZES.get(config.get("peft_type")) or _SIZES[field])} if field else {}
        return {**moved(config, chosen), **one}
    of = _FREQUENCIES if field == "n_frequency" else _RANKS
    sizes = {name: of[number] for name, number in chosen.items()}
    if field == "effective_rank":  # how many directions stay as they are
        sizes = {name: min(sites.fans[name]) - size for name, size in sizes.items() if name in sites.fans}
    return moved(config, sizes)


def _with(plan: AdapterPlan, parts: Sequence[dict[str, Any]]) -> AdapterPlan:
    sizes: dict[str, int] = {}
    for part in parts:
        given = part.get("rank_pattern") or part.get("n_frequency_pattern") or {}
        sizes |= dict(zip(names_of(part), given.values() or [1] * len(names_of(part)), strict=True))
        sizes |= site_sizes(part) if "sites" in part else {}
    return replace(plan, sizes=sizes, config=parts[0] if len(parts) == 1 else {"parts": parts})
