"""A training step on tensors without storage: what is alive when, as CUDA would hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from autopeft.anatomy import number_layers, place_of
from autopeft.trial.prediction.kernels import DeviceKernels
from autopeft.trial.prediction.storages import AllocationLog


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What one layer did to memory in a step, in bytes.

    Attributes:
        saved: Left alive by its forward pass: what its backward pass needs.
        forward_peak: Most bytes alive during its forward pass.
        backward_peak: Most bytes alive during its backward pass; 0 where it has none.
        left: Still alive when its backward pass is over: gradients, and what a method does not let go of; 0 where it
            is not known, as for the lowest layer that has one.
        kept: Its trained parameters and what the optimiser keeps for them.
    """

    saved: int
    forward_peak: int
    backward_peak: int
    left: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What one step did to memory, in bytes.

    Attributes:
        before: Alive when the step began.
        after_forward: Alive when the loss was known.
        loss_peak: Most alive between the last layer's forward and its backward: the head and the loss.
        backward_peak: Most alive in the backward pass below the layers' last.
        optimizer_peak: Most alive while the gradients are clipped and applied.
        gradients: Held by the gradients of trained parameters.
        after: Alive when the step was over; what the next one begins with.
    """

    before: int
    after_forward: int
    loss_peak: int
    backward_peak: int
    optimizer_peak: int
    gradients: int
    after: int
    layers: tuple[LayerMemory, ...]


class LayerWatch:
    """Notes what is alive at the borders of a model's layers, by hooks that live on that model only."""

    def __init__(self, model: nn.Module, log: AllocationLog) -> None:
        self._log = log
        self._before: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._forward: dict[int, int] = {}
        self._backward: dict[int, int] = {}
        self._turned: dict[int, int] = {}
        self._open: int | None = None
        self.loss_peak = 0
        places = {name: place for name, _ in model.named_modules() if (place := place_of(f"{name}.x")) is not None}
        # A layer is the module whose own name ends in its index.
        layers = {name: p for name, p in places.items() if p.rest == "x"}
        numbers = number_layers(layers.values())
        self.count = len(numbers)
        self.modules: dict[int, nn.Module] = {}
        for name, place in layers.items():
            number = numbers[place.stack, place.index]
            module = self.modules[number] = model.get_submodule(name)
            module.register_forward_pre_hook(self._entering(number))
            module.register_forward_hook(self._leaving(number))

    def _entering(self, number: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if number not in self._before:  # gradient checkpointing enters it again in the backward pass
                self._log.close_window()
                self._before[number] = self._log.live_bytes

        return hook

    def _leaving(self, number: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            if number in self._left:
                return
            self._left[number] = self._log.live_bytes
            self._forward[number] = self._log.close_window()
            hidden = output[0] if isinstance(output, tuple) else output
            if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
                hidden.register_hook(lambda _grad: self._turn(number))

        return hook

    def _turn(self, number: int) -> None:
        """Begin the backward pass of a layer, which ends that of the one above."""
        most = self._log.close_window()
        if self._open is None:
            self.loss_peak = most
        else:
            self._backward[self._open] = most
        self._open = number
        self._turned[number] = self._log.live_bytes

    def finish(self) -> tuple[LayerMemory, ...]:
        """End the step; the watch is ready for another."""
        most = self._log.close_window()
        if self._open is None:
            self.loss_peak = most
        else:
            self._backward[self._open] = most
        layers = tuple(
            LayerMemory(self._saved(i), self._forward.get(i, 0), self._backward.get(i, 0), self._stays(i))
            for i in range(self.count)
        )
        self._before, self._left, self._forward, self._backward, self._turned = {}, {}, {}, {}, {}
        self._open = None
        return layers

    def _stays(self, number: int) -> int:
        if number not in self._turned or number - 1 not in self._turned:
            return 0
        return self._turned[number - 1] - self._turned[number] + self._saved(number)

    def _saved(self, number: int) -> int:
        """Count what a layer left; its input is let go of only when the next layer is entered."""
        if number not in self._left:
            return 0
        if number + 1 in self._before:
            return self._before[number + 1] - self._before[number]
        let_go = self._left[number - 1] - self._before[number] if number - 1 in self._left else 0
        return self._left[number] - self._before[number] - let_go


def run_step(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    *,
    optimizer: torch.optim.Optimizer,
    trained: list[nn.Parameter],
    kernels: DeviceKernels,
    log: AllocationLog,
    watch: LayerWatch,
    clip_norm: float,
    keep: list[Any] | None = None,
) -> StepMemory:
    """Take one training step as `autopeft.trial.train` does.

    Args:
        keep: Where the output of the forward pass is held until the next step's replaces it, as by a loop that keeps
            it in a variable; None to let go of all but the loss.
    """
    before = log.live_bytes
    with kernels.autocasting():
        output = model(**batch)
        loss = output.loss
        if keep is not None:
            keep[:] = [output]
        del output
    after_forward = log.live_bytes
    loss.backward()
    layers = watch.finish()
    backward_peak = max((layer.backward_peak for layer in layers), default=0)
    gradients = _gradients(trained, log.block_bytes)
    del loss
    log.close_window()
    if clip_norm:
        torch.nn.utils.clip_grad_norm_(trained, clip_norm)
    optimizer.step()
    optimizer_peak = log.close_window()
    optimizer.zero_grad(set_to_none=True)
    layers = tuple(
        replace(layer, kept=_kept(watch.modules[i], optimizer, log.block_bytes)) for i, layer in enumerate(layers)
    )
    return StepMemory(
        before=before,
        after_forward=after_forward,
        loss_peak=watch.loss_peak,
        backward_peak=backward_peak,
        optimizer_peak=optimizer_peak,
        gradients=gradients,
        after=log.live_bytes,
        layers=layers,
    )


def held_bytes(tensors: Iterable[torch.Tensor], block_bytes: int) -> int:
    """Count the storages of tensors, each once, as multiples of a block."""
    sizes = {(storage := t.untyped_storage())._cdata: storage.nbytes() for t in tensors if t.layout == torch.strided}
    return sum(-(-size // block_bytes) * block_bytes for size in sizes.values())


def state_of(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    """Give the tensors that an optimiser keeps for parameters."""
    states = [optimizer.state[p] for p in parameters if p in optimizer.state]
    return [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]


def _gradients(parameters: Iterable[nn.Parameter], block_bytes: int) -> int:
    return held_bytes([p.grad for p in parameters if p.grad is not None], block_bytes)


def _kept(module: nn.Module, optimizer: torch.optim.Optimizer, block_bytes: int) -> int:
    trained = [p for p in module.parameters() if p.requires_grad]
    return held_bytes([*trained, *state_of(optimizer, trained)], block_bytes)
