"""A surrogate benchmark on the recorded table: the learning curve that a candidate would have, without training it.

A forest of extremely randomised trees, all rungs at once, on what is known of a candidate before training. It is
judged by cross-validation over configurations (all seeds of one in one fold), and refused where the ranking of
held-out configurations agrees with the truth by a Kendall tau under 0.7. Trees, because no engine that is compared on
it uses trees: a Gaussian process would be measured on a landscape of its own making. Noise comes from the
configurations that were trained with several seeds; peak memory, which on a CPU is counted and not noisy, from a
forest of its own.

    python benchmarks/surrogate.py            # cross-validation, and how far each rung ranks as the end does
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from recorded import Recorded, candidate_of, read_table, subjects
from results import write_rows
from scipy.stats import kendalltau
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.model_selection import GroupKFold

from autopeft.anatomy import Anatomy
from autopeft.candidates import AdapterPlan, Candidate
from autopeft.compute import lowest_layer
from autopeft.domains import Choices
from autopeft.problem import Problem
from autopeft.space import Parameter

LEAST_TAU = 0.7
FOLDS = 5
TREES = 200
NOT_ITS = -9.0
Array = NDArray[np.float64]


class Features:
    """A candidate as a row of numbers; a setting of another method has a value that none of its own has."""

    def __init__(self, problem: Problem) -> None:
        assert problem.anatomy is not None
        self._problem, self._anatomy = problem, problem.anatomy
        self._place = {linear.name: (linear.layer, linear.kind) for linear in self._anatomy.linears}
        self._families: dict[str, list[Parameter]] = {}
        for parameter in problem.space:
            if parameter.name not in ("method", "bits", "lr_multiple"):
                self._families.setdefault(parameter.base or parameter.name, []).append(parameter)
        method = problem.space.parameter("method").domain
        assert isinstance(method, Choices)
        self._methods = [str(name) for name in method.values]

    def of(self, candidate: Candidate) -> list[float]:
        """Give the row of a candidate."""
        plan = self._problem.plan(candidate)
        assert plan is not None
        return [
            *self._known(candidate, plan),
            *(float(plan.method == name) for name in self._methods),
            *(float(name in plan.method.split("+")) for name in ("lora", "prompt", "prefix", "serial", "parallel")),
            *(_mean(family, candidate) for family in self._families.values()),
        ]

    def _known(self, candidate: Candidate, plan: AdapterPlan) -> list[float]:
        anatomy: Anatomy = self._anatomy
        ranks = list(plan.sizes.values())
        by_kind = dict.fromkeys(anatomy.kinds, 0.0)
        by_layer = np.zeros(anatomy.n_layers)
        for name, rank in plan.sizes.items():
            if name in self._place:
                layer, kind = self._place[name]
                by_kind[kind] += rank
                by_layer[layer] += rank
        size, rate, multiple = np.log([plan.adapter_params, plan.learning_rate, float(candidate["lr_multiple"])])
        return [
            size,
            rate,
            multiple,
            # The larger the adapter, the lower the rate that suits it: trees see no slanted borders by themselves.
            size + rate,
            size / 2 + rate,
            size / 3 + multiple,
            float(plan.bits),
            float(len(ranks)),
            np.log(max(1e-9, float(np.mean(ranks)))) if ranks else NOT_ITS,
            float(lowest_layer(anatomy, plan)),
            *np.log1p(list(by_kind.values())),
            *np.log1p(by_layer),
        ]


def _mean(family: Sequence[Parameter], candidate: Candidate) -> float:
    """Give the mean over layers or kinds of one setting, a choice by its position."""
    values = []
    for parameter in family:
        if (value := candidate.values.get(parameter.name)) is not None:
            domain = parameter.domain
            values.append(float(domain.values.index(value) if isinstance(domain, Choices) else value))
    return float(np.mean(values)) if values else NOT_ITS


def forest(seed: int = 0) -> ExtraTreesRegressor:
    """Make the model that is fitted: it predicts all rungs at once."""
    return ExtraTreesRegressor(TREES, max_features=0.5, random_state=seed)


class OneByOne:
    """A fitted forest that answers for one row at once: scikit-learn takes a hundred times as long for a single one."""

    def __init__(self, fitted: ExtraTreesRegressor) -> None:
        trees = [tree.tree_ for tree in fitted.estimators_]
        starts = np.cumsum([0, *(tree.node_count for tree in trees)])
        self._roots = starts[:-1]
        self._left = np.concatenate([t.children_left + s for t, s in zip(trees, self._roots, strict=True)])
        self._right = np.concatenate([t.children_right + s for t, s in zip(trees, self._roots, strict=True)])
        self._feature = np.concatenate([tree.feature for tree in trees])
        self._threshold = np.concatenate([tree.threshold for tree in trees])
        self._value = np.concatenate([tree.value[:, :, 0] for tree in trees])

    def predict(self, row: Sequence[float]) -> Array:
        """Give what the forest says of a row, ``(n_outputs,)``."""
        x = np.asarray(row, dtype=np.float32)
        at = self._roots.copy()
        while (inner := self._feature[at] >= 0).any():
            node = at[inner]
            goes_left = x[self._feature[node]] <= self._threshold[node]
            at[inner] = np.where(goes_left, self._left[node], self._right[node])
        return np.asarray(self._value[at].mean(axis=0), dtype=np.float64)


@dataclass(frozen=True)
class Data:
    """The complete rows of a subject, as arrays.

    Attributes:
        x: ``(n_rows, n_features)``.
        losses: ``(n_rows, n_rungs)``: held-out losses.
        configurations: ``(n_rows,)``.
    """

    x: Array
    losses: Array
    memory: Array
    configurations: NDArray[np.int64]

    @classmethod
    def of(cls, recorded: Recorded) -> Data:
        """Read a subject."""
        rows: pd.DataFrame = recorded.complete
        features = Features(recorded.problem())
        made: Mapping[str, list[float]] = {text: features.of(candidate_of(text)) for text in set(rows["candidate"])}
        return cls(
            np.array([made[text] for text in rows["candidate"]]),
            np.stack(rows["curve_loss"].to_list()).astype(np.float64),
            rows["memory_bytes"].to_numpy(dtype=np.float64),
            rows["configuration"].to_numpy(dtype=np.int64),
        )

    @cached_property
    def deviations(self) -> Array:
        """How far seeds lie from the mean of their configuration, by rung, in the logarithm; ``(n, n_rungs)``.

        Scaled so that its spread is that of single trainings, not of what is left after the mean is taken out.
        """
        logs = np.log(self.losses)
        found = []
        for configuration in np.unique(self.configurations):
            rows = logs[self.configurations == configuration]
            if len(rows) > 1:
                found.append((rows - rows.mean(axis=0)) * np.sqrt(len(rows) / (len(rows) - 1)))
        return np.concatenate(found) if found else np.zeros((1, logs.shape[1]))


def cross_validate(data: Data) -> dict[str, Any]:
    """Judge the surrogate on configurations that it has not seen: R2 and Kendall tau of each rung, and of memory."""
    logs = np.log(data.losses)
    said, memory = np.zeros_like(logs), np.zeros(len(logs))
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=0).split(data.x, groups=data.configurations):
        said[test] = forest().fit(data.x[train], logs[train]).predict(data.x[test])
        memory[test] = forest().fit(data.x[train], np.log(data.memory[train])).predict(data.x[test])
    first = _first_seeds(data)
    good = first[np.argsort(logs[first, -1])[: len(first) // 3]]
    return {
        "configurations": len(first),
        "rows": len(logs),
        "r2": [round(_r2(logs[first, j], said[first, j]), 3) for j in range(logs.shape[1])],
        "tau": [round(_tau(logs[first, j], said[first, j]), 3) for j in range(logs.shape[1])],
        "tau_best_third": round(_tau(logs[good, -1], said[good, -1]), 3),
        "memory_r2": round(_r2(np.log(data.memory[first]), memory[first]), 4),
        "memory_tau": round(_tau(data.memory[first], memory[first]), 3),
        "seed_deviation": [float(f"{s:.3g}") for s in data.deviations.std(axis=0)],
    }


def rung_taus(losses: Array) -> tuple[list[float], list[float]]:
    """Give Kendall's tau of each rung's ranking to the last one's: of all rows, and of the third that ends best."""
    good = np.argsort(losses[:, -1])[: max(2, len(losses) // 3)]
    every = [round(_tau(losses[:, j], losses[:, -1]), 3) for j in range(losses.shape[1])]
    return every, [round(_tau(losses[good, j], losses[good, -1]), 3) for j in range(losses.shape[1])]


def _first_seeds(data: Data) -> NDArray[np.int64]:
    return np.unique(data.configurations, return_index=True)[1]


def _r2(truth: Array, said: Array) -> float:
    return float(1 - ((truth - said) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def _tau(a: Array, b: Array) -> float:
    return float(kendalltau(a, b).statistic)


class Surrogate:
    """Gives curves and memory of candidates.

    Raises:
        ValueError: If it ranks held-out configurations too badly to compare engines on it.
    """

    def __init__(self, recorded: Recorded, *, quality: Mapping[str, Any] | None = None) -> None:
        data = Data.of(recorded)
        found = cross_validate(data) if quality is None else quality
        if found["tau"][-1] < LEAST_TAU:
            raise ValueError(
                f"{recorded.key}: the surrogate ranks held-out configurations with a Kendall tau of "
                f"{found['tau'][-1]}, under {LEAST_TAU}; record more trainings before engines are compared on it"
            )
        self.rungs = recorded.rungs
        self._features = Features(recorded.problem())
        self._curves = OneByOne(forest().fit(data.x, np.log(data.losses)))
        self._memory = OneByOne(forest().fit(data.x, np.log(data.memory)))
        self._deviations = data.deviations
        self._known: dict[Candidate, tuple[Array, int]] = {}

    def curve(self, candidate: Candidate) -> Array:
        """Give the held-out loss at each rung, without noise, ``(n_rungs,)``."""
        return self._ask(candidate)[0]

    def memory_bytes(self, candidate: Candidate) -> int:
        """Give the peak memory of its training."""
        return self._ask(candidate)[1]

    def noisy_curve(self, candidate: Candidate, *, seed: int) -> Array:
        """Give the losses that a training with a seed would show: the same each time."""
        rng = np.random.default_rng([seed, int(candidate.key, 16) % 2**32])
        shown = self._deviations[rng.integers(len(self._deviations))]
        return np.asarray(self.curve(candidate) * np.exp(shown), dtype=np.float64)

    def _ask(self, candidate: Candidate) -> tuple[Array, int]:
        if candidate not in self._known:
            row = self._features.of(candidate)
            curve = np.exp(self._curves.predict(row))
            self._known[candidate] = curve, round(float(np.exp(self._memory.predict(row)[0])))
        return self._known[candidate]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", default=subjects())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    for key in args.subjects:
        recorded = read_table(key)
        data = Data.of(recorded)
        found = cross_validate(data)
        every, good = rung_taus(data.losses[_first_seeds(data)])
        rows = [
            {
                "subject": key,
                **{
                    name: found[name]
                    for name in ("configurations", "rows", "tau_best_third", "memory_r2", "memory_tau")
                },
                "step": step,
                "r2": found["r2"][j],
                "tau": found["tau"][j],
                "seed_deviation": found["seed_deviation"][j],
                "tau_to_end": every[j],
                "tau_to_end_best_third": good[j],
                "usable": found["tau"][-1] >= LEAST_TAU,
            }
            for j, step in enumerate(recorded.rungs)
        ]
        for row in rows:
            print(row)
        write_rows(args.out / "surrogate.csv", rows)


if __name__ == "__main__":
    main()
