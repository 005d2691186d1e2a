"""How a device computes, for a model of fake tensors: its attention and dropout kernels and its rules of autocast.

Tensors without storage lie on the "cpu" device, as a build of PyTorch without CUDA cannot differentiate fake ones on
"cuda". What a CUDA device would keep for the backward pass differs in three places, and only there: attention runs in
a fused kernel, dropout keeps a mask of booleans, and autocast has its own lists. All three are put in by a mode that
holds for one thread and one `with` block; nothing is registered or replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from autopeft.trial.prediction.attention import cpu_attention, cuda_attention, cuda_dropout

Device = Literal["cuda", "cpu"]
Policy = Literal["lower", "float32", "widest"]

# The lists of aten/src/ATen/autocast_mode.h (PyTorch 2.13), without convolutions and recurrent cells.
_LOWER = [
    "matmul",
    "mm",
    "bmm",
    "mv",
    "addmm",
    "addmv",
    "addbmm",
    "baddbmm",
    "addr",
    "einsum",
    "linear",
    "chain_matmul",
    "multi_dot",
    "vecdot",
    "scaled_dot_product_attention",
    "prelu",
    "__matmul__",
    "__rmatmul__",
    "bilinear",
]
_FLOAT32 = [
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "pow",
    "__pow__",
    "__rpow__",
    "softplus",
    "layer_norm",
    "native_layer_norm",
    "group_norm",
    "cosine_similarity",
    "nll_loss",
    "kl_div",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dist",
    "cdist",
    "renorm",
    "logsumexp",
    "prod",
    "softmax",
    "log_softmax",
    "cumprod",
    "cumsum",
    "vector_norm",
    "matrix_norm",
    "norm",
    "sum",
]
_WIDEST = [
    "addcdiv",
    "addcmul",
    "atan2",
    "cross",
    "dot",
    "vdot",
    "grid_sample",
    "index_put",
    "tensordot",
    "scatter_add",
]
# Where a dtype is given, these keep to it.
_TAKES_DTYPE = frozenset(["prod", "softmax", "log_softmax", "cumprod", "cumsum", "vector_norm", "matrix_norm", "sum"])


@cache
def _policies() -> Mapping[Callable[..., Any], tuple[Policy, str]]:
    """Map every function that autocast knows, under each of its names, to its policy."""
    lists: tuple[tuple[Policy, list[str]], ...] = (("lower", _LOWER), ("float32", _FLOAT32), ("widest", _WIDEST))
    homes = (torch, torch.Tensor, F, torch.linalg, torch._C._nn, torch.special)
    found: dict[Callable[..., Any], tuple[Policy, str]] = {}
    for policy, names in lists:
        for name in names:
            for home in homes:
                function = getattr(home, name, None)
                if callable(function):
                    found[function] = (policy, name)
    return found


class DeviceKernels(TorchFunctionMode):
    """Computes as `device` does while it is on, in this thread.

    Attributes:
        autocast_dtype: The type that `autocasting` lowers to; None for no autocast.
        on_written: Told of numbers that are written into a tensor, as a method may write a shape to read it again.
    """

    def __init__(self, device: Device, *, autocast_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.device = device
        self.autocast_dtype = autocast_dtype
        self.on_written: Callable[[torch.Tensor, Sequence[Any]], None] = lambda tensor, numbers: None
        self._casting = False
        # Autocast casts a parameter once and keeps the copy until its context ends.
        self._cast: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextmanager
    def autocasting(self) -> Iterator[None]:
        """Run the forward pass under autocast, as `torch.autocast(device)` would."""
        if self.autocast_dtype is None:
            yield
            return
        if self.device == "cpu":
            with torch.autocast("cpu", dtype=self.autocast_dtype):
                yield
            return
        # PEFT asks whether autocast is on; on CUDA's own key it changes nothing for tensors that lie elsewhere.
        before = torch.is_autocast_enabled("cuda")
        torch.set_autocast_enabled("cuda", True)
        self._casting = True
        try:
            yield
        finally:
            self._casting = False
            self._cast.clear()
            torch.set_autocast_enabled("cuda", before)

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Run a forward pass anew within the backward pass, in which the mode is off."""
        with self, self.autocasting():
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function as the device would."""
        kwargs = dict(kwargs or {})
        if self.device == "cuda" and self._casting:
            args, kwargs = self._autocast(func, args, kwargs)
        if func is F.scaled_dot_product_attention:
            attend = cuda_attention if self.device == "cuda" else cpu_attention
            return attend(*args, **kwargs)
        if func is F.dropout and self.device == "cuda":
            return cuda_dropout(*args, **kwargs)
        out = func(*args, **kwargs)
        if func is torch.tensor and isinstance(args[0], list | tuple):
            self.on_written(out, args[0])
        return out

    def _autocast(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        policy, name = _policies().get(func, (None, ""))
        if policy is None or (name in _TAKES_DTYPE and kwargs.get("dtype") is not None):
            return args, kwargs
        target: torch.dtype | None = torch.float32
        if policy == "lower":
            target = self.autocast_dtype
        elif policy == "widest":
            given = {a.dtype for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()}
            target = torch.float32 if torch.float32 in given else None
        if target is None:
            return args, kwargs
        return (
            tuple(self._to(value, target) for value in args),
            {key: self._to(value, target) for key, value in kwargs.items()},
        )

    def _to(self, value: Any, target: torch.dtype) -> Any:
        if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
            return type(value)(self._to(v, target) for v in value)
        castable = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
        if not castable or value.dtype == target:
            return value
        if not (target == self.autocast_dtype and value.is_leaf and value.requires_grad):
            return value.to(target)
        if id(value) not in self._cast:
            # The original is held too, so that its id stays its own.
            self._cast[id(value)] = (value, value.to(target))
        return self._cast[id(value)][1]
