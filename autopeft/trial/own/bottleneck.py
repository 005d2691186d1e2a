"""Bottleneck adapters, serial and parallel, by forward hooks: the base's modules stay what and where they are.

Sources: Houlsby et al., arXiv:1902.00751; Pfeiffer et al., arXiv:2005.00052; He et al., arXiv:2110.04366 (parallel).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from autopeft.errors import TrialError
from autopeft.trial.reading import linear_shape

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


class Bottleneck(nn.Module):
    """``scaling * up(activation(down(x)))``: (..., fan_in) -> (..., fan_out), through `size`; zero until it is trained.

    It computes in fp32, or in what autocast says, and gives what it is asked for.
    """

    def __init__(
        self, fan_in: int, fan_out: int, *, size: int, activation: str, scaling: float, device: torch.device
    ) -> None:
        super().__init__()
        self.size, self.activation, self.scaling = size, activation, scaling
        self.down = nn.Linear(fan_in, size, device=device, dtype=torch.float32)
        self.up = nn.Linear(size, fan_out, device=device, dtype=torch.float32)
        # As He et al. did, after LoRA.
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self._read: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give what is to be added, in the type of `x`."""
        hidden = ACTIVATIONS[self.activation](self.down(x.to(self.down.weight.dtype)))
        return (self.scaling * self.up(hidden)).to(x.dtype)

    def read(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Keep the input of the block's first linear; a pre-hook of it."""
        self._read = args[0]

    def add_to_input(self, module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        """Add what comes of the input that was read (parallel); a hook of the block's last linear.

        Raises:
            TrialError: If input and output are not of the same tokens.
        """
        read, self._read = self._read, None
        if read is None or read.shape[:-1] != output.shape[:-1]:
            shapes = f"{None if read is None else tuple(read.shape)} and {tuple(output.shape)}"
            raise TrialError(f"a parallel adapter needs input and output of the same tokens; here they are {shapes}")
        return output + self(read).to(output.dtype)

    def add_to_output(self, module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        """Add what comes of the output itself (serial); a hook of the block's last linear."""
        return output + self(output)


def attach_bottlenecks(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Put a bottleneck at every site of a configuration, as a submodule of the linear that writes a block's output.

    Args:
        config: `position` ("serial" or "parallel", also the submodule's name), `activation`, `scaling`, and `sites`:
            (reader, writer, size); a serial adapter has no use for the reader.
    """
    parallel = config["position"] == "parallel"
    for reader_name, writer_name, size in config["sites"]:
        writer = model.get_submodule(writer_name)
        reader = model.get_submodule(reader_name) if parallel else writer
        (_, fan_out), (fan_in, _) = _shape(writer), _shape(reader)
        adapter = Bottleneck(
            fan_in if parallel else fan_out,
            fan_out,
            size=size,
            activation=config["activation"],
            scaling=config["scaling"],
            device=next(writer.parameters()).device,
        )
        writer.add_module(config["position"], adapter)
        if parallel:
            reader.register_forward_pre_hook(adapter.read)
            writer.register_forward_hook(adapter.add_to_input)
        else:
            writer.register_forward_hook(adapter.add_to_output)


def _shape(module: nn.Module) -> tuple[int, int]:
    inner = BaseTunerLayer.get_base_layer(module) if isinstance(module, BaseTunerLayer) else module
    shape = linear_shape(inner)
    assert shape is not None, f"{module} is no linear"
    return shape
