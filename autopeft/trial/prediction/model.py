"""A model of memory that answers at once: calibrated on a few traces, exact in what is static, linear in the ranks.

A training's peak is the largest of three: at the loss, when every layer's saved activations are alive; in the backward
pass of some layer, when those above it have become gradients; or when the optimiser steps. What a layer saves depends
on which of its modules are adapted (modules that read the same input share it) and linearly on their ranks and on the
batch; a layer below the lowest adapted module saves nothing. All of that is read off traces in which every layer is
adapted differently, so that each of them is a sample of its own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from typing import Any, Literal

import numpy as np
import peft
from numpy.typing import NDArray

from autopeft.anatomy import Anatomy, number_layers, place_of
from autopeft.records import AdapterPlan
from autopeft.trial.prediction.trace import MemoryTrace, TrainingSetup, trace_peak

Layers = Mapping[int, Mapping[str, int]]
"""Layer -> its adapted sites -> rank. A site is a module's name within its stack, without the layer's index."""

# Fields of PEFT's configurations that change where an adapter is and how large, but not its structure.
_SPREAD = frozenset(
    ["target_modules", "feedforward_modules", "r", "rank_pattern", "alpha_pattern", "lora_alpha", "alpha", "use_rslora"]
)
_TOKENS, _WIDTH = "num_virtual_tokens", "encoder_hidden_size"
_RANKS = (2, 8, 32, 64)
_LEAST_DESIGNS, _MOST_DESIGNS = 3, 12
# Modules of a layer that read the same input, by kind.
_SHARES_INPUT = {"query": "attention", "key": "attention", "value": "attention", "qkv": "attention"} | dict.fromkeys(
    ("gate", "up", "router"), "feed-forward"
)


def structure_of(plan: AdapterPlan) -> tuple[Any, ...]:
    """Give what plans have in common that differ in places, sizes and rates only.

    A rate, such as that of dropout, counts as on or off.
    """
    fields = {
        name: value > 0 if isinstance(value, float) else value
        for name, value in plan.config.items()
        if name not in _SPREAD and name not in (_TOKENS, _WIDTH)
    }
    outside = tuple(sorted(name for name in plan.sizes if place_of(name) is None))
    return plan.bits, outside, tuple(sorted((k, repr(v)) for k, v in fields.items()))


@dataclass(frozen=True, slots=True)
class _Sites:
    """Where a model can be adapted, and what a layer's adaptation looks like as numbers.

    Attributes:
        at: Module name -> (layer, site).
        order: Site -> its place in the order of computation.
        shares: Site -> the input that it reads.
        outside: Norm outside the layers -> how many layers lie before it.
        stacks: Layer -> the stack that it belongs to.
    """

    at: Mapping[str, tuple[int, str]]
    order: Mapping[str, int]
    shares: Mapping[str, str]
    outside: Mapping[str, int]
    stacks: Mapping[int, str]

    @classmethod
    def of(cls, anatomy: Anatomy) -> _Sites:
        """Read them off an anatomy."""
        named = [(x.name, _SHARES_INPUT.get(x.kind, x.kind)) for x in anatomy.linears]
        named += [(norm.name, norm.name) for norm in anatomy.norms if norm.layer is not None]
        places = [(name, reads, place) for name, reads in named if (place := place_of(name)) is not None]
        numbers = number_layers(place for _, _, place in places)
        at, order, shares = {}, {}, {}
        for name, reads, place in places:
            site = f"{place.stack}:{place.rest}"
            at[name] = (numbers[place.stack, place.index], site)
            order.setdefault(site, len(order))
            block = place.rest.rpartition(".")[0]
            shares[site] = f"{place.stack}:{place.rest if reads == name else f'{block}:{reads}'}"
        outside, passed = {}, 0
        for norm in anatomy.norms:
            if norm.layer is None:
                outside[norm.name] = passed
            else:
                passed = norm.layer + 1
        return cls(at, order, shares, outside, {i: site.partition(":")[0] for i, site in at.values()})

    def layers(self, plan: AdapterPlan) -> dict[int, dict[str, int]]:
        """Sort a plan's modules by layer."""
        layers: dict[int, dict[str, int]] = {}
        for name, rank in plan.sizes.items():
            if name in self.at:
                layer, site = self.at[name]
                layers.setdefault(layer, {})[site] = rank
        return layers

    def begins(self, plan: AdapterPlan) -> int:
        """Give the layer from which on all is above an adapter outside the layers; past the last if there is none."""
        last = 1 + max(self.stacks, default=-1)
        return min((self.outside.get(name, 0) for name in plan.sizes if name not in self.at), default=last)

    def first(self, sites: Mapping[str, int]) -> str:
        """Give the input that is read first, above which a layer's graph begins."""
        return self.shares[min(sites, key=self.order.__getitem__)]


