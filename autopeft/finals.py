"""Finalists: the front's points and a baseline, trained again with other seeds; what that says of the winner.

A front is chosen from noisy values, so its points look better than they are (the winner's curse). Trainings with other
seeds tell how good they are, and the test split, which chooses nothing, tells it of new data. The repeats do choose
among the finalists, by the validation split; what they then say on the test split is corrected for their number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import stats

from autopeft.candidates import Candidate
from autopeft.objectives import Objective
from autopeft.pareto import completed, front, picks
from autopeft.records import TrialRecord
from autopeft.work import Measurement

MOST_POINTS = 8
"""Points of the front that are trained again: the named ones, then those of the best quality."""

SIGNIFICANT = 0.05
"""Below this two-sided p-value of a paired t-test a difference is called significant."""

TEST, VALIDATION = "test", "validation"

_PLAIN = {"dora": False, "rslora": False, "init": "default", "bias": "none"}


@dataclass(frozen=True, slots=True)
class Standing:
    """What a finalist gave, search and repeats.

    Attributes:
        searched: Its quality in the search, on the validation split.
        validation, test: Seed -> quality on a split; `test` is empty where the data has no test split.
        failed: Seed -> why there is no value.
    """

    record: TrialRecord
    searched: float
    validation: Mapping[int, float]
    test: Mapping[int, float]
    failed: Mapping[int, str]

    @property
    def judged(self) -> Mapping[int, float]:
        """Seed -> quality on the split that counts: test, where there is one."""
        return self.test or self.validation


@dataclass(frozen=True, slots=True)
class Comparison:
    """One finalist against another over the seeds that both have; a positive difference is a gain.

    Attributes:
        low, high: 95% confidence interval of the mean difference over seeds; infinite where the seeds cannot tell it.
        p: Two-sided p-value of the paired t-test; nan likewise: with one seed, or if all differ by the same.
    """

    seeds: int
    difference: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether the difference is more than the seeds' chance."""
        return self.p < SIGNIFICANT


def is_plain_lora(candidate: Candidate) -> bool:
    """Tell whether a candidate is LoRA as most people use it: one rank in every linear that the space adapts.

    >>> is_plain_lora(Candidate({"method": "lora", "lora.rank[0-1]": 8, "lora.rank[2-3]": 8, "lora.share[up]": 0.5}))
    True
    >>> is_plain_lora(Candidate({"method": "lora", "lora.rank": 8, "lora.share[up]": 1, "lora.share[key]": 0}))
    False
    """
    values = candidate.values
    if values.get("method") != "lora":
        return False
    if any(values.get(f"lora.{name}", plain) != plain for name, plain in _PLAIN.items()):
        return False
    spread = [
        {value for name, value in values.items() if name.partition("[")[0] == setting}
        for setting in ("lora.rank", "lora.share")
    ]
    return all(len(found) <= 1 and 0 not in found for found in spread)


