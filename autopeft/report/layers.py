"""Where the parameters go: the rank of each layer and kind of module, for the picks and every point of the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopeft.anatomy import Anatomy
from autopeft.labels import describe
from autopeft.layers import number_layers, place_of
from autopeft.records import TrialRecord
from autopeft.report.context import Context, Section, embed, fill
from autopeft.report.words import is_prompt_method, method_sentence, method_title


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer's modules of one kind: what to print, and how strong the colour is (0 is off, 1 the largest rank)."""

    text: str
    level: float


@dataclass(frozen=True, slots=True)
class Grid:
    """The sizes of an adapter, a row for each layer and a column for each kind; or a note why there are none."""

    title: str
    note: str
    kinds: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()


def layers(context: Context) -> Section:
    """Show the picks' grids beside each other, and let the reader choose any other point of the front."""
    largest = max((size for r in context.front if r.plan for size in r.plan.sizes.values()), default=1)
    places = _places(context.anatomy) if context.anatomy else {}
    grids = {record.number: grid_of(context, record, places, largest) for record in context.front}
    shown = {record.number: record for record in context.picks.values()}
    data = {
        number: {
            "title": grid.title,
            "note": grid.note,
            "kinds": grid.kinds,
            "rows": [[[cell.text, round(cell.level, 2)] for cell in row] for row in grid.rows],
        }
        for number, grid in grids.items()
    }
    html = fill(
        "layers.html.j2",
        context=context,
        picked=[(record, context.picks_of(number), grids[number]) for number, record in shown.items()],
        grids=embed({"order": list(grids), "grids": data}),
    )
    return Section("Where the parameters go", html)


def grid_of(context: Context, record: TrialRecord, places: Mapping[str, tuple[int, str]], largest: int) -> Grid:
    """Lay an adapter's sizes out over the model."""
    title, plan, anatomy = f"trial {record.number}: {describe(record)}", record.plan, context.anatomy
    if plan is None or anatomy is None:
        return Grid(title, "The custom runner made this configuration; autopeft does not know where it acts.")
    if not plan.sizes:
        what = f"{method_title(plan.method)} {method_sentence(plan)}".strip()
        return Grid(title, f"{what}. No layer of the model has a size of its own." if is_prompt_method(plan) else what)
    cells: dict[tuple[int, str], list[int]] = {}
    outside: list[int] = []
    for name, size in plan.sizes.items():
        place = places.get(name) or _own_place(name, places)
        if place is None:
            outside.append(size)
        else:
            cells.setdefault(place, []).append(size)
    kinds = [*anatomy.kinds, *dict.fromkeys(kind for _, kind in cells if kind not in anatomy.kinds)]
    n_layers = max(anatomy.n_layers, 1 + max((layer for layer, _ in cells), default=0))
    rows = [[_cell(cells.get((layer, kind), []), largest) for kind in kinds] for layer in range(n_layers)]
    note = f"and {len(outside)} module{'s' * (len(outside) > 1)} outside the layers" if outside else ""
    return Grid(title, note, kinds, rows)


def _own_place(name: str, places: Mapping[str, tuple[int, str]]) -> tuple[int, str] | None:
    """Place what stands at a module without being one of the base's: a bottleneck, a bias; each has its own column."""
    module, _, own = name.rpartition(".")
    if module not in places:
        return None
    layer, kind = places[module]
    return (layer, own if own == "bias" else f"{own} at {kind}")


def _cell(sizes: Sequence[int], largest: int) -> Cell:
    """Print one size, or the range where the modules of a cell differ; ranks grow by doubling, so does the colour."""
    if not any(sizes):
        return Cell("", 0.0)
    low, high = min(sizes), max(sizes)
    level = 0.15 + 0.85 * math.log2(1 + high) / math.log2(1 + max(largest, 1))
    return Cell(str(low) if low == high else f"{low}-{high}", min(level, 1.0))


def _places(anatomy: Anatomy) -> dict[str, tuple[int, str]]:
    """Say for every module of the layers which layer and which kind it is."""
    places = {linear.name: (linear.layer, linear.kind) for linear in anatomy.linears}
    places |= {norm.name: (norm.layer, "norm") for norm in anatomy.norms if norm.layer is not None}
    # A block that is neither (a whole attention, say) is found by its name.
    found = [place for linear in anatomy.linears if (place := place_of(linear.name))]
    numbers = number_layers(found)
    for place in found:
        parts = place.rest.split(".")
        for end in range(1, len(parts)):
            block = f"{place.stack}.{place.index}.{'.'.join(parts[:end])}"
            places.setdefault(block, (numbers[place.stack, place.index], parts[end - 1]))
    return places
