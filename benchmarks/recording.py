"""A worker that judges a candidate at several steps of one training, whose schedule spans the whole horizon."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import torch

from autopeft.trial.bases import Base
from autopeft.trial.batches import largest
from autopeft.trial.evaluate import evaluate
from autopeft.trial.train import Learner, Training
from autopeft.trial.worker import TrialWorker
from autopeft.work import Measurement, WorkUnit


class RecordingWorker(TrialWorker):
    """A TrialWorker that trains to the same bits, and judges on the way.

    Attributes:
        curve: Step -> metrics on the validation split, of the last unit.
        losses: Training loss of each of its steps.
        test: Its metrics on the test split at the end.

    Args:
        rungs: Steps after which a candidate is judged, beside the last.
    """

    def __init__(self, *, rungs: Collection[int], **settings: Any) -> None:
        super().__init__(**settings)
        self._rungs = set(rungs)
        self.curve: dict[int, dict[str, float]] = {}
        self.losses: tuple[float, ...] = ()
        self.test: dict[str, float] = {}

    def _train(self, unit: WorkUnit, base: Base) -> Measurement:
        assert unit.plan is not None
        self.curve, self.losses, self.test = {}, (), {}
        batches = self._batches.first(unit.steps, unit.plan.recipe, seed=unit.data_seed)
        adapted = self._attach(unit, base, batches)
        measured_step = largest(batches) if batches else None
        peak = 0
        with self._reusing(adapted, base, unit):
            learner = Learner(adapted, steps=unit.steps, recipe=unit.plan.recipe, device=self._device)
            torch.manual_seed(unit.seed)
            adapted.train()
            for step in range(unit.steps):
                measured = step == measured_step
                computed = base.frozen.computed() if measured else nullcontext()
                with computed, learner.tracker() if measured else nullcontext() as tracker:
                    learner.step(self._on_device(batches[step]))
                peak = tracker.peak_bytes if tracker is not None else peak
                if step + 1 in self._rungs and step + 1 < unit.steps:
                    # What is judged in the middle has its half-precision parameters in fp32, as they are trained.
                    with torch.random.fork_rng(devices=[]), learner.autocast():
                        self.curve[step + 1] = evaluate(adapted, self._data, "validation", device=self._device)
            learner.finish()
            base.resident.settle(adapted)
            self.losses = tuple(learner.losses)
            training = Training(peak, 0, "tensor_storage", 0.0, self.losses)
            measurement = self._judge(unit, base, adapted, training)
            self.curve[unit.steps] = dict(measurement.metrics)
            self.test = evaluate(adapted, self._data, "test", device=self._device)
        return measurement
