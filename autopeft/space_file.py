"""Search spaces as YAML: the schema, `inherit:`, and errors that name the file, the parameter and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autopeft.candidates import Scalar
from autopeft.domains import Choices, Domain, Ordinal, Real, Whole, middle, show_domain
from autopeft.errors import RequestError
from autopeft.registry import unknown
from autopeft.space import Parameter, Per, Space
from autopeft.yaml_file import read_yaml


class ParameterFile(BaseModel):
    """One parameter in YAML: `choices`, `ordinal`, or `low` and `high` (with `log`, `integer`)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    choices: list[Scalar] | None = None
    ordinal: list[int | float] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    integer: bool = False
    default: Scalar | None = None
    when: dict[str, list[Scalar]] = Field(default_factory=dict)
    per: Per | list[Per] | None = None
    size: bool = False
    cuda_only: list[Scalar] = Field(default_factory=list)


class SpaceFile(BaseModel):
    """A search space in YAML."""

    model_config = ConfigDict(extra="forbid")

    description: str = ""
    inherit: str | None = None
    layer_groups: Annotated[int, Field(ge=1, strict=True)] | Literal["each"] = 4
    kinds: Annotated[list[str], Field(min_length=1)] | None = None
    parameters: dict[str, ParameterFile] = Field(default_factory=dict)
    start: list[dict[str, Scalar | dict[str, Scalar]]] = Field(default_factory=list)


def space_names() -> dict[str, Path]:
    """Give the spaces that autopeft ships: name -> file."""
    installed = Path(str(files("autopeft"))) / "search_spaces"
    folder = installed if installed.is_dir() else Path(str(files("autopeft"))).parent / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_space(name_or_file: str) -> Space:
    """Load a shipped space by name, or one from a YAML file.

    Raises:
        RequestError: Listing every fault of the file.
    """
    return parse_space(read_space(name_or_file), where=name_or_file)


