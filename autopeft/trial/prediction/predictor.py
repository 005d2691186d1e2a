"""Peak memory of a training, for thousands of plans: calibrated on a few traces, after which it answers at once.

A training's peak is the largest of these: in the forward pass of some layer; at the loss, when every layer's saved
activations are alive; in the backward pass of some layer, when those above it have become gradients; or when the
optimiser steps. What a layer saves depends on which of its modules are adapted (modules that read the same input share
it) and linearly on their sizes and on the rows of the batch; a layer below the lowest adapted module saves nothing. All
of that is read off traces in which every layer is adapted differently, so that each layer is a sample of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from autopeft.anatomy import Anatomy
from autopeft.candidates import AdapterPlan
from autopeft.plain import digest
from autopeft.trial.prediction.calibration import Calibration, Run
from autopeft.trial.prediction.designs import designs
from autopeft.trial.prediction.fit import NewError
from autopeft.trial.prediction.kernels import Device
from autopeft.trial.prediction.setup import TrainingSetup
from autopeft.trial.prediction.sites import Sites, structure_of
from autopeft.trial.prediction.trace import MemoryTrace, trace_peak

_NOT_FITTED = ("OFT", "BOFT")
"""Methods whose fits were seen to be off, by 4% (OFT) to 20% (BOFT); both build rotations of blocks on their way."""
_MOST_FAILURES = 3
"""Answers found wrong, after which a structure's plans are traced."""


class MemoryPredictor:
    """Predicts the peak of a training on one model, for any plan.

    A structure (method, bits, optimiser, and settings other than places and sizes) is calibrated when it is first asked
    for, by 4 to 22 traces of one step; after that an answer takes about a millisecond or less. Every plan is traced too
    until one answer was right, and always where three were wrong, or where a plan has something that no trace had. Full
    fine-tuning, OFT, BOFT, and everything on a model with an encoder and a decoder are always traced.

    Args:
        length: Tokens of the longest row of the data.
        device: Whose memory; "cpu" counts as the worker does there.
        padded: Whether that batch has rows of different lengths, so that attention needs a mask.

    Attributes:
        traces: How many were made so far.
    """

    def __init__(
        self,
        model_config: Any,
        anatomy: Anatomy,
        *,
        length: int,
        device: Device = "cuda",
        padded: bool = True,
        trace: Callable[..., MemoryTrace] = trace_peak,
    ) -> None:
        self._config = model_config
        self._anatomy = anatomy
        self._sites = Sites.of(anatomy)
        self._length = length
        self._device: Device = device
        self._padded = padded
        self._trace = trace
        self._known: dict[tuple[Any, ...], Calibration] = {}
        self._traced: dict[tuple[str, int], MemoryTrace] = {}
        self.traces = 0

    def setup(self, plan: AdapterPlan, *, rows: int | None = None) -> TrainingSetup:
        """Give how a plan is trained; `rows` of a forward pass in place of those that the recipe asks for."""
        setup = TrainingSetup.of(plan, length=self._length, device=self._device, padded=self._padded)
        return setup if rows is None else replace(setup, batch_size=rows)

    def calibrate(self, plans: Iterable[AdapterPlan]) -> None:
        """Calibrate the structures of some plans, so that a later answer does not have to wait."""
        for plan in plans:
            self.peak(plan)

    def peak(self, plan: AdapterPlan, *, rows: int | None = None) -> int:
        """Give the peak of allocated memory in bytes, as the trace of two steps would."""
        rows = self.setup(plan, rows=rows).batch_size
        known = self._calibration(plan)
        if known is None:
            return self.trace(plan, rows=rows).peak_bytes
        trained = plan.adapter_params + self._anatomy.head_params
        try:
            answer = known.peak(plan, trained, rows)
        except NewError:
            answer = None
        if answer is not None and known.proven:
            return answer
        trace = self.trace(plan, rows=rows)
        known.judge(answer, Run(plan, rows, trace))
        return trace.peak_bytes

    def trace(self, plan: AdapterPlan, *, rows: int | None = None) -> MemoryTrace:
        """Trace a plan itself, about a second; what was traced is remembered."""
        setup = self.setup(plan, rows=rows)
        # What is learnt, and how fast, takes no memory.
        timeless = replace(plan, recipe=replace(plan.recipe, learning_rate=0.0, weight_decay=0.0, warmup_ratio=0.0))
        key = digest(timeless.to_dict()), setup.batch_size
        if key not in self._traced:
            self._traced[key] = self._run(plan, setup, steps=2)
        return self._traced[key]

    def reserved(self, plan: AdapterPlan, *, rows: int | None = None) -> int:
        """Give what CUDA's caching allocator takes from the device, in bytes: `peak` and what lies about in pieces."""
        return self.trace(plan, rows=rows).reserved_bytes

    def _calibration(self, plan: AdapterPlan) -> Calibration | None:
        """Give what is known of a plan's structure; None where each plan is traced."""
        unlike = any(c.get("peft_type") in _NOT_FITTED or c.get("adapter_type") == "weights" for c in plan.configs)
        if unlike or len(set(self._sites.stacks)) > 1:
            return None
        key = structure_of(plan)
        if key not in self._known:
            self._known[key] = self._calibrated(plan)
        return None if self._known[key].failures >= _MOST_FAILURES else self._known[key]

    def _calibrated(self, plan: AdapterPlan) -> Calibration:
        known = Calibration(self._sites, self.setup(plan).length)
        usual = self.setup(plan).batch_size
        runs = []
        for i, design in enumerate(designs(plan, self._anatomy, self._sites)):
            # What a batch costs is linear in its rows, so two sizes tell all.
            rows = usual if i % 2 == 0 else max(1, usual // 2) if usual > 1 else 2
            # A design may be none that the method can be on this model, as where a rank divides no width.
            with suppress(ValueError, RuntimeError, LookupError):
                runs.append(Run(design, rows, self._run(design, self.setup(design, rows=rows), steps=1)))
        if runs:
            known.learn(runs)
        return known

    def _run(self, plan: AdapterPlan, setup: TrainingSetup, *, steps: int) -> MemoryTrace:
        self.traces += 1
        return self._trace(self._config, plan, setup, task=self._anatomy.task, steps=steps)
