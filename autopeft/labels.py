"""The short words for a configuration and for a value, the same on every face: terminal, tables, report."""

from __future__ import annotations

from collections.abc import Mapping

from autopeft.anatomy import KINDS
from autopeft.candidates import Candidate, Scalar
from autopeft.recipe import DIMENSIONS
from autopeft.records import Prior, TrialRecord
from autopeft.units import show_bytes, show_count, show_seconds

_SHORT = {
    "rank": "r",
    "tokens": "tokens",
    "width": "width",
    "coefficients": "n",
    "attention": "attention",
    "feed_forward": "feed-forward",
    "top": "top",
}
_SPREAD_OVER_KINDS = ("share", "kinds")
_NOT_IN_A_LABEL = ("alpha", "dropout", "activation", "scaling")
_USUAL = ("none", "default")  # values that say that nothing was chosen
_LABEL_VALUES = 6
_LONG = 8  # values of a parameter from which a label only sums them up


def describe(source: TrialRecord | Candidate) -> str:
    """Give the short label of a configuration.

    >>> describe(Candidate({"method": "lora", "lora.rank[0-1]": 8, "lora.rank[2-3]": 4, "lora.share[query]": 1.0,
    ...     "lora.share[up]": 0.0, "lora.dora": True, "lr_multiple": 2.0, "bits": 4}))
    'lora+dora r=8/4 query 4-bit lr*2'
    >>> describe(Candidate({"method": "lora+bitfit", "lora+bitfit.lora.rank": 8, "lora+bitfit.bitfit.layers[0]": 0}))
    'lora+bitfit lora r=8 bitfit off'
    """
    values = source.values if isinstance(source, Candidate) else source.candidate.values
    plan = None if isinstance(source, Candidate) else source.plan
    method = values.get("method", plan.method if plan else None)
    if not isinstance(method, str):
        return _plain_label(values)
    own = _grouped({k.removeprefix(f"{method}."): v for k, v in values.items() if k.startswith(f"{method}.")})
    flags = "".join(
        f"+{name.rpartition('.')[2]}" for name, group in own.items() if group == {"": True} and group[""] is True
    )
    parts = [one_line(method) + flags]
    parts += [text for name in sorted(own, key=_label_order) if (text := _own_label(name, own[name]))]
    bits = values.get("bits", plan.bits if plan else None)
    if isinstance(bits, int) and bits < 32:
        parts.append(f"{bits}-bit")
    trained = {name: value for name, value in values.items() if name in DIMENSIONS and value is not False}
    parts += [name if value is True else f"{name}={_shown(value)}" for name, value in trained.items()]
    multiple = values.get("lr_multiple")
    if plan is not None:
        parts.append(f"lr={show_rate(plan.learning_rate)}")
    elif isinstance(multiple, int | float):
        parts.append(f"lr*{multiple:.3g}")
    return " ".join(parts)


def show_value(value: float, unit: str) -> str:
    """Write an objective's value the way people read it.

    >>> show_value(1152, "parameters"), show_value(2**31, "bytes"), show_value(0.91304, ""), show_value(2.5, "nats")
    ('1,152', '2.00 GiB', '0.913', '2.5 nats')
    """
    match unit:
        case "parameters":
            return show_count(value)
        case "bytes":
            return show_bytes(value)
        case "s":
            return show_seconds(value)
        case _:
            return f"{value:.4g} {unit}".strip()


def show_rate(rate: float) -> str:
    """Write a learning rate.

    >>> show_rate(0.002), show_rate(0.00128)
    ('2e-3', '1.3e-3')
    """
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def show_prior(prior: Prior) -> str:
    """Say what was taken from an earlier run.

    >>> show_prior(Prior("runs/a", (Candidate({"rank": 8}),), (0.0,), skipped=2, differs=("data",)))
    'warm-started from 1 trial of runs/a, a prior and no results; 2 more say nothing here; another run in: data'
    """
    count = len(prior.candidates)
    parts = [f"warm-started from {count} trial{'s' if count > 1 else ''} of {prior.run}, a prior and no results"]
    parts += [f"{prior.skipped} more say nothing here"] if prior.skipped else []
    parts += [f"another run in: {', '.join(prior.differs)}"] if prior.differs else []
    return one_line("; ".join(parts))


