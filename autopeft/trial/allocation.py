"""AdaLoRA's allocation of rank while training; for every other method it does nothing.

The rank stays at its beginning for a tenth of the steps, sinks cubically, and has reached its end when three tenths of
the steps are left (Zhang et al., arXiv:2303.10512, have similar shares for GLUE).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peft.tuners.adalora import AdaLoraModel
from torch import Tensor

WARM, LAST = 0.1, 0.3
ALLOCATIONS = 100
"""How often the rank is allocated at most."""


def hold_ranks(adapted: Any) -> None:
    """Freeze what only says the rank: PEFT 0.21 lets it be trained on a base of 16 bits, and never saves it."""
    if isinstance(getattr(adapted, "base_model", None), AdaLoraModel):
        for name, parameter in adapted.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)


def allocation(adapted: Any, *, steps: int) -> Callable[[int], None]:
    """Set the schedule of a training; gives what is to be called with each step, while its gradients are there.

    A training of one step is too short to allocate anything.
    """
    model = getattr(adapted, "base_model", None)
    if not isinstance(model, AdaLoraModel) or steps < 2:
        return lambda step: None
    config = model.peft_config[model.trainable_adapter_name]
    config.total_step, config.tinit, config.tfinal = steps, int(WARM * steps), int(LAST * steps)
    config.deltaT = max(1, steps // ALLOCATIONS)
    # PEFT counts the steps from 1: with no step left after the last, it is in that one that the rank is settled.
    return lambda step: model.update_and_allocate(step + 1)


_KEPT = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator remembers of each parameter: how much it mattered, on average, and how sure that is."""


def allocated(adapted: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give what the allocation has come to: the allocator's tensors, and the ranks that are kept."""
    model = getattr(adapted, "base_model", None)
    if not isinstance(model, AdaLoraModel):
        return {}, {}
    allocator, config = model.rankallocator, model.peft_config[model.trainable_adapter_name]
    tensors = {f"{kind}/{name}": tensor for kind in _KEPT for name, tensor in getattr(allocator, kind).items()}
    return tensors, dict(config.rank_pattern or {})


def set_allocated(adapted: Any, tensors: Mapping[str, Tensor], pattern: Mapping[str, Any]) -> None:
    """Go on with an allocation."""
    model = getattr(adapted, "base_model", None)
    if not isinstance(model, AdaLoraModel):
        return
    parameters = dict(model.model.named_parameters())
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        getattr(model.rankallocator, kind)[name] = tensor.to(parameters[name].device, copy=True)
    model.peft_config[model.trainable_adapter_name].rank_pattern = dict(pattern)


def prune(adapted: Any) -> None:
    """Drop what got no rank, and round what did as PEFT will when loading it: what is judged is what will be loaded.

    PEFT gives the factors that it resizes the type of the base's weights, which may have fewer bits than they.
    """
    model = getattr(adapted, "base_model", None)
    if not isinstance(model, AdaLoraModel):
        return
    adapter = model.trainable_adapter_name
    for name, kept in (model.peft_config[adapter].rank_pattern or {}).items():
        module = model.model.get_submodule(name.partition(".lora_E")[0])
        kind = module.get_base_layer().weight.dtype
        for factors, rows in ((module.lora_A, True), (module.lora_E, True), (module.lora_B, False)):
            data = factors[adapter].data
            data = data[kept] if rows else data[:, kept].contiguous()
            factors[adapter].data = data.to(kind).to(data.dtype) if kind.is_floating_point else data
        module.r[adapter] = sum(kept)
