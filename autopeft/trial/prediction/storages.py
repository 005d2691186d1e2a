"""A log of storages that live and die, where some of the numbers in them are known and most are not."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._pytree import tree_iter

from autopeft.trial.memory import StorageTracker
from autopeft.trial.prediction.recall import RECALL


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
        if func is _DEVICE:
            return args[0].fake_device  # asked twice as often as anything is computed
        packet = func.overloadpacket
        try:
            if packet is _ATEN.add_ and _is_sparse(args[1]):
                return args[0]  # PyTorch would compute it for real
            if packet in _REPLACED:
                out = _REPLACED[packet](*args)
                self._count(out)
            else:
                out = RECALL.run(func, args, kwargs or {})
                for tensor in tree_iter(out):
                    self._count(tensor)
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
_DEVICE = torch.ops.prim.device.default
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
