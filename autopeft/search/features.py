"""A candidate as a row of numbers: whatever the space, its own or ours, grouped as the surrogate's kernel wants it.

Numbers go to [0, 1] (ordinals by position, logarithmic ranges by their logarithm), choices to one-hot columns. What is
not active stands at a neutral value; that it is not active shows in the choice that it depends on. Parameters that are
the same thing at several places (12 layers' ranks) are a family: beside its members there are their mean and their
tilt from first to last, or twelve columns would drown what they have in common. Settings that methods share by name
(`lora.rank`, `hira.rank`) share a column, so that what one method teaches is asked of the others first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.candidates import Candidate, Scalar
from autopeft.domains import Choices, Domain, Ordinal, Real, Whole
from autopeft.search.surrogate import Array, Kernel
from autopeft.space import Parameter, Space

MOST_GROUPS = 24
"""Length scales that are learned at most: their number is what a fit costs, and what few trials can tell."""

_NEUTRAL = 0.5
_REST = "the rest"


@dataclass(frozen=True, slots=True)
class Family:
    """Parameters that are the same thing at several places, in the space's order; most have one member.

    Attributes:
        role: What it is called where methods do not matter: the last part of a conditional parameter's name.
        conditional: Whether it exists for some candidates only.
    """

    name: str
    role: str
    members: tuple[Parameter, ...]

    @property
    def domain(self) -> Domain:
        """The domain of every member."""
        return self.members[0].domain

    @property
    def conditional(self) -> bool:
        """Whether it exists for some candidates only."""
        return bool(self.members[0].when)


def families(space: Space) -> list[Family]:
    """Sort a bound space's parameters into families: same name but for numbers and brackets, same domain and parents.

    >>> from autopeft.space_file import parse_space
    >>> layers = {f"layer{i}.rank": {"ordinal": [0, 4, 8]} for i in range(3)}
    >>> space = parse_space({"parameters": {"rate": {"low": 0, "high": 1}, **layers}})
    >>> [(family.name, len(family.members)) for family in families(space)]
    [('rate', 1), ('layer#.rank', 3)]
    """
    found: dict[tuple[object, ...], list[Parameter]] = {}
    for parameter in space:
        parents = tuple(sorted((_stem(name), values) for name, values in parameter.when.items()))
        found.setdefault((_stem(parameter.name), parameter.domain, str(parents)), []).append(parameter)
    named = [(str(key[0]), tuple(members)) for key, members in found.items()]
    return [Family(name, _role(name) if members[0].when else name, members) for name, members in named]


def _role(name: str) -> str:
    return name.rpartition(".")[2].removesuffix("[]")


def _stem(name: str) -> str:
    return re.sub(r"\d+", "#", re.sub(r"\[[^]]*\]", "[]", name))


class Features:
    """Rows of numbers of a bound space's candidates, and the kernel that goes with them.

    Attributes:
        kernel: Its groups are the columns' groups.
        names: What each column is.
    """

    def __init__(self, space: Space, *, with_cost: bool) -> None:
        """Lay out the columns.

        Args:
            with_cost: Whether the exact number of trained parameters is a column too, as its logarithm.
        """
        self._at = {parameter.name: i for i, parameter in enumerate(space)}
        self._index: dict[str, Mapping[Scalar, int] | None] = {p.name: _positions(p.domain) for p in space}
        self._domains = [p.domain for p in space]
        self._families = families(space)
        self._with_cost = with_cost
        grouped = self._layout()
        names = _merged([group for _, group in grouped])
        order = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self.names = [name for name, _ in grouped]
        self.kernel = Kernel(np.array([order[name] for name in names], dtype=np.int64))

    def _layout(self) -> list[tuple[str, str]]:
        """Name each column and its group, in the order in which `of` makes them."""
        columns = [("log cost", "cost")] if self._with_cost else []
        self._shared = list(dict.fromkeys(f.role for f in self._families if _is_shared(f)))
        columns += [(role, role) for role in self._shared]
        for family in self._families:
            choices = family.domain.values if isinstance(family.domain, Choices) else ()
            if choices:
                columns += [(f"{family.name}={value}", family.role) for value in choices]
            elif not _is_shared(family):
                columns.append((family.name, family.role))
            if len(family.members) > 1:
                columns.append((f"{family.name} tilt", f"{family.role} tilt"))
                width = len(choices) or 1
                for member in family.members:
                    columns += [(member.name, f"{family.role} members")] * width
        return columns

    def of(self, candidates: Sequence[Candidate], costs: Array | None = None) -> Array:
        """Give the rows of candidates, ``(n_candidates, n_columns)``.

        Args:
            costs: ``(n_candidates,)``: trained parameters, where the features were laid out with them.
        """
        values, active = self._values(candidates)
        columns: list[Array] = [np.log1p(costs) / 10] if self._with_cost and costs is not None else []
        sums = {role: np.zeros(len(values)) for role in self._shared}
        counts = {role: np.zeros(len(values)) for role in self._shared}
        own: list[Array] = []
        for family in self._families:
            at = [self._at[member.name] for member in family.members]
            value, on = values[:, at], active[:, at]
            n = np.maximum(1, on.sum(axis=1))
            if isinstance(family.domain, Choices):
                # Halves of the squared distance: two different choices are 1 apart.
                hot = [np.where(on, value == i, 0.0) / np.sqrt(2) for i in range(len(family.domain.values))]
                own += [h.sum(axis=1) / n for h in hot]
                members = np.stack(hot, axis=2).reshape(len(values), len(at) * len(hot)) if len(at) > 1 else value
                filled = np.where(on, value, 0.0) / max(1, len(family.domain.values) - 1)
            else:
                filled = np.where(on, value, _NEUTRAL)
                total = np.where(on, value, 0.0).sum(axis=1)
                members = filled
                if _is_shared(family):
                    sums[family.role] += total
                    counts[family.role] += on.sum(axis=1)
                else:
                    own.append(np.where(on.any(axis=1), total / n, _NEUTRAL))
            if len(at) > 1:
                own.append((filled * np.linspace(-1, 1, len(at))).mean(axis=1))
                own += list(members.T / np.sqrt(len(at)))
        for role in self._shared:
            columns.append(np.where(counts[role] > 0, sums[role] / np.maximum(1, counts[role]), _NEUTRAL))
        return np.stack([*columns, *own], axis=1) if columns or own else np.zeros((len(candidates), 0))

    def plain(self, candidates: Sequence[Candidate]) -> Array:
        """Give rows of the parameters alone, each for itself: a column a number, one for each value of a choice."""
        values, active = self._values(candidates)
        columns = []
        for i, domain in enumerate(self._domains):
            if isinstance(domain, Choices):
                columns += [np.where(values[:, i] == j, 1.0, 0.0) for j in range(len(domain.values))]
            else:
                columns.append(np.where(active[:, i], values[:, i], _NEUTRAL))
        return np.stack(columns, axis=1)

    def _values(self, candidates: Sequence[Candidate]) -> tuple[Array, NDArray[np.bool_]]:
        """Read the values, numbers scaled to [0, 1] and choices by position, and which of them are active."""
        raw = np.full((len(candidates), len(self._domains)), np.nan)
        for row, candidate in zip(raw, candidates, strict=True):
            for name, said in candidate.values.items():
                index = self._index[name]
                row[self._at[name]] = said if index is None else index.get(said, np.nan)
        active = ~np.isnan(raw)
        for column, domain in enumerate(self._domains):
            match domain:
                case Ordinal(values):
                    raw[:, column] /= max(1, len(values) - 1)
                case Real(low, high, log) | Whole(low, high, log):
                    ends = np.log([low, high]) if log else np.array([low, high], dtype=np.float64)
                    value = np.log(np.maximum(raw[:, column], low)) if log else raw[:, column]
                    raw[:, column] = np.clip((value - ends[0]) / max(ends[1] - ends[0], 1e-300), 0, 1)
        return raw, active


def _is_shared(family: Family) -> bool:
    return family.conditional and not isinstance(family.domain, Choices)


def _positions(domain: Domain) -> Mapping[Scalar, int] | None:
    return {v: i for i, v in enumerate(domain.values)} if isinstance(domain, Choices | Ordinal) else None


def _merged(groups: Sequence[str]) -> list[str]:
    """Put the groups of the fewest columns together until there are few enough; the first column's never."""
    sizes = Counter(groups)
    first = list(dict.fromkeys(groups))
    by_size = sorted(first[1:], key=lambda name: (sizes[name], -first.index(name)))
    together = set(by_size[: max(0, len(first) - MOST_GROUPS + 1)]) if len(first) > MOST_GROUPS else set()
    return [_REST if name in together else name for name in groups]
