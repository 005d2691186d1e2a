"""A training step on tensors without storage: what is alive when, as CUDA would hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from autopeft.layers import number_layers, place_of
from autopeft.trial.prediction.kernels import DeviceKernels
from autopeft.trial.prediction.storages import AllocationLog


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What one layer did to memory in a step, in bytes.

    Attributes:
        entered: Alive when its forward pass began.
        saved: Left alive by its forward pass: what its backward pass needs.
        forward: Most bytes alive in each part of its forward pass. A part is named by the innermost module, or the
            adapted one, at whose output it ends; the last has no name.
        backward: The same of its backward pass; empty where it has none.
        left: Still alive when its backward pass is over: gradients, and what a method does not let go of; 0 where it
            is not known, as for the lowest layer that has one.
        kept: What it alone holds between two steps: its tensors, and what the optimiser keeps for them.
    """

    entered: int
    saved: int
    forward: Mapping[str, int]
    backward: Mapping[str, int]
    left: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What one step did to memory, in bytes.

    Attributes:
        before: Alive when the last forward pass began.
        waiting: Of that, what the passes before it left: gradients that add up.
        loss_peak: Most alive between the last layer's forward and its backward: the head and the loss.
        optimizer_peak: Most alive while the gradients are clipped and applied.
        gradients: Held by the gradients of trained parameters.
        after: Alive when the step was over; what the next one begins with.
    """

    before: int
    waiting: int
    loss_peak: int
    optimizer_peak: int
    gradients: int
    after: int
    layers: tuple[LayerMemory, ...]


def layers_of(model: nn.Module) -> dict[int, nn.Module]:
    """Give a model's layers: the modules whose own names end in their index."""
    places = {name: place_of(f"{name}.x") for name, _ in model.named_modules()}
    found = {name: place for name, place in places.items() if place is not None and place.rest == "x"}
    numbers = number_layers(found.values())
    return {numbers[place.stack, place.index]: model.get_submodule(name) for name, place in found.items()}


class LayerWatch:
    """Notes what is alive in a model's layers, part by part, by hooks that live on that model only."""

    def __init__(self, layers: Mapping[int, nn.Module], log: AllocationLog) -> None:
        self.layers = layers
        self._log = log
        self._clear()
        for number, layer in layers.items():
            for name, part in layer.named_modules():
                if name and (isinstance(part, BaseTunerLayer) or not any(True for _ in part.children())):
                    part.register_forward_hook(self._passing(number, name))
            layer.register_forward_pre_hook(self._entering(number))
            layer.register_forward_hook(self._leaving(number))

    def _clear(self) -> None:
        self._loss_peak = 0
        self._before: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._turned: dict[int, int] = {}
        self._forward: dict[int, dict[str, int]] = {}
        self._backward: dict[int, dict[str, int]] = {}
        self._inside: int | None = None
        self._open: int | None = None

    def _note(self, parts: dict[str, int], name: str) -> None:
        parts[name] = max(parts.get(name, 0), self._log.close_window())

    def _entering(self, number: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if number not in self._before:  # gradient checkpointing enters it again in the backward pass
                self._log.close_window()
                self._before[number] = self._log.live_bytes
                self._forward[number] = {}
                self._inside = number

        return hook

    def _passing(self, number: int, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            # A module that layers share is known by each of them.
            if number not in (self._inside, self._open):
                return
            if self._open is not None:
                self._note(self._backward[number], f"again {name}")
                return
            self._note(self._forward[number], name)
            if isinstance(output, torch.Tensor) and output.requires_grad:
                output.register_hook(lambda _grad: self._back(number, name))

        return hook

    def _back(self, number: int, name: str) -> None:
        if self._open == number:
            self._note(self._backward[number], name)

    def _leaving(self, number: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            if number in self._left:
                return
            self._left[number] = self._log.live_bytes
            self._note(self._forward[number], "")
            self._inside = None
            hidden = output[0] if isinstance(output, tuple) else output
            if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
                hidden.register_hook(lambda _grad: self._turn(number))

        return hook

    def _turn(self, number: int) -> None:
        """Begin the backward pass of a layer, which ends that of the one above."""
        self._end()
        self._open = number
        self._backward[number] = {}
        self._turned[number] = self._log.live_bytes

    def _end(self) -> None:
        if self._open is None:
            self._loss_peak = self._log.close_window()
        else:
            self._note(self._backward[self._open], "")

    def finish(self) -> tuple[tuple[LayerMemory, ...], int]:
        """End the step: gives its layers, and the most alive at the loss; the watch is ready for another."""
        self._end()
        layers = tuple(
            LayerMemory(
                entered=self._before.get(i, 0),
                saved=self._saved(i),
                forward=self._forward.get(i, {}),
                backward=self._backward.get(i, {}),
                left=self._stays(i),
            )
            for i in range(len(self.layers))
        )
        loss_peak = self._loss_peak
        self._clear()
        return layers, loss_peak

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
    parts: int = 1,
    keep: list[Any] | None = None,
) -> StepMemory:
    """Take one training step as `autopeft.trial.train` does.

    Args:
        parts: Forward and backward passes whose gradients add up; what is told is that of the last.
        keep: Where the output of the forward pass is held until the next step's replaces it, as by a loop that keeps
            it in a variable; None to let go of all but the loss.
    """
    start = log.live_bytes
    for _ in range(parts):
        before = log.live_bytes
        with kernels.autocasting():
            output = model(**batch)
            loss = output.loss
            if keep is not None:
                keep[:] = [output]
            del output
        loss.backward()
        layers, loss_peak = watch.finish()
        del loss
    gradients = _gradients(trained, log.block_bytes)
    log.close_window()
    if clip_norm:
        torch.nn.utils.clip_grad_norm_(trained, clip_norm)
    optimizer.step()
    optimizer_peak = log.close_window()
    optimizer.zero_grad(set_to_none=True)
    kept = _kept(model, watch.layers, optimizer, log.block_bytes)
    layers = tuple(replace(layer, kept=kept[i]) for i, layer in enumerate(layers))
    return StepMemory(
        before=before,
        waiting=before - start,
        loss_peak=loss_peak,
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


def _kept(
    model: nn.Module, layers: Mapping[int, nn.Module], optimizer: torch.optim.Optimizer, block_bytes: int
) -> dict[int, int]:
    """Count what each layer alone holds; projections that layers share are the model's."""
    shared = {id(t) for t in _tensors_in(model, without=frozenset(map(id, layers.values())))}
    kept = {}
    for number, layer in layers.items():
        own = [t for t in _tensors_in(layer) if id(t) not in shared]
        kept[number] = held_bytes([*own, *state_of(optimizer, layer.parameters())], block_bytes)
    return kept


def _tensors_in(module: nn.Module, without: frozenset[int] = frozenset()) -> Iterator[torch.Tensor]:
    """Give a module's tensors, also those that are neither parameter nor buffer, as the indices that PEFT keeps."""
    for value in vars(module).values():
        for held in value.values() if isinstance(value, dict) else (value,):
            if isinstance(held, torch.Tensor):
                yield held
    for child in module.children():
        if id(child) not in without:
            yield from _tensors_in(child, without)
