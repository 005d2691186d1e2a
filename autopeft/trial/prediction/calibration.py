"""What a few traces teach of a structure: linear fits, by layer, of what is kept, saved and held on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from autopeft.records import AdapterPlan
from autopeft.trial.prediction.sites import TOKENS, Adapted, Features, Sites
from autopeft.trial.prediction.trace import MemoryTrace

Sample = tuple[Features, int, float]
"""Features, batch size, bytes."""
Run = tuple[AdapterPlan, int, MemoryTrace]
"""What was traced, at which batch size, and the trace of one step."""

_ALWAYS: Features = {"1": 1.0}


@dataclass(frozen=True, slots=True)
class Fit:
    """A least-squares fit of bytes to features, each of which counts with and without the batch size.

    Attributes:
        weights: ``(features, 2)``: bytes, and bytes a row of the batch.
    """

    names: Mapping[str, int]
    weights: NDArray[np.float64]

    @classmethod
    def to(cls, samples: Sequence[Sample]) -> Fit:
        """Fit samples; without any, everything is 0."""
        names = {name: i for i, name in enumerate(dict.fromkeys(n for features, _, _ in samples for n in features))}
        if not samples:
            return cls(names, np.zeros((0, 2)))
        matrix = np.zeros((len(samples), 2 * len(names)))
        for row, (features, batch, _) in enumerate(samples):
            for name, value in features.items():
                matrix[row, 2 * names[name] : 2 * names[name] + 2] = value, value * batch
        # Columns of one size, so that what is not told apart is shared out evenly.
        scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12)
        target = np.array([size for _, _, size in samples], dtype=np.float64)
        solution = np.linalg.lstsq(matrix / scale, target, rcond=1e-10)[0] / scale
        return cls(names, solution.reshape(len(names), 2))

    def at(self, features: Features, batch: int) -> float:
        """Give the bytes; a feature that no sample had counts nothing."""
        total = 0.0
        for name, value in features.items():
            if (i := self.names.get(name)) is not None:
                total += value * float(self.weights[i, 0] + batch * self.weights[i, 1])
        return total


def _total(params: int) -> Features:
    return {"1": 1.0, "params": float(params)}


@dataclass(frozen=True, slots=True)
class LayerCalibration:
    """What was learnt of a structure whose adapters lie in the layers.

    Attributes:
        kept: Of a layer, its trained parameters with the optimiser's state.
        saved: What its forward pass leaves for its backward pass.
        forward, backward: What it holds on the way, beside what is saved so far.
        left: What stays of it once its backward pass is over.
        missing: What the lowest adapted layer does not save, by the input that is read first.
        entry: What is kept of the layers below that one: its input.
        static: What is held between two steps, beside `kept`.
        loss, optimizer: What the head and the loss hold beside `saved`, and the optimiser beside what is static.
    """

    kept: Fit
    saved: Fit
    forward: Fit
    backward: Fit
    left: Fit
    missing: Fit
    entry: Fit
    static: Fit
    loss: Fit
    optimizer: Fit

    @classmethod
    def of(cls, runs: Iterable[Run], sites: Sites, *, whole: bool) -> LayerCalibration:
        """Learn from traces in which every layer is adapted differently.

        Args:
            whole: Whether every layer has its whole graph, as with gradient checkpointing.
        """
        samples: dict[str, list[Sample]] = {field.name: [] for field in fields(cls)}
        lowest_layers: list[tuple[Features, str, int, int]] = []
        for plan, batch, trace in runs:
            adapted, step = sites.layers(plan), trace.step
            lowest = min(adapted)
            from_layer = min(lowest, 0 if whole else sites.whole_from(plan))
            saved, above = 0, sum(layer.left for layer in step.layers)
            for i, layer in enumerate(step.layers):
                features: Features = sites.features(i, adapted.get(i, {}))
                samples["kept"].append((features, batch, layer.kept))
                if i < from_layer:
                    saved += layer.saved
                    continue
                if i == from_layer and i > 0:
                    samples["entry"].append((_ALWAYS, batch, saved))
                above -= layer.left
                # The lowest adapted layer has a part of a graph only.
                if i == lowest and not (whole or sites.whole_from(plan) <= i):
                    lowest_layers.append((features, sites.first(adapted[i]), batch, layer.saved))
                    saved += layer.saved
                    continue
                samples["saved"].append((features, batch, layer.saved))
                samples["forward"].append((features, batch, layer.forward_peak - step.before - saved))
                saved += layer.saved
                samples["backward"].append((features, batch, layer.backward_peak - step.before - saved - above))
                if i > from_layer:
                    samples["left"].append((features, batch, layer.left))
            total = _total(trace.trained_params)
            samples["static"].append((total, batch, step.after - sum(layer.kept for layer in step.layers)))
            samples["loss"].append((_ALWAYS, batch, step.loss_peak - step.before - saved))
            samples["optimizer"].append((total, batch, step.optimizer_peak - step.after))
        full = Fit.to(samples["saved"])
        for features, first, batch, size in lowest_layers:
            samples["missing"].append(({first: 1.0}, batch, full.at(features, batch) - size))
        return cls(**{name: Fit.to(values) for name, values in samples.items()})

    def peak(self, plan: AdapterPlan, trained: int, batch: int, sites: Sites, *, whole: bool) -> int:
        """Give the peak in bytes.

        Args:
            trained: Scalars that are trained, a head's included.
        """
        adapted = sites.layers(plan)
        whole_from = 0 if whole else sites.whole_from(plan)
        lowest = min(adapted, default=whole_from)
        from_layer = min(lowest, whole_from)
        shares = self._shares(adapted, batch, sites)
        static = self.static.at(_total(trained), batch) + sum(shares[i][0] for i in adapted)
        saved = self.entry.at(_ALWAYS, batch) if from_layer > 0 else 0.0
        above = sum(shares[i][4] for i in range(from_layer + 1, sites.count))
        most = self.optimizer.at(_total(trained), batch)
        for i in range(from_layer, sites.count):
            _, own, forward, backward, _ = shares[i]
            if i == lowest < whole_from:
                own -= self.missing.at({sites.first(adapted[i]): 1.0}, batch)
            most = max(most, saved + forward)
            saved += own
            most = max(most, saved + above + backward)
            above -= shares[i + 1][4] if i + 1 < sites.count else 0.0
        most = max(most, saved + self.loss.at(_ALWAYS, batch))
        return round(static + most)

    def _shares(self, adapted: Mapping[int, Adapted], batch: int, sites: Sites) -> list[tuple[float, ...]]:
        """Give each layer's kept, saved, forward, backward and left bytes; layers adapted alike are counted once."""
        known: dict[tuple[str, tuple[tuple[str, int], ...]], tuple[float, ...]] = {}
        shares = []
        for i in range(sites.count):
            own = adapted.get(i, {})
            key = (sites.stacks[i], tuple(own.items()))
            if key not in known:
                features = sites.features(i, own)
                fits = (self.kept, self.saved, self.forward, self.backward, self.left)
                known[key] = tuple(fit.at(features, batch) for fit in fits)
            shares.append(known[key])
        return shares


