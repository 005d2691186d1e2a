"""Memory of training: its peak, as CUDA counted it or on CPU as the storages of all tensors alive in one training
step; what a worker may use; and what it looks like when that was not enough."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of the tensor storages alive while it is on; `peak_bytes` is the most there were at once.

    A storage is counted once however many views share it, and until it is freed. Process memory (RSS) would count the
    interpreter, the allocator's slack and whatever earlier trials left.

    Attributes:
        block_bytes: Every storage is counted as a multiple of this; CUDA's allocator hands out 512.
    """

    def __init__(self, resident: Iterable[torch.Tensor], *, block_bytes: int = 1) -> None:
        super().__init__()
        self.block_bytes = block_bytes
        self._alive: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.live_bytes = 0
        self.peak_bytes = 0
        for tensor in resident:
            self._count(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing here is compiled; keeping the compiler off would cost as much as the counting.
        return False

    def _count(self, tensor: object) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        if tensor.layout == torch.sparse_coo:
            self._count(tensor._indices())
            self._count(tensor._values())
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or storage.nbytes() == 0:
            return
        size = -(-storage.nbytes() // self.block_bytes) * self.block_bytes
        self._alive[key] = size
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._watched[key] = weakref.ref(storage, lambda _: self._freed(key))
        self._born(key, size)

    def _born(self, key: int, size: int) -> None:
        """Note a new storage; for those who keep a log."""

    def _freed(self, key: int) -> None:
        self.live_bytes -= self._alive.pop(key)
        del self._watched[key]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it gave."""
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self._count(out)
        else:
            for tensor in tree_iter(out):
                self._count(tensor)
        return out


def held_by(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Give the tensors of an optimiser's state."""
    return [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]


_CGROUP_LIMITS = tuple(map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")))
_NO_MEMORY = ("can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")


def capacity_bytes(device: str) -> int:
    """Give the memory of a device; of a CPU that of the machine, or of the container if that is less."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [path.read_text().strip() for path in _CGROUP_LIMITS if path.is_file()]
    return min(int(psutil.virtual_memory().total), *(int(limit) for limit in limits if limit.isdecimal()), 2**62)


def in_use_bytes(device: str) -> int:
    """Give the most that CUDA has reserved since the training began; of a CPU, what this process holds now."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it came from, is that memory did not suffice.

    On a CPU PyTorch raises a plain RuntimeError, of which only the text says it.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