@dataclass(frozen=True, slots=True)
class _Fit:
    """A least-squares fit of bytes to features, each with and without the batch size."""

    names: Mapping[str, int]
    weights: NDArray[np.float64]  # (features, 2)

    @classmethod
    def to(cls, samples: Sequence[tuple[Mapping[str, float], int, float]]) -> _Fit:
        """Fit samples of (features, batch size, bytes)."""
        if not samples:
            return cls({}, np.zeros((0, 2)))
        names = {name: i for i, name in enumerate(dict.fromkeys(n for features, _, _ in samples for n in features))}
        matrix = np.zeros((len(samples), 2 * len(names)))
        for row, (features, batch, _) in enumerate(samples):
            for name, value in features.items():
                matrix[row, 2 * names[name] : 2 * names[name] + 2] = value, value * batch
        scale = np.abs(matrix).max(axis=0)
        scale[scale == 0] = 1
        solution = np.linalg.lstsq(matrix / scale, np.array([y for _, _, y in samples]), rcond=1e-10)[0] / scale
        return cls(names, solution.reshape(len(names), 2))

    def at(self, features: Mapping[str, float], batch: int) -> float:
        """Give the bytes; a feature that no sample had counts nothing."""
        total = 0.0
        for name, value in features.items():
            if (i := self.names.get(name)) is not None:
                total += value * (self.weights[i, 0] + batch * self.weights[i, 1])
        return total


@dataclass(frozen=True, slots=True)
class _Calibration:
    """What was learnt of one structure: fits of a layer's share, and of what lies outside the layers."""

    saved: _Fit
    forward: _Fit
    backward: _Fit
    missing: _Fit
    kept: _Fit
    gradients: _Fit
    static: _Fit
    loss: _Fit
    optimizer: _Fit


@dataclass(frozen=True, slots=True)
class _PromptCalibration:
    """What was learnt of a method that trains virtual tokens."""

    static: _Fit
    active: _Fit

    def peak(self, plan: AdapterPlan, trained: int, batch: int) -> int:
        """Give the peak in bytes."""
        tokens = float(plan.config[_TOKENS])
        return round(self.static.at(_total(trained), batch) + self.active.at({"1": 1.0, "tokens": tokens}, batch))


