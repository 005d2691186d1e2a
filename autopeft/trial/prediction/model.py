"""A model of memory that answers at once: calibrated on a few traces, exact in what is static, linear in the ranks.

A training's peak is the largest of these: in the forward pass of some layer; at the loss, when every layer's saved
activations are alive; in the backward pass of some layer, when those above it have become gradients; or when the
optimiser steps. What a layer saves depends on which of its modules are adapted (modules that read the same input share
it) and linearly on their ranks and on the batch; a layer below the lowest adapted module saves nothing. All of that is
read off traces in which every layer is adapted differently, so that each layer is a sample of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from autopeft.anatomy import Anatomy
from autopeft.records import AdapterPlan
from autopeft.trial.prediction.calibration import LayerCalibration, PromptCalibration, Run
from autopeft.trial.prediction.sites import TOKENS, WIDTH, Sites, has_rank, sized_by_module, structure_of
from autopeft.trial.prediction.trace import MemoryTrace, TrainingSetup, trace_peak

_RANKS = (2, 8, 32, 64)
_CALIBRATED_TOKENS = (1, 16, 64)
_LEAST_DESIGNS, _MOST_DESIGNS = 3, 16


class MemoryModel:
    """Predicts a training's peak for one model, length and loop, for any plan and batch size.

    A structure (method, bits, and settings other than places and sizes) is calibrated when it is first asked for, which
    takes 6 to 12 traces, more for models of few layers; after that an answer takes well under a millisecond. Methods
    whose sizes PEFT cannot be told module by module are traced plan by plan.

    Attributes:
        traces: How many were made so far.
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
        self._sites = Sites.of(anatomy)
        self._setup = setup
        self._task = task
        self._trace = trace
        self._known: dict[tuple[Any, ...], LayerCalibration | PromptCalibration] = {}
        self._traced: dict[tuple[Any, ...], int] = {}
        self.traces = 0

    def calibrate(self, plans: Sequence[AdapterPlan]) -> None:
        """Calibrate the structures of some plans, so that a later answer does not have to wait."""
        for plan in plans:
            self._calibration(plan)

    def predict(self, plan: AdapterPlan, *, batch_size: int | None = None) -> int:
        """Give the peak of allocated memory in bytes, as `trace_peak` would."""
        batch = self._setup.batch_size if batch_size is None else batch_size
        trained = plan.adapter_params + self._anatomy.head_params
        match self._calibration(plan):
            case LayerCalibration() as known:
                return known.peak(plan, trained, batch, self._sites, whole=self._setup.gradient_checkpointing)
            case PromptCalibration() as known:
                return known.peak(plan, trained, batch)
        key = (batch, plan.bits, repr(sorted(plan.config.items())))
        if key not in self._traced:
            self._traced[key] = self._run(plan, batch, steps=2).peak_bytes
        return self._traced[key]

    def largest_batch(self, plan: AdapterPlan, limit_bytes: int, *, most: int = 4096) -> int:
        """Give the largest batch, up to `most`, whose peak fits a limit; 0 if not even one row does."""
        fits, too_large = 0, most + 1
        trial = 1
        while too_large - fits > 1:
            if self.predict(plan, batch_size=trial) <= limit_bytes:
                fits = trial
            else:
                too_large = trial
            trial = min(2 * fits, most) if too_large > most and fits < most else (fits + too_large) // 2
        return fits

    def _calibration(self, plan: AdapterPlan) -> LayerCalibration | PromptCalibration | None:
        key = structure_of(plan)
        if key not in self._known:
            if TOKENS in plan.config:
                self._known[key] = PromptCalibration.of(self._runs(self._lengths(plan)))
            elif sized_by_module(plan):
                whole = self._setup.gradient_checkpointing
                self._known[key] = LayerCalibration.of(self._runs(self._designs(plan)), self._sites, whole=whole)
        return self._known.get(key)

    def _runs(self, plans: Sequence[AdapterPlan]) -> list[Run]:
        # What a batch costs is linear in its rows, so two sizes tell all.
        batches = (1, max(2, self._setup.batch_size))
        return [(plan, batch, self._run(plan, batch)) for plan in plans for batch in batches]

    def _run(self, plan: AdapterPlan, batch: int, *, steps: int = 1) -> MemoryTrace:
        self.traces += 1
        setup = replace(self._setup, batch_size=batch, bits=plan.bits)
        return self._trace(self._config, plan, setup, task=self._task, steps=steps)

    def _lengths(self, plan: AdapterPlan) -> list[AdapterPlan]:
        """Give plans of a prompt method with different numbers of tokens, and widths where it has one."""
        widths = [{WIDTH: plan.config[WIDTH] * factor} for factor in (1, 2)] if WIDTH in plan.config else [{}]
        return [
            replace(plan, config={**plan.config, TOKENS: tokens, **width})
            for tokens in _CALIBRATED_TOKENS
            for width in widths
        ]

    def _designs(self, plan: AdapterPlan) -> list[AdapterPlan]:
        """Give plans of this structure whose layers are all adapted differently; each begins at another input."""
        sites, places = self._sites, self._sites.like(plan)
        used = sorted({sites.at[name][1] for names in places.values() for name in names}, key=sites.order.__getitem__)
        inputs = list(dict.fromkeys(sites.shares[site] for site in used))
        unknowns = 1 + len(inputs) + 2 * len(used)
        # The lowest adapted layer is no sample of a whole one.
        count = max(_LEAST_DESIGNS, len(inputs), -(-2 * unknowns // max(1, len(places) - 1)))
        layers = sorted(places)
        designs = []
        for i in range(min(count, _MOST_DESIGNS)):
            # Once, a layer below stays as it is, to see what its output costs.
            lowest = layers[min(1, len(layers) - 1)] if i == 0 else layers[0]
            sizes = self._design(plan, places, lowest, inputs[i % len(inputs)], random.Random(i))
            designs.append(sites.moved(plan, sizes))
        return designs

    def _design(
        self, plan: AdapterPlan, places: Mapping[int, list[str]], lowest: int, first: str, generator: random.Random
    ) -> dict[str, int]:
        """Adapt every layer from the lowest up at random; that one from the input `first` on."""
        sites = self._sites
        sizes = {name: rank for name, rank in plan.sizes.items() if name not in sites.at}
        begin = min(place for site, place in sites.order.items() if sites.shares[site] == first)
        for layer, names in sorted(places.items()):
            if layer < lowest:
                continue
            chosen = {name for name in names if generator.random() < 0.5}
            if layer == lowest:
                chosen = {name for name in chosen if sites.order[sites.at[name][1]] >= begin}
                chosen |= {next((n for n in names if sites.shares[sites.at[n][1]] == first), names[0])}
            for name in names:
                if name in chosen:
                    sizes[name] = generator.choice(_RANKS) if has_rank(plan) else 1
        return sizes
