"""A small static picture of the front, written by hand: for a README, where no script runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from autopeft.labels import describe, one_line, show_value
from autopeft.objectives import Objective
from autopeft.records import RunInfo, TrialRecord
from autopeft.report.context import Context
from autopeft.report.front import log_ticks

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 150, 56, 64
_COLOURS = {"knee": "#c4480a", "best": "#0067a3", "smallest": "#007a5a"}
_SHORT_UNITS = ("", "parameters", "bytes", "s")
_CIVIDIS = ((0, 32, 76), (64, 77, 107), (124, 123, 120), (187, 175, 113), (255, 233, 69))


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps an objective's values to pixels."""

    objective: Objective
    low: float
    high: float
    log: bool
    start: float
    stop: float

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        if self.log:
            found = log_ticks(self.low, self.high, most=6)
        else:
            found = _round_ticks(self.low, self.high, _unit_of(self.objective, self.high))
        return [(self.at(v), _number(v, self.objective)) for v in found]


def front_svg(info: RunInfo, records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> str:
    """Draw quality against parameters (or the first two objectives), a third one as colour, the picks by name."""
    context = Context(info, records, objectives)
    if not context.complete:
        return _page(['<text x="380" y="220" text-anchor="middle">No trial is complete.</text>'], "No front yet")
    vertical = context.quality
    others = [o for o in objectives if o is not vertical]
    horizontal = context.size or (others[0] if others else vertical)
    colour = next((o for o in others if o is not horizontal), None)
    x = _scale(context, horizontal, _LEFT, _WIDTH - _RIGHT)
    y = _scale(context, vertical, _HEIGHT - _BOTTOM, _TOP)
    shade = _scale(context, colour, 0, 1) if colour else None
    on = {record.number for record in context.front}
    parts = _axes(context, x, y)
    for record in context.complete:
        if record.number not in on:
            parts.append(_dot(x, y, record, radius=2.5, fill="#b9bec6", title=""))
    for record in context.front:
        fill = _ramp(shade.at(record.values[shade.objective.name])) if shade else "#44546a"
        title = f"trial {record.number}: {describe(record)}: {', '.join(context.shown(record))}"
        parts.append(_dot(x, y, record, radius=5, fill=fill, title=title))
    parts += _marks(context, x, y)
    if shade:
        parts += _legend(context, shade)
    title = f"{context.title_of(vertical)} and {context.title_of(horizontal)} of {len(context.complete)} trials"
    return _page(parts, title)


def _number(value: float, objective: Objective) -> str:
    """Write a value; a unit of the user's own stands in the title instead, as it may be long."""
    return show_value(value, objective.unit if objective.unit in _SHORT_UNITS else "")


def _unit_of(objective: Objective, high: float) -> float:
    """Give what one is on the axis: a MiB is no round number of bytes."""
    if objective.unit != "bytes":
        return 1.0
    return next((2.0**power for power in (40, 30, 20, 10) if high >= 2**power), 1.0)


def _round_ticks(low: float, high: float, unit: float) -> list[float]:
    """Give four to nine multiples of 1, 2 or 5 times a power of ten."""
    width = (high - low) / unit
    if width <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(width / 4))
    step = max(m * power for m in (1, 2, 5) if m * power <= width / 4) * unit
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _scale(context: Context, objective: Objective, start: float, stop: float) -> _Scale:
    values = [record.values[objective.name] for record in context.complete]
    low, high = min(values), max(values)
    log = objective.unit == "parameters" and low > 0
    margin = 0.05 * (high - low) if stop != 1 else 0.0
    if log and stop != 1:
        return _Scale(objective, low / (high / low) ** 0.05, high * (high / low) ** 0.05, log, start, stop)
    return _Scale(objective, low - margin, high + margin, log, start, stop)


def _dot(x: _Scale, y: _Scale, record: TrialRecord, *, radius: float, fill: str, title: str) -> str:
    place = _place(x, y, record)
    inner = f"<title>{_text(title)}</title>" if title else ""
    return f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="{radius}" fill="{fill}" stroke="#fff">{inner}</circle>'


def _place(x: _Scale, y: _Scale, record: TrialRecord) -> tuple[float, float]:
    return x.at(record.values[x.objective.name]), y.at(record.values[y.objective.name])


def _axes(context: Context, x: _Scale, y: _Scale) -> list[str]:
    parts = []
    for place, text in x.ticks():
        parts.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="#e6e8ec"/>')
        parts.append(f'<text x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{_text(text)}</text>')
    for place, text in y.ticks():
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}" stroke="#e6e8ec"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{_text(text)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    better = {"maximize": "higher is better", "minimize": "lower is better"}
    for scale, where in (
        (x, f'x="{middle}" y="{_HEIGHT - 18}" text-anchor="middle"'),
        (y, f'x="{_LEFT - 64}" y="{_TOP - 24}"'),
    ):
        unit = "" if scale.objective.unit in _SHORT_UNITS else f", {scale.objective.unit}"
        title = f"{context.title_of(scale.objective)}{unit} ({better[scale.objective.goal]})"
        parts.append(f'<text {where} class="title">{_text(title)}</text>')
    return parts


def _marks(context: Context, x: _Scale, y: _Scale) -> list[str]:
    parts, done = [], set()
    for name, record in context.picks.items():
        if record.number in done:
            continue
        done.add(record.number)
        across, down = _place(x, y, record)
        colour, label = _COLOURS[name], " + ".join(context.picks_of(record.number))
        parts.append(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="9" fill="none" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{across:.1f}" y="{down - 15:.1f}" text-anchor="middle" class="pick" fill="{colour}">'
            f"{_text(label)}</text>"
        )
    return parts


def _legend(context: Context, shade: _Scale) -> list[str]:
    left, parts = _WIDTH - _RIGHT + 28, []
    steps = 12
    for step in range(steps):
        top = _HEIGHT - _BOTTOM - 60 - 12 * step
        parts.append(f'<rect x="{left}" y="{top}" width="14" height="12.5" fill="{_ramp((step + 0.5) / steps)}"/>')
    for value, top in ((shade.low, _HEIGHT - _BOTTOM - 50), (shade.high, _HEIGHT - _BOTTOM - 50 - 12 * (steps - 1))):
        parts.append(f'<text x="{left + 20}" y="{top}">{_text(_number(value, shade.objective))}</text>')
    title = _text(context.title_of(shade.objective))
    return [*parts, f'<text x="{left}" y="{_HEIGHT - _BOTTOM - 70 - 12 * (steps - 1)}" class="title">{title}</text>']


def _ramp(share: float) -> str:
    """Give a colour of Cividis, which also the colour-blind can order."""
    channels = zip(*_CIVIDIS, strict=True)
    ends = np.linspace(0, 1, len(_CIVIDIS))
    return "#" + "".join(f"{round(float(np.interp(share, ends, channel))):02x}" for channel in channels)


def _text(text: str) -> str:
    """Escape for XML, which besides knows no control characters and no lone surrogates."""
    clean = one_line(text).encode("utf-8", "replace").decode()
    return escape(clean if len(clean) <= 90 else clean[:89] + "…")


def _page(parts: Sequence[str], title: str) -> str:
    style = (
        "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#454b54}"
        ".title{font-weight:600;fill:#22262b}"
        ".pick{font-weight:700;font-size:13px;paint-order:stroke;stroke:#fff;stroke-width:4px}"
        + "".join(f".pick[fill='{colour}']{{fill:{colour}}}" for colour in _COLOURS.values())
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" width="{_WIDTH}">',
            f"<title>{_text(title)}</title>",
            f"<style>{style}</style>",
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )
