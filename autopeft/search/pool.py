"""Candidates to choose among: fresh draws and mutations, complete and lowered into the budget.

Both are drawn parents before children, by a generator of random numbers that the caller seeds. They are feasible in
size; whether anything else forbids them may take long to tell, and is asked of the best only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from random import Random

from autopeft.candidates import Candidate, Scalar
from autopeft.domains import Choices, Ordinal, Real, Whole, draw
from autopeft.problem import Problem
from autopeft.search.features import Family, families
from autopeft.space import Parameter

_TRIES = 20
"""Draws for one candidate before a space is taken for one in which hardly anything fits."""

_STEP = 0.15
"""Deviation of a mutated number, of its range."""


class _Different:
    """The different ones of a sequence, None left out: the first so many are the same whatever was asked for before."""

    def __init__(self, sequence: Iterator[Candidate | None]) -> None:
        self._sequence, self._tries = sequence, 0
        self._found: dict[Candidate, int] = {}  # after how many tries

    def first(self, count: int) -> list[Candidate]:
        """Give so many; fewer if there are hardly more."""
        tries = count * _TRIES
        while len(self._found) < count and self._tries < tries:
            if (candidate := next(self._sequence)) is not None:
                self._found.setdefault(candidate, self._tries)
            self._tries += 1
        return [candidate for candidate, at in islice(self._found.items(), count) if at < tries]


class Pool:
    """Draws candidates of a problem."""

    def __init__(self, problem: Problem, *, count: Callable[[Candidate], int] | None = None) -> None:
        """Prepare to draw.

        Args:
            count: The problem's `adapter_params`, of a caller that remembers what it gave.
        """
        self._problem, self._count = problem, count
        self._roots = [p for p in problem.space if not p.when]
        self._children: dict[tuple[str, Scalar], list[Parameter]] = {}
        for parameter in problem.space:
            for name, values in parameter.when.items():
                for value in values:
                    self._children.setdefault((name, value), []).append(parameter)
        self._family = {member.name: family for family in families(problem.space) for member in family.members}
        self._below: dict[tuple[str, Scalar], list[str]] = {}
        self._seed = ""
        self._offspring: dict[Candidate, _Different] = {}

    def fresh(self, count: int, random: Random) -> list[Candidate]:
        """Draw different candidates anew; fewer than asked for where there are hardly more."""
        return _Different(self._fitted(lambda: self._drawn(random))).first(count)

    def mutants(self, parents: Sequence[Candidate], count: int, *, seed: str) -> list[Candidate]:
        """Draw different candidates, about so many, that differ from one of the parents in a parameter or a few.

        There are as many of each parent, and of one parent and one seed they are always the same: they are drawn once,
        and proposals with one seed and much the same parents share them.
        """
        if seed != self._seed:
            self._seed, self._offspring = seed, {}
        if not parents:
            return []
        if len(parents) > count:
            parents = Random(seed).sample(parents, count)
        each = -(-count // len(parents))
        found = dict.fromkeys(mutant for parent in parents for mutant in self._mutants_of(parent, each))
        for parent in parents:
            found.pop(parent, None)
        return list(found)

    def _mutants_of(self, parent: Candidate, count: int) -> list[Candidate]:
        if parent not in self._offspring:
            random = Random(f"{self._seed} {parent.key}")
            self._offspring[parent] = _Different(self._fitted(lambda: self._mutated(parent, random)))
        return self._offspring[parent].first(count)

    def _fitted(self, draw: Callable[[], Candidate]) -> Iterator[Candidate | None]:
        while True:
            yield self._problem.fit(draw(), count=self._count)

    def _drawn(self, random: Random) -> Candidate:
        return self._complete({}, random)

    def _complete(self, said: Mapping[str, Scalar], random: Random) -> Candidate:
        """Draw what is not said and active; drop what is said and not."""
        values: dict[str, Scalar] = {}
        shapes: dict[str, Mapping[str, Scalar]] = {}
        due = list(self._roots)
        while due:
            parameter = due.pop()
            name = parameter.name
            if name in values or not parameter.is_active(values):
                continue
            if name in said:
                values[name] = said[name]
            else:
                family = self._family[name]
                if name not in shapes:
                    shapes.update(dict.fromkeys((m.name for m in family.members), _shape(family, random)))
                values[name] = shapes[name][name]
            due += self._children.get((name, values[name]), ())
        return Candidate(values)

    def _mutated(self, parent: Candidate, random: Random) -> Candidate:
        said = dict(parent.values)
        for _ in range(1 if random.random() < 0.6 else 2):
            name = random.choice(list(parent.values))
            family = self._family[name]
            active = [m for m in family.members if m.name in said]
            if len(active) > 1 and random.random() < 0.5:
                said |= _moved(family, active, said, random)
                continue
            if random.random() < 0.5:
                # Each family is as likely as any other, however many its members are.
                members: dict[str, list[str]] = {}
                for other in parent.values:
                    members.setdefault(self._family[other].name, []).append(other)
                name = random.choice(random.choice(list(members.values())))
            if name in said:
                said[name] = _neighbour(self._family[name].domain, said[name], random)
        if changed := [new for new in said.items() if new in self._children and new not in parent.values.items()]:
            said |= self._carried(parent.values, changed)
        return self._complete(said, random)

    def _carried(self, values: Mapping[str, Scalar], changed: Sequence[tuple[str, Scalar]]) -> dict[str, Scalar]:
        """Give a parent's settings to what plays their role elsewhere: rank stays rank when the method changes.

        Args:
            changed: Names and values on which other parameters hang that the parent does not have.
        """
        role: dict[str, list[Scalar]] = {}
        for name, value in values.items():
            if self._family[name].conditional:
                role.setdefault(self._family[name].role, []).append(value)
        carried: dict[str, Scalar] = {}
        for name in (name for new in changed for name in self._all_below(new) if name not in values):
            family = self._family[name]
            if known := role.get(family.role):
                position = [m.name for m in family.members].index(name)
                value = known[position * len(known) // len(family.members)]
                if family.domain.holds(value):
                    carried[name] = value
        return carried

    def _all_below(self, value: tuple[str, Scalar]) -> list[str]:
        """Give the names of all that may exist because a parameter has a value."""
        if value not in self._below:
            name, said = value
            below: dict[str, None] = {}
            for parameter in self._problem.space:  # what hangs on another comes after it
                if said in parameter.when.get(name, ()) or not below.keys().isdisjoint(parameter.when):
                    below[parameter.name] = None
            self._below[value] = list(below)
        return self._below[value]


def _neighbour(domain: Choices | Ordinal | Real | Whole, value: Scalar, random: Random) -> Scalar:
    """Draw a value near one: a step in a list, a Gaussian step in a range, another choice."""
    match domain:
        case Choices(values):
            return random.choice([v for v in values if v is not value and v != value] or [value])
        case Ordinal(values):
            at = values.index(float(value))
            step = random.choice((-1, 1)) if random.random() < 0.7 else random.randint(-len(values), len(values))
            return values[min(max(at + step, 0), len(values) - 1)]
        case Real(low, high, log):
            return min(max(_stepped(float(value), low, high, random, log=log), low), high)
        case Whole(low, high, log):
            whole = round(_stepped(float(value), low, high, random, log=log))
            return min(max(whole if whole != value else whole + random.choice((-1, 1)), low), high)


def _stepped(value: float, low: float, high: float, random: Random, *, log: bool) -> float:
    """Draw a number around one, which may be out of the range; on the range's own scale."""
    step = random.gauss(0, _STEP)
    return value * (high / low) ** step if log else value + step * (high - low)