def read_space(space: str | Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of a space with all that it inherits, unchecked.

    Configurations to start with that are inherited, and do not fit what the heir changed, are left out.

    Args:
        space: Name of a shipped space, a YAML file, or fields as in one.

    Raises:
        RequestError: If a file cannot be read, or spaces inherit in a circle.
    """
    read = _read(space, ()) if isinstance(space, str) else _with_parents(space, (), None)
    fields = {name: value for name, value in read.items() if name != "inherit"}
    inherited = fields.pop(_INHERITED_START, None)
    if inherited is not None:
        parsed = parse_space(fields, where=space if isinstance(space, str) else "space")
        fields["start"] = [start for start in inherited if parsed.allows(start)]
    return fields


_INHERITED_START = "inherited start"


def _read(name_or_file: str, heirs: tuple[str, ...], beside: Path | None = None) -> dict[str, Any]:
    """Read the fields of a space with those that it inherits: what the heir says wins, parameter by parameter."""
    if name_or_file in heirs:
        raise RequestError(f"space: {' inherits '.join((*heirs, name_or_file))}; break the circle")
    shipped = space_names()
    if name_or_file in shipped:
        path = shipped[name_or_file]
    elif name_or_file.endswith((".yaml", ".yml")):
        path = Path(name_or_file)
        path = path if path.is_absolute() or beside is None else beside / path
    else:
        raise RequestError(f"space: {unknown(name_or_file, shipped, what='space')}; or give a .yaml file")
    fields = read_yaml(path, field="space") or {}
    if not isinstance(fields, dict):
        raise RequestError(f"space: {path} holds {type(fields).__name__}, not a mapping; see the default space")
    return _with_parents(fields, (*heirs, name_or_file), path.parent)


def _with_parents(fields: Mapping[str, Any], heirs: tuple[str, ...], beside: Path | None) -> dict[str, Any]:
    parent = fields.get("inherit")
    if parent is None:
        return dict(fields)
    inherited = _read(str(parent), heirs, beside)
    if "start" not in fields:
        inherited = {_INHERITED_START: inherited.pop("start", []), **inherited}
    else:
        inherited.pop(_INHERITED_START, None)
    return {**inherited, **fields, "parameters": _inherit(inherited.get("parameters"), fields.get("parameters"))}


def _inherit(parents: Any, own: Any) -> Any:
    """Join the parameters of a space and its parent: null drops one, and a new range replaces the old one whole."""
    if own is None:
        return parents
    if not isinstance(parents, dict) or not isinstance(own, dict):
        return own
    joined = dict(parents)
    ranges = ("choices", "ordinal", "low", "high", "log", "integer", "default", "cuda_only")
    for name, fields in own.items():
        if fields is None:
            joined.pop(name, None)
        elif isinstance(fields, dict) and isinstance(joined.get(name), dict):
            new_range = set(fields) & set(ranges) - {"default"}
            kept = {k: v for k, v in joined[name].items() if k not in ranges or not new_range}
            joined[name] = {**kept, **fields}
        else:
            joined[name] = fields
    method = joined.get("method")
    methods = (method.get("choices") if isinstance(method, dict) else None) or []
    # What the parent says of a method that the heir leaves out goes with it.
    for name in parents if methods else ():
        if "." in name and name in joined and name not in own and name.partition(".")[0] not in methods:
            del joined[name]
    return joined


def parse_space(fields: Mapping[str, Any], *, where: str = "space") -> Space:
    """Make a Space of plain fields (as in YAML).

    Raises:
        RequestError: Listing every fault.
    """
    try:
        checked = SpaceFile.model_validate(dict(fields))
    except ValidationError as error:
        raise RequestError(*(_fault(where, e) for e in error.errors())) from None
    faults: list[str] = []
    methods = checked.parameters.get("method", ParameterFile()).choices or []
    parameters = []
    for name, entry in checked.parameters.items():
        domain = _domain(name, entry, faults)
        if domain is None:
            continue
        default = middle(domain) if entry.default is None else entry.default
        if not domain.holds(default):
            faults.append(f"{name}: default {default!r} is not in {show_domain(domain)}")
        when: dict[str, tuple[Scalar, ...]] = {k: tuple(v) for k, v in entry.when.items()}
        method, dot, _ = name.partition(".")
        if dot and methods:
            if method not in methods:
                faults.append(f"{name}: {unknown(method, map(str, methods), what='method')}")
            when["method"] = (method,)
        per = (entry.per,) if isinstance(entry.per, str) else tuple(entry.per or ())
        parameters.append(Parameter(name, domain, default, when, per, entry.size, tuple(entry.cuda_only)))
    domains = {p.name: p.domain for p in parameters}
    for parameter in parameters:
        for name, values in parameter.when.items():
            # A value of several may be one that an heir left out.
            if name in domains and name != "method" and not any(map(domains[name].holds, values)):
                shown = ", ".join(map(repr, values))
                faults.append(f"{parameter.name}: when: {name}: {shown} is not in {show_domain(domains[name])}")
    space = Space(
        _ordered(parameters, faults),
        tuple(checked.start),
        checked.layer_groups,
        None if checked.kinds is None else tuple(checked.kinds),
        checked.description,
    )
    if not parameters:
        faults.append("parameters: there are none; give at least one")
    for i, configuration in enumerate(checked.start if not faults else ()):
        try:
            space.check(configuration)
        except RequestError as error:
            faults.extend(f"start {i + 1}: {fault}" for fault in error.faults)
    if faults:
        raise RequestError(*(f"{where}: {fault}" for fault in faults))
    return space


def _fault(where: str, error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        model: type[BaseModel] = ParameterFile if len(error["loc"]) > 1 else SpaceFile
        return f"{where}: {path}: {unknown(error['loc'][-1], model.model_fields, what='field')}"
    return f"{where}: {path}: {error['input']!r}: {error['msg']}"


def _domain(name: str, entry: ParameterFile, faults: list[str]) -> Domain | None:
    low, high = entry.low, entry.high
    forms = [entry.choices is not None, entry.ordinal is not None, low is not None or high is not None]
    if sum(forms) != 1:
        faults.append(f"{name}: give one of choices, ordinal, or low and high")
    elif entry.size and entry.ordinal is None:
        faults.append(f"{name}: a size must be ordinal, e.g. ordinal: [0, 1, 2, 4, 8]")
    elif entry.choices is not None:
        if not entry.choices:
            faults.append(f"{name}: choices is empty")
            return None
        for i, value in enumerate(entry.choices):
            if Choices(tuple(entry.choices[:i])).holds(value):
                faults.append(f"{name}: choices {entry.choices}: {value!r} is there twice")
        faults.extend(
            f"{name}: cuda_only: {value!r} is not in {show_domain(Choices(tuple(entry.choices)))}"
            for value in entry.cuda_only
            if value not in entry.choices
        )
        return Choices(tuple(entry.choices))
    elif entry.ordinal is not None:
        values = tuple(entry.ordinal)
        if not values or any(a >= b for a, b in pairwise(values)):
            faults.append(f"{name}: ordinal {list(values)} must be increasing numbers")
            return None
        return Ordinal(values)
    elif low is None or high is None or not -inf < low < high < inf or (entry.log and low <= 0):
        faults.append(f"{name}: low {low} and high {high} must be a range{' above 0 (log)' if entry.log else ''}")
    elif entry.integer and (low != int(low) or high != int(high)):
        faults.append(f"{name}: low {low} and high {high} must be whole (integer)")
    elif entry.integer:
        return Whole(int(low), int(high), entry.log)
    else:
        return Real(float(low), float(high), entry.log)
    return None


def _ordered(parameters: list[Parameter], faults: list[str]) -> tuple[Parameter, ...]:
    """Put each parameter after those that it depends on."""
    names = [p.name for p in parameters]
    ordered: list[Parameter] = []
    waiting = list(parameters)
    while waiting:
        placed = {p.name for p in ordered}
        ready = [p for p in waiting if set(p.when) <= placed]
        if not ready:
            for p in waiting:
                missing = [w for w in p.when if w not in names]
                why = str(unknown(missing[0], names, what="parameter")) if missing else "depends on itself in a circle"
                faults.append(f"{p.name}: when: {why}")
            break
        ordered += ready
        waiting = [p for p in waiting if p not in ready]
    return tuple(ordered)
