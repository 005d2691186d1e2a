"""Searches of somebody else's, made up: a space, a count of parameters and a worth that know nothing of PEFT.

Each has a hard budget and noise. What they differ in:

    adapters  ten layers, three families with best learning rates of their own; the dearest family is the best, and a
              cheap one is found first; with rungs a training is judged on its way by a curve that misleads a little
    networks  eight widths of a multilayer perceptron, any of which may be off; what a layer costs depends on the one
              before; three activations, a learning rate, dropout
    numbers   seven numbers and nothing else; no parameter is a size, so nothing can be lowered into the budget
    choices   five algorithms with a size and a temperature each, and four switches
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

import autopeft as ap

Values = Mapping[str, Any]

STEPS = 90


@dataclass(frozen=True, slots=True)
class Outside:
    """A search of somebody else's.

    Attributes:
        parameters: Of the space, as in a YAML file.
        count: Values -> trained parameters.
        worth: Values -> quality without noise.
        memory: Values -> bytes, as exact as the count; None where there are two objectives only.
        worst, most_bytes: Quality and memory that are worth nothing.
        missing: How much of the worth a training lacks on its way, at a tenth of its steps.
    """

    parameters: Mapping[str, Any]
    count: Callable[[Values], int]
    worth: Callable[[Values], float]
    budget: int
    noise: float
    worst: float
    memory: Callable[[Values], float] | None = None
    most_bytes: float = math.inf
    missing: float = 0.0

    def train(self, candidate: ap.Candidate, steps: int, *, seed: int) -> ap.Measurement:
        """Give what a training of so many of the steps measures: noise, and what is still to be learned."""
        noise, slowness = _chance(candidate, seed).normal(size=2)
        lacks = self.missing * (1 + 0.25 * slowness) * ((steps / 10) ** -0.8 - (STEPS / 10) ** -0.8)
        quality = self.worth(candidate.values) + self.noise * noise - lacks
        return ap.Measurement(
            quality,
            trainable_params=self.count(candidate.values),
            memory_bytes=int(self.memory(candidate.values)) if self.memory else 0,
            metrics={"loss": 1 - quality},
        )


def _chance(candidate: ap.Candidate, seed: int) -> np.random.Generator:
    """Give the chance that belongs to a candidate and a seed, whenever it is trained."""
    key = hashlib.sha256(f"{candidate.key} {seed}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:8], "big"))


# --- adapters --------------------------------------------------------------------------------------------------------

LAYERS = 10
_OF_LAYER = np.random.default_rng(7).gamma(2.0, 1.0, LAYERS)
_OF_LAYER /= _OF_LAYER.sum()
_BEST_RATE = {"low": -2.7, "gate": -1.9, "soft": -1.6}
_LOST_TO_BITS = {4: 0.015, 8: 0.006, 16: 0.0}


def _adapter_count(values: Values) -> int:
    if values["family"] == "low":
        return int(sum(768 * values[f"r{i}"] for i in range(LAYERS)))
    if values["family"] == "gate":
        return int(sum(400 * values[f"g{i}"] for i in range(LAYERS)))
    return int(64 * values["tokens"] * values["depth"])


def _adapter_worth(values: Values) -> float:
    family = values["family"]
    if family == "low":
        capacity = sum(w * (1 - math.exp(-values[f"r{i}"] / 6)) for i, w in enumerate(_OF_LAYER))
        quality = 0.55 + 0.35 * capacity - 0.04 * abs(math.log2(values["scale"]) - 1)
    elif family == "gate":
        quality = 0.55 + 0.22 * sum(w * values[f"g{i}"] for i, w in enumerate(_OF_LAYER))
    else:
        quality = 0.55 + 0.18 * (1 - math.exp(-values["tokens"] * values["depth"] / 60))
    off = math.log10(values["lr"]) - _BEST_RATE[family]
    return float(max(0.1, quality - 0.12 * off**2 - _LOST_TO_BITS[values["quant"]]))


ADAPTERS = Outside(
    {
        "family": {"choices": ["low", "gate", "soft"]},
        "lr": {"low": 1e-5, "high": 1e-1, "log": True},
        "quant": {"choices": [4, 8, 16]},
        **{
            f"r{i}": {"ordinal": [0, 2, 4, 8, 16, 32], "when": {"family": ["low"]}, "size": True} for i in range(LAYERS)
        },
        "scale": {"low": 0.25, "high": 8.0, "log": True, "when": {"family": ["low"]}},
        **{f"g{i}": {"ordinal": [0, 1], "when": {"family": ["gate"]}, "size": True} for i in range(LAYERS)},
        "tokens": {"ordinal": [1, 2, 4, 8, 16, 32, 64, 128], "when": {"family": ["soft"]}, "size": True},
        "depth": {"ordinal": [1, 2, 5, 10], "when": {"family": ["soft"]}, "size": True},
    },
    _adapter_count,
    _adapter_worth,
    budget=50_000,
    noise=0.008,
    worst=0.5,
    missing=0.25,
)


# --- networks --------------------------------------------------------------------------------------------------------

WIDTHS = 8
_OF_WIDTH = np.random.default_rng(3).gamma(1.5, 1.0, WIDTHS)
_OF_WIDTH /= _OF_WIDTH.sum()
_LOST_TO_ACTIVATION = {"relu": 0.03, "gelu": 0.0, "swish": 0.01}


def _layers(values: Values) -> list[int]:
    return [values[f"w{i}"] for i in range(WIDTHS) if values[f"w{i}"]]


def _network_count(values: Values) -> int:
    sizes = [64, *_layers(values), 10]
    return int(sum(a * b for a, b in pairwise(sizes)))


def _network_worth(values: Values) -> float:
    depth = len(_layers(values))
    quality = sum(w * (1 - math.exp(-values[f"w{i}"] / 60)) for i, w in enumerate(_OF_WIDTH))
    quality *= 1 - 0.05 * max(0, depth - 5)
    quality -= 0.08 * (math.log10(values["lr"]) + 2.4 + 0.025 * depth) ** 2 + 0.3 * (values["dropout"] - 0.15) ** 2
    return float(quality - _LOST_TO_ACTIVATION[values["activation"]])


NETWORKS = Outside(
    {
        "activation": {"choices": ["relu", "gelu", "swish"]},
        "lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
        **{f"w{i}": {"ordinal": [0, 16, 32, 64, 128, 256], "size": True} for i in range(WIDTHS)},
    },
    _network_count,
    _network_worth,
    budget=30_000,
    noise=0.02,
    worst=-0.2,
    memory=lambda values: 1e6 + 4 * _network_count(values) + 5e4 * len(_layers(values)),
    most_bytes=2e6,
)


# --- numbers ---------------------------------------------------------------------------------------------------------

_BEST_AT = (0.2, 0.9, 0.5, 0.3, 0.7)


def _number_count(values: Values) -> int:
    return int(1 + values["n"] * (1 + 10 * values["x0"] + 3 * values["x1"]))


def _number_worth(values: Values) -> float:
    off = sum((values[f"x{i}"] - best) ** 2 for i, best in enumerate(_BEST_AT, start=1))
    quality = 1 - 0.6 * math.exp(-_number_count(values) / 300) - 0.3 * off + 0.05 * math.sin(9 * values["x0"])
    return float(quality)


NUMBERS = Outside(
    {
        **{f"x{i}": {"low": 0.0, "high": 1.0} for i in range(6)},
        "n": {"low": 1, "high": 500, "integer": True, "log": True},
    },
    _number_count,
    _number_worth,
    budget=3_000,
    noise=0.02,
    worst=-0.2,
    memory=lambda values: 1000 + 50 * values["n"] ** 1.1,
    most_bytes=1e5,
)


# --- choices ---------------------------------------------------------------------------------------------------------

_WORTH_OF = {"a": 0.5, "b": 0.6, "c": 0.75, "d": 0.7, "e": 0.4}
_UNIT_OF = {"a": 10, "b": 40, "c": 900, "d": 200, "e": 3}
_BEST_TEMPERATURE = {"a": 0.1, "b": 1.0, "c": 5.0, "d": 0.05, "e": 1.0}


def _choice_count(values: Values) -> int:
    algorithm = values["algorithm"]
    return int(_UNIT_OF[algorithm] * values[f"{algorithm}.size"])


def _choice_worth(values: Values) -> float:
    of = values["algorithm"]
    quality = _WORTH_OF[of] + 0.25 * (1 - math.exp(-values[f"{of}.size"] / 12))
    quality -= 0.06 * math.log10(values[f"{of}.temperature"] / _BEST_TEMPERATURE[of]) ** 2
    quality -= {"x": 0.05, "y": 0.0, "z": 0.02}[values["p"]] + (0.03 if values["q"] else 0.0)
    return float(quality - 0.02 * abs(values["r"] - 3) - 0.05 * (values["s"] - 0.3) ** 2)


CHOICES = Outside(
    {
        "algorithm": {"choices": list(_WORTH_OF)},
        **{
            f"{of}.size": {"ordinal": [1, 2, 4, 8, 16, 32, 64], "when": {"algorithm": [of]}, "size": True}
            for of in _WORTH_OF
        },
        **{
            f"{of}.temperature": {"low": 0.01, "high": 10.0, "log": True, "when": {"algorithm": [of]}}
            for of in _WORTH_OF
        },
        "p": {"choices": ["x", "y", "z"]},
        "q": {"choices": [True, False]},
        "r": {"choices": [1, 2, 3, 4]},
        "s": {"low": -1.0, "high": 1.0},
    },
    _choice_count,
    _choice_worth,
    budget=20_000,
    noise=0.015,
    worst=-0.2,
    memory=lambda values: 5e5 + 8 * _choice_count(values) * (2 if values["q"] else 1),
    most_bytes=1e6,
)

PROBLEMS = {"adapters": ADAPTERS, "networks": NETWORKS, "numbers": NUMBERS, "choices": CHOICES}
