"""What the methods that adapt chosen linears share: which ones, how large, and how PEFT is told so.

Where PEFT takes a rank for each module, a method has the settings `rank` and `share` (RANKS); where it takes one for
the model, `layers` and `kinds` switch on what is adapted (PLACES).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.method import Allowed, Settings, chosen, is_amount, is_count
from autopeft.space import Per

RANKS = {"rank": "rank, a whole number", "share": "share of the rank that a kind of module gets"}
RANKS_ALLOWED: dict[str, Allowed] = {"rank": lambda value: value == 0 or is_count(value), "share": is_amount}
RANKS_SPREAD: dict[str, tuple[Per, ...]] = {"rank": ("layers", "kinds"), "share": ("layers", "kinds")}

PLACES = {"layers": "1 where a layer is adapted", "kinds": "1 where a kind of module is adapted"}
PLACES_ALLOWED: dict[str, Allowed] = {"layers": is_amount, "kinds": is_amount}
PLACES_SPREAD: dict[str, tuple[Per, ...]] = {"layers": ("layers", "kinds"), "kinds": ("layers", "kinds")}

T = TypeVar("T")


def ranks_at(settings: Settings, anatomy: Anatomy) -> dict[str, int]:
    """Give every linear that is on its rank: the layer's `rank` times the kind's `share`, rounded, at least 1."""
    shares = chosen(anatomy.linears, settings, "rank", "share")
    return {name: max(1, math.floor(share + 0.5)) for name, share in shares.items()}


def targets_of(settings: Settings, anatomy: Anatomy) -> list[Linear]:
    """Give the linears whose layer and kind are on."""
    on = chosen(anatomy.linears, settings, "layers", "kinds")
    return [linear for linear in anatomy.linears if linear.name in on]


def names_of(linears: Iterable[Linear]) -> list[str]:
    """Give the names of linears, as PEFT takes them for `target_modules`."""
    return [linear.name for linear in linears]


def usual_and_other(values: Mapping[str, T], default: T) -> tuple[T, dict[str, T]]:
    """Give the most common value, and by a pattern of its name that of each module with another.

    Whole names, anchored: PEFT takes a key as a suffix and is silent about one that matches nothing.
    """
    usual = Counter(values.values()).most_common(1)[0][0] if values else default
    return usual, {_whole(name): value for name, value in values.items() if value != usual}


@lru_cache(maxsize=4096)
def _whole(name: str) -> str:
    """Give the pattern of a whole name; of hundreds of candidates a proposal, on the same few modules."""
    return f"^{re.escape(name)}$"


def usual_and_named(values: Mapping[str, T], default: T) -> tuple[T, dict[str, T]]:
    """Give the same by whole names: FourierFT and C3A look these up as they are, and anchor no pattern."""
    usual, _ = usual_and_other(values, default)
    return usual, {name: value for name, value in values.items() if value != usual}


def rank_fields(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Give the fields by which PEFT's configurations are told the rank of each module."""
    usual, other = usual_and_other(ranks, 1)
    return {"r": usual, "target_modules": list(ranks), "rank_pattern": other}


def one_size(settings: Settings, name: str, default: int) -> int:
    """Read a setting that is one whole number for the whole model."""
    value = settings.get(name, default)
    return int(value) if isinstance(value, int | float) else default


def transposed(linears: Iterable[Linear], title: str) -> str:
    """Say why a method that PEFT has for nn.Linear only cannot adapt these; "" if it can."""
    found = next((linear.name for linear in linears if linear.transposed), "")
    return f"PEFT has no {title} for a Conv1D, which {found!r} is" if found else ""
