"""autopeft: finds the parameter-efficient fine-tuning configuration for a model, its data and a budget."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autopeft.api import estimate, load, merge, resume, search
    from autopeft.candidates import Candidate
    from autopeft.objectives import Objective, objective
    from autopeft.result import Pick, Result
    from autopeft.work import Measurement

__all__ = [
    "Candidate",
    "Measurement",
    "Objective",
    "Pick",
    "Result",
    "estimate",
    "load",
    "merge",
    "objective",
    "resume",
    "search",
]

_HOMES = {
    "Candidate": "candidates",
    "Measurement": "work",
    "Objective": "objectives",
    "objective": "objectives",
    "Pick": "result",
    "Result": "result",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use, so that `import autopeft` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"autopeft.{_HOMES.get(name, 'api')}"), name)


class _Face(ModuleType):
    """This module, in which a public name stays what it is when a subpackage of the same name is imported.

    Python binds a subpackage in its parent: without this, `autopeft.search` would be the function only until the
    package of the engine, which has that name too, is first loaded.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
