"""Which adapters can be folded into the weights of their base."""

from __future__ import annotations

from autopeft.candidates import AdapterPlan
from autopeft.methods import METHODS


def why_unmergeable(plan: AdapterPlan) -> str:
    """Say why an adapter cannot be folded into the weights; "" if it can."""
    if not METHODS[plan.method].mergeable:
        return "it acts on what passes through the model, not on its weights"
    if any(part.get("init_lora_weights") == "loftq" for part in plan.configs):
        return "loftq makes up for the rounding of the quantised base, which the weights it would go into do not have"
    if any(part.get("new") for part in plan.configs):
        return "this architecture has no place for the biases that were added to it"
    return ""
