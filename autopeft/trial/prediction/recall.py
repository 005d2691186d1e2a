"""Operations on tensors without storage, answered from memory: a model repeats the same few hundred in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

_CPU = torch.device("cpu")
_DEPENDS_ON_NUMBERS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
_MOST_KNOWN = 50_000
# What is remembered of one output: None, the index of the argument that it is, or its metadata with the index of the
# argument that it views, -1 for none.
_Output = None | int | tuple[torch.dtype, torch.Size, tuple[int, ...], int, int]


class Recall:
    """Remembers the shapes that operations gave; PyTorch's own memory of them spends most of a trace on its keys.

    One is enough for a process: a key holds everything that a result's shape depends on.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[bool, list[_Output]]] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation, or make what it gave when it last had such arguments."""
        try:
            key = (func, torch.get_default_dtype(), _signature(args), _signature(tuple(kwargs.items())))
            known = self._known.get(key)
        except _Unknown:
            return func(*args, **kwargs)
        if known is not None:
            several, outputs = known
            mode = next(arg for arg in _flat(args) if isinstance(arg, FakeTensor)).fake_mode
            made = [_make(output, args, mode) for output in outputs]
            return tuple(made) if several else made[0]
        out = func(*args, **kwargs)
        if _remembers(func):
            several = isinstance(out, tuple)
            described = [_describe(o, args) for o in (out if several else (out,))]
            if all(found for found, _ in described):
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[key] = several, [output for _, output in described]
        return out


class _Unknown(Exception):
    """An argument whose effect on the result cannot be told from its shape."""


def _signature(args: tuple[Any, ...] | list[Any]) -> tuple[Any, ...]:
    signature: list[Any] = []
    for arg in args:
        if isinstance(arg, FakeTensor):
            if arg.constant is not None or arg.layout != torch.strided:
                raise _Unknown
            signature.append((arg.dtype, arg.shape, arg.stride(), arg.storage_offset()))
        elif isinstance(arg, list | tuple):
            signature.append(_signature(arg))
        elif arg is None or isinstance(arg, bool | int | float | str | torch.dtype | torch.device | torch.layout):
            signature.append((type(arg), arg))
        elif isinstance(arg, torch.memory_format):
            signature.append(arg)
        else:
            raise _Unknown
    return tuple(signature)


def _flat(args: tuple[Any, ...] | list[Any]) -> Any:
    for arg in args:
        if isinstance(arg, list | tuple):
            yield from _flat(arg)
        else:
            yield arg


def _remembers(func: Any) -> bool:
    name = func.name()
    return (
        name.startswith("aten::")
        and _DEPENDS_ON_NUMBERS.isdisjoint(func.tags)
        and not name.startswith(("aten::set_", "aten::resize", "aten::lift"))
    )


def _describe(out: Any, args: tuple[Any, ...]) -> tuple[bool, _Output]:
    """Tell whether an output can be made again, and how."""
    if out is None:
        return True, None
    if not isinstance(out, FakeTensor) or out.constant is not None or out.layout != torch.strided:
        return False, None
    if out.fake_device != _CPU or out.is_conj() or out.is_neg():
        return False, None
    if not any(isinstance(arg, FakeTensor) for arg in _flat(args)):
        return False, None
    views = -1
    for i, arg in enumerate(args):
        if arg is out:
            return True, i
        if views < 0 and isinstance(arg, FakeTensor) and arg.untyped_storage()._cdata == out.untyped_storage()._cdata:
            views = i
    if views < 0 and any(arg is out for arg in _flat(args)):
        return False, None
    return True, (out.dtype, out.shape, out.stride(), int(out.storage_offset()), views)


def _make(output: _Output, args: tuple[Any, ...], mode: FakeTensorMode) -> Any:
    if output is None:
        return None
    if isinstance(output, int):
        return args[output]
    dtype, shape, stride, offset, views = output
    storage = args[views].untyped_storage() if views >= 0 else None
    with in_kernel_invocation_manager(mode):
        empty = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        if storage is not None:
            empty.set_(storage, offset, shape, stride)
    return FakeTensor(mode, empty, _CPU)


RECALL = Recall()
"""What this process remembers."""
