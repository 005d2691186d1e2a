"""A training step on tensors without storage: what is alive when, as CUDA would hold it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._pytree import tree_iter

from autopeft.anatomy import number_layers, place_of
from autopeft.trial.memory import StorageTracker
from autopeft.trial.prediction.kernels import DeviceKernels


class AllocationLog(StorageTracker):
    """Counts storages, and keeps their births and deaths in order.

    Where an operation's result depends on numbers that are not there, it gives the usual case: a flag is not set, a
    number is 1, a random number is one half, a mask marks what was scattered into it, or all of a list, or else one
    entry a row; what is counted is the same everywhere.

    Attributes:
        events: (key, bytes) for a birth, (key, 0) for a death, in order.
    """

    def __init__(self, resident: Iterable[torch.Tensor], *, block_bytes: int) -> None:
        self.events: list[tuple[int, int]] = []
        self._window = 0
        # What is known of the numbers in a storage: themselves, or how many of them are not 0.
        self._values: dict[int, Sequence[float]] = {}
        self._marked: dict[int, int] = {}
        super().__init__(resident, block_bytes=block_bytes)

    def alive(self) -> list[tuple[int, int]]:
        """Give (key, bytes) of every storage alive."""
        return list(self._alive.items())

    def note_numbers(self, tensor: torch.Tensor, numbers: Sequence[Any]) -> None:
        """Remember a list of numbers that was written into a tensor."""
        if numbers and all(isinstance(number, int | float) for number in numbers):
            self._values[_key(tensor)] = numbers

    def _born(self, key: int, size: int) -> None:
        self._window = max(self._window, self.live_bytes)
        self.events.append((key, size))

    def _freed(self, key: int) -> None:
        super()._freed(key)
        self.events.append((key, 0))
        self._values.pop(key, None)
        self._marked.pop(key, None)

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
        packet = func.overloadpacket
        try:
            if packet is _ATEN.add_ and _is_sparse(args[1]):
                return args[0]  # PyTorch would compute it for real
            if packet in _REPLACED:
                out = _REPLACED[packet](*args)
                self._count(out)
            else:
                out = super().__torch_dispatch__(func, types, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError) as error:
            usual = self._usual(packet, args, kwargs or {})
            if usual is None:
                raise error
            out = usual
            for tensor in tree_iter(out):
                self._count(tensor)
        if packet in _NOTED:
            self._note(packet, args, out)
        return out

    def _note(self, packet: Any, args: tuple[Any, ...], out: torch.Tensor) -> None:
        key = _key(out)
        if packet is _ATEN.rand or packet is _ATEN.rand_like:
            self._values[key] = (0.5,)
        elif packet in (_ATEN.scatter, _ATEN.scatter_):
            self._marked[key] = args[2].numel()
        elif (given := _key(args[0])) in self._marked and packet is _ATEN.eq:
            self._marked[key] = self._marked[given]
        elif given in self._values and packet is not _ATEN.eq and isinstance(args[1], int | float):
            self._values[key] = [float(_COMPARED[packet](v, args[1])) for v in self._values[given]]

    def _usual(self, packet: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if packet is _ATEN._local_scalar_dense:
            known = self._values.get(_key(args[0]), ())
            at = args[0].storage_offset()
            value = known[at] if at < len(known) else 0 if args[0].dtype == torch.bool else 1
            return {torch.bool: bool}.get(args[0].dtype, float if args[0].is_floating_point() else int)(value)
        if packet is _ATEN.nonzero:
            return args[0].new_empty((self._count_marked(args[0]), args[0].dim()), dtype=torch.int64)
        if packet is _ATEN.index:
            return self._index(args[0], args[1])
        if packet is _ATEN.unique_consecutive:
            return tuple(args[0].new_empty((1,), dtype=dtype) for dtype in (args[0].dtype, torch.int64, torch.int64))
        if packet is _ATEN.bincount:
            length = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
            return args[0].new_empty((max(length, 1),), dtype=torch.int64)
        return None

    def _count_marked(self, mask: torch.Tensor) -> int:
        return self._marked.get(_key(mask), mask.shape[0] if mask.dim() else 1)

    def _index(self, tensor: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Index by masks, each as by the list of what it marks."""
        lists: list[torch.Tensor | None] = []
        for index in indices:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                lists.append(index)
            else:
                found = index.new_empty((self._count_marked(index),), dtype=torch.int64)
                lists += [found] * index.dim()
        return _ATEN.index(tensor, lists)


_ATEN = torch.ops.aten
_COMPARED = {_ATEN.gt: operator.gt, _ATEN.ge: operator.ge, _ATEN.lt: operator.lt, _ATEN.le: operator.le}
_NOTED = frozenset((_ATEN.rand, _ATEN.rand_like, _ATEN.scatter, _ATEN.scatter_, _ATEN.eq, *_COMPARED))


def _as_sparse(values: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """Give a sparse tensor of the values' type with the entries of `like`, or of its own."""
    like = values if like is None else like
    entries = values.new_empty(like._values().shape, layout=torch.strided)
    return torch.sparse_coo_tensor(like._indices().clone(), entries, like.shape, is_coalesced=True)


def _is_sparse(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.sparse_coo


def _randperm(length: int, *_: Any) -> torch.Tensor:
    return torch.empty(length, dtype=torch.int64)


# Fake sparse tensors lose the number of their entries; a permutation with a generator would be drawn for real.
_REPLACED: Mapping[Any, Callable[..., torch.Tensor]] = {
    _ATEN.sparse_mask: _as_sparse,
    _ATEN._coalesce: _as_sparse,
    _ATEN.randperm: _randperm,
}


def _key(value: Any) -> int:
    strided = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return value.untyped_storage()._cdata if strided else 0


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
