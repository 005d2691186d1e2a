"""How LoRA's product begins, and what is saved of one that began by taking something out of the base.

PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775) begin with a part of each weight and leave the rest in the base.
So that the adapter goes on the base as it was, what was trained is turned into an equal adapter of twice the rank: the
product as it is, less the product as it began. EVA (arXiv:2410.07170) begins with the directions in which the inputs of
each linear vary most, LoftQ (arXiv:2310.08659, one step of it) with what a weight has lost by quantisation; both leave
the base alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autopeft.candidates import AdapterPlan
from autopeft.errors import TrialError

_ADAPTER = "default"  # PEFT's name for an adapter that is given none
_REWRITING = ("pissa", "olora")
_SPARE = 8
"""Directions kept beyond the rank while the inputs of more rows come in, so that few are lost between them."""


def rewrites_base(plan: AdapterPlan) -> bool:
    """Tell whether an adapter takes something out of the base when it is attached."""
    return str(plan.config.get("init_lora_weights", "")).startswith(_REWRITING)


def changed_by(plan: AdapterPlan, model: nn.Module) -> dict[str, Tensor]:
    """Copy what an adapter changes of the base, weights it takes from and biases it trains in place, to the host.

    There they take no memory of the device, where nothing predicts them.
    """
    fields = ["weight"] * rewrites_base(plan) + ["bias"] * (plan.config.get("bias", "none") != "none")
    found = {f"{name}.{field}": getattr(model.get_submodule(name), field) for name in plan.sizes for field in fields}
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in found.items() if parameter is not None}


def restore(model: nn.Module, copies: Mapping[str, Tensor]) -> None:
    """Put copied parameters back, bit for bit."""
    for name, copy in copies.items():
        module = model.get_submodule(name.rpartition(".")[0])
        base = module.get_base_layer() if isinstance(module, LoraLayer) else module
        parameter = getattr(base, name.rpartition(".")[2])
        parameter.data = copy.to(parameter.device)


def layers_of(adapted: Any) -> Iterator[tuple[str, LoraLayer]]:
    """Give every linear with a product, by its name in the base."""
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def factors_of(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """Copy A, ``(rank, fan_in)``, and B, ``(fan_out, rank)``."""
    return layer.lora_A[_ADAPTER].weight.detach().clone(), layer.lora_B[_ADAPTER].weight.detach().clone()


def settle(adapted: Any, beginnings: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Turn an adapter on a changed base into an equal one, of twice the rank, on the base as it was.

    Args:
        beginnings: A and B of each linear as they began, by its name; the base's weights must be back already.
    """
    config = adapted.peft_config[_ADAPTER]
    grown = math.sqrt(2) if config.use_rslora else 2  # PEFT divides alpha by the rank, or its root
    config.init_lora_weights, config.r = True, 2 * config.r
    config.lora_alpha *= grown
    config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
    config.alpha_pattern = {key: grown * alpha for key, alpha in config.alpha_pattern.items()}
    for name, layer in list(layers_of(adapted)):
        (a, b), (first_a, first_b) = factors_of(layer), beginnings[name]
        layer.update_layer(
            _ADAPTER, 2 * layer.r[_ADAPTER], lora_alpha=grown * layer.lora_alpha[_ADAPTER], config=config
        )
        layer.lora_A[_ADAPTER].weight.data = torch.cat([a, first_a])
        layer.lora_B[_ADAPTER].weight.data = torch.cat([b, -first_b], dim=1)
    adapted.eval()


@torch.no_grad()
def begin_with_residuals(adapted: Any, dense: nn.Module) -> None:
    """Set each product to the largest part of what quantisation took from its weight.

    Args:
        dense: The base as it was before it was quantised, on any device.
    """
    for name, layer in layers_of(adapted):
        held: Any = layer.get_base_layer().weight
        if not hasattr(held, "quant_state"):  # transformers keeps some linears of T5 as they are
            continue
        kept = bnb.functional.dequantize_4bit(held.data, held.quant_state).float()
        original = dense.get_submodule(name)
        weight = original.weight.T if isinstance(original, Conv1D) else original.weight
        lost = weight.to(kept.device, torch.float32) - kept
        rank = layer.r[_ADAPTER]
        left, sizes, right = torch.svd_lowrank(lost, q=min(rank + _SPARE, *lost.shape), niter=4)
        share = (sizes[:rank] / layer.scaling[_ADAPTER]).sqrt()
        layer.lora_A[_ADAPTER].weight.data = (share[:, None] * right.T[:rank]).contiguous()
        layer.lora_B[_ADAPTER].weight.data = (left[:, :rank] * share).contiguous()


@torch.no_grad()
def begin_with_inputs(adapted: Any, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Set each A to the directions in which the inputs of its linear vary most (EVA, without moving ranks about).

    Raises:
        TrialError: If the batches hold fewer tokens than a rank.
    """
    sketches: dict[str, Tensor] = {}
    mask: Tensor | None = None

    def record(name: str, rank: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].detach().float()
            seen = mask is not None and mask.shape == rows.shape[:-1]
            rows = rows[mask.bool()] if seen and mask is not None else rows.flatten(end_dim=-2)
            both = torch.cat([sketches[name], rows]) if name in sketches else rows
            _, sizes, directions = torch.svd_lowrank(both, q=min(rank + _SPARE, *both.shape), niter=4)
            sketches[name] = sizes[:, None] * directions.T

        return hook

    layers = dict(layers_of(adapted))
    handles = [layer.register_forward_pre_hook(record(name, layer.r[_ADAPTER])) for name, layer in layers.items()]
    adapted.eval()
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            adapted(**batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        rank, sketch = layer.r[_ADAPTER], sketches.get(name)
        if sketch is None or len(sketch) < rank:
            raise TrialError(
                f"eva: {name} saw {0 if sketch is None else len(sketch)} directions, rank {rank} needs more"
            )
        weight = layer.lora_A[_ADAPTER].weight
        weight.data = nn.functional.normalize(sketch[:rank], dim=1).to(weight.dtype).contiguous()
    config = adapted.peft_config[_ADAPTER]
    config.init_lora_weights, config.eva_config = True, None  # when it is loaded there is nothing to look at
