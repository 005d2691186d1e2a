"""How much is computed by a training: floating-point operations of a step, from shapes alone."""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.candidates import AdapterPlan
from autopeft.layers import place_of


def training_flops(anatomy: Anatomy, plan: AdapterPlan, *, rows: int, length: int) -> int:
    """Count the floating-point operations of one training step of `rows` of `length` tokens.

    Counted are the matrix products of the base model, a multiplication and an addition as two: once forward, once
    backward for what lies above the lowest adapted layer, once more for the gradients of weights that are trained
    themselves; with gradient checkpointing the layers forward twice. What the adapters compute (some per cent) is not.
    """
    lowest = lowest_layer(anatomy, plan)
    layers = forward_flops(anatomy, rows=rows, length=length)
    head = 2 * rows * length * anatomy.outer_linear
    again = sum(layers) if plan.recipe.gradient_checkpointing else 0
    trained = _trained_modules(plan)
    weights = 2 * rows * length * sum(x.fan_in * x.fan_out for x in anatomy.linears if _inside(x.name, trained))
    weights += head if "" in trained else 0
    return sum(layers) + head + sum(layers[lowest:]) + head + weights + again


def forward_flops(anatomy: Anatomy, *, rows: int, length: int) -> list[int]:
    """Count the operations of each layer's forward pass: its linears, and each token's attention to each."""
    forward = [0] * anatomy.n_layers
    for linear in anatomy.linears:
        forward[linear.layer] += 2 * rows * length * linear.fan_in * linear.fan_out
        if linear.kind in ("query", "qkv"):
            # Scores and their use; in a fused projection the queries are as wide as what it reads.
            width = linear.fan_in if linear.kind == "qkv" else linear.fan_out
            forward[linear.layer] += 2 * 2 * rows * length * length * width
    return forward


def lowest_layer(anatomy: Anatomy, plan: AdapterPlan) -> int:
    """Give the lowest layer that anything is adapted in: below it no gradient is computed. 0 for prompts."""
    if any("num_virtual_tokens" in config for config in plan.configs):
        return 0
    by_place = {
        (place.stack, place.index): linear.layer for linear in anatomy.linears if (place := place_of(linear.name))
    }
    trained = _trained_modules(plan)
    found = [linear.layer for linear in anatomy.linears if _inside(linear.name, trained)]
    for name in plan.sizes:
        place = place_of(name)
        layer = by_place.get((place.stack, place.index)) if place is not None else None
        if layer is not None:
            found.append(layer)
        elif place is not None or not _after_the_layers(name):
            return 0
    return min(found, default=0 if not plan.sizes else anatomy.n_layers)


def _trained_modules(plan: AdapterPlan) -> list[str]:
    """Give the modules whose own weights are trained; "" is the whole model."""
    return [name for config in plan.configs if config.get("adapter_type") == "weights" for name in config["modules"]]


def _inside(name: str, modules: list[str]) -> bool:
    return any(not module or name.startswith(f"{module}.") for module in modules)


def _after_the_layers(name: str) -> bool:
    """Tell a module behind the layers, such as the last norm, from one before them, such as the embedding's."""
    return "embed" not in name.lower()
