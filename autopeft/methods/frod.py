"""FRoD: a weight is factorised on a basis shared by the modules of its kind, and its diagonal factor is trained.

A few entries beside that diagonal, drawn at random, are trained too.

Source: the FRoD paper, AAAI 2026 (https://doi.org/10.1609/aaai.v40i31.39813).
"""

from __future__ import annotations

from collections.abc import Iterable

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.linears import PLACES, PLACES_ALLOWED, PLACES_SPREAD, names_of, targets_of
from autopeft.methods.method import Build, Method, Settings, is_amount, number

_MOST_WORK = 1e12


def trainable_params(fan_in: int, *, density: float) -> int:
    """Count one linear's trained scalars: the diagonal, and a share of the square beside it, at least one entry.

    >>> trainable_params(384, density=0.01)
    1858
    """
    beside = fan_in * fan_in - fan_in
    return fan_in + (max(1, min(int(fan_in * fan_in * density), beside)) if beside else 0)


def factorising(linears: Iterable[Linear]) -> float:
    """Give the multiplications that PEFT needs to attach it: a linear system of the inputs' size for each weight."""
    return sum(x.fan_in**3 * 2 / 3 + 2 * x.fan_in**2 * x.fan_out for x in linears)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place it on every linear whose layer and kind are on."""
    density, targets = number(settings.get("density"), 0.01), targets_of(settings, anatomy)
    config = {
        "peft_type": "FROD",
        "sparse_rate": density,
        "progressbar": False,
        "target_modules": names_of(targets),
    }
    params = sum(trainable_params(linear.fan_in, density=density) for linear in targets)
    # PEFT notes the outputs as the rank.
    return Build({linear.name: linear.fan_out for linear in targets}, params, config)


def _role(name: str) -> str:
    """Give what PEFT takes for a module's role: modules of one role share a basis."""
    *_, above, block, leaf = ("", "", *name.split("."))
    if (above, block, leaf) == ("attention", "output", "dense"):
        return "attention.output"
    return leaf if block.isdigit() else f"{block}.{leaf}"


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """A basis fits one number of inputs, and factorising a large model would take longer than training it."""
    targets = targets_of(settings, anatomy)
    first: dict[str, Linear] = {}
    for linear in targets:
        other = first.setdefault(_role(linear.name), linear)
        if other.fan_in != linear.fan_in:
            return f"FRoD gives one basis to {other.name!r} and {linear.name!r}, whose inputs differ; turn its kind off"
    if (work := factorising(targets)) > _MOST_WORK:
        return f"FRoD factorises each weight anew in every trial, {work:.0e} multiplications here; turn kinds off"
    return ""


METHOD = Method(
    name="frod",
    title="FRoD",
    source="doi:10.1609/aaai.v40i31.39813",
    learning_rate=1e-3,
    learning_rate_source="PEFT's method comparison (Llama-3.2-3B on MetaMathQA)",
    settings={**PLACES, "density": "share of the entries beside the diagonal that are trained"},
    allowed={**PLACES_ALLOWED, "density": lambda value: is_amount(value) and 0 < float(value) <= 1},
    build=build,
    spread=PLACES_SPREAD,
    refuses=refuses,
    # PEFT makes the factors in the type of the weights, which has no gradients where these are integers.
    bits=(16, 32),
)
