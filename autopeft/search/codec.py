"""Between a Space and Optuna: distributions, and values in Optuna's form and ours."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from autopeft.candidates import Candidate, Scalar
from autopeft.domains import Choices, Domain, Ordinal, Real, Whole
from autopeft.space import Parameter, Space


def distribution_of(domain: Domain) -> BaseDistribution:
    """Give Optuna's form of a domain; an ordinal is the position in it, so that samplers see its order."""
    match domain:
        case Choices(values):
            return CategoricalDistribution(values)
        case Ordinal(values):
            return IntDistribution(0, len(values) - 1)
        case Real(low, high, log):
            return FloatDistribution(low, high, log=log)
        case Whole(low, high, log):
            return IntDistribution(low, high, log=log)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Give the distribution of every parameter of a bound space, active or not."""
    return {p.name: distribution_of(p.domain) for p in space}


def suggest(trial: optuna.Trial, parameter: Parameter) -> Scalar:
    """Let a trial choose a parameter's value, in Optuna's form."""
    match parameter.domain:
        case Choices(values):
            return trial.suggest_categorical(parameter.name, values)
        case Ordinal(values):
            return trial.suggest_int(parameter.name, 0, len(values) - 1)
        case Real(low, high, log):
            return trial.suggest_float(parameter.name, low, high, log=log)
        case Whole(low, high, log):
            return trial.suggest_int(parameter.name, low, high, log=log)


def encode(space: Space, candidate: Candidate) -> dict[str, Scalar]:
    """Write a candidate's values in Optuna's form."""
    return {p.name: _encoded(p, candidate[p.name]) for p in space.active(candidate.values)}


def decode(space: Space, params: Mapping[str, Scalar]) -> Candidate:
    """Read a candidate from values in Optuna's form; what is missing has its default."""
    by_name = {p.name: p for p in space}
    return space.complete({name: decoded(by_name[name], value) for name, value in params.items()})


def _encoded(parameter: Parameter, value: Scalar) -> Scalar:
    if isinstance(parameter.domain, Ordinal):
        return parameter.domain.values.index(float(value))
    return value


def decoded(parameter: Parameter, value: Scalar) -> Scalar:
    """Read one value from Optuna's form."""
    if isinstance(parameter.domain, Ordinal):
        return parameter.domain.values[int(value)]
    return value