@dataclass(frozen=True, slots=True)
class PromptCalibration:
    """What was learnt of a structure that trains virtual tokens.

    Attributes:
        static: What is held between two steps.
        phases: What the layers' forward pass, the loss, and the backward pass hold beside that.
    """

    static: Fit
    phases: tuple[Fit, ...]

    @classmethod
    def of(cls, runs: Iterable[Run]) -> PromptCalibration:
        """Learn from traces with different numbers of tokens."""
        static: list[Sample] = []
        phases: tuple[list[Sample], ...] = ([], [], [])
        for plan, batch, trace in runs:
            step = trace.step
            static.append((_total(trace.trained_params), batch, step.after))
            forward = max((layer.forward_peak for layer in step.layers), default=0)
            for samples, most in zip(phases, (forward, step.loss_peak, step.backward_peak), strict=True):
                samples.append((_tokens(plan), batch, max(most - step.before, 0)))
        return cls(Fit.to(static), tuple(map(Fit.to, phases)))

    def peak(self, plan: AdapterPlan, trained: int, batch: int) -> int:
        """Give the peak in bytes."""
        features = _tokens(plan)
        return round(self.static.at(_total(trained), batch) + max(fit.at(features, batch) for fit in self.phases))


def _tokens(plan: AdapterPlan) -> Features:
    return {"1": 1.0, "tokens": float(plan.config[TOKENS])}
