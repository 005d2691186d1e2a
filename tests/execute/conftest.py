from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for a module: executors use the connection that they find."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    yield
    ray.shutdown()


@pytest.fixture
def ray_executor(ray_here: None) -> Iterator[Callable[..., Any]]:
    from autopeft.execute.ray_tune import RayTuneExecutor

    made: list[RayTuneExecutor] = []

    def make(**settings: Any) -> RayTuneExecutor:
        made.append(RayTuneExecutor(**settings))
        return made[-1]

    yield make
    for executor in made:
        executor.close()
