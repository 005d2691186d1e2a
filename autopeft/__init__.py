"""autopeft: finds the parameter-efficient fine-tuning configuration for a model, its data and a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autopeft.api import estimate, load, resume, search
    from autopeft.objectives import Objective, objective
    from autopeft.records import Candidate, Measurement
    from autopeft.result import Pick, Result

__all__ = [
    "Candidate",
    "Measurement",
    "Objective",
    "Pick",
    "Result",
    "estimate",
    "load",
    "objective",
    "resume",
    "search",
]

_HOMES = {
    "Candidate": "records",
    "Measurement": "records",
    "Objective": "objectives",
    "objective": "objectives",
    "Pick": "result",
    "Result": "result",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use, so that `import autopeft` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"autopeft.{_HOMES.get(name, 'api')}"), name)
