"""Plain values: what crosses a process or a file is a frozen dataclass that is JSON both ways.

Equal values give equal text, and so the same digest, which is what names caches and tells duplicates.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Self


def canonical_json(value: object) -> str:
    """Write a plain value so that equal values give equal text (keys sorted, no spaces, no NaN)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """Give 16 hex digits that identify a plain value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


class Plain:
    """JSON both ways for a frozen dataclass of plain fields; unknown keys are ignored, so newer records can be read."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Give plain values; what is not finite, as the perplexity of a bad model, is text, for JSON has none."""
        return _finite_or_text(asdict(self))  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})  # type: ignore[arg-type]


def _finite_or_text(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _finite_or_text(v) for k, v in value.items()}
    return type(value)(map(_finite_or_text, value)) if isinstance(value, list | tuple) else value
