"""Modules whose tensors have no storage: made from the meta device, and moved as PEFT moves real ones."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from autopeft.trial.prediction.quantized import fake_weights

_LOCK = threading.Lock()
_USERS = 0
_APPLY = nn.Module._apply


@contextmanager
def no_storage() -> Iterator[None]:
    """Make tensors without storage in this thread; methods that print while they are built are not heard."""
    with FakeTensorMode(allow_non_fake_inputs=True), _movable(), redirect_stdout(io.StringIO()):
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


@contextmanager
def _movable() -> Iterator[None]:
    """Let `module.to()` work on tensors without storage.

    PyTorch swaps such a parameter with its moved copy, which fails while anything refers to it weakly, and its own
    fake tensors do. Modules with real tensors, in whatever thread, are moved as ever; when the last user is gone, so
    is the change.
    """
    global _USERS
    with _LOCK:
        _USERS += 1
        if _USERS == 1:
            nn.Module._apply = _apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _LOCK:
            _USERS -= 1
            if _USERS == 0:
                nn.Module._apply = _APPLY  # type: ignore[method-assign]


def _apply(self: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    held: list[Any] = [*self._parameters.values(), *self._buffers.values()]
    if not any(isinstance(tensor, FakeTensor) for tensor in held):
        return _APPLY(self, fn, recurse)
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
