"""The finalists: what the front's points gave with other seeds, on rows that chose nothing, against plain LoRA."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from autopeft.finals import Comparison, Standing, compare, is_plain_lora, winners_curse
from autopeft.labels import describe, show_value
from autopeft.records import TrialRecord
from autopeft.report.context import Context, Section, fill
from autopeft.units import show_count

COLUMNS = [
    "trial", "picks", "configuration", "search", "validation", "validation_spread", "test", "test_spread", "seeds",
    "gain", "gain_low", "gain_high", "p", "failed",
]  # fmt: skip
"""Columns of `table`: means and standard deviations over the seeds; the gain is over the baseline."""


def finalists(context: Context) -> Section:
    """Show what the repeats gave, and say in words what may be concluded."""
    rows = table(context)
    shown = [{**row, **_shown(context, row)} for row in rows]
    html = fill(
        "finalists.html.j2",
        rows=shown,
        split=_split(context),
        verdict=verdict(context),
        curse=_curse(context),
        quality=context.title_of(context.quality),
        baseline=context.baseline,
    )
    return Section("The finalists, trained again", html)


def table(context: Context) -> list[dict[str, Any]]:
    """Give one row a finalist, best first, with COLUMNS as keys; None where there is no value."""
    return [_row(context, standing) for standing in context.standings.values()]


def verdict(context: Context) -> str:
    """Say what the repeats tell of the best configuration against plain LoRA; "" without repeats."""
    tried = sum(is_plain_lora(record.candidate) for record in context.complete)
    best = context.picks.get("best")
    standing = None if best is None else context.standings.get(best.number)
    if best is None or standing is None or not standing.judged:
        return ""
    name, seeds = context.title_of(context.quality), len(standing.judged)
    what = f"trial {best.number} ({describe(best)})"
    on = f"on the {_split(context)} split over {seeds} new seed{'s' * (seeds != 1)}"
    mean = _value(context, statistics.fmean(standing.judged.values()))
    plain = context.baseline
    if plain is None:
        return f"The best, {what}, has {name} {mean} {on}. No plain LoRA was tried that it could be compared with."
    if plain.number == best.number:
        return f"The best, {what}, is plain LoRA itself, with {name} {mean} {on}."
    other = context.standings.get(plain.number)
    found = None if other is None else compare(standing, other, context.quality, among=_rivals(context))
    if other is None or found is None:
        return f"The best, {what}, has {name} {mean} {on}; plain LoRA was not trained again to compare it with."
    theirs = _value(context, statistics.fmean(other.judged.values()))
    baseline = f"tuned all-linear LoRA, the best of {tried} tried (trial {plain.number})"
    return (
        f"The best, {what}, has {name} {mean} {on}; {baseline}, has {theirs}: {_conclusion(found)}.{_size(best, plain)}"
    )


def repeated(context: Context, record: TrialRecord) -> tuple[str, str] | None:
    """Give what a trial's repeats gave, as a title and a value; None where it was not repeated."""
    standing = context.standings.get(record.number)
    if standing is None or not standing.judged:
        return None
    seeds = len(standing.judged)
    title = f"{context.title_of(context.quality)} on the {_split(context)} split, {seeds} new seed{'s' * (seeds != 1)}"
    return title, _with_spread(context, _mean(standing.judged.values()), _spread(standing.judged.values()))


def _conclusion(found: Comparison) -> str:
    difference = f"a {'gain' if found.difference >= 0 else 'loss'} of {abs(found.difference):.2g}"
    if math.isnan(found.p):
        return f"{difference}, of which {found.seeds} seed{'s' * (found.seeds != 1)} cannot tell whether it is chance"
    interval = f"95% interval {_signed(found.low)} to {_signed(found.high)}"
    tested = f"{difference} ({interval}, paired t-test over {found.seeds} seeds, p = {found.p:.2g})"
    if not found.significant:
        return f"{tested}, so no significant gain over tuned LoRA"
    return f"{tested}, a significant {'gain over' if found.difference > 0 else 'loss against'} tuned LoRA"


def _size(best: TrialRecord, plain: TrialRecord) -> str:
    mine, theirs = (r.measurement.trainable_params if r.measurement else 0 for r in (best, plain))
    if not mine or not theirs or mine == theirs:
        return ""
    return f" It trains {show_count(mine)} parameters, the LoRA {show_count(theirs)}."


def _curse(context: Context) -> str:
    """Say how much the search overrated the points that it chose."""
    chosen = {record.number for record in context.front}
    found = [standing for number, standing in context.standings.items() if number in chosen]
    lost = winners_curse(found, context.quality)
    if lost is None:
        return ""
    amount = f"{show_value(abs(lost), context.quality.unit)} of {context.title_of(context.quality)}"
    if lost <= 0:
        return f"With other seeds the points of the front are no worse than in the search: {amount} better on average."
    return (
        f"With other seeds, on the same rows, the points of the front are worse than in the search, by {amount} on "
        "average: what is chosen for its value looks better than it is."
    )


def _row(context: Context, standing: Standing) -> dict[str, Any]:
    plain = context.baseline
    other = context.standings.get(plain.number) if plain and plain.number != standing.record.number else None
    found = compare(standing, other, context.quality, among=_rivals(context)) if other else None
    return {
        "trial": standing.record.number,
        "picks": [name for name, record in context.picks.items() if record.number == standing.record.number],
        "configuration": describe(standing.record),
        "search": standing.searched,
        "validation": _mean(standing.validation.values()),
        "validation_spread": _spread(standing.validation.values()),
        "test": _mean(standing.test.values()),
        "test_spread": _spread(standing.test.values()),
        "seeds": len(standing.judged),
        "gain": found.difference if found else None,
        "gain_low": _finite(found.low) if found else None,
        "gain_high": _finite(found.high) if found else None,
        "p": _finite(found.p) if found else None,
        "failed": sorted(set(standing.failed.values())),
    }


def _shown(context: Context, row: dict[str, Any]) -> dict[str, str]:
    gain = "" if row["gain"] is None else _signed(row["gain"])
    if row["gain_low"] is not None:
        gain += f" [{_signed(row['gain_low'])}, {_signed(row['gain_high'])}]"
    return {
        "search": _value(context, row["search"]),
        "validation": _with_spread(context, row["validation"], row["validation_spread"]),
        "test": _with_spread(context, row["test"], row["test_spread"]),
        "gain": gain,
    }


def _with_spread(context: Context, mean: float | None, spread: float | None) -> str:
    if mean is None:
        return ""
    return _value(context, mean) if spread is None else f"{_value(context, mean)} ± {spread:.2g}"


def _rivals(context: Context) -> int:
    """Count what the best was chosen among: the finalists but for the baseline."""
    return max(1, sum(context.baseline is None or number != context.baseline.number for number in context.standings))


def _split(context: Context) -> str:
    return "test" if any(standing.test for standing in context.standings.values()) else "validation"


def _value(context: Context, value: float) -> str:
    return show_value(value, context.quality.unit)


def _signed(value: float) -> str:
    return f"{value:+.2g}"


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def _spread(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.stdev(found) if len(found) > 1 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
