"""What a Candidate may be: typed, conditional parameters, and the rules that make of values a Candidate.

A space is written for any model (`per: layers`, `per: kinds`); `bind` expands it for one model's anatomy, so that
"lora.rank" becomes "lora.rank[0-1]", "lora.rank[2-3]" and so on. A group of layers is written first-last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from random import Random
from typing import Literal

from autopeft.anatomy import KINDS, Anatomy
from autopeft.candidates import Candidate, Scalar
from autopeft.domains import Choices, Domain, canonical, draw, middle, show_domain
from autopeft.errors import RequestError
from autopeft.layers import layer_groups
from autopeft.registry import unknown

Per = Literal["layers", "kinds"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One dimension of a space.

    Attributes:
        when: Other parameter -> values for which this one exists.
        per: What it is repeated over; empty once bound.
        size: Whether the number of trained parameters grows with it: such a parameter is lowered to fit a budget.
        cuda_only: Choices that are left out where there is no CUDA device.
        base: Name before binding.
    """

    name: str
    domain: Domain
    default: Scalar
    when: Mapping[str, tuple[Scalar, ...]]
    per: tuple[Per, ...] = ()
    size: bool = False
    cuda_only: tuple[Scalar, ...] = ()
    base: str = ""

    def is_active(self, values: Mapping[str, Scalar]) -> bool:
        """Tell whether it exists beside these values of what it depends on."""
        for name, allowed in self.when.items():  # noqa: SIM110 - `all` takes twice as long, and millions are asked
            if values.get(name) not in allowed:
                return False
        return True


Assignment = Mapping[str, Scalar | Mapping[str, Scalar]]
"""Values by name: "lora.share[key]" sets one, "lora.share" all, {"lora.share": {"key": 1}} these and the others off."""


@dataclass(frozen=True, slots=True)
class Space:
    """Parameters in an order in which each comes after those that it depends on.

    Attributes:
        start: Configurations to try first, as partial assignments.
        layer_groups: How many groups the layers are cut into, or "each".
        kinds: Kinds of module that may be adapted; None for all that the model has.
    """

    parameters: tuple[Parameter, ...]
    start: tuple[Assignment, ...] = ()
    layer_groups: int | Literal["each"] = 4
    kinds: tuple[str, ...] | None = None
    description: str = ""
    _positions: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_positions", {p.name: i for i, p in enumerate(self.parameters)})

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def parameter(self, name: str) -> Parameter:
        """Give a parameter by name.

        Raises:
            UnknownNameError: If there is none.
        """
        if name not in self._positions:
            raise unknown(name, [p.name for p in self.parameters], what="parameter")
        return self.parameters[self._positions[name]]

    def of(self, candidate: Candidate) -> list[Parameter]:
        """Give the parameters that a candidate has values of, in the space's order."""
        return [self.parameters[i] for i in sorted(self._positions[name] for name in candidate.values)]

    def narrow(self, name: str, keep: Iterable[Scalar]) -> Space:
        """Keep only some values of a Choices parameter; what hangs on a dropped value stays, never active.

        Raises:
            RequestError: If none is left.
        """
        parameter = self.parameter(name)
        allowed = list(keep)
        if not isinstance(parameter.domain, Choices):
            return self
        left = tuple(v for v in parameter.domain.values if v in allowed)
        if not left:
            here = f"here only {_listed(allowed)} can be used" if allowed else "here none of these can be used"
            raise RequestError(f"space: {name} may be {_listed(parameter.domain.values)}; {here}")
        default = parameter.default if parameter.default in left else left[0]
        narrowed = replace(parameter, domain=Choices(left), default=default)
        start = tuple(s for s in self.start if s.get(name, default) in left)
        return replace(self, parameters=tuple(narrowed if p is parameter else p for p in self.parameters), start=start)

    def bind(self, anatomy: Anatomy) -> Space:
        """Expand `per` parameters for one model.

        Raises:
            RequestError: If the space names kinds of module of which the model has none.
        """
        kinds = anatomy.kinds if self.kinds is None else tuple(k for k in self.kinds if k in anatomy.kinds)
        if not kinds:
            has = _listed(anatomy.kinds) or "no linear layers"
            raise RequestError(f"kinds: the model has none of {_listed(self.kinds or ())}; it has {has}")
        groups = [str(a) if a == b else f"{a}-{b}" for a, b in layer_groups(anatomy.n_layers, self.layer_groups)]
        over: dict[Per, Sequence[str]] = {"layers": groups, "kinds": kinds}
        bound: list[Parameter] = []
        for parameter in self.parameters:
            for keys in product(*(over[p] for p in parameter.per)):
                name = f"{parameter.name}[{'/'.join(keys)}]" if keys else parameter.name
                bound.append(replace(parameter, name=name, per=(), base=parameter.name))
        return replace(self, parameters=tuple(bound))

    def active(self, values: Mapping[str, Scalar]) -> list[Parameter]:
        """Give the parameters that exist for these values, in order."""
        found: dict[str, Scalar] = {}
        active = []
        for parameter in self.parameters:
            if parameter.is_active(found):
                active.append(parameter)
                found[parameter.name] = values.get(parameter.name, parameter.default)
        return active

    def draw(self, random: Random) -> Candidate:
        """Draw a candidate of a bound space: what exists for it, each value on its own scale."""
        values: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if parameter.is_active(values):
                values[parameter.name] = draw(parameter.domain, random)
        return Candidate(values)

    def complete(self, partial: Assignment, *, is_checked: bool = False) -> Candidate:
        """Make a Candidate of a partial assignment: defaults for what is not said, inactive parameters dropped.

        Two assignments that mean the same give the same candidate: values have their domain's form, 8 for 8.0.

        Args:
            is_checked: Whether it is known to be one of this space.

        Raises:
            RequestError: Listing every name that is not of the space and every value that is not allowed.
        """
        if not is_checked:
            self.check(partial)
        values: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if parameter.is_active(values):
                values[parameter.name] = canonical(parameter.domain, _assigned(parameter, partial))
        return Candidate(values)

    def allows(self, partial: Assignment) -> bool:
        """Tell whether a partial assignment is one of this space."""
        try:
            self.check(partial)
        except RequestError:
            return False
        return True

    def check(self, partial: Assignment) -> None:
        """Check the names and values of a partial assignment, of this space bound or unbound.

        Raises:
            RequestError: Listing every fault.
        """
        by_name: dict[str, Parameter] = {}
        for parameter in self.parameters:
            by_name.setdefault(parameter.base or parameter.name, parameter)
            by_name[parameter.name] = parameter
        # Of a bound space the kinds of its model are known, beside those that others have.
        spread = {p.base for p in self.parameters if "[" in p.name}
        over_kinds = {p.base for p in self.parameters if not p.name.partition("[")[2].rpartition("/")[2][:1].isdigit()}
        known = {*KINDS, *(part for p in self.parameters for part in p.name.partition("[")[2][:-1].split("/") if part)}
        faults = []
        for name, value in partial.items():
            if name not in by_name:
                faults.append(str(unknown(name, _alike(name, by_name.values()), what="parameter")))
                continue
            parameter, domain = by_name[name], by_name[name].domain
            if isinstance(value, Mapping) and not parameter.per and name not in spread:
                faults.append(f"{name}: it has one value for the whole model, not {dict(value)}")
                continue
            for part in (part for key in value for part in key.split("/")) if isinstance(value, Mapping) else ():
                if not spread or part[:1].isdigit():
                    continue
                if part not in known:
                    faults.append(f"{name}: {unknown(part, known, what='kind of module')}")
                elif name in spread and name not in over_kinds:
                    faults.append(f"{name}: it differs by layer only, and {part!r} is a kind of module")
            for key, single in value.items() if isinstance(value, Mapping) else (("", value),):
                if not domain.holds(single):
                    faults.append(f"{name}{f'[{key}]' if key else ''}: {single!r} is not in {show_domain(domain)}")
        if faults:
            raise RequestError(*faults)