def _shape(family: Family, random: Random) -> dict[str, Scalar]:
    """Draw a family's values: alike, alike in one run of places with the lowest elsewhere, or each for itself.

    Drawn each for itself, twelve ranks always come to about the same capacity.
    """
    names = [member.name for member in family.members]
    way = random.random()
    if len(names) > 1 and way < 0.6:
        values = dict.fromkeys(names, draw(family.domain, random))
        if way < 0.3 and isinstance(family.domain, Ordinal | Real | Whole):
            first, last = sorted((random.randrange(len(names)), random.randrange(len(names))))
            lowest = family.domain.values[0] if isinstance(family.domain, Ordinal) else family.domain.low
            values |= {name: lowest for i, name in enumerate(names) if not first <= i <= last}
        return values
    return {name: draw(family.domain, random) for name in names}


def _moved(
    family: Family, active: Sequence[Parameter], values: Mapping[str, Scalar], random: Random
) -> dict[str, Scalar]:
    """Move a whole family: a step up or down together, two members exchanged, or drawn anew."""
    names = [member.name for member in active]
    way = random.random()
    if way < 0.5 and isinstance(family.domain, Ordinal):
        levels = family.domain.values
        step = random.choice((-1, 1))
        on = [n for n in names if values[n] != levels[0]] or names
        at = {n: levels.index(float(values[n])) + step for n in on}
        return {n: levels[min(max(i, 0), len(levels) - 1)] for n, i in at.items()}
    if way < 0.75:
        one, other = random.sample(names, 2)
        return {one: values[other], other: values[one]}
    shape = _shape(family, random)
    return {n: shape[n] for n in names}
