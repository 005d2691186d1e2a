"""What every section of the report is made from, and the one door through which it reaches HTML and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from autopeft.anatomy import Anatomy
from autopeft.finals import Standing, baseline, picked, standings
from autopeft.labels import describe, show_rate, show_value
from autopeft.objectives import DEFAULT_METRIC, METRICS, OBJECTIVES, Metric, Objective
from autopeft.pareto import completed, front, quality_objective, size_objective
from autopeft.records import RunInfo, TrialRecord

TEMPLATES = Environment(
    loader=PackageLoader("autopeft.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["label"] = describe
TEMPLATES.filters["rate"] = show_rate

PICKS = {"knee": "Knee", "best": "Best", "smallest": "Smallest"}
"""The picks in the order in which they are shown, the recommended one first."""

_TITLES = {
    "params": "trainable parameters",
    "memory": "peak memory",
    "train_seconds": "training time",
    "adapter_bytes": "adapter on disk",
}


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report: its heading, and HTML in which everything foreign is escaped."""

    title: str
    html: Markup


@dataclass(frozen=True)
class Context:
    """A run and everything that more than one section wants to know of it.

    Attributes:
        adapter_dirs: Trial number -> directory of its exported adapter, as the report should print it.
        finals: What the finalists gave that were trained again.
    """

    info: RunInfo
    records: Sequence[TrialRecord]
    objectives: Sequence[Objective]
    adapter_dirs: Mapping[int, str] = field(default_factory=dict)
    finals: Sequence[TrialRecord] = ()

    @cached_property
    def complete(self) -> list[TrialRecord]:
        """The complete trials, in their order."""
        return completed(self.records, self.objectives)

    @cached_property
    def front(self) -> list[TrialRecord]:
        """The trials that no other dominates, best quality first."""
        return front(self.complete, self.objectives)

    @cached_property
    def picks(self) -> dict[str, TrialRecord]:
        """The named trials, the recommended one first."""
        by_number = {record.number: record for record in self.complete}
        chosen = picked(self.complete, self.finals, self.objectives)
        return {name: by_number[chosen[name]] for name in PICKS if name in chosen}

    @cached_property
    def standings(self) -> dict[int, Standing]:
        """The finalists by trial number, best first on the split that counts."""
        found = standings(self.complete, self.finals, self.objectives)
        return {standing.record.number: standing for standing in found}

    @cached_property
    def baseline(self) -> TrialRecord | None:
        """The best LoRA with one rank in every linear; None where none was tried."""
        return next(iter(baseline(self.complete, self.objectives)), None)

    @cached_property
    def anatomy(self) -> Anatomy | None:
        """The model; None with a custom runner."""
        return Anatomy.from_dict(self.info.anatomy) if self.info.anatomy else None

    @property
    def quality(self) -> Objective:
        """The objective that says how good a configuration is."""
        return quality_objective(self.objectives)

    @property
    def size(self) -> Objective | None:
        """The objective that says how small it is, if there is one."""
        return size_objective(self.objectives)

    @property
    def metric(self) -> Metric | None:
        """The metric behind "quality"; None with a custom runner."""
        name = self.info.request.get("metric") or (DEFAULT_METRIC[self.anatomy.task] if self.anatomy else None)
        return METRICS[name] if self.anatomy and isinstance(name, str) and name in METRICS else None

    def picks_of(self, number: int) -> list[str]:
        """Name the picks that a trial is."""
        return [PICKS[name] for name, record in self.picks.items() if record.number == number]

    def title_of(self, objective: Objective) -> str:
        """Say in words what an objective is."""
        if objective.name == "quality" and self.metric:
            return self.metric.name.replace("_", " ")
        known = OBJECTIVES.get(objective.name)
        return _TITLES.get(objective.name, objective.name) if known and known.unit == objective.unit else objective.name

    def show(self, objective: Objective, record: TrialRecord) -> str:
        """Write a record's value of an objective; a dash where it has none."""
        value = record.values.get(objective.name)
        return "–" if value is None else show_value(value, objective.unit)  # noqa: RUF001 - a dash for people

    def shown(self, record: TrialRecord) -> list[str]:
        """Write all of a record's values."""
        return [self.show(objective, record) for objective in self.objectives]


def fill(template: str, **values: object) -> Markup:
    """Fill a template of this package; every value that is not Markup is escaped."""
    return Markup(TEMPLATES.get_template(template).render(**values))


def embed(value: object) -> Markup:
    """Write a plain value as JSON that may stand inside <script>: no tag can end it, no NaN can break it."""
    return htmlsafe_json_dumps(finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def pretty(value: object) -> str:
    """Write a plain value as indented JSON for people."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)


def finite(value: Any) -> Any:
    """Put text in the place of numbers that JSON does not know (NaN, infinities), at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def plot_text(text: object, *, limit: int = 200) -> str:
    """Escape for plotly, which reads a little HTML in titles, legends and hover texts."""
    shown = str(text)
    shown = shown if len(shown) <= limit else shown[: limit - 1] + "…"
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
