"""What the tests of the engines share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import pytest


@pytest.fixture(scope="session", autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """Let BoTorch do without the kernel that it compiles in half a minute; the results are the same."""

    def refuse(**_: object) -> NoReturn:
        raise RuntimeError("nothing is compiled here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.cpp_extension.load", refuse)
        yield