def _alike(name: str, parameters: Iterable[Parameter]) -> list[str]:
    """Give the names among which one may have been meant: those of its method, where it begins with one, unbound."""
    names = dict.fromkeys(p.base or p.name for p in parameters)
    method = name.rpartition(".")[0]
    return [other for other in names if other.rpartition(".")[0] == method] or list(names)


def _assigned(parameter: Parameter, partial: Assignment) -> Scalar:
    """Read a bound parameter's value off a partial assignment."""
    said = partial.get(parameter.name, partial.get(parameter.base, parameter.default))
    if not isinstance(said, Mapping):
        return said
    layer, kind = None, None
    for part in parameter.name.partition("[")[2].removesuffix("]").split("/"):
        first = part.partition("-")[0]
        layer, kind = (int(first), kind) if first.isdigit() else (layer, part)
    value = setting_at(said, layer=layer, kind=kind)
    return value if parameter.domain.holds(value) else middle(parameter.domain)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(v) for v in values)


def settings_of(candidate: Candidate, method: str) -> dict[str, Scalar | dict[str, Scalar]]:
    """Gather what a candidate says of its method: "lora.rank[0-1]" becomes settings["rank"]["0-1"].

    >>> settings_of(Candidate({"method": "lora", "lora.rank[0-1]": 8, "lora.dora": False}), "lora")
    {'dora': False, 'rank': {'0-1': 8}}
    """
    settings: dict[str, Scalar | dict[str, Scalar]] = {}
    for name, value in candidate.values.items():
        of, key, place = _parts(name)
        if of != method:
            continue
        if place:
            group = settings.setdefault(key, {})
            assert isinstance(group, dict)
            group[place] = value
        else:
            settings[key] = value
    return settings


@lru_cache(maxsize=4096)
def _parts(name: str) -> tuple[str, str, str]:
    """Take a parameter's name apart: "lora.rank[0-1]" is of lora, rank, at 0-1. Asked for each of many candidates."""
    method, _, setting = name.partition(".")
    key, _, place = setting.partition("[")
    return method, key, place.removesuffix("]")


def setting_at(setting: Scalar | Mapping[str, Scalar], *, layer: int | None = None, kind: str | None = None) -> Scalar:
    """Read a setting, said for all or per group of layers, per kind or both, at one module.

    >>> setting_at({"0-1/query": 4, "2/query": 8}, layer=1, kind="query")
    4
    >>> setting_at({"0-1": 4}, layer=5), setting_at(16, layer=5)
    (0, 16)
    """
    if not isinstance(setting, dict):  # not Mapping: that takes ten times as long to tell
        return setting  # type: ignore[return-value]
    said: dict[str, Scalar] = setting
    for key, value in said.items():
        for at, what in places_of(key):
            if at in (None, layer) and what in (None, kind):
                return value
    return 0


@lru_cache(maxsize=4096)
def places_of(key: str) -> tuple[tuple[int | None, str | None], ...]:
    """Give the places that a key of a setting speaks of: (layer, kind), None for all.

    >>> places_of("0-1/query"), places_of("query")
    (((0, 'query'), (1, 'query')), ((None, 'query'),))
    """
    layers: Iterable[int | None] = [None]
    kind = None
    for part in key.split("/"):
        first, _, last = part.partition("-")
        if first.isdigit():
            layers = range(int(first), int(last or first) + 1)
        else:
            kind = part
    return tuple((layer, kind) for layer in layers)
