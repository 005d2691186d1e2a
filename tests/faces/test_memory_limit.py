"""Memory before training: the limit is held to, and an estimate tells what fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fruits import SMALL

import autopeft as ap
from autopeft.errors import InfeasibleError, RequestError
from autopeft.estimate import largest_that_fits
from autopeft.trial import worker

MiB = 2**20
SPACE = {
    "parameters": {
        "method": {"choices": ["lora", "ia3", "ln_tuning"]},
        "lora.rank": {"ordinal": [0, 2, 8], "default": 8, "per": "layers", "size": True},
        "ia3.layers": {"ordinal": [0, 1], "per": "layers", "size": True},
        "ln_tuning.layers": {"ordinal": [0, 1], "per": "layers", "size": True},
    },
    "layer_groups": "each",
    "start": [{"method": "lora"}, {"method": "ln_tuning"}],
}


@pytest.fixture
def asked(small: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in small.items() if k not in ("space", "trials")} | {"space": SPACE, "budget": "none"}


def test_what_is_trained_was_predicted_and_keeps_to_the_limit(asked: dict[str, Any], tmp_path: Path) -> None:
    free = ap.search(**asked, trials=8, out=str(tmp_path / "free"))
    assert all(r.cost is not None and r.cost.memory_bytes == 0 for r in free.records)
    peaks = sorted(r.measurement.memory_bytes for r in free.records if r.measurement)
    limit = (peaks[0] + peaks[-1]) // 2
    held = ap.search(**asked, trials=8, memory=limit, out=str(tmp_path / "held"))
    assert len(held.records) == 8
    for record in held.records:
        assert record.state == "complete", record.reason
        assert record.measurement is not None
        assert record.measurement.memory_bytes <= limit < peaks[-1]
        # The batch is a part of the memory, and its rows are of different lengths; the rest is exact.
        assert record.measurement.predicted_bytes == pytest.approx(record.measurement.memory_bytes, rel=0.02)


def test_a_limit_that_nothing_keeps_to_is_told_before_any_training(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "train", None)
    with pytest.raises(InfeasibleError, match=r"memory: .* the leanest configuration here is predicted to need .*KiB"):
        ap.search(**asked, trials=2, memory=int(0.6 * MiB), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_estimate_tells_memory_file_time_and_the_rows_that_fit(asked: dict[str, Any]) -> None:
    fields = {k: v for k, v in asked.items() if k not in SMALL or k == "budget"}
    (free,) = ap.estimate(**fields, candidates={"method": "lora", "lora.rank": 2}, batch_size=4)
    assert free.fits
    assert free.largest_batch is None
    assert free.seconds > 0
    assert free.adapter_bytes == 4 * free.cost.trainable_params
    (more,) = ap.estimate(**fields, candidates={"method": "lora", "lora.rank": 2}, batch_size=8)
    assert more.cost.memory_bytes > free.cost.memory_bytes
    (held,) = ap.estimate(
        **fields, candidates={"method": "lora", "lora.rank": 2}, batch_size=8, memory=more.cost.memory_bytes - 1
    )
    assert not held.fits
    assert "predicted" in held.refusal
    assert held.largest_batch is not None
    assert 4 <= held.largest_batch < 8


def test_an_estimate_shows_what_does_not_fit(asked: dict[str, Any]) -> None:
    fields = {k: v for k, v in asked.items() if k not in SMALL or k == "budget"}
    rows = ap.estimate(**fields, memory=int(0.6 * MiB))
    assert rows
    for row in rows:
        assert not row.fits
        assert row.cost.memory_bytes > 0.6 * MiB
        assert "predicted" in row.refusal


def test_candidates_come_from_a_file_and_its_faults_are_told(asked: dict[str, Any], tmp_path: Path) -> None:
    fields = {k: v for k, v in asked.items() if k not in SMALL or k == "budget"}
    file = tmp_path / "candidates.yaml"
    file.write_text("- {method: lora, lora.rank: 2}\n- {method: ia3}\n")
    assert [row.plan.method for row in ap.estimate(**fields, candidates=file)] == ["lora", "ia3"]
    for text, fault in (
        ("lora", "must hold settings"),
        ("{a: [", "neither YAML nor JSON"),
        ("{lora.rnk: 2}", "lora.rnk"),
        ("- {lora.rnk: 2}\n- {method: ia3}\n- {method: loar}", "candidate 1: .*lora.rnk(.|\n)*candidate 3: .*loar"),
    ):
        file.write_text(text)
        with pytest.raises(RequestError, match=fault):
            ap.estimate(**fields, candidates=file)
    with pytest.raises(RequestError, match="cannot read"):
        ap.estimate(**fields, candidates=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "peak",
    [
        lambda rows: 100 + 7 * rows,
        lambda rows: max(500, 9 * rows),
        lambda rows: 90 + 7 * rows + 512 * (rows // 40),
        lambda rows: 10 * MiB,
        lambda rows: 1,
    ],
)
@pytest.mark.parametrize("limit", [50, 107, 500, 999, 1000, 3000])
def test_the_most_rows_that_fit_are_those_that_trying_all_would_find(peak: Callable[[int], int], limit: int) -> None:
    asked_for: list[int] = []

    def counted(rows: int) -> int:
        asked_for.append(rows)
        return peak(rows)

    found = largest_that_fits(counted, limit, most=1000)
    assert found == max((rows for rows in range(1, 1001) if peak(rows) <= limit), default=0)
    assert len(asked_for) <= 25
