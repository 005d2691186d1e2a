"""Modules whose tensors have no storage: made from the meta device, and handled as PEFT handles real ones."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.adamss import layer as adamss
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from autopeft.trial.prediction.quantized import fake_weights

# PyTorch asks a tensor that is copied for its address, and warns that there is none.
warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")


class StorageFreeMode(FakeTensorMode):
    """The mode of tensors without storage, of which there is one for all copies of a tensor.

    PEFT copies a head that it trains. A copied tensor would take along a copy of its mode, and with it copies of the
    weak references to storages that a mode keeps: bare pointers, which each copy would free again
    (torch.multiprocessing.reductions.StorageWeakRef, PyTorch 2.13).
    """

    def __deepcopy__(self, memo: Any) -> StorageFreeMode:
        """Give itself."""
        return self


@contextmanager
def no_storage() -> Iterator[None]:
    """Make tensors without storage in this thread."""
    with StorageFreeMode(allow_non_fake_inputs=True), _stand_ins():
        yield


def fake_model(model: nn.Module) -> None:
    """Put frozen tensors without storage in place of those on the meta device; shared ones stay shared."""
    known: dict[int, torch.Tensor] = {}
    tables: dict[str, torch.Tensor] = {}
    for module in model.modules():
        quantized = fake_weights(module, tables)
        for name, parameter in list(module._parameters.items()):
            if parameter is None or (quantized and name == "weight"):
                continue
            if id(parameter) not in known:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                known[id(parameter)] = nn.Parameter(empty, requires_grad=False)
            module._parameters[name] = known[id(parameter)]  # type: ignore[assignment]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                if id(buffer) not in known:
                    known[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
                module._buffers[name] = known[id(buffer)]


def _apply(
    original: Callable[..., Any], self: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> nn.Module:
    """Move a module. PyTorch swaps a fake parameter with its moved copy, which fails where weak references exist."""
    held: list[Any] = [*self._parameters.values(), *self._buffers.values()]
    if not any(isinstance(tensor, FakeTensor) for tensor in held):
        return original(self, fn, recurse)
    if recurse:
        for child in self.children():
            child._apply(fn)
    with torch.no_grad():
        for name, parameter in self._parameters.items():
            if parameter is not None and (moved := fn(parameter)) is not parameter:
                self._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = fn(buffer)
    return self


def _even_clusters(
    _original: Callable[..., Any], rows: torch.Tensor, count: int, _iterations: int
) -> tuple[tuple[int, int], int]:
    """Cluster rows into equal parts: k-means, which AdaMSS starts with, needs numbers."""
    return (rows.shape[0], min(count, rows.shape[0])), min(count, rows.shape[0])


def _even_segments(_original: Callable[..., Any], clusters: tuple[int, int]) -> dict[int, torch.Tensor]:
    rows, count = clusters
    return {i: torch.empty((i + 1) * rows // count - i * rows // count, dtype=torch.int64) for i in range(count)}


_STAND_INS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (nn.Module, "_apply", _apply),
    (adamss, "clustering_Z", _even_clusters),
    (adamss, "seg_locations", _even_segments),
)
_LOCK = threading.Lock()
_HERE = threading.local()
_users = 0
_originals: list[Callable[..., Any]] = []


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Let a few functions that need numbers work without, in this thread only; after the last user all is as before."""
    global _users
    with _LOCK:
        _users += 1
        if _users == 1:
            for holder, name, stand_in in _STAND_INS:
                original = getattr(holder, name)
                _originals.append(original)
                setattr(holder, name, _here_only(original, stand_in))
    _HERE.depth = getattr(_HERE, "depth", 0) + 1
    try:
        yield
    finally:
        _HERE.depth -= 1
        with _LOCK:
            _users -= 1
            if _users == 0:
                for (holder, name, _), original in zip(_STAND_INS, _originals, strict=True):
                    setattr(holder, name, original)
                _originals.clear()


def _here_only(original: Callable[..., Any], stand_in: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if getattr(_HERE, "depth", 0):
            return stand_in(original, *args, **kwargs)
        return original(*args, **kwargs)

    return call
