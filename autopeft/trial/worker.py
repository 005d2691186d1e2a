"""TrialWorker: keeps the base model and the data resident, and turns work units into measurements."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from autopeft.errors import OutOfMemoryTrialError, TrialError
from autopeft.records import AdapterPlan, BaseFormat, Measurement, WorkUnit
from autopeft.trial.adapters import save_adapter
from autopeft.trial.bases import ROOM_FOR_BASES, Base, Bases
from autopeft.trial.batches import Batch, TrainBatches
from autopeft.trial.evaluate import evaluate
from autopeft.trial.memory import capacity_bytes, in_use_bytes, ran_out_of_memory
from autopeft.trial.model import ModelSource, checksum, load_base, load_config, load_tokenizer
from autopeft.trial.prepared import read_prepared
from autopeft.trial.reading import checkpoint_bits
from autopeft.trial.states import ROOM_FOR_STATES, States
from autopeft.trial.train import train

SAMPLE = 8
"""Batches that an adapter may look at before it is trained."""


class TrialWorker:
    """A Runner: trains adapters on one resident base a format.

    Args:
        run_dir: The run directory; holds the prepared data, takes the adapters. All workers must see it.
        source: Fields of the ModelSource.
        head: Top-level module -> parameters of a new task head.
        metric: The metric that is the quality.
        data_seed: Seed of the order of the data and of the new head, the same for all trials.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        threads: CPU threads of this worker.
        memory_share: Share of the device's memory that this worker may use.
        reuse: Whether what frozen layers give is kept for later trials; these then take less time than they would.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        source: Mapping[str, Any],
        head: Mapping[str, int],
        metric: str,
        data_seed: int,
        device: str = "auto",
        threads: int | None = None,
        memory_share: float = 1.0,
        reuse: bool = True,
    ) -> None:
        self._run_dir = Path(run_dir)
        if not (self._run_dir / "request.yaml").is_file():
            raise TrialError(f"{run_dir} is not visible here; put --out on a file system that all nodes share")
        if threads is not None:
            torch.set_num_threads(threads)
        self._source = ModelSource.from_dict(source)
        self._head, self._metric, self._seed = dict(head), metric, data_seed
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._data = read_prepared(self._run_dir / "data")
        judges_texts = "reference" in self._data.validation.column_names
        self._tokenizer = load_tokenizer(self._source.path) if judges_texts else None
        room = int(ROOM_FOR_BASES * memory_share * capacity_bytes(self._device))
        self._bases = Bases(self._load, limit_bytes=room, device=self._device)
        self._batches = TrainBatches(self._data, seed=self._seed)
        room = int(ROOM_FOR_STATES * memory_share * capacity_bytes("cpu")) if reuse else 0
        self._states = States(limit_bytes=room)

    def run(self, unit: WorkUnit) -> Measurement:
        """Train, judge and save one candidate; the base is bit for bit what it was, or is loaded anew.

        Raises:
            TrialError: If the adapter is not the one planned, the loss diverges, or the base was changed.
            OutOfMemoryTrialError: If the device's memory did not hold it.
        """
        assert unit.plan is not None
        result = self._attempt(unit)
        if isinstance(result, OutOfMemoryTrialError) and self._make_room(unit.plan.base):
            # What is kept for other trials took room; only without it is it the candidate that needs too much.
            result = self._attempt(unit)
        if isinstance(result, OutOfMemoryTrialError):
            raise result
        return result

    def _attempt(self, unit: WorkUnit) -> Measurement | OutOfMemoryTrialError:
        try:
            return self._train_and_clean(unit)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            told = OutOfMemoryTrialError(str(error).splitlines()[0], peak_bytes=in_use_bytes(self._device))
        # Only here are the frames of the error gone, and with them the tensors of the step.
        self._free()
        return told

    def _train_and_clean(self, unit: WorkUnit) -> Measurement:
        """Train, and take the adapter off whatever happened; a base that was changed is given up."""
        assert unit.plan is not None
        base = self._bases.get(unit.plan.base)
        changed = True
        try:
            measurement = self._train(unit, base)
        finally:
            try:
                base.resident.detach()
                changed = checksum(base.resident.model) != base.checksum
            finally:
                if changed:
                    self._bases.drop(unit.plan.base)
                    self._states.drop((unit.plan.base, base.checksum))
                self._free()
        if changed:
            raise TrialError(f"{unit.plan.method} changed the frozen base model; its result is not to be trusted")
        return measurement

    def _make_room(self, form: BaseFormat) -> bool:
        """Give up what is kept on the device for other trials; tells whether there was anything."""
        dropped = self._bases.drop_others(form)
        return (not self._device.startswith("cuda") and self._states.clear()) or dropped

    def _free(self) -> None:
        gc.collect()
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _train(self, unit: WorkUnit, base: Base) -> Measurement:
        assert unit.plan is not None
        recipe = unit.plan.recipe
        if recipe.packing and not base.keeps_texts_apart:
            raise TrialError("packing: this model lets the texts of a row see each other; search without it")
        torch.manual_seed(unit.seed)
        batches = self._batches.first(unit.steps, recipe)
        adapted = base.resident.attach(
            unit.plan,
            task=self._source.task,
            head=self._head,
            base=self._source.path,
            sample=[{n: t.to(self._device) for n, t in part.items()} for parts in batches[:SAMPLE] for part in parts],
            dense=self._dense,
        )
        with base.frozen.reused(adapted, self._states, base=(unit.plan.base, base.checksum)):
            training = train(
                adapted,
                parts_at=lambda step: [{n: t.to(self._device) for n, t in part.items()} for part in batches[step]],
                steps=unit.steps,
                recipe=recipe,
                seed=unit.seed,
                device=self._device,
                measured_step=_largest(batches),
                measuring=base.frozen.computed(),  # as the user's own training will be
            )
            base.resident.settle(adapted)
            start = time.monotonic()
            metrics = evaluate(adapted, self._data, unit.split, tokenizer=self._tokenizer, device=self._device)
            evaluated = time.monotonic() - start
        # CUDA counts all that lies on the device; the other resident bases are not this candidate's.
        others = self._bases.held_bytes - base.held_bytes if self._device.startswith("cuda") else 0
        adapter_bytes = self._save(adapted, unit.plan, unit.adapter_dir) if unit.adapter_dir else 0
        head_params = sum(self._head.values())
        every = max(1, unit.steps // 50)
        return Measurement(
            quality=metrics[self._metric],
            trainable_params=unit.plan.adapter_params + head_params,
            memory_bytes=training.peak_bytes - others,
            memory_kind=training.memory_kind,
            head_params=head_params,
            reserved_bytes=max(0, training.reserved_bytes - others),
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
        about = {"source": asdict(self._source), "head_seed": self._seed, "plan": plan.to_dict()}
        size = save_adapter(adapted, partial, about=about)
        partial.replace(folder)
        return size

    def _dense(self) -> Any:
        """Load the base as its checkpoint has it, beside the one that is trained on, and into the host's memory."""
        bits = checkpoint_bits(load_config(self._source))
        return load_base(self._source, BaseFormat(bits), device="cpu", seed=self._seed)

    def _load(self, base: BaseFormat) -> Any:
        return load_base(self._source, base, device=self._device, seed=self._seed)


def _largest(batches: Sequence[Sequence[Batch]]) -> int | None:
    """Give the step whose memory is the most; None where there is no step.

    The first one has no optimiser state yet, so it is among the others.
    """
    sizes = [max(part["input_ids"].numel() + part["labels"].numel() for part in parts) for parts in batches]
    later = [size if step or len(sizes) == 1 else 0 for step, size in enumerate(sizes)]
    return later.index(max(later)) if later else None