class MemoryModel:
    """Predicts a training's peak for one model, length and loop, for any plan and batch size.

    A structure (method, bits, and settings other than places and sizes) is calibrated when it is first asked for, which
    takes some traces; after that an answer takes well under a millisecond. Methods whose sizes PEFT cannot set module
    by module are traced plan by plan.
    """

    def __init__(
        self,
        model_config: Any,
        anatomy: Anatomy,
        setup: TrainingSetup,
        *,
        task: Literal["causal-lm", "text-classification"] = "causal-lm",
        trace: Callable[..., MemoryTrace] = trace_peak,
    ) -> None:
        self._config = model_config
        self._anatomy = anatomy
        self._sites = _Sites.of(anatomy)
        # IA3 scales what these read, and of others what they give.
        self._scales_input = frozenset(linear.name for linear in anatomy.linears if linear.kind == "down")
        self._setup = setup
        self._task = task
        self._trace = trace
        self._known: dict[tuple[Any, ...], _Calibration | _PromptCalibration] = {}
        self._traced: dict[tuple[Any, ...], int] = {}
        self.traces = 0

    def calibrate(self, plans: Sequence[AdapterPlan]) -> None:
        """Calibrate the structures of some plans, so that a later answer does not have to wait."""
        for plan in plans:
            self._calibration(plan)

    def predict(self, plan: AdapterPlan, *, batch_size: int | None = None) -> int:
        """Give the peak of allocated memory in bytes, as `trace_peak` would."""
        batch = self._setup.batch_size if batch_size is None else batch_size
        known = self._calibration(plan)
        if known is None:
            return self._by_trace(plan, batch)
        if isinstance(known, _PromptCalibration):
            return known.peak(plan, plan.adapter_params + self._anatomy.head_params, batch)
        return self._peak(known, plan, batch)

    def largest_batch(self, plan: AdapterPlan, limit_bytes: int, *, most: int = 4096) -> int:
        """Give the largest batch that fits a limit; 0 if not even one row does."""
        low, high = 0, 1
        while high <= most and self.predict(plan, batch_size=high) <= limit_bytes:
            low, high = high, 2 * high
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            if self.predict(plan, batch_size=middle) <= limit_bytes:
                low = middle
            else:
                high = middle
        return low

    def _calibration(self, plan: AdapterPlan) -> _Calibration | _PromptCalibration | None:
        key = structure_of(plan)
        if key not in self._known:
            if _TOKENS in plan.config:
                self._known[key] = self._calibrate_prompt(plan)
            elif _spreads(plan):
                self._known[key] = self._calibrate_layers(plan)
            else:
                return None
        return self._known[key]

    def _by_trace(self, plan: AdapterPlan, batch: int) -> int:
        key = (batch, plan.bits, repr(sorted(plan.config.items(), key=lambda item: item[0])))
        if key not in self._traced:
            self._traced[key] = self._run(plan, batch, steps=2).peak_bytes
        return self._traced[key]

    def _run(self, plan: AdapterPlan, batch: int, *, steps: int = 1) -> MemoryTrace:
        self.traces += 1
        setup = replace(self._setup, batch_size=batch, bits=plan.bits)
        return self._trace(self._config, plan, setup, task=self._task, steps=steps)

    @property
    def _batches(self) -> tuple[int, int]:
        return 1, max(2, self._setup.batch_size)

    # --- adapters in the layers ---------------------------------------------------------------------------------------

    def _features(self, layer: int, sites: Mapping[str, int]) -> dict[str, float]:
        """Give a layer as numbers: which inputs are read by an adapter, which modules have one, and their ranks."""
        features: dict[str, float] = {self._sites.stacks[layer]: 1.0}
        for site, rank in sites.items():
            features[self._sites.shares[site]] = 1.0
            features[f"on {site}"] = 1.0
            features[f"rank {site}"] = rank
        return features

    def _peak(self, fits: _Calibration, plan: AdapterPlan, batch: int) -> int:
        adapted = self._sites.layers(plan)
        whole = 0 if self._setup.gradient_checkpointing else self._sites.begins(plan)
        lowest = min(adapted, default=whole)
        features = {i: self._features(i, adapted.get(i, {})) for i in self._sites.stacks}
        kept = {i: fits.kept.at(features[i], batch) for i in adapted}
        gradients = {i: fits.gradients.at(features[i], batch) for i in adapted}
        total = _total(plan.adapter_params + self._anatomy.head_params)
        static = fits.static.at(total, batch) + sum(kept.values())
        saved, most = 0.0, 0.0
        above = sum(gradients.values())
        for i in range(min(lowest, whole), len(self._sites.stacks)):
            most = max(most, saved + fits.forward.at(features[i], batch))
            own = fits.saved.at(features[i], batch)
            if i == lowest < whole:
                own -= fits.missing.at({self._sites.first(adapted[i]): 1.0}, batch)
            saved += own
            above -= gradients.get(i, 0.0)
            most = max(most, saved + above + fits.backward.at(features[i], batch))
        most = max(most, saved + fits.loss.at({"1": 1.0}, batch))
        most = max(most, fits.optimizer.at(total, batch))
        return round(static + most)

    def _calibrate_layers(self, plan: AdapterPlan) -> _Calibration:
        inside: dict[int, list[str]] = {}
        norms = {norm.name for norm in self._anatomy.norms}
        for name, (layer, _) in self._sites.at.items():
            # Another plan of this structure may adapt any linear, or with norms any norm.
            if (name in norms) == bool(norms & set(plan.sizes)):
                inside.setdefault(layer, []).append(name)
        names = {self._sites.at[name][1] for members in inside.values() for name in members}
        inputs = list(
            dict.fromkeys(self._sites.shares[site] for site in sorted(names, key=self._sites.order.__getitem__))
        )
        unknowns = 1 + len(inputs) + 2 * len(names)
        designs = max(_LEAST_DESIGNS, len(inputs), -(-2 * unknowns // max(1, len(inside))))
        runs = []
        for design in range(min(designs, _MOST_DESIGNS)):
            sizes = self._design(plan, inside, inputs[design % len(inputs)], seed=design)
            tried = _with_sizes(plan, sizes, self._scales_input)
            runs += [(tried, batch, self._run(tried, batch)) for batch in self._batches]
        return self._fit_layers(runs)

    def _design(self, plan: AdapterPlan, inside: Mapping[int, list[str]], first: str, *, seed: int) -> dict[str, int]:
        """Adapt every layer differently; the lowest from the input `first` on."""
        generator = random.Random(seed)
        sizes = {name: rank for name, rank in plan.sizes.items() if name not in self._sites.at}
        order = self._sites.order
        bottom = min(inside)
        begins = {
            share: min(order[s] for s, reads in self._sites.shares.items() if reads == share)
            for share in set(self._sites.shares.values())
        }
        for layer, members in sorted(inside.items()):
            chosen = [name for name in members if generator.random() < 0.5]
            if layer == bottom:
                reading = [name for name in members if self._sites.shares[self._sites.at[name][1]] == first]
                chosen = [n for n in chosen if order[self._sites.at[n][1]] >= begins[first]] + reading[:1]
            for name in members:
                if name in chosen:
                    sizes[name] = generator.choice(_RANKS) if _has_rank(plan) else 1
        return sizes

    def _fit_layers(self, runs: Sequence[tuple[AdapterPlan, int, MemoryTrace]]) -> _Calibration:
        samples: dict[str, list[tuple[Mapping[str, float], int, float]]] = {}

        def add(name: str, features: Mapping[str, float], batch: int, value: float) -> None:
            samples.setdefault(name, []).append((features, batch, value))

        bottoms = []
        for plan, batch, trace in runs:
            adapted, step = self._sites.layers(plan), trace.step
            whole = 0 if self._setup.gradient_checkpointing else self._sites.begins(plan)
            lowest = min(adapted)
            saved, above = 0, sum(layer.gradients for layer in step.layers)
            for i, layer in enumerate(step.layers):
                features = self._features(i, adapted.get(i, {}))
                add("kept", features, batch, layer.kept)
                add("gradients", features, batch, layer.gradients)
                if i == lowest < whole:
                    bottoms.append((features, self._sites.first(adapted[i]), batch, layer.saved))
                else:
                    add("saved", features, batch, layer.saved)
                add("forward", features, batch, layer.forward_peak - step.before - saved)
                saved += layer.saved
                above -= layer.gradients
                if layer.backward_peak and not i == lowest < whole:
                    add("backward", features, batch, layer.backward_peak - step.before - saved - above)
            total = _total(trace.trained_params)
            add("static", total, batch, step.after - sum(layer.kept for layer in step.layers))
            add("loss", {"1": 1.0}, batch, step.loss_peak - step.before - saved)
            # The first step brings the optimiser's state to life, which later ones begin with.
            add("optimizer", total, batch, step.optimizer_peak - step.after)
        fits = {name: _Fit.to(values) for name, values in samples.items()}
        missing = _Fit.to([({first: 1.0}, b, fits["saved"].at(f, b) - saved) for f, first, b, saved in bottoms])
        return _Calibration(missing=missing, **fits)

    # --- virtual tokens -----------------------------------------------------------------------------------------------

    def _calibrate_prompt(self, plan: AdapterPlan) -> _PromptCalibration:
        static, active = [], []
        for tokens in (1, 16, 64):
            for width in (plan.config[_WIDTH], 2 * plan.config[_WIDTH]) if _WIDTH in plan.config else (0,):
                config = {**plan.config, _TOKENS: tokens} | ({_WIDTH: width} if width else {})
                for batch in self._batches:
                    trace = self._run(replace(plan, config=config), batch)
                    static.append((_total(trace.trained_params), batch, trace.step.after))
                    most = max(trace.step.loss_peak, trace.step.backward_peak) - trace.step.before
                    active.append(({"1": 1.0, "tokens": float(tokens)}, batch, max(most, 0)))
        return _PromptCalibration(_Fit.to(static), _Fit.to(active))


def _total(params: int) -> dict[str, float]:
    return {"1": 1.0, "params": float(params)}


def _spreads(plan: AdapterPlan) -> bool:
    """Tell whether PEFT can be told a size for each module of this method."""
    fields = {f.name for f in fields_of(peft.PEFT_TYPE_TO_CONFIG_MAPPING[plan.config["peft_type"]])}
    return "target_modules" in plan.config and bool(plan.sizes) and ("r" not in fields or "rank_pattern" in fields)


def _has_rank(plan: AdapterPlan) -> bool:
    return "r" in plan.config


def _with_sizes(plan: AdapterPlan, sizes: Mapping[str, int], scales_input: frozenset[str]) -> AdapterPlan:
    """Put a plan's adapter at other places, in other sizes."""
    config = {**plan.config, "target_modules": list(sizes)}
    if "feedforward_modules" in config:
        config["feedforward_modules"] = [name for name in sizes if name in scales_input]
    if _has_rank(plan):
        config["rank_pattern"] = {f"^{re.escape(name)}$": rank for name, rank in sizes.items()}
    config.pop("alpha_pattern", None)
    return replace(plan, sizes=sizes, config=config)
