"""Binding a search space to a model and a device: what of it there is there, and what in it cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from autopeft.anatomy import Anatomy
from autopeft.domains import Choices, ends
from autopeft.errors import RequestError
from autopeft.methods import METHODS
from autopeft.methods.method import Allowed, is_amount
from autopeft.recipe import BITS, DIMENSIONS, holds
from autopeft.registry import unknown
from autopeft.space import Parameter, Space


def bind_space(
    space: Space, anatomy: Anatomy, *, cuda: bool, bits: Sequence[int] | None = None, max_length: int | None = None
) -> Space:
    """Bind a space to a model and a device: known methods and settings only, bits up to the checkpoint's own.

    Args:
        bits: Those to search, whatever the space says of them; None for the space's own.
        max_length: Tokens that a row of the prepared data has at most; None where that is not known.

    Raises:
        RequestError: Listing every method or setting that does not exist, and every value that it cannot have.
    """
    faults = []
    common: dict[str, Allowed] = {
        "method": lambda value: True,  # looked up below
        "bits": lambda value: value in BITS,
        "lr_multiple": lambda value: is_amount(value) and float(value) > 0,
        **{name: partial(holds, name) for name in DIMENSIONS},
    }
    if bits is not None:
        space = _at_bits(space, bits, anatomy)
    by_name = {p.name: p for p in space}
    if "method" not in by_name or not isinstance(by_name["method"].domain, Choices):
        raise RequestError("space: a space for PEFT needs `method` with choices; see the default space")
    for name in by_name["method"].domain.values:
        if name not in METHODS:
            faults.append(f"space: method: {unknown(name, METHODS, what='method')}")
    if "bits" in by_name and not isinstance(by_name["bits"].domain, Choices):
        faults.append("space: bits: a base has 4, 8, 16 or 32; give choices")
    for name, parameter in by_name.items():
        method, dot, setting = name.partition(".")
        if dot and method in METHODS and setting not in METHODS[method].settings:
            faults.append(f"space: {name}: {unknown(setting, METHODS[method].settings, what=f'setting of {method}')}")
        elif (not dot and name not in common) or (dot and method not in METHODS):
            faults.append(f"space: {name}: {unknown(name, [*METHODS, *common], what='parameter')}")
        else:
            allowed = METHODS[method].allowed[setting] if dot else common[name]
            wrong = [value for value in ends(parameter.domain) if not allowed(value)]
            meaning = f"; it is the {METHODS[method].settings[setting]}" if dot else ""
            faults.extend(f"space: {name}: {value!r} cannot be{meaning}" for value in wrong)
            spread = METHODS[method].spread.get(setting, ()) if dot else ()
            faults.extend(f"space: {name}: it cannot differ per {per}" for per in parameter.per if per not in spread)
    faults += _dimension_faults(by_name, anatomy, max_length) if not faults else []
    if faults:
        raise RequestError(*faults)
    for parameter in space:
        if parameter.cuda_only and not cuda and isinstance(parameter.domain, Choices):
            rest = [v for v in parameter.domain.values if v not in parameter.cuda_only]
            space = space.narrow(parameter.name, rest)
    if "bits" in by_name:
        space = space.narrow("bits", [b for b in BITS if b <= anatomy.dtype_bits])
    usable = [name for name, method in METHODS.items() if anatomy.task in method.tasks]
    bound = space.narrow("method", usable).bind(anatomy)
    for configuration in bound.start:
        bound.check(configuration)
    return bound


def _at_bits(space: Space, bits: Sequence[int], anatomy: Anatomy) -> Space:
    """Let a base have these bits and no others; the parameter is added where the space has none."""
    if above := [b for b in bits if b > anatomy.dtype_bits]:
        raise RequestError(
            f"bits: {above[0]} is more than the checkpoint's own {anatomy.dtype_bits}, and would only cost memory"
        )
    own = Parameter("bits", Choices(tuple(bits)), bits[0], {})
    others = tuple(p for p in space if p.name != "bits")
    start = tuple(s for s in space.start if s.get("bits", bits[0]) in bits)
    return replace(space, parameters=(own, *others), start=start)


def _dimension_faults(by_name: Mapping[str, Parameter], anatomy: Anatomy, max_length: int | None) -> list[str]:
    """Say what a space asks of the training that this task or this data cannot have."""
    faults = []
    if "packing" in by_name and anatomy.task != "causal-lm" and True in ends(by_name["packing"].domain):
        faults.append(f"space: packing: it is for causal-lm, not for {anatomy.task}; drop it")
    if "max_length" in by_name and max_length is not None:
        longest = max(map(int, ends(by_name["max_length"].domain)))
        if longest > max_length:
            faults.append(
                f"space: max_length: {longest} is more than the {max_length} tokens that a row of the data has at "
                "most; raise --max-length, as far as the model can take it"
            )
    return faults
