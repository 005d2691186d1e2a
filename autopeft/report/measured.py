"""How it was measured: everything that someone needs to judge the numbers, or to run the search again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import median

from autopeft.labels import show_prior
from autopeft.report.context import Context, Section, fill, pretty
from autopeft.report.words import MEMORY_KINDS

_MOST_ITEMS = 40
_SENTENCE = 30  # characters from which an item of a list has its own line
Rows = list[tuple[str, str]]


def measured(context: Context) -> Section:
    """Name every measure for what it is; print request, versions, machine, data, base and search space."""
    info = context.info
    tables: list[tuple[str, Rows]] = [
        ("Base model", _rows({**info.model, **_base(context)}) if info.model or context.anatomy else []),
        ("Data", _rows(info.data)),
        ("Machine", _rows(info.hardware)),
        ("Versions", _rows(info.versions)),
        ("Request", _rows(info.request)),
    ]
    html = fill(
        "measured.html.j2",
        measures=_measures(context),
        tables=[(title, rows) for title, rows in tables if rows],
        seeds=sorted({record.seed for record in context.records}),
        info=info,
    )
    return Section("How it was measured", html)


def _measures(context: Context) -> Rows:
    rows = [("Quality", _quality(context))]
    kinds = Counter(r.measurement.memory_kind for r in context.complete if r.measurement)
    for kind, count in kinds.items():
        words = MEMORY_KINDS.get(kind, f"The measure named {kind}.")
        rows.append((f"Memory ({kind or 'custom'})", words if len(kinds) == 1 else f"{words} ({count} trials)"))
    rows += _prediction(context)
    if any(r.measurement and r.measurement.trainable_params for r in context.complete):
        rows.append(
            (
                "Parameters",
                "Scalars with a gradient, counted on the real model: the adapter and a new task head. "
                "Percentages are of the base model's parameters, unquantised and without adapter or head.",
            )
        )
    rows.append(
        ("Front", "Complete trials for which no other is at least as good in every objective and better in one.")
    )
    rows.append(
        (
            "Knee",
            "The trial of the front nearest to the ideal point, each objective of the front scaled to [0, 1]; "
            "parameters, bytes and seconds by their logarithm; quality weighs as much as all the others together.",
        )
    )
    rows += [
        ("Earlier run", f"{show_prior(prior)}. The engine learned from its own trials how far to follow it.")
        for prior in context.info.prior
    ]
    return rows


def _prediction(context: Context) -> Rows:
    """Say how near the predicted peaks came to the measured ones, where there are both."""
    ratios = [
        r.measurement.memory_bytes / r.measurement.predicted_bytes
        for r in context.complete
        if r.measurement and r.measurement.predicted_bytes
    ]
    if not ratios:
        return []
    low, high = min(ratios), max(ratios)
    return [
        (
            "Predicted memory",
            f"Before training, by tracing it without storage. Measured over predicted, in {len(ratios)} trials: "
            f"median {median(ratios):.3f}, from {low:.3f} to {high:.3f}.",
        )
    ]


def _quality(context: Context) -> str:
    metric, better = context.metric, "higher" if context.quality.goal == "maximize" else "lower"
    if metric is None:
        return f"{context.quality.name}, as the runner gave it; {better} is better."
    return f"{metric.name}: {metric.title}, on held-out rows that no trial was trained on; {better} is better."


def _base(context: Context) -> Mapping[str, object]:
    anatomy = context.anatomy
    if anatomy is None:
        return {}
    return {
        "type": anatomy.model_type,
        "task": anatomy.task,
        "parameters": f"{anatomy.base_params:,}",
        "layers": anatomy.n_layers,
        "new task head": f"{anatomy.head_params:,} parameters" if anatomy.head_params else "none",
    }


def _rows(values: Mapping[str, object]) -> Rows:
    return [(str(name).replace("_", " "), _text(value)) for name, value in values.items()]


def _text(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list | tuple) and all(isinstance(v, str | int | float) for v in value):
        texts = [str(v) for v in value[:_MOST_ITEMS]]
        between = "\n" if any(len(text) > _SENTENCE for text in texts) else ", "
        return between.join(texts) + (f" … ({len(value)})" if len(value) > _MOST_ITEMS else "")
    return value if isinstance(value, str) else pretty(value)
