"""Optimisers by name, for a trace: what each keeps for a parameter, and what it holds while it steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from autopeft.candidates import Recipe
from autopeft.trial.train import make_optimizer

_BLOCK = 256
_SMALLEST_8BIT = 4096
_SMALLEST_PAGED = 100_000


class _AdamW8bit(torch.optim.Optimizer):
    """bitsandbytes' AdamW of 8 bits (Dettmers et al., arXiv:2110.02861; 0.50): the states that it keeps, no update.

    A moment takes a byte a scalar and a float a block of 256; small parameters keep theirs in fp32. Paged moments lie
    in memory that the driver moves and PyTorch does not count.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, paged: bool) -> None:
        super().__init__(params, {})
        self._paged = paged
        self._code: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Bring the states to life."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not self.state[p]:
                    self._start(p, self.state[p])

    def _start(self, p: torch.Tensor, state: dict[str, Any]) -> None:
        if p.numel() < _SMALLEST_8BIT:
            state |= {name: torch.zeros_like(p, dtype=torch.float32) for name in ("state1", "state2")}
            return
        if self._code is None:
            self._code = torch.empty(2, 256)
        state["qmap"] = self._code
        for moment in ("1", "2"):
            if not self._paged or p.numel() < _SMALLEST_PAGED:
                state[f"state{moment}"] = torch.zeros_like(p, dtype=torch.uint8)
            state[f"absmax{moment}"] = torch.zeros(-(-p.numel() // _BLOCK))


MakeFrom = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

_OTHERS: Mapping[str, MakeFrom] = {
    # bitsandbytes' own write through pointers, which tensors without storage do not have.
    "adamw_8bit": lambda trained: _AdamW8bit(trained, paged=False),
    "paged_adamw_8bit": lambda trained: _AdamW8bit(trained, paged=True),
    # PyTorch's own choice on CUDA: all parameters at once, with temporaries of their size.
    "adamw_foreach": lambda trained: torch.optim.AdamW(trained, foreach=True),
    "sgd": lambda trained: torch.optim.SGD(trained, foreach=True),
}


def traced_optimizer(name: str, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Make an optimiser of a recipe as its training makes it, or a stand-in that keeps the same; or one of others'
    loops."""
    return _OTHERS[name](trained) if name in _OTHERS else make_optimizer(Recipe(1e-3, optimizer=name), trained)