def one_line(text: object) -> str:
    """Make text that cannot break out of its line or steer a terminal: control characters become spaces."""
    return "".join(c if c.isprintable() else " " for c in str(text)).strip()


def _grouped(own: Mapping[str, Scalar]) -> dict[str, dict[str, Scalar]]:
    """Gather "rank[0-1]" and "rank[2-3]" under "rank": name -> index -> value; the index of a single one is ""."""
    groups: dict[str, dict[str, Scalar]] = {}
    for name, value in own.items():
        base, _, index = name.partition("[")
        groups.setdefault(base, {})[index.removesuffix("]")] = value
    return {
        name: dict(sorted(group.items(), key=lambda item: _first_number(item[0]))) for name, group in groups.items()
    }


def _first_number(index: str) -> tuple[int, str]:
    first = index.partition("-")[0]
    return (int(first) if first.isdecimal() else 0, index)


def _label_order(name: str) -> tuple[bool, bool, str]:
    setting = name.rpartition(".")[2]
    return (setting not in _SHORT, setting in _SPREAD_OVER_KINDS, name)


def _own_label(name: str, group: Mapping[str, Scalar]) -> str:
    """Say one parameter of a method, or of a part of a hybrid, or nothing where it is a switch or of little weight."""
    part, _, name = name.rpartition(".")
    values = list(group.values())
    if part and not any(values):
        return f"{part} off"
    text = _setting_label(name, group, values)
    return f"{part} {text}" if part and text else text


def _setting_label(name: str, group: Mapping[str, Scalar], values: list[Scalar]) -> str:
    if name in _NOT_IN_A_LABEL or all(isinstance(v, bool) or v in _USUAL for v in values):
        return ""
    if name in _SPREAD_OVER_KINDS:
        return _kinds_label(group)
    if name == "layers" and set(values) <= {0, 1}:
        return _layers_label(group)
    shown = [_shown(v) for v in values]
    if len(set(shown)) == 1:
        mixed = shown[0]
    elif len(shown) <= _LONG:
        mixed = "/".join(shown)
    else:
        different = sorted(set(values), key=lambda v: (isinstance(v, str), v))
        mixed = f"{_shown(different[0])}..{_shown(different[-1])}"
    return f"{_SHORT.get(name, one_line(name))}={mixed}"


def _layers_label(group: Mapping[str, Scalar]) -> str:
    on = [one_line(index) for index, value in group.items() if value]
    if len(on) == len(group):
        return "all layers"
    return f"{len(on)} of {len(group)} layers" if len(on) > _LONG else f"layers {','.join(on) or 'none'}"


def _kinds_label(group: Mapping[str, Scalar]) -> str:
    if len(set(group.values())) == 1:
        share = next(iter(group.values()))
        return _times("all-linear", share, 1) if share else "no kind"
    order = sorted(group, key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))
    by_share: dict[Scalar, list[str]] = {}
    for kind in order:
        by_share.setdefault(group[kind], []).append(one_line(kind))
    count = sum(bool(share) for share in group.values())
    if count > _LONG:
        return f"{count} of {len(group)} places"
    return "+".join(_times(",".join(kinds), v, len(kinds)) for v, kinds in by_share.items() if v)


def _times(kinds: str, share: Scalar, count: int) -> str:
    return kinds if share == 1 else f"{f'({kinds})' if count > 1 else kinds}*{_shown(share)}"


def _plain_label(values: Mapping[str, Scalar]) -> str:
    parts = [f"{one_line(name)}={_shown(value)}" for name, value in list(values.items())[:_LABEL_VALUES]]
    return " ".join(parts + ["…"] * (len(values) > _LABEL_VALUES)) or "(nothing to choose)"


def _shown(value: Scalar) -> str:
    return f"{value:.3g}" if isinstance(value, float) else one_line(value)