def baseline(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Give what a finalist must beat: the best LoRA with one rank in every linear, its learning rate searched too.

    Empty where none was tried.
    """
    quality = _quality(objectives)
    plain = [r for r in completed(records, objectives) if is_plain_lora(r.candidate)]
    if quality is None or not plain:
        return []
    return [min(plain, key=lambda record: (quality.loss(record.values["quality"]), record.number))]


def finalists(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Give what is worth to be trained again, the most telling first: the picks, the baseline, more of the front.

    Without the objective "quality" there are none: nothing else is judged on a test split.
    """
    if _quality(objectives) is None:
        return []
    points = front(records, objectives)
    named = picks(points, objectives)
    telling = [named[name] for name in ("best", "knee", "smallest") if name in named]
    order = list(dict.fromkeys([*telling, *(record.number for record in points)]))[:MOST_POINTS]
    by_number = {record.number: record for record in points}
    chosen = [by_number[number] for number in order]
    compared = [record for record in baseline(records, objectives) if record.number not in order]
    return [*chosen[:1], *compared, *chosen[1:]]


def values_of(measurement: Measurement, metric: str, splits: Sequence[str]) -> dict[str, float]:
    """Give split -> quality of a training that was judged on several, the first of them as its quality."""
    first, *others = splits
    return {first: measurement.quality, **{split: measurement.metrics[f"{split}_{metric}"] for split in others}}


def standings(
    records: Sequence[TrialRecord], finals: Sequence[TrialRecord], objectives: Sequence[Objective]
) -> list[Standing]:
    """Gather the repeats of each finalist, best first on the split that counts.

    Args:
        finals: Records of the repeats: the trial's number, another seed, values by split.
    """
    quality = _quality(objectives)
    by_number = {record.number: record for record in completed(records, objectives)}
    found = []
    for number in dict.fromkeys(final.number for final in finals):
        if quality is None or (record := by_number.get(number)) is None:
            continue
        own = [final for final in finals if final.number == number]
        of = {split: {f.seed: f.values[split] for f in own if split in f.values} for split in (VALIDATION, TEST)}
        failed = {f.seed: f.reason for f in own if f.state != "complete"}
        found.append(Standing(record, record.values["quality"], of[VALIDATION], of[TEST], failed))

    def rank(standing: Standing) -> tuple[bool, float]:
        judged = standing.judged.values()
        return (not judged, quality.loss(statistics.fmean(judged)) if judged and quality else 0.0)

    return sorted(found, key=rank)


def confirmed(
    records: Sequence[TrialRecord], finals: Sequence[TrialRecord], objectives: Sequence[Objective]
) -> list[TrialRecord]:
    """Give the trials to pick from: those that were repeated, with the mean of the repeats as their quality.

    It is the mean on the validation split: what is chosen by the test split is no longer tested. One that failed with
    some seed is out while there are others. Until all that was picked by the search is repeated, the trials are as they
    were.
    """
    repeated = [standing for standing in standings(records, finals, objectives) if standing.validation]
    if not set(picks(records, objectives).values()) <= {standing.record.number for standing in repeated}:
        return list(records)  # one that was not repeated keeps the luck that the others have lost
    repeated = [standing for standing in repeated if not standing.failed] or repeated
    return [
        replace(s.record, values={**s.record.values, "quality": statistics.fmean(s.validation.values())})
        for s in repeated
    ]


def picked(
    records: Sequence[TrialRecord], finals: Sequence[TrialRecord], objectives: Sequence[Objective]
) -> dict[str, int]:
    """Name the trials that answer the usual questions, as `picks` does, by what the repeats gave."""
    return picks(confirmed(records, finals, objectives), objectives)


def kept(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> set[int]:
    """Give the trials whose adapters are kept: the front, and the baseline, which may turn out to be the better."""
    return {record.number for record in (*front(records, objectives), *baseline(records, objectives))}


def compare(one: Standing, other: Standing, quality: Objective, *, among: int = 1) -> Comparison | None:
    """Compare two finalists over the seeds that both have; None where there is none.

    Args:
        among: How many `one` was chosen among: interval and p-value are Bonferroni's for as many.
    """
    seeds = sorted(one.judged.keys() & other.judged.keys())
    if not seeds:
        return None
    gains = [quality.loss(other.judged[seed]) - quality.loss(one.judged[seed]) for seed in seeds]
    mean = statistics.fmean(gains)
    if len(gains) == 1:
        return Comparison(1, mean, -math.inf, math.inf, math.nan)
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    if error <= 1e-9 * max(map(abs, one.judged.values())):
        # Right or wrong on few rows comes in steps, and a few equal ones say nothing of how far chance goes.
        return Comparison(len(gains), mean, -math.inf, math.inf, math.nan)
    margin = float(stats.t.ppf(1 - SIGNIFICANT / 2 / among, len(gains) - 1)) * error
    p = min(1.0, 2 * among * float(stats.t.sf(abs(mean) / error, len(gains) - 1)))
    return Comparison(len(gains), mean, mean - margin, mean + margin, p)


def winners_curse(found: Sequence[Standing], quality: Objective) -> float | None:
    """Give how much better the finalists looked in the search than their repeats are, on the same split, on average.

    Only points of the search's own choosing count; positive is worse than it looked. None without repeats.
    """
    lost = [
        quality.loss(statistics.fmean(s.validation.values())) - quality.loss(s.searched) for s in found if s.validation
    ]
    return statistics.fmean(lost) if lost else None


def _quality(objectives: Sequence[Objective]) -> Objective | None:
    return next((o for o in objectives if o.name == "quality"), None)
