"""Training of the base's own parameters: a copy is put in the place of each, and the originals stay untouched.

BitFit (Zaken et al., arXiv:2106.10199) trains the biases; a new task head and full fine-tuning are trained so too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

from autopeft.trial.reading import linear_shape

BESIDE = "trained_bias"
"""Name of a bias that stands beside its module and is added by a hook, because inside it would have to be of another
type than it is trained in: bitsandbytes casts the bias of a quantised linear in place to whatever comes in, and a norm
takes a weight and a bias of one type only."""


def train_copies(model: nn.Module, names: Iterable[str]) -> None:
    """Put a trained copy in the place of each named parameter, everywhere it is used: tied weights stay tied."""
    copies = {}
    for name in names:
        original = model.get_parameter(name)
        copies[id(original)] = nn.Parameter(original.detach().clone())
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if id(parameter) in copies:
                module._parameters[leaf] = copies[id(parameter)]


def copy_weights(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Train copies of every parameter of the modules of a configuration; "" is the model.

    Args:
        config: `modules`, and `except`: those inside them that are left out.
    """
    without = tuple(f"{name}." for name in config["except"])
    inside = tuple(f"{name}." if name else "" for name in config["modules"])
    names = [name for name, _ in model.named_parameters()]
    train_copies(model, [name for name in names if name.startswith(inside) and not name.startswith(without)])


def attach_biases(model: Any, config: Mapping[str, Any]) -> None:
    """Train copies of biases, and new biases, from zero, of linears that have none.

    Args:
        config: `biases` (names of parameters) and `new` (of modules with their fan out).
    """
    copied = []
    for name in config["biases"]:
        module = model.get_submodule(name.rpartition(".")[0])
        if _must_stand_beside(module):
            _stand_beside(module, module.bias.detach().clone())
            module._parameters["bias"] = None
        else:
            copied.append(name)
    train_copies(model, copied)
    for name, fan_out in config["new"]:
        module = model.get_submodule(name)
        weight = next(module.parameters())
        dtype = weight.dtype if weight.is_floating_point() else model.dtype
        zeros = torch.zeros(fan_out, device=weight.device, dtype=dtype)
        if _must_stand_beside(module):
            _stand_beside(module, zeros)
        else:
            module._parameters["bias"] = nn.Parameter(zeros)


def _must_stand_beside(module: nn.Module) -> bool:
    quantised = isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
    return quantised or (linear_shape(module) is None and next(module.parameters()).dtype != torch.float32)


def _stand_beside(module: nn.Module, bias: torch.Tensor) -> None:
    module.register_parameter(BESIDE, nn.Parameter(bias))
    module.register_forward_hook(_add_bias)


def _add_bias(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
    return output + module.get_parameter(BESIDE).to(output.dtype)
