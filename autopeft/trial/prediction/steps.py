"""A training step on tensors without storage: what is alive when, as CUDA would hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from autopeft.anatomy import number_layers, place_of
from autopeft.trial.memory import StorageTracker
from autopeft.trial.prediction.kernels import DeviceKernels


class AllocationLog(StorageTracker):
    """Counts storages, and keeps their births and deaths in order.

    Where an operation's result depends on numbers that are not there, it gives the usual case: a flag is not set, a
    number is 1, a mask marks one entry a row.

    Attributes:
        events: (key, bytes) for a birth, (key, 0) for a death, in order.
    """

    def __init__(self, resident: Iterable[torch.Tensor], *, block_bytes: int) -> None:
        self.events: list[tuple[int, int]] = []
        self._window = 0
        super().__init__(resident, block_bytes=block_bytes)

    def _born(self, key: int, size: int) -> None:
        self._window = max(self._window, self.live_bytes)
        self.events.append((key, size))

    def _freed(self, key: int) -> None:
        super()._freed(key)
        self.events.append((key, 0))

    def close_window(self) -> int:
        """Give the most bytes alive since the last call."""
        most, self._window = self._window, self.live_bytes
        return most

    def restart_peak(self) -> None:
        """Forget the peak so far, and count from what is alive."""
        self.peak_bytes = self._window = self.live_bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it gave."""
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError) as error:
            usual = _USUAL.get(func.overloadpacket)
            if usual is None:
                raise error
            out = usual(*args, **(kwargs or {}))
            self._count(out)
            return out


def _usual_number(value: torch.Tensor) -> bool | int | float:
    if value.dtype == torch.bool:
        return False
    return 1.0 if value.is_floating_point() else 1


def _usual_nonzero(value: torch.Tensor) -> torch.Tensor:
    return value.new_empty((value.shape[0] if value.dim() else 1, value.dim()), dtype=torch.int64)


def _usual_bincount(value: torch.Tensor, weights: Any = None, minlength: int = 0) -> torch.Tensor:
    return value.new_empty((max(minlength, 1),), dtype=torch.int64)


def _usual_masked(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return value.new_empty((mask.shape[0] if mask.dim() else 1,))


_USUAL: Mapping[Any, Callable[..., Any]] = {
    torch.ops.aten._local_scalar_dense: _usual_number,
    torch.ops.aten.nonzero: _usual_nonzero,
    torch.ops.aten.bincount: _usual_bincount,
    torch.ops.aten.masked_select: _usual_masked,
}


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What one layer did to memory in a step, in bytes.

    Attributes:
        saved: Left alive by its forward pass: what its backward pass needs.
        forward_peak: Most bytes alive during its forward pass.
        backward_peak: Most bytes alive during its backward pass; 0 where it has none.
    """

    saved: int
    forward_peak: int
    backward_peak: int


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
    """

    before: int
    after_forward: int
    loss_peak: int
    backward_peak: int
    optimizer_peak: int
    gradients: int
    layers: tuple[LayerMemory, ...]


class LayerWatch:
    """Notes what is alive at the borders of a model's layers, by hooks that live on that model only."""

    def __init__(self, model: nn.Module, log: AllocationLog) -> None:
        self._log = log
        self._before: dict[int, int] = {}
        self._saved: dict[int, int] = {}
        self._forward: dict[int, int] = {}
        self._backward: dict[int, int] = {}
        self._open: int | None = None
        self.loss_peak = 0
        places = {name: place for name, _ in model.named_modules() if (place := place_of(f"{name}.x")) is not None}
        # A layer is the module whose own name ends in its index.
        layers = {name: p for name, p in places.items() if p.rest == "x"}
        numbers = number_layers(layers.values())
        self.count = len(numbers)
        for name, place in layers.items():
            number = numbers[place.stack, place.index]
            module = model.get_submodule(name)
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
            if number in self._saved:
                return
            self._saved[number] = self._log.live_bytes - self._before[number]
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

    def finish(self) -> tuple[LayerMemory, ...]:
        """End the step; the watch is ready for another."""
        most = self._log.close_window()
        if self._open is None:
            self.loss_peak = most
        else:
            self._backward[self._open] = most
        layers = tuple(
            LayerMemory(self._saved.get(i, 0), self._forward.get(i, 0), self._backward.get(i, 0))
            for i in range(self.count)
        )
        self._before, self._saved, self._forward, self._backward, self._open = {}, {}, {}, {}, None
        return layers


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
    with kernels.backward_pass():
        # Tensor.backward would turn the mode off for what is computed anew.
        torch.autograd.backward(loss)
    layers = watch.finish()
    backward_peak = max((layer.backward_peak for layer in layers), default=0)
    gradients = sum(_held(p.grad, log.block_bytes) for p in trained if p.grad is not None)
    del loss
    log.close_window()
    if clip_norm:
        torch.nn.utils.clip_grad_norm_(trained, clip_norm)
    optimizer.step()
    optimizer_peak = log.close_window()
    optimizer.zero_grad(set_to_none=True)
    return StepMemory(before, after_forward, watch.loss_peak, backward_peak, optimizer_peak, gradients, layers)


def _held(tensor: torch.Tensor, block_bytes: int) -> int:
    return -(-tensor.untyped_storage().nbytes() // block_bytes) * block_bytes
