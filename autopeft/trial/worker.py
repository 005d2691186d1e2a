"""TrialWorker: keeps the base model and the data resident, and turns work units into measurements."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autopeft.errors import OutOfMemoryTrialError, TrialError
from autopeft.records import AdapterPlan, Measurement, WorkUnit
from autopeft.trial.adapters import Resident, save_adapter
from autopeft.trial.batches import train_batch
from autopeft.trial.evaluate import evaluate
from autopeft.trial.model import ModelSource, checksum, load_base
from autopeft.trial.prepared import read_prepared
from autopeft.trial.train import train

SAMPLE = 8
"""Batches that an adapter may look at before it is trained."""


@dataclass(frozen=True, slots=True)
class _Base:
    """A loaded base model, and the checksum that it must have after every trial."""

    resident: Resident
    checksum: str


class TrialWorker:
    """A Runner: trains adapters on one resident base a bit-width.

    Args:
        run_dir: The run directory; holds the prepared data, takes the adapters. All workers must see it.
        source: Fields of the ModelSource.
        head: Top-level module -> parameters of a new task head.
        metric: The metric that is the quality.
        batch_size: Rows an optimiser step.
        data_seed: Seed of the order of the data and of the new head, the same for all trials.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        threads: CPU threads of this worker.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        source: Mapping[str, Any],
        head: Mapping[str, int],
        metric: str,
        batch_size: int,
        data_seed: int,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self._run_dir = Path(run_dir)
        if not (self._run_dir / "request.yaml").is_file():
            raise TrialError(f"{run_dir} is not visible here; put --out on a file system that all nodes share")
        if threads is not None:
            torch.set_num_threads(threads)
        self._source = ModelSource(**{**source, "label_names": tuple(source["label_names"])})
        self._head, self._metric, self._seed = dict(head), metric, data_seed
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._data = read_prepared(self._run_dir / "data")
        self._batch_size = batch_size
        self._bases: dict[int, _Base] = {}

    def run(self, unit: WorkUnit) -> Measurement:
        """Train, judge and save one candidate; the base is bit for bit what it was, or is loaded anew.

        Raises:
            TrialError: If the adapter is not the one planned, the loss diverges, or the base was changed.
            OutOfMemoryTrialError: If the device's memory did not hold it.
        """
        assert unit.plan is not None
        try:
            base = self._base(unit.plan.bits)
            measurement, changed = self._train_and_clean(unit, base)
        except torch.OutOfMemoryError as error:
            peak = torch.cuda.max_memory_reserved() if self._device.startswith("cuda") else 0
            raise OutOfMemoryTrialError(str(error).splitlines()[0], peak_bytes=peak) from error
        if changed:
            raise TrialError(f"{unit.plan.method} changed the frozen base model; its result is not to be trusted")
        return measurement

    def _train_and_clean(self, unit: WorkUnit, base: _Base) -> tuple[Measurement, bool]:
        """Train, and take the adapter off whatever happened; tells also whether the base was changed."""
        assert unit.plan is not None
        changed = True
        try:
            measurement = self._train(unit, base)
        finally:
            try:
                base.resident.detach()
                changed = checksum(base.resident.model) != base.checksum
            finally:
                if changed:
                    del self._bases[unit.plan.bits]
                gc.collect()
                if self._device.startswith("cuda"):
                    torch.cuda.empty_cache()
        return measurement, changed

    def _train(self, unit: WorkUnit, base: _Base) -> Measurement:
        assert unit.plan is not None
        torch.manual_seed(unit.seed)
        batches = [
            train_batch(self._data, step, batch_size=self._batch_size, seed=self._seed) for step in range(unit.steps)
        ]
        adapted = base.resident.attach(
            unit.plan,
            task=self._source.task,
            head=self._head,
            base=self._source.path,
            sample=[{name: t.to(self._device) for name, t in batch.items()} for batch in batches[:SAMPLE]],
        )
        # The first step has no optimiser state yet, so the peak is among the others.
        sizes = [batch["input_ids"].numel() if step or unit.steps == 1 else 0 for step, batch in enumerate(batches)]
        training = train(
            adapted,
            batch_at=lambda step: {name: tensor.to(self._device) for name, tensor in batches[step].items()},
            steps=unit.steps,
            learning_rate=unit.plan.learning_rate,
            seed=unit.seed,
            device=self._device,
            measured_step=sizes.index(max(sizes)),
        )
        base.resident.settle(adapted)
        start = time.monotonic()
        metrics = evaluate(adapted, self._data, unit.split, device=self._device)
        evaluated = time.monotonic() - start
        adapter_bytes = self._save(adapted, unit.plan, unit.adapter_dir) if unit.adapter_dir else 0
        head_params = sum(self._head.values())
        every = max(1, unit.steps // 50)
        return Measurement(
            quality=metrics[self._metric],
            trainable_params=unit.plan.adapter_params + head_params,
            memory_bytes=training.peak_bytes,
            memory_kind=training.memory_kind,
            head_params=head_params,
            reserved_bytes=training.reserved_bytes,
            adapter_bytes=adapter_bytes,
            steps=unit.steps,
            train_seconds=training.seconds,
            eval_seconds=evaluated,
            metrics=dict(metrics),
            base_checksum=base.checksum,
            curve=tuple((step, loss) for step, loss in enumerate(training.losses) if step % every == 0),
        )

    def _save(self, adapted: Any, plan: AdapterPlan, adapter_dir: str) -> int:
        """Save under the run directory, whole or not at all."""
        folder = self._run_dir / adapter_dir
        # An orphan of a killed driver may still be saving the same trial.
        partial = folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}.partial")
        for old in (folder, partial):
            shutil.rmtree(old, ignore_errors=True)
        about = {"source": asdict(self._source), "bits": plan.bits, "head_seed": self._seed, "plan": plan.to_dict()}
        size = save_adapter(adapted, partial, about=about)
        partial.replace(folder)
        return size

    def _base(self, bits: int) -> _Base:
        """Give the resident base of a bit-width; on a GPU one at a time, so that the others take no memory."""
        if bits not in self._bases:
            if self._device.startswith("cuda"):
                self._bases.clear()
                gc.collect()
                torch.cuda.empty_cache()
            model = load_base(self._source, bits=bits, device=self._device, seed=self._seed)
            self._bases[bits] = _Base(Resident(model), checksum(model))
            # The collection after each trial took half a second, nearly all of it to look at what stays for good: the
            # libraries and the base. A base that is dropped needs no collection, as nothing in it refers in a circle.
            gc.collect()
            gc.freeze()
        return self._bases[bits]
