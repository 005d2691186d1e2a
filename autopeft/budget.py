"""Fitting a candidate into a parameter budget: lower its sizes, keep the shape of what it allocates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, product
from random import Random

from autopeft.candidates import Candidate, Scalar
from autopeft.domains import Choices, Ordinal
from autopeft.space import Space

MOST_COMBINATIONS = 4096
"""Combinations of choices that are looked at for the smallest configuration; the default space has half as many."""

Count = Callable[[Candidate], int]
"""Candidate -> trained parameters, exact; 0 for one that trains nothing."""


class _Sizes:
    """The size parameters of a candidate as levels: positions in their ordinals."""

    def __init__(self, space: Space, candidate: Candidate, count: Count) -> None:
        self.candidate, self._count = candidate, count
        self._counted: dict[tuple[int, ...], int] = {}
        self.values: dict[str, tuple[float, ...]] = {
            p.name: p.domain.values for p in space.of(candidate) if p.size and isinstance(p.domain, Ordinal)
        }
        self.base = {name: space.parameter(name).base for name in self.values}
        self.levels = {name: values.index(float(candidate[name])) for name, values in self.values.items()}
        # The lowest level that is not "off".
        self.floor = {name: next((i for i, v in enumerate(values) if v > 0), 0) for name, values in self.values.items()}

    def at(self, levels: dict[str, int]) -> Candidate:
        changed: dict[str, Scalar] = {name: self.values[name][level] for name, level in levels.items()}
        return Candidate({**self.candidate.values, **changed})

    def count(self, levels: dict[str, int]) -> int:
        """Count what is trained at these levels, of all sizes in their order; each once."""
        key = tuple(levels.values())
        if key not in self._counted:
            self._counted[key] = self._count(self.at(levels))
        return self._counted[key]

    def lowerings(self) -> Iterator[dict[str, int]]:
        """Give ever smaller levels, none turned off: a parameter's groups alike, one parameter after the other."""
        levels = dict(self.levels)
        for family in dict.fromkeys(self.base.values()):
            members = [name for name in levels if self.base[name] == family]
            while any(levels[name] > self.floor[name] for name in members):
                for name in members:
                    levels[name] = min(levels[name], max(self.floor[name], levels[name] - 1))
                yield dict(levels)

    def can_turn_off(self, name: str) -> bool:
        return self.values[name][0] == 0


def project(space: Space, candidate: Candidate, *, count: Count, limit: int) -> Candidate | None:
    """Give the candidate if it fits, else one that does and keeps the shape of its allocation.

    The sizes of a parameter are lowered alike, one level at a time, the space's first parameter first; if the smallest
    still does not fit, sizes are turned off, smallest first; then each is raised again, largest first, as far as the
    budget allows.

    Returns:
        A candidate with ``0 < count(candidate) <= limit``, or None if lowering sizes does not lead to one.
    """
    if 0 < count(candidate) <= limit:
        return candidate
    sizes = _Sizes(space, candidate, count)
    levels = dict(sizes.levels)
    for levels in sizes.lowerings():
        if sizes.count(levels) <= limit:
            break
    lowered = dict(levels)
    # Ties are broken by the candidate itself, so that no layer is always the first to go.
    by_size = list(levels)
    Random(candidate.key).shuffle(by_size)
    by_size.sort(key=sizes.levels.__getitem__)
    for name in by_size:
        if sizes.count(levels) <= limit:
            break
        if sizes.can_turn_off(name) and levels[name] > 0 and sizes.count({**levels, name: 0}) > 0:
            levels[name] = 0
    if sizes.count(levels) > limit:
        # What is left is too large by itself; something else may not be.
        levels = _least_on(sizes, lowered)
    if not 0 < sizes.count(levels) <= limit:
        return None
    for name in reversed(by_size):
        while levels[name] < sizes.levels[name]:
            raised = {**levels, name: levels[name] + 1}
            if sizes.count(raised) > limit:
                break
            levels = raised
    return sizes.at(levels)


def _least_on(sizes: _Sizes, levels: dict[str, int]) -> dict[str, int]:
    """Turn sizes off, one by one, as long as something is left, and give what is smallest then.

    The dearest first finds the cheapest of sizes that add up; the cheapest first, of sizes that multiply, such as
    layers and what stands at each. Where whole parameters can be spared, as the parts of a hybrid, each is.
    """
    starts = [levels]
    for family in dict.fromkeys(sizes.base.values()):
        members = [name for name in levels if sizes.base[name] == family and sizes.can_turn_off(name)]
        without = {**levels, **dict.fromkeys(members, 0)}
        if 0 < sizes.count(without) < sizes.count(levels):
            starts.append(without)
    ways = [_turn_off(sizes, start, choose=choose) for start in starts for choose in (min, max)]
    return min(ways, key=sizes.count)


def _turn_off(
    sizes: _Sizes,
    levels: dict[str, int],
    *,
    choose: Callable[[list[tuple[int, str]]], tuple[int, str]],
) -> dict[str, int]:
    levels = dict(levels)
    while True:
        options = [
            (sizes.count({**levels, name: 0}), name)
            for name, level in levels.items()
            if level > 0 and sizes.can_turn_off(name)
        ]
        now = sizes.count(levels)
        left = [option for option in options if 0 < option[0] <= now]
        if not left:
            return levels
        levels[choose(left)[1]] = 0


def smallest(space: Space, *, count: Count) -> tuple[Candidate, int] | None:
    """Find the smallest configuration of a space that trains anything, and its size.

    For each combination of choices, or as many as MOST_COMBINATIONS of them, sizes go down to their lowest, then are
    turned off as long as something is left.
    """
    best: tuple[Candidate, int] | None = None
    seen = set()
    for start in islice(_combinations(space), MOST_COMBINATIONS):
        sizes = _Sizes(space, start, count)
        # Most choices, such as bits or alpha, change no size; those that do show it at the lowest sizes already.
        kind = (tuple(start.values), sizes.count(sizes.floor))
        if kind in seen:
            continue
        seen.add(kind)
        levels = _least_on(sizes, dict(sizes.floor))
        found = (sizes.at(levels), sizes.count(levels))
        if found[1] > 0 and (best is None or found[1] < best[1]):
            best = found
    return best


def _combinations(space: Space) -> Iterator[Candidate]:
    """Every combination of two-way choices with each choice of `method`-like parameters; other values at default."""
    choices = [p for p in space if isinstance(p.domain, Choices)]
    roots = [p for p in choices if not p.when]
    seen = set()
    for combination in product(*(p.domain.values for p in roots if isinstance(p.domain, Choices))):
        base = dict(zip((p.name for p in roots), combination, strict=True))
        active = {p.name for p in space.active(base)}
        inner = [p for p in choices if p.when and p.name in active]
        for more in product(*(p.domain.values for p in inner if isinstance(p.domain, Choices))):
            said = {**base, **dict(zip((p.name for p in inner), more, strict=True))}
            candidate = space.complete(said, is_checked=True)
            if candidate not in seen:
                seen.add(candidate)
                yield candidate
