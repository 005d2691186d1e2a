"""The interactive front: a view for each pair of objectives, one in three dimensions, and the front as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from autopeft.labels import describe, show_rate, show_value
from autopeft.objectives import Objective
from autopeft.pareto import is_ratio_cost, on_front
from autopeft.records import TrialRecord
from autopeft.report.context import Context, Section, embed, fill, plot_text

MARKS = {"knee": "star", "best": "diamond", "smallest": "square"}
"""A shape for each pick, so that nothing hangs on colour alone."""

_MARKS_3D = {"knee": "cross", "best": "diamond", "smallest": "square"}  # the shapes that plotly has in three dimensions
_LOG_FROM = 30.0  # largest / smallest value from which a cost is shown on a log axis
_MANY = 500  # dominated points from which they are drawn smaller
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


@dataclass(frozen=True, slots=True)
class Axis:
    """How an objective is drawn: title (escaped), what values are divided by, whether by logarithm, where marked."""

    objective: Objective
    title: str
    scale: float
    log: bool
    ticks: Sequence[float] = ()

    def values(self, records: Sequence[TrialRecord]) -> list[float]:
        """Give the numbers to draw."""
        return [record.values[self.objective.name] / self.scale for record in records]

    def layout(self) -> dict[str, Any]:
        """Give the axis to plotly."""
        layout: dict[str, Any] = {"title": {"text": self.title}, "type": "log" if self.log else "linear"}
        if self.objective.unit == "parameters":
            layout["tickformat"] = "~s"
        if self.ticks:
            layout["tickvals"] = list(self.ticks)
        return layout


def axis_of(context: Context, objective: Objective) -> Axis:
    """Choose how to draw an objective from the values that there are."""
    values = [record.values[objective.name] for record in context.complete]
    low, high = min(values), max(values)
    log = is_ratio_cost(objective) and low > 0 and (objective.unit == "parameters" or high / low >= _LOG_FROM)
    scale, unit = 1.0, objective.unit
    if unit == "bytes":
        scale, unit = next((float(s), u) for s, u in _BYTES if high >= s or s == 1)
    title, better = context.title_of(objective), "higher" if objective.goal == "maximize" else "lower"
    unit = f", {unit}" if unit and unit != "parameters" else ""
    shown = plot_text(f"{title}{unit} ({better} is better)", limit=80)
    return Axis(objective, shown, scale, log, (log_ticks(low / scale, high / scale) or [low / scale]) if log else ())


def log_ticks(low: float, high: float, *, most: int = 9) -> list[float]:
    """Give 1, 2 and 5 of each power of ten from low to high, fewer where that is too many to read.

    >>> log_ticks(900, 6000)
    [1000.0, 2000.0, 5000.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if len(found) <= most else [10.0**p for p in powers if low <= 10.0**p <= high]


def front(context: Context) -> Section:
    """Show the trials between the objectives, those on the front in colour."""
    if not context.complete:
        return Section("The front", fill("front.html.j2", plot=None, context=context, cost_words=""))
    return Section("The front", fill("front.html.j2", plot=embed(views(context)), context=context))


def views(context: Context) -> dict[str, Any]:
    """Give all views for plotly; the columns that they share stand once, and are named where they are used."""
    on = {record.number for record in context.front}
    rest = [record for record in context.complete if record.number not in on]
    axes = [axis_of(context, objective) for objective in context.objectives]
    columns: dict[str, list[Any]] = {
        "front": [record.number for record in context.front],
        "rest": [record.number for record in rest],
        "front text": [_hover(context, record) for record in context.front],
        "rest text": [_hover(context, record) for record in rest],
    }
    for i, axis in enumerate(axes):
        columns[f"front {i}"], columns[f"rest {i}"] = axis.values(context.front), axis.values(rest)
    if len(axes) == 1:
        return {"columns": columns, "views": [_over_trials(context, axes[0])]}
    found = [_pair(context, axes, i, j) for i, j in combinations(range(len(axes)), 2)]
    if len(axes) >= 3:
        found.append(_cube(context, axes[:3]))
    return {"columns": columns, "views": found}


def _ref(column: str) -> dict[str, str]:
    return {"$": column}


def _pair(context: Context, axes: Sequence[Axis], i: int, j: int) -> dict[str, Any]:
    """One objective against another; a third gives the colour."""
    y, x = axes[i], axes[j]
    colour = next((a for k, a in enumerate(axes) if k not in (i, j)), None)
    marker: dict[str, Any] = {"size": 10, "line": {"width": 1, "color": "theme:line"}, "color": "theme:line"}
    if colour:
        marker |= _colours(colour, context.front)
    edge_x, edge_y = _edge(context, x, y)
    few = len(context.complete) < _MANY
    shape = "hv" if x.objective.goal == "minimize" else "vh"
    data = [
        _points("rest", f"rest {j}", f"rest {i}", name="dominated")
        | {"marker": {"size": 6 if few else 4, "color": "theme:faint", "opacity": 0.55 if few else 0.35}},
        {
            "type": "scatter", "mode": "lines", "x": edge_x, "y": edge_y, "name": "front of these two",
            "line": {"shape": shape, "width": 1.5, "color": "theme:muted", "dash": "dot"}, "hoverinfo": "skip",
        },
        _points("front", f"front {j}", f"front {i}", name="on the front") | {"marker": marker},
        *(
            {
                "type": "scatter", "mode": "markers+text", "x": x.values([record]), "y": y.values([record]),
                "text": [f"<b>{plot_text(label)}</b>"], "textposition": "top center", "name": plot_text(label),
                "hovertext": [_hover(context, record)], "hoverinfo": "text", "customdata": [record.number],
                "cliponaxis": False, "textfont": {"color": f"theme:{name}", "size": 14},
                "marker": {
                    "size": 17, "symbol": f"{MARKS[name]}-open", "color": f"theme:{name}", "line": {"width": 3},
                },
            }
            for name, label, record in _marks(context)
        ),
    ]  # fmt: skip
    return {
        "name": f"{context.title_of(y.objective)} / {context.title_of(x.objective)}",
        "data": data,
        "layout": {"xaxis": x.layout(), "yaxis": y.layout()},
    }


def _cube(context: Context, axes: Sequence[Axis]) -> dict[str, Any]:
    """Three objectives at once; the first one upwards."""
    z, x, y = axes
    order = ("1", "2", "0")
    rest, on = (
        {
            "type": "scatter3d", "mode": "markers", "name": name, "customdata": _ref(who), "hoverinfo": "text",
            "hovertext": _ref(f"{who} text"), **{k: _ref(f"{who} {i}") for k, i in zip("xyz", order, strict=True)},
        }
        for who, name in (("rest", "dominated"), ("front", "on the front"))
    )  # fmt: skip
    few = len(context.complete) < _MANY
    rest["marker"] = {"size": 2.5 if few else 1.5, "color": "theme:faint", "opacity": 0.5 if few else 0.25}
    on["marker"] = {"size": 5, "line": {"width": 0}} | _colours(z, context.front)
    marks = [
        {
            "type": "scatter3d", "mode": "markers+text", "name": plot_text(label), "text": [plot_text(label)],
            "x": x.values([record]), "y": y.values([record]), "z": z.values([record]),
            "textfont": {"color": f"theme:{name}", "size": 14}, "hoverinfo": "text", "customdata": [record.number],
            "hovertext": [_hover(context, record)],
            "marker": {"size": 8, "symbol": _MARKS_3D[name], "color": f"theme:{name}"},
        }
        for name, label, record in _marks(context)
    ]  # fmt: skip
    # Titles are short here: what hangs in space is cut off sooner.
    sides = {
        f"{k}axis": axis.layout() | {"title": {"text": axis.title.partition(" (")[0]}}
        for k, axis in zip("xyz", (x, y, z), strict=True)
    }
    scene = {**sides, "camera": {"eye": {"x": 1.7, "y": 1.7, "z": 0.8}, "center": {"x": 0, "y": 0, "z": -0.15}}}
    return {"name": "all three", "data": [rest, on, *marks], "layout": {"scene": scene}}


def _over_trials(context: Context, axis: Axis) -> dict[str, Any]:
    """One objective alone, over the trials in their order."""
    numbers = [record.number for record in context.complete]
    values = axis.values(context.complete)
    best = np.minimum.accumulate(values) if axis.objective.goal == "minimize" else np.maximum.accumulate(values)
    data = [
        _points("rest", "rest", "rest 0", name="trials") | {"marker": {"size": 6, "color": "theme:faint"}},
        {
            "type": "scatter", "mode": "lines", "x": numbers, "y": best.tolist(), "name": "best so far",
            "line": {"shape": "hv", "color": "theme:line"}, "hoverinfo": "skip",
        },
        _points("front", "front", "front 0", name="best")
        | {"marker": {"size": 15, "symbol": "diamond-open", "color": "theme:best", "line": {"width": 3}}},
    ]  # fmt: skip
    layout = {"xaxis": {"title": {"text": "trial"}}, "yaxis": axis.layout()}
    return {"name": context.title_of(axis.objective), "data": data, "layout": layout}


def _points(who: str, x: str, y: str, *, name: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "x": _ref(x), "y": _ref(y), "name": name, "customdata": _ref(who),
        "hovertext": _ref(f"{who} text"), "hoverinfo": "text",
    }  # fmt: skip


def _marks(context: Context) -> list[tuple[str, str, TrialRecord]]:
    """Give each picked trial once: the name that decides its look, all its names, the record."""
    named: dict[int, tuple[str, TrialRecord]] = {}
    for name, record in context.picks.items():
        named.setdefault(record.number, (name, record))
    return [(name, " + ".join(context.picks_of(number)), record) for number, (name, record) in named.items()]


def _edge(context: Context, x: Axis, y: Axis) -> tuple[list[float], list[float]]:
    """Give the front of two objectives alone, from left to right."""
    rows = [[a.objective.loss(v) for a, v in zip((x, y), pair, strict=True)] for pair in _pairs(context, x, y)]
    points = sorted(pair for pair, keep in zip(_pairs(context, x, y), on_front(rows), strict=True) if keep)
    return [p[0] for p in points], [p[1] for p in points]


def _pairs(context: Context, x: Axis, y: Axis) -> list[tuple[float, float]]:
    return list(zip(x.values(context.front), y.values(context.front), strict=True))


def _colours(axis: Axis, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """Colour by an objective, with a scale that also the colour-blind and a grey printer can read."""
    values = axis.values(records)
    low, high = min(values), max(values)
    ticks = np.geomspace(low, high, 4) if axis.log and high > low else np.linspace(low, high, 4 if high > low else 1)
    place = [math.log10(v) for v in ticks] if axis.log else ticks.tolist()
    shown = [plot_text(show_value(v * axis.scale, axis.objective.unit)) for v in ticks.tolist()]
    return {
        "color": [math.log10(v) for v in values] if axis.log else values,
        "colorscale": "Cividis",
        "showscale": True,
        "colorbar": {
            "title": {"text": axis.title.partition(" (")[0], "side": "right"},
            "tickvals": place, "ticktext": shown, "thickness": 12, "len": 0.8, "outlinewidth": 0,
        },
    }  # fmt: skip


def _hover(context: Context, record: TrialRecord) -> str:
    names = context.picks_of(record.number)
    lines = [f"<b>trial {record.number}</b>" + (f" · {', '.join(names)}" if names else "")]
    lines.append(plot_text(describe(record), limit=120))
    lines += [
        plot_text(f"{context.title_of(objective)}: {context.show(objective, record)}", limit=120)
        for objective in context.objectives
    ]
    if record.plan:
        lines.append(f"learning rate: {show_rate(record.plan.learning_rate)}")
    return "<br>".join(lines)
