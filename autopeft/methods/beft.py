"""BEFT: one trained vector is added to the outputs of a linear, whether it has a bias of its own or not.

Source: Huang et al., arXiv:2509.15974.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, targets_of, transposed
from autopeft.methods.method import Build, Method, Settings


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place a vector, one scalar an output, on every linear whose layer and kind are on."""
    targets = targets_of(settings, anatomy)
    config = {"peft_type": "BEFT", "target_modules": names_of(targets)}
    return Build({linear.name: 1 for linear in targets}, sum(linear.fan_out for linear in targets), config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """Refuse GPT-2's Conv1D, for which PEFT has no BEFT."""
    return transposed(targets_of(settings, anatomy), "BEFT")


METHOD = Method(
    name="beft",
    title="BEFT",
    source="arXiv:2509.15974",
    learning_rate=3e-3,
    learning_rate_source="as for IA3: it too trains one vector a linear",
    settings=PLACES,
    allowed=PLACES_ALLOWED,
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
    # PEFT merges it only where the linear has a bias to merge it into.
    mergeable=False,
)
