"""What a module is made of, so that it can be made of that again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class Parts:
    """What a module is made of: everything that an adapter may exchange in it without touching a tensor."""

    children: Mapping[Any, Any]
    parameters: Mapping[Any, Any]
    hooks: Mapping[Any, Any]
    pre_hooks: Mapping[Any, Any]

    @classmethod
    def of(cls, module: nn.Module) -> Parts:
        """Read what a module is made of now."""
        return cls(
            dict(module._modules),
            dict(module._parameters),
            dict(module._forward_hooks),
            dict(module._forward_pre_hooks),
        )

    def put_in(self, module: nn.Module) -> None:
        """Make a module of these parts."""
        for now, then in zip(_dicts(module), self._all(), strict=True):
            now.clear()
            now.update(then)

    def equals(self, other: Parts) -> bool:
        """Tell whether they are the very same objects."""
        return all(
            list(ours) == list(theirs) and all(ours[name] is theirs[name] for name in ours)
            for ours, theirs in zip(self._all(), other._all(), strict=True)
        )

    def _all(self) -> tuple[Mapping[Any, Any], ...]:
        return self.children, self.parameters, self.hooks, self.pre_hooks


def _dicts(module: nn.Module) -> tuple[dict[Any, Any], ...]:
    return module._modules, module._parameters, module._forward_hooks, module._forward_pre_hooks
