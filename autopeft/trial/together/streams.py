"""Random numbers of candidates trained together: each draws from its own stream just what it would draw alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from autopeft.errors import TrialError
from autopeft.trial.generators import random_state, set_random_state


class Stream:
    """A candidate's random numbers: inside `with stream`, torch's generators go on where the candidate left them.

    Args:
        seed: That of its training.
    """

    def __init__(self, seed: int, device: str) -> None:
        outer = random_state(device)
        torch.manual_seed(seed)
        self.state, self._device, self.entered = random_state(device), device, False
        set_random_state(outer, device)
        self._outer = outer

    def __enter__(self) -> None:
        self.entered, self._outer = True, random_state(self._device)
        set_random_state(self.state, self._device)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.entered, self.state = False, random_state(self._device)
        set_random_state(self._outer, self._device)


class DrawApart(TorchFunctionMode):
    """While it is on, dropout of the base, that inside attention too, draws each candidate's rows from its stream.

    Args:
        streams: Those of the candidates, in the order of their rows.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        super().__init__()
        self._streams = streams
        self.sizes: tuple[int, ...] = ()  # how many rows all candidates may have, on the batch at hand

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, one that draws once a candidate."""
        given = dict(kwargs or {})
        if not _draws(func, args, given) or any(stream.entered for stream in self._streams):
            return func(*args, **given)
        shape = args[0].shape
        if shape[0] not in self.sizes:
            raise TrialError(
                "together: the base draws random numbers for something else than the rows of all candidates"
            )

        def share(value: Any, i: int) -> Any:
            if isinstance(value, torch.Tensor) and value.dim() == len(shape) and value.shape[0] == shape[0]:
                return value.chunk(len(self._streams))[i]
            return value

        outs = []
        for i, stream in enumerate(self._streams):
            with stream:
                outs.append(func(*(share(v, i) for v in args), **{n: share(v, i) for n, v in given.items()}))
        return torch.cat(outs)


def _draws(func: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> bool:
    """Tell a call that draws; both functions take what they work on first."""
    if func is functional.dropout:
        p = args[1] if len(args) > 1 else given.get("p", 0.5)
        return bool(p) and bool(args[2] if len(args) > 2 else given.get("training", True))
    if func is functional.scaled_dot_product_attention:
        return bool(args[4] if len(args) > 4 else given.get("dropout_p", 0.0))
    return False
