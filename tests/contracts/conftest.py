from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from autopeft.candidates import BaseFormat
from autopeft.trial.adapters import Resident
from autopeft.trial.model import ModelSource, load_base


@pytest.fixture(scope="session")
def resident_of(source_of: Callable[[str, str], ModelSource]) -> Callable[..., Resident]:
    """Give a resident base, loaded once: (family, task, bits) -> resident. What a test attaches it must detach."""
    return cache(
        lambda family, task, bits=32: Resident(load_base(source_of(family, task), BaseFormat(bits), device="cpu"))
    )
