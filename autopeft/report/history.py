"""How the search went: the best quality and the hypervolume over the trials, and which parameters mattered."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.pareto import hypervolume, losses_of, on_front
from autopeft.report.context import Context, Section, embed, fill, plot_text
from autopeft.report.front import axis_of
from autopeft.report.importance import importances

_CHECKPOINTS = 400
_CHECKPOINTS_COSTLY = 60  # the volume in five or more dimensions takes long
_MOST_OBJECTIVES = 6


def history(context: Context) -> Section:
    """Draw the course of the search; say which parameters moved the quality, where enough trials tell."""
    plot = embed(views(context)) if len(context.complete) > 1 else None
    return Section("How the search went", fill("history.html.j2", plot=plot, found=importances(context)))


def views(context: Context) -> dict[str, Any]:
    """Give plotly the best quality and the hypervolume, over trials and over training time."""
    axis, done = axis_of(context, context.quality), context.complete
    best = np.minimum.accumulate([axis.objective.loss(v) for v in axis.values(done)])
    best_shown = best if axis.objective.goal == "minimize" else -best
    # Over the time that all trials took, the failed ones too: they cost as much.
    spent = dict(
        zip((r.number for r in context.records), itertools.accumulate(r.seconds for r in context.records), strict=True)
    )
    minutes = [spent[record.number] / 60 for record in done]
    rows, volumes = volume_course(context)
    columns = {
        "count": list(range(1, len(done) + 1)),
        "minutes": minutes,
        "value": axis.values(done),
        "best": best_shown.tolist(),
        "text": [f"trial {record.number}" for record in done],
        "volume": volumes,
        "volume count": [row + 1 for row in rows],
        "volume minutes": [minutes[row] for row in rows],
    }
    both = (
        ("over complete trials", "count", "complete trials"),
        ("over training time", "minutes", "minutes of training, all workers together"),
    )
    return {"columns": columns, "views": [_view(axis.title, bool(rows), *how) for how in both]}


def _view(title: str, with_volume: bool, name: str, column: str, x_title: str) -> dict[str, Any]:
    def ref(name: str) -> dict[str, str]:
        return {"$": name}

    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers", "x": ref(column), "y": ref("value"), "name": "trial",
            "hovertext": ref("text"), "hoverinfo": "text+y", "marker": {"size": 5, "color": "theme:faint"},
        },
        {
            "type": "scatter", "mode": "lines", "x": ref(column), "y": ref("best"), "name": "best so far",
            "line": {"shape": "hv", "width": 2.5, "color": "theme:best"},
        },
    ]  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": x_title}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": title}},
    }
    if with_volume:
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": ref(f"volume {column}"), "y": ref("volume"), "yaxis": "y2",
                "name": "hypervolume", "line": {"shape": "hv", "width": 2.5, "dash": "dash", "color": "theme:knee"},
            }
        )  # fmt: skip
        layout["yaxis2"] = {
            "title": {"text": "hypervolume, share of the box seen"}, "overlaying": "y", "side": "right",
            "range": [0, 1.02], "showgrid": False, "tickmode": "auto",
        }  # fmt: skip
    return {"name": plot_text(name), "data": data, "layout": layout}


def volume_course(context: Context) -> tuple[list[int], list[float]]:
    """Give the front's hypervolume after some of the complete trials: (rows, shares).

    The volume is the share of the box between the best and the worst value seen in each objective, parameters and
    bytes and seconds by their logarithm, so it depends on this run alone and compares no two runs.
    """
    losses = losses_of(context.complete, context.objectives, log_costs=True)
    n, n_objectives = losses.shape
    if n_objectives < 2 or n_objectives > _MOST_OBJECTIVES:
        return [], []
    low, width = losses.min(axis=0), np.ptp(losses, axis=0)
    scaled = (losses - low) / np.where(width > 0, width, 1)
    # A column without differences is at its best throughout.
    corner = np.ones(n_objectives)
    most = _CHECKPOINTS_COSTLY if n_objectives > 4 else _CHECKPOINTS
    checkpoints = sorted({round(row) for row in np.linspace(0, n - 1, min(n, most))})
    kept: NDArray[np.float64] = scaled[:0]
    volumes, done = [], 0
    for row in checkpoints:
        pool = np.vstack([kept, scaled[done : row + 1]])
        kept, done = pool[on_front(pool)], row + 1
        volumes.append(round(hypervolume(kept, corner), 5))
    return checkpoints, volumes
