"""HRA: a linear's weight is multiplied by a chain of trained Householder reflections.

They start in equal pairs, which undo each other; so their number is even.

Source: Yuan et al., arXiv:2405.17484.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import (
    PLACES,
    PLACES_ALLOWED,
    PLACES_SPREAD,
    names_of,
    one_size,
    targets_of,
    transposed,
)
from autopeft.methods.method import Build, Method, Settings, is_count


def trainable_params(fan_in: int, *, reflections: int) -> int:
    """Count one linear's trained scalars: a vector over the inputs for each reflection.

    >>> trainable_params(4096, reflections=8)
    32768
    """
    return reflections * fan_in


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place equally many reflections on every linear whose layer and kind are on."""
    reflections, targets = one_size(settings, "rank", 8), targets_of(settings, anatomy)
    config = {"peft_type": "HRA", "r": reflections, "target_modules": names_of(targets)}
    params = sum(trainable_params(linear.fan_in, reflections=reflections) for linear in targets)
    return Build({linear.name: reflections for linear in targets}, params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """Refuse GPT-2's Conv1D, for which PEFT has no HRA."""
    return transposed(targets_of(settings, anatomy), "HRA")


METHOD = Method(
    name="hra",
    title="HRA",
    source="arXiv:2405.17484",
    learning_rate=5e-4,
    learning_rate_source="as for LoRA",
    settings={**PLACES, "rank": "number of reflections, even"},
    allowed={**PLACES_ALLOWED, "rank": lambda value: is_count(value) and value % 2 == 0},
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
    # On 8 bits PEFT multiplies by the integers without their scales, and 4-bit weights have no shape to multiply.
    bits=(16, 32),
)
