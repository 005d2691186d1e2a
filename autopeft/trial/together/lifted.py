"""Adapters that are lifted off the base whole, trained weights and all, and can be put on it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from autopeft.errors import TrialError
from autopeft.trial.modules import Parts


@dataclass(frozen=True, slots=True)
class Lifted:
    """An adapter off its base.

    Attributes:
        adapted: The model to call when it is on.
        parts: Module of the base -> what it is made of when the adapter is on; only those that differ.
        attributes: What PEFT notes on the model.
    """

    adapted: Any
    parts: Mapping[nn.Module, Parts]
    attributes: Mapping[str, Any]

    def put_on(self, model: Any) -> None:
        """Put the adapter on the bare base; `Bare.strip` takes it off."""
        for module, parts in self.parts.items():
            parts.put_in(module)
        vars(model).update(self.attributes)


class Bare:
    """The base without an adapter: what adapters are compared with when they are lifted.

    Args:
        model: With nothing attached.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.parts = {module: Parts.of(module) for module in model.modules()}
        self._attributes = {module: _attributes(module) for module in self.parts}

    def strip(self) -> None:
        """Take off whatever `Lifted.put_on` has put on."""
        for module, parts in self.parts.items():
            parts.put_in(module)
        for name in set(vars(self.model)) - set(self._attributes[self.model]) - {"training"}:
            delattr(self.model, name)

    def lift(self, adapted: Any) -> Lifted:
        """Note what an adapter that is on has changed; it is taken off by `strip` or `Resident.detach`.

        Raises:
            TrialError: If it has changed a module in a way that is not known here.
        """
        parts = {module: now for module, bare in self.parts.items() if not (now := Parts.of(module)).equals(bare)}
        noted: dict[str, Any] = {}
        for module, bare in self._attributes.items():
            changed = {name: value for name, value in _attributes(module).items() if bare.get(name) is not value}
            if changed and module is not self.model:
                raise TrialError(f"together: an adapter changes {', '.join(changed)} of a {type(module).__name__}")
            noted |= changed
        return Lifted(adapted, parts, noted)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Give what else a module is made of."""
    return {name: value for name, value in vars(module).items() if name != "training"}
