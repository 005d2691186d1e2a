"""Where a part of an adapter is and how large it is there, as its configuration says; and the same part elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from autopeft.candidates import AdapterPlan

Config = Mapping[str, Any]

TOKENS, WIDTH = "num_virtual_tokens", "encoder_hidden_size"
PLACES = ("target_modules", "feedforward_modules", "sites", "biases", "new")
"""Fields that say where a part is."""
_SIZES = ("oft_block_size", "sparsity", "init_r", "effective_rank", "n_frequency", "adapter_len", "r")
"""Fields in which memory is linear; the first that a configuration has is its size."""
_PATTERNS = {"effective_rank": "rank_pattern", "n_frequency": "n_frequency_pattern", "r": "rank_pattern"}
_NOT_LINEAR = ("RANDLORA", "TINYLORA")
"""Methods whose rank enters in another way: more of it is fewer matrices, or larger squares."""


def size_field(config: Config) -> str | None:
    """Give the field that holds a part's size, if memory is linear in it."""
    if config.get("peft_type") in _NOT_LINEAR:
        return None
    return next((name for name in _SIZES if config.get(name)), None)


def is_by_module(config: Config) -> bool:
    """Tell a part that has a size of its own at each of its names."""
    field = size_field(config)
    return "sites" in config or (field is not None and _PATTERNS.get(field) in config)


def names_of(config: Config) -> list[str]:
    """Give the names in a plan's sizes that are a part's; none where it cannot be told to go elsewhere."""
    if "sites" in config:
        return list(site_sizes(config))
    if "biases" in config:
        return [*config["biases"], *(f"{name}.bias" for name, _ in config["new"])]
    names = config.get("target_modules", ())
    return [] if isinstance(names, str) else list(names)


def site_sizes(config: Config) -> dict[str, int]:
    """Give the sizes of a part of ours by name: of bottlenecks at linears, or of prefixes at attentions."""
    at, position = _size_at(config), config.get("position", config["adapter_type"])
    return {f"{row[at - 1]}.{position}": row[at] for row in config["sites"]}


def _size_at(config: Config) -> int:
    """Tell where a row of `sites` has its size; the module comes before it."""
    return 1 if config["adapter_type"] == "prefix" else 2


def sizes_of(plan: AdapterPlan) -> dict[str, float]:
    """Give the size that memory is linear in at every name of a plan; 1 where there is none."""
    sizes: dict[str, float] = dict.fromkeys(plan.sizes, 1.0)
    for config in plan.configs:
        names, field = names_of(config), size_field(config)
        if is_by_module(config):
            sizes |= {name: plan.sizes[name] for name in names}
        elif field is not None:
            sizes |= dict.fromkeys(names or plan.sizes, float(config[field]))
    return sizes


def moved(config: Config, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Give a part at other names, a subset of its own, with another size at each, or one for all."""
    names = [name for name in names_of(config) if name in sizes]
    if "sites" in config:
        at = _size_at(config)
        rows = dict(zip(site_sizes(config), config["sites"], strict=True))
        return {**config, "sites": [[*rows[name][:at], sizes[name], *rows[name][at + 1 :]] for name in names]}
    if "biases" in config:
        new = [[name, size] for name, size in config["new"] if f"{name}.bias" in sizes]
        return {**config, "biases": [name for name in config["biases"] if name in sizes], "new": new}
    there: dict[str, Any] = {**config, "target_modules": names}
    for name in ("alpha_pattern", "init_lora_weights"):  # they take no memory, and do not go with every size
        there.pop(name, None)
    if "feedforward_modules" in config:
        there["feedforward_modules"] = [name for name in config["feedforward_modules"] if name in sizes]
    field = size_field(config)
    if field is not None and is_by_module(config):
        # FourierFT and WaveFT look a name up as it is, the others take it for a pattern.
        own = (lambda name: name) if field == "n_frequency" else (lambda name: f"^{re.escape(name)}$")
        there |= {_PATTERNS[field]: {own(name): sizes[name] for name in names}}
    return there
