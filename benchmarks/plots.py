"""Lines with a band, as SVG text: what the engines' figures are drawn with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 420, 60, 40, 190, 50
COLOURS = (
    "#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b", "#6c757d", "#17a2a2", "#a0522d", "#444444", "#c71585",
    "#7a9e00", "#5b8ff9",
)  # fmt: skip

Line = Sequence[tuple[float, float, float, float]]
"""Points (x, lower quartile, median, upper quartile)."""


def front_plot(lines: Mapping[str, Line], *, title: str) -> str:
    """Draw hypervolume over whole trainings, the latter by their logarithm."""
    xs = sorted({point[0] for line in lines.values() for point in line})
    top = max((point[3] for line in lines.values() for point in line), default=1.0) or 1.0
    low, high = math.log(xs[0]), math.log(xs[-1])

    def x(value: float) -> float:
        return LEFT + (math.log(value) - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}: hypervolume, median and quartiles over seeds</text>',
    ]
    for value in xs:
        parts.append(
            f'<line x1="{x(value):.1f}" y1="{TOP}" x2="{x(value):.1f}" y2="{y(0):.1f}" stroke="#eee"/>'
            f'<text x="{x(value):.1f}" y="{y(0) + 16:.1f}" text-anchor="middle">{value:g}</text>'
        )
    for i in range(6):
        value = top * i / 5
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 12}">training steps spent, in whole trainings</text>')
    for i, (name, line) in enumerate(sorted(lines.items(), key=lambda item: -item[1][-1][2])):
        colour = COLOURS[i % len(COLOURS)]
        band = [f"{x(p[0]):.1f},{y(p[1]):.1f}" for p in line] + [f"{x(p[0]):.1f},{y(p[3]):.1f}" for p in reversed(line)]
        middle = " ".join(f"{x(p[0]):.1f},{y(p[2]):.1f}" for p in line)
        at = TOP + 16 * i
        parts.append(
            f'<polygon points="{" ".join(band)}" fill="{colour}" fill-opacity="0.12"/>'
            f'<polyline points="{middle}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<rect x="{WIDTH - RIGHT + 12}" y="{at}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{WIDTH - RIGHT + 28}" y="{at + 10}">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>\n"])
