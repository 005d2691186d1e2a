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
from scipy.sparse import csc_array

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

    Every column is a mean of those of some atoms that are active, or a weighted sum of atoms; an atom is a parameter's
    number, or whether a choice is this value. So the rows of many candidates are a few products of matrices.

    Attributes:
        kernel: Its groups are the columns' groups.
        names: What each column is.
    """

    def __init__(self, space: Space, *, with_cost: bool) -> None:
        """Lay out the columns.

        Args:
            with_cost: Whether the exact number of trained parameters is a column too, as its logarithm.
        """
        self._domains = [p.domain for p in space]
        self._at = {p.name: (i, _positions(p.domain)) for i, p in enumerate(space)}
        self._scales = _Scales(self._domains)
        hot = [(i, j) for i, d in enumerate(self._domains) if isinstance(d, Choices) for j in range(len(d.values))]
        self._hot_at, self._hot_value = np.array(hot, dtype=np.int64).reshape(-1, 2).T
        self._with_cost = with_cost
        grouped = self._layout(families(space))
        names = _merged([group for _, group in grouped])
        order = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self.names = [name for name, _ in grouped]
        self.kernel = Kernel(np.array([order[name] for name in names], dtype=np.int64))

    def _layout(self, found: Sequence[Family]) -> list[tuple[str, str]]:
        """Name each column and its group, and say what it is made of; atoms are the parameters, then the choices."""
        of_choice = zip(self._hot_at.tolist(), self._hot_value.tolist(), strict=True)
        hot = {of: len(self._domains) + i for i, of in enumerate(of_choice)}
        means: list[tuple[list[int], float]] = []  # atoms, and the value where none is active
        sums: list[dict[int, float]] = []  # atom -> weight
        columns: list[tuple[str, str, int, int]] = []  # name, group, whether it is a sum, the how manieth of its sort

        def add_mean(name: str, group: str, atoms: list[int], *, otherwise: float) -> None:
            columns.append((name, group, 0, len(means)))
            means.append((atoms, otherwise))

        def add_sum(name: str, group: str, weights: dict[int, float]) -> None:
            columns.append((name, group, 1, len(sums)))
            sums.append(weights)

        for role in dict.fromkeys(family.role for family in found if _is_shared(family)):
            atoms = [self._at[m.name][0] for f in found if _is_shared(f) and f.role == role for m in f.members]
            add_mean(role, role, atoms, otherwise=_NEUTRAL)
        for family in found:
            at = [self._at[member.name][0] for member in family.members]
            choices = family.domain.values if isinstance(family.domain, Choices) else ()
            for j, value in enumerate(choices):
                add_mean(f"{family.name}={value}", family.role, [hot[i, j] for i in at], otherwise=0.0)
            if not choices and not _is_shared(family):
                add_mean(family.name, family.role, at, otherwise=_NEUTRAL)
            if len(at) > 1:
                tilt = np.linspace(-1, 1, len(at)) / len(at)
                add_sum(f"{family.name} tilt", f"{family.role} tilt", dict(zip(at, tilt.tolist(), strict=True)))
                for i, member in zip(at, family.members, strict=True):
                    for atom in [hot[i, j] for j in range(len(choices))] or [i]:
                        add_sum(member.name, f"{family.role} members", {atom: len(at) ** -0.5})
        n_atoms = len(self._domains) + len(hot)
        self._means = _map([dict.fromkeys(atoms, 1.0) for atoms, _ in means], n_atoms)
        self._otherwise = np.array([otherwise for _, otherwise in means])
        self._sums = _map(sums, n_atoms)
        self._order = np.array([i + is_sum * len(means) for _, _, is_sum, i in columns], dtype=np.int64)
        return [*([("log cost", "cost")] if self._with_cost else []), *((name, group) for name, group, _, _ in columns)]

    def of(self, candidates: Sequence[Candidate], costs: Array | None = None) -> Array:
        """Give the rows of candidates, ``(n_candidates, n_columns)``.

        Args:
            costs: ``(n_candidates,)``: trained parameters, where the features were laid out with them.
        """
        value, active = self._values(candidates)
        # Halves of the squared distance: two different choices are 1 apart.
        chosen = np.where(value[:, self._hot_at] == self._hot_value, 0.5**0.5, 0.0)
        number = np.where(active, value, 0.0) / self._scales.last
        said = np.concatenate([number, chosen], axis=1)
        counts = np.concatenate([active, active[:, self._hot_at]], axis=1).astype(np.float64) @ self._means
        means = np.where(counts > 0, (said @ self._means) / np.maximum(1, counts), self._otherwise)
        filled = np.where(active | self._scales.is_choice, number, _NEUTRAL)
        sums = np.concatenate([filled, chosen], axis=1) @ self._sums
        rows = np.concatenate([means, sums], axis=1)[:, self._order]
        cost = [np.log1p(costs)[:, None] / 10] if self._with_cost and costs is not None else []
        return np.concatenate([*cost, rows], axis=1)

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
            read = [(self._at[name], said) for name, said in candidate.values.items()]
            row[[i for (i, _), _ in read]] = [
                said if index is None else index.get(said, np.nan) for (_, index), said in read
            ]
        return self._scales(raw), ~np.isnan(raw)


class _Scales:
    """Scales numbers to [0, 1], each on its own scale; of a choice there is the position alone.

    Attributes:
        is_choice: ``(n_parameters,)``.
        last: ``(n_parameters,)``: of a choice its last position, or 1; else 1.
    """

    def __init__(self, domains: Sequence[Domain]) -> None:
        self.is_choice = np.array([isinstance(d, Choices) for d in domains], dtype=np.bool_)
        self.last = np.array([max(1, len(d.values) - 1) if isinstance(d, Choices) else 1 for d in domains])
        self._low, self._width = np.zeros(len(domains)), np.ones(len(domains))
        self._is_log = np.zeros(len(domains), dtype=np.bool_)
        for i, domain in enumerate(domains):
            match domain:
                case Ordinal(values):
                    self._width[i] = max(1, len(values) - 1)
                case Real(low, high, log) | Whole(low, high, log):
                    ends = np.log([low, high]) if log else (low, high)
                    self._low[i], self._width[i], self._is_log[i] = ends[0], max(ends[1] - ends[0], 1e-300), log

    def __call__(self, raw: Array) -> Array:
        """Scale rows of numbers, NaN where there is none."""
        value = raw.copy()
        with np.errstate(divide="ignore"):
            value[:, self._is_log] = np.log(np.maximum(raw[:, self._is_log], 0))
        return np.where(self.is_choice, raw, np.clip((value - self._low) / self._width, 0, 1))


def _map(columns: Sequence[Mapping[int, float]], n_atoms: int) -> csc_array:
    """Make the linear map, ``(n_atoms, n_columns)``, of the atoms' weights in each column."""
    weights = [(atom, column, weight) for column, of in enumerate(columns) for atom, weight in of.items()]
    atoms, at, values = zip(*weights, strict=True) if weights else ((), (), ())
    return csc_array((np.array(values, dtype=np.float64), (atoms, at)), shape=(n_atoms, len(columns)))


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
