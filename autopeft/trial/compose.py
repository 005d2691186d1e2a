"""Adapters of several parts, PEFT's and ours, on one model; and their format on disk.

What PEFT makes alone stays PEFT's own, folder and all. Anything else is attached here, part by part from the inside
out, and saved as every trained tensor by its name, beside the plan that says how to attach it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn

from autopeft.candidates import AdapterPlan
from autopeft.errors import SourceError
from autopeft.trial.own import attach_biases, attach_bottlenecks, attach_prefixes, copy_weights
from autopeft.trial.own.copies import BESIDE

TENSORS = "autopeft.safetensors"
"""File that holds what was trained, where the adapter is not one that PEFT makes alone."""

PEFT_TASKS = {"text-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM"}

OWN: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "weights": copy_weights,
    "biases": attach_biases,
    "bottleneck": attach_bottlenecks,
    "prefix": attach_prefixes,
}
"""`adapter_type` of a part of ours -> what attaches it."""


def config_of(fields: Mapping[str, Any], *, task: str, head: Mapping[str, int] = {}, base: str = "") -> Any:
    """Make PEFT's configuration; a new task head, if given, is trained and saved with the adapter."""
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[fields["peft_type"]]
    given = {name: value for name, value in fields.items() if name != "peft_type"}
    if head and "target_modules" in fields:
        given["modules_to_save"] = list(head)
    if given.get("init_lora_weights") == "loftq":
        given["init_lora_weights"] = True  # PEFT's own quantises the base anew, on a GPU; see `initial`
    config = kind(task_type=PEFT_TASKS[task], **given)
    config.base_model_name_or_path = base or None
    return config


def attach_parts(model: Any, plan: AdapterPlan, *, task: str, head: Mapping[str, int]) -> Any:
    """Attach every part of a plan and train the new head; gives the model to call.

    From the inside out: copies of the base's own parameters; PEFT's layers, which wrap modules; bottlenecks, which hook
    what is there by then, and prefixes; prompts, which wrap the model. A later one of PEFT's freezes all before it.
    """
    inside: list[Mapping[str, Any]] = []
    layers: list[Mapping[str, Any]] = []
    hooks: list[Mapping[str, Any]] = []
    prompts: list[Mapping[str, Any]] = []
    for part in plan.configs:
        if "peft_type" in part:
            (layers if "target_modules" in part else prompts).append(part)
        else:
            (hooks if part["adapter_type"] in ("bottleneck", "prefix") else inside).append(part)
    if head and not prompts:  # PEFT trains the head beside a prompt itself
        inside.append({"adapter_type": "weights", "modules": list(head), "except": []})
    trained: dict[int, nn.Parameter] = {}
    for part in (*inside, *layers, *hooks, *prompts):
        if "adapter_type" in part:
            OWN[part["adapter_type"]](model, part)
        elif "target_modules" in part:
            _inject(model, config_of(part, task=task))
        else:
            model = get_peft_model(model, config_of(part, task=task))
        trained |= {id(p): p for p in model.parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return model


def _inject(model: Any, config: Any) -> None:
    tuner = peft.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, "default")
    tuner._cast_adapter_dtype("default")  # fp32 on any base, as get_peft_model makes them
    del model.peft_config  # each part is the first to PEFT


def base_of(adapted: Any) -> Any:
    """Give the transformers model inside, with its adapters."""
    return adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted


def plain_name(name: str) -> str:
    """Give a parameter's name as it is where nothing is wrapped around its module."""
    return name.replace(".base_layer", "").replace(f".{BESIDE}", ".bias")


def trained_tensors(adapted: nn.Module) -> dict[str, nn.Parameter]:
    """Give everything that is trained, by its plain name."""
    return {plain_name(name): p for name, p in adapted.named_parameters() if p.requires_grad}


def save_parts(adapted: nn.Module, folder: Path) -> None:
    """Save everything that was trained."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in trained_tensors(adapted).items()}
    safetensors.torch.save_file(tensors, folder / TENSORS)


def load_parts(adapted: nn.Module, folder: Path) -> None:
    """Put saved tensors in the place of what is trained, all of them and no other.

    Raises:
        SourceError: If they cannot be read, or are not those of this adapter.
    """
    try:
        saved = safetensors.torch.load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise SourceError(f"adapter: {folder / TENSORS} cannot be read: {error}") from None
    wanted = trained_tensors(adapted)
    shapes, expected = ({n: t.shape for n, t in tensors.items()} for tensors in (saved, wanted))
    differing = [n for n in {**saved, **wanted} if shapes.get(n) != expected.get(n)]
    if differing:
        raise SourceError(f"adapter: {folder / TENSORS} is not of this adapter and base; {differing[0]} differs")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(saved[name])
