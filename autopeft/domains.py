"""The values that one parameter can have: a choice, one of ordered numbers, a range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from autopeft.candidates import Scalar


@dataclass(frozen=True, slots=True)
class Choices:
    """One of a few values without an order."""

    values: tuple[Scalar, ...]

    def holds(self, value: Scalar) -> bool:
        """Tell whether a value is allowed."""
        return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.values)


@dataclass(frozen=True, slots=True)
class Ordinal:
    """One of a few numbers in increasing order; 0 means "off" where it is a size."""

    values: tuple[float, ...]

    def holds(self, value: Scalar) -> bool:
        """Tell whether a value is allowed."""
        return not isinstance(value, bool | str) and value in self.values


@dataclass(frozen=True, slots=True)
class Real:
    """A number between two others, both included."""

    low: float
    high: float
    log: bool = False

    def holds(self, value: Scalar) -> bool:
        """Tell whether a value is allowed."""
        return not isinstance(value, bool | str) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number between two others, both included."""

    low: int
    high: int
    log: bool = False

    def holds(self, value: Scalar) -> bool:
        """Tell whether a value is allowed."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


Domain = Choices | Ordinal | Real | Whole


def middle(domain: Domain) -> Scalar:
    """Give the value that a parameter has when nobody says otherwise: the first choice, the middle of a range."""
    match domain:
        case Choices(values):
            return values[0]
        case Ordinal(values):
            return values[len(values) // 2]
        case Real(low, high, log):
            return math.sqrt(low * high) if log else (low + high) / 2
        case Whole(low, high, log):
            return round(math.sqrt(low * high)) if log else (low + high) // 2


def draw(domain: Domain, random: Random) -> Scalar:
    """Draw a value: each of a list as likely, ranges evenly on their own scale."""
    match domain:
        case Choices(values) | Ordinal(values):
            return random.choice(values)
        case Real(low, high, log):
            drawn = math.exp(random.uniform(math.log(low), math.log(high))) if log else random.uniform(low, high)
            return min(max(drawn, low), high)
        case Whole(low, high, log):
            if not log:
                return random.randint(low, high)
            drawn = math.exp(random.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            return min(max(round(drawn), low), high)


def canonical(domain: Domain, value: Scalar) -> Scalar:
    """Give an allowed value the domain's own form, so that what is the same has the same key; others as they are.

    >>> canonical(Ordinal((0, 8, 64)), 8.0), canonical(Real(0.1, 10), 1)
    (8, 1.0)
    """
    if not domain.holds(value):
        return value
    match domain:
        case Choices(values):
            return next(v for v in values if v == value and isinstance(v, bool) == isinstance(value, bool))
        case Ordinal(values):
            return values[values.index(float(value))]
        case Real():
            return float(value)
        case Whole():
            return value


def ends(domain: Domain) -> tuple[Scalar, ...]:
    """Give the values of a domain, of a range its two ends."""
    return domain.values if isinstance(domain, Choices | Ordinal) else (domain.low, domain.high)


def show_domain(domain: Domain) -> str:
    """Write a domain the way a person reads it.

    >>> show_domain(Real(0.1, 10, log=True))
    '0.1 to 10 (log)'
    """
    match domain:
        case Choices(values) | Ordinal(values):
            return ", ".join(str(v) for v in values)
        case Real(low, high, log) | Whole(low, high, log):
            return f"{low:g} to {high:g}{' (log)' if log else ''}"
