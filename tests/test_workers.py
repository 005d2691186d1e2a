"""How the workers of a run are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.records import RunInfo
from autopeft.workers import worker_spec


@pytest.mark.parametrize(
    ("objectives", "reuses"),
    [
        (("quality", "params", "memory"), True),
        (("quality", "adapter_bytes"), True),
        (("quality", "train_seconds"), False),
        (("quality", "my_own"), False),  # who knows what it reads of a measurement
    ],
)
def test_nothing_is_reused_where_the_time_of_a_training_may_count(objectives, reuses):
    goals = tuple({"name": name, "goal": "minimize", "unit": ""} for name in objectives)
    request = {"metric": "loss", "seed": 0}
    info = RunInfo(request, goals, "", "", {}, {}, anatomy={"head": {}}, model={"source": {}})
    assert worker_spec(info, Path(), threads=1).settings["reuse"] is reuses
