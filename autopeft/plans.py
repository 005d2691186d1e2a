"""What a candidate means on a model: the adapter to build and how to train it, or why that method cannot be trained."""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.candidates import AdapterPlan, BaseFormat, Candidate, Recipe
from autopeft.methods import METHODS
from autopeft.recipe import CUSTOMARY, format_of, recipe_of
from autopeft.space import settings_of


def plan_of(
    candidate: Candidate, anatomy: Anatomy, *, recipe: Recipe = CUSTOMARY, base: BaseFormat | None = None
) -> AdapterPlan:
    """Turn a candidate into the adapter it means on a model, and how that is trained.

    Args:
        recipe: How it is trained where the candidate does not say otherwise.
        base: How the base is held then; by default at the checkpoint's bits.
    """
    method = METHODS[str(candidate["method"])]
    build = method.build(settings_of(candidate, method.name), anatomy)
    return AdapterPlan(
        method=method.name,
        sizes=dict(build.sizes),
        config=dict(build.config),
        adapter_params=build.params,
        base=format_of(candidate, base or BaseFormat(anatomy.dtype_bits)),
        recipe=recipe_of(
            candidate, recipe, learning_rate=method.learning_rate * float(candidate.values.get("lr_multiple", 1.0))
        ),
    )


def adapter_params(candidate: Candidate, anatomy: Anatomy) -> int:
    """Count what a candidate's adapter trains on a model: `plan_of(...).adapter_params`, in less time."""
    method = METHODS[str(candidate["method"])]
    return method.params(settings_of(candidate, method.name), anatomy)


def unfit(candidate: Candidate, anatomy: Anatomy, base: BaseFormat | None = None) -> str:
    """Say why a method cannot be trained on a model, whatever its size and recipe; "" if it can."""
    method = METHODS[str(candidate["method"])]
    bits = format_of(candidate, base or BaseFormat(anatomy.dtype_bits)).bits
    if bits not in method.bits:
        return f"{method.name} does not train on a base of {bits} bits"
    if anatomy.task not in method.tasks:
        return f"{method.name} is not for {anatomy.task}"
    return method.refuses(settings_of(candidate, method.name), bits, anatomy)
