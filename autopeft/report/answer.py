"""The answer at the top: which configuration to use, what it costs, and how sure that is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from autopeft.labels import describe, show_rate, show_value
from autopeft.objectives import Objective
from autopeft.pareto import is_ratio_cost
from autopeft.records import TrialRecord
from autopeft.report.context import PICKS, Context, Section, fill
from autopeft.report.finalists import repeated, verdict
from autopeft.report.words import STATES, bits_of, method_sentence, method_title
from autopeft.units import show_bytes, show_count, show_percent, show_seconds

_MUCH = 1 / 3  # share of the front's range of quality
_SAME = 0.001  # difference of a cost, as a share, that nobody cares for
_WHY = {
    "knee": "the best compromise: nearest to the ideal in all objectives at once",
    "best": "the best quality, whatever it costs within the budget",
    "smallest": "the lowest cost",
}


def answer(context: Context) -> Section:
    """Show the picks beside each other, the recommended one first, and what the run was."""
    cards: dict[int, dict[str, object]] = {}
    for name, record in context.picks.items():
        card = cards.setdefault(record.number, {"record": record, "names": [], "why": [], **_card(context, record)})
        card["names"].append(name)  # type: ignore[attr-defined]
        card["why"].append(_WHY[name])  # type: ignore[attr-defined]
    html = fill(
        "answer.html.j2",
        cards=list(cards.values()),
        titles=PICKS,
        counts=_counts(context),
        limits=_limits(context),
        n_front=len(context.front),
        notes=_notes(context),
        reasons=Counter(
            r.reason or "no reason given" for r in context.records if r.state not in ("complete", "paused")
        ).most_common(5),
    )
    knee = context.picks.get("knee")
    return Section(f"Use {describe(knee)}" if knee else "No configuration to recommend", html)


def _card(context: Context, record: TrialRecord) -> dict[str, object]:
    plan, measured = record.plan, record.measurement
    facts = [(context.title_of(o), context.show(o, record)) for o in context.objectives]
    if again := repeated(context, record):
        facts.append(again)
    asked = {o.name for o in context.objectives}
    if measured and "params" not in asked and measured.trainable_params:
        facts.append(("trainable parameters", show_count(measured.trainable_params)))
    if measured and "memory" not in asked and measured.memory_bytes:
        facts.append(("peak memory", show_bytes(measured.memory_bytes)))
    if plan:
        facts.append(("learning rate", show_rate(plan.learning_rate)))
    if bits := bits_of(record):
        facts.append(("bits of the frozen base", str(bits)))
    facts.append(("time of the trial", show_seconds(record.seconds)))
    return {
        "facts": facts,
        "share": _share(context, record),
        "method": method_title(plan.method) if plan else "",
        "sentence": method_sentence(plan) if plan else "",
        "compared": [
            (f"against {PICKS[name].lower()}", ", ".join(compare(context, record, other)))
            for name, other in context.picks.items()
            if other.number != record.number and name in ("knee", "best")
        ],
    }


def _share(context: Context, record: TrialRecord) -> str:
    """Say how much of the model is trained, the head apart."""
    measured = record.measurement
    if not measured or not measured.trainable_params or not context.anatomy:
        return ""
    adapter = measured.trainable_params - measured.head_params
    share = adapter / context.anatomy.base_params
    shown = "less than 0.001%" if share < 1e-5 else show_percent(share)
    text = f"adapter {show_count(adapter)}, {shown} of the base model"
    return f"{text}; new task head {show_count(measured.head_params)}" if measured.head_params else text


def compare(context: Context, record: TrialRecord, other: TrialRecord) -> list[str]:
    """Say how a record differs from another, objective by objective."""
    return [_difference(context, objective, record, other) for objective in context.objectives]


def _difference(context: Context, objective: Objective, record: TrialRecord, other: TrialRecord) -> str:
    mine, theirs, name = record.values[objective.name], other.values[objective.name], context.title_of(objective)
    if mine == theirs:
        return f"{name} equal"
    if is_ratio_cost(objective) and mine > 0 and theirs > 0:
        if theirs >= 2 * mine:
            return f"{name} {_times(theirs / mine)} lower"
        if mine >= 2 * theirs:
            return f"{name} {_times(mine / theirs)} higher"
        if abs(mine / theirs - 1) < _SAME:
            return f"{name} about equal"
        return f"{name} {show_percent(abs(mine / theirs - 1))} {'lower' if mine < theirs else 'higher'}"
    word = "lower" if mine < theirs else "higher"
    return f"{name} {show_value(abs(mine - theirs), objective.unit)} {word}"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.3g} times"


def _counts(context: Context) -> list[tuple[int, str, str]]:
    by_state: Counter[str] = Counter(record.state for record in context.records)
    return [(by_state[state], state, words) for state, words in STATES.items() if by_state[state]]


def _limits(context: Context) -> list[str]:
    info, limits = context.info, []
    if info.parameter_limit is not None:
        share = show_percent(info.parameter_limit / context.anatomy.base_params) if context.anatomy else ""
        limits.append(
            f"{show_count(info.parameter_limit)} trainable parameters" + (f" ({share} of the base)" * bool(share))
        )
    if info.memory_limit_bytes is not None:
        limits.append(f"{show_bytes(info.memory_limit_bytes)} of memory")
    if info.request.get("time"):
        limits.append(f"{info.request['time']} of time")
    if info.request.get("trials"):
        limits.append(f"{info.request['trials']} trials")
    if info.request.get("steps_total"):
        limits.append(f"{info.request['steps_total']:,} optimiser steps")
    return limits


def _notes(context: Context) -> list[str]:
    knee = context.picks.get("knee")
    if knee is None:
        return []
    told = [verdict(context)] if context.standings else [_plain_lora(context, knee), _noise(context, knee)]
    return [note for note in (_given_up(context, knee), *told) if note]


def _given_up(context: Context, knee: TrialRecord) -> str:
    """Warn where the compromise costs much quality: its rule weighs all objectives alike, the reader may not."""
    quality = [context.quality.loss(record.values[context.quality.name]) for record in context.front]
    lost = context.quality.loss(knee.values[context.quality.name]) - min(quality)
    if lost <= _MUCH * (max(quality) - min(quality)) or lost == 0:
        return ""
    shown, best = show_value(lost, context.quality.unit), context.picks["best"]
    return (
        f"The knee weighs every objective alike, and here it gives up {shown} of {context.title_of(context.quality)} "
        f"against the best. Where quality matters most, take the best: trial {best.number}, {describe(best)}."
    )


def _plain_lora(context: Context, knee: TrialRecord) -> str:
    """Compare with what most people would use: LoRA with one rank in every linear."""
    best = context.baseline
    if best is None:
        return ""
    what = f"The best LoRA with one rank in every linear is trial {best.number} ({describe(best)})"
    if best.number == knee.number:
        return f"{what}: it is the recommended one itself."
    return f"{what}. Against it the recommended one has {', '.join(compare(context, knee, best))}."


def _noise(context: Context, knee: TrialRecord) -> str:
    """Say how large a difference must be to mean something, where that can be computed."""
    metric, quality = context.metric, knee.values.get("quality")
    rows = evaluated_rows(context)
    if metric is None or metric.name not in ("accuracy", "token_accuracy") or quality is None or not rows:
        return "Each trial is one training with one seed: small differences in quality may be chance."
    if metric.name == "token_accuracy" or not 0 <= quality <= 1:
        return ""
    error = math.sqrt(quality * (1 - quality) / rows)
    return (
        f"Accuracy was measured on {rows:,} rows, once a trial: its standard error there is about {error:.2g}, "
        f"so two trials that differ by less than about {2 * math.sqrt(2) * error:.2g} are not told apart."
    )


def evaluated_rows(context: Context) -> int | None:
    """Give the rows that a trial was judged on, as far as the run tells."""
    rows, most = context.info.data.get("rows"), context.info.request.get("eval_rows")
    held_out = rows.get("validation") if isinstance(rows, Mapping) else None
    known = [n for n in (held_out, most) if isinstance(n, int) and n > 0]
    return min(known) if known else None
