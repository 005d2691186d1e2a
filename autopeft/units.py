"""What people write ("0.5%", "2M", "24GiB", "90min") and the numbers it means. The only place where percent exists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _split(text: str | float) -> tuple[Decimal, str]:
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z%]*)\s*", str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a positive number with a unit")
    # Decimal, because 1.07 * 10**9 is no whole number in floats.
    return Decimal(match[1].replace("_", "").replace(",", "")), match[2].lower()


@dataclass(frozen=True, slots=True)
class ParameterLimit:
    """A limit on trainable parameters: an absolute count, or a fraction (0-1) of the base model's parameters."""

    count: int | None = None
    fraction: float | None = None

    def of(self, base_params: int) -> int:
        """Give the limit in parameters for a base of this size.

        >>> ParameterLimit(fraction=0.005).of(22_713_216)
        113566
        """
        if self.count is not None:
            return self.count
        assert self.fraction is not None
        return int(Decimal(str(self.fraction)) * base_params)  # 29% of 100 are 29, which floats make 28


def parse_parameter_limit(text: str | float) -> ParameterLimit:
    """Read "0.5%", "2M", "800000" or 800000.

    >>> parse_parameter_limit("0.5%")
    ParameterLimit(count=None, fraction=0.005)
    >>> parse_parameter_limit("2M").count
    2000000

    Raises:
        ValueError: If it is none of these, zero, or more than 100%.
    """
    number, unit = _split(text)
    if unit == "%":
        if not 0 < number <= 100:
            raise ValueError(f"{text!r} is not between 0% and 100%")
        return ParameterLimit(fraction=float(number / 100))
    if unit not in _COUNTS:
        raise ValueError(f"{text!r}: unit {unit!r} is none of %, K, M, B")
    count = number * _COUNTS[unit]
    if count < 1 or count != int(count):
        raise ValueError(f"{text!r} is not a whole number of parameters; for a share of the model write e.g. 0.5%")
    return ParameterLimit(count=int(count))


def parse_bytes(text: str | float) -> int:
    """Read "24GiB", "16GB" or a number of bytes.

    >>> parse_bytes("2GiB")
    2147483648

    Raises:
        ValueError: If it is none of these, or zero.
    """
    number, unit = _split(text)
    if unit and unit not in _BYTES:
        raise ValueError(f"{text!r}: unit {unit!r} is none of KB, MB, GB, TB, KiB, MiB, GiB, TiB")
    size = int(number * _BYTES.get(unit, 1))
    if size < 1:
        raise ValueError(f"{text!r} is not a positive size")
    return size


def parse_seconds(text: str | float) -> float:
    """Read "90min", "2h", "45s" or a number of seconds.

    >>> parse_seconds("1.5h")
    5400.0

    Raises:
        ValueError: If it is none of these, or zero.
    """
    number, unit = _split(text)
    if unit and unit not in _SECONDS:
        raise ValueError(f"{text!r}: unit {unit!r} is none of s, min, h, d")
    seconds = float(number * _SECONDS.get(unit, 1))
    if seconds <= 0:
        raise ValueError(f"{text!r} is not a positive time")
    return seconds


def _three_figures(number: float, *, small: str = ".3g") -> str:
    if abs(number) < 10:
        return format(number, small)
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:,.0f}"


def parse_steps(value: object) -> list[int]:
    """Read numbers of steps that ascend, from text or from a list.

    Raises:
        ValueError: If it is anything else.

    >>> parse_steps("10, 30,100"), parse_steps([10, 30]), parse_steps(50)
    ([10, 30, 100], [10, 30], [50])
    """
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    texts = [str(part).strip() for part in parts]
    steps = [int(text) for text in texts if text.isdecimal()]
    if not steps or len(steps) != len(texts) or steps != sorted({*steps}) or steps[0] < 1:
        raise ValueError(f"{value!r} is no ascending numbers of steps")
    return steps


def show_count(count: float) -> str:
    """Write a count the way people read it.

    >>> show_count(1152), show_count(22_713_216)
    ('1,152', '22.7M')
    """
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if abs(count) >= size - size / 2000 * (unit == "B"):  # what would be rounded to 1000 M
            return _three_figures(count / size) + unit
    return f"{round(count):,}"


def show_bytes(size: float) -> str:
    """Write a size in binary units.

    >>> show_bytes(2**30 * 1.5), show_bytes(130_000)
    ('1.50 GiB', '127 KiB')
    """
    for scale, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(size) >= scale - scale / 2048:  # what would be rounded to 1024 of the unit below
            return _three_figures(size / scale, small=".2f") + f" {unit}"
    return f"{size:.0f} B"


def show_percent(fraction: float) -> str:
    """Write a fraction as a percentage with three figures.

    >>> show_percent(0.00498)
    '0.498%'
    """
    return f"{fraction * 100:.3g}%"


def show_seconds(seconds: float) -> str:
    """Write a duration.

    >>> show_seconds(75), show_seconds(3.21), show_seconds(8000)
    ('1m15s', '3.2s', '2h13m')
    """
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
