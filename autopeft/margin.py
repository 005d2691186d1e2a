"""The safety margin of predicted memory: what trials have shown that a prediction must be multiplied with.

It is computed from the records alone, so a run that goes on knows what it had learnt.
"""

from __future__ import annotations

from collections.abc import Iterable

from autopeft.records import TrialRecord

MOST = 2.0
"""Where memory ran out although less than half of it was predicted to be needed, something else took it."""


def safety_margin(records: Iterable[TrialRecord], *, limit_bytes: int) -> float:
    """Give the factor, at least 1, by which a prediction is multiplied before it is held against the limit.

    The largest ratio of measured to predicted peak of any trial; and after a trial ran out of memory, just so much
    that what was predicted for it would be refused the next time.

    Args:
        limit_bytes: The limit asked for.
    """
    margin = 1.0
    for record in records:
        predicted = record.cost.memory_bytes if record.cost is not None else 0
        if predicted <= 0:
            continue
        if record.measurement is not None:
            margin = max(margin, record.measurement.memory_bytes / predicted)
        elif record.exhausted_bytes and (needed := (limit_bytes + 1) / predicted) <= MOST:
            margin = max(margin, needed)
    return margin
