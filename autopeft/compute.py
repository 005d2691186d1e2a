"""How much is computed by a training: floating-point operations of a step, from shapes alone."""

from __future__ import annotations

from autopeft.anatomy import Anatomy, place_of
from autopeft.records import AdapterPlan


def training_flops(anatomy: Anatomy, plan: AdapterPlan, *, rows: int, length: int) -> int:
    """Count the floating-point operations of one training step of `rows` of `length` tokens.

    Counted are the matrix products of the base model, a multiplication and an addition as two: once forward, once
    backward for what lies above the lowest adapted layer, and once more for weights that are trained whole; with
    gradient checkpointing the layers forward twice. Those of the adapters (some per cent) and of normalisation are not.
    """
    tokens = rows * length
    forward = [0] * anatomy.n_layers
    weights = 0
    whole = set(plan.sizes) if any(config.get("adapter_type") == "FULL" for config in plan.configs) else set()
    for linear in anatomy.linears:
        product = 2 * tokens * linear.fan_in * linear.fan_out
        forward[linear.layer] += product
        if linear.name in whole:
            weights += product
        if linear.kind in ("query", "qkv"):
            # Scores and their use, of each token with each; a fused projection's first part are the queries.
            width = linear.fan_in if linear.kind == "qkv" else linear.fan_out
            forward[linear.layer] += 2 * 2 * rows * length * length * width
    head = 2 * tokens * anatomy.outer_linear
    lowest = lowest_layer(anatomy, plan)
    backward = sum(forward[lowest:]) + head
    again = sum(forward) if plan.recipe.gradient_checkpointing else 0
    return sum(forward) + head + backward + weights + again


def lowest_layer(anatomy: Anatomy, plan: AdapterPlan) -> int:
    """Give the lowest layer that anything is adapted in: below it no gradient is computed. 0 for prompts."""
    by_place = {
        (place.stack, place.index): linear.layer for linear in anatomy.linears if (place := place_of(linear.name))
    }
    found = []
    for name in plan.sizes:
        place = place_of(name)
        layer = by_place.get((place.stack, place.index)) if place is not None else None
        if layer is not None:
            found.append(layer)
        elif place is not None or not _after_the_layers(name):
            return 0
    return min(found, default=0 if not plan.sizes else anatomy.n_layers)


def _after_the_layers(name: str) -> bool:
    """Tell a module behind the layers, such as the last norm, from one before them, such as the embedding's."""
    return "embed" not in name.lower()
