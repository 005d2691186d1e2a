"""TrialWorker: keeps the base model and the data resident, and turns work units into measurements.

Past 300 lines, for it is one class: what memory runs out in, how a base comes back clean, and what is judged belong to
the one resident base that all its methods share.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from autopeft.candidates import AdapterPlan, BaseFormat
from autopeft.errors import OutOfMemoryTrialError, TrialError
from autopeft.trial import checkpoint
from autopeft.trial.adapters import save_adapter
from autopeft.trial.bases import ROOM_FOR_BASES, Base, Bases
from autopeft.trial.batches import Batch, Steps, TrainBatches, largest
from autopeft.trial.evaluate import evaluate
from autopeft.trial.memory import capacity_bytes, in_use_bytes, ran_out_of_memory
from autopeft.trial.model import ModelSource, checksum, load_base, load_config, load_tokenizer
from autopeft.trial.prepared import read_prepared
from autopeft.trial.reading import checkpoint_bits
from autopeft.trial.states import ROOM_FOR_STATES, States
from autopeft.trial.together import Groups
from autopeft.trial.train import Training, train, trained_of
from autopeft.work import Measurement, WorkUnit

SAMPLE = 8  # batches that an adapter may look at before it is trained
T = TypeVar("T")


class TrialWorker:
    """A Runner: trains adapters on one resident base a format.

    Args:
        run_dir: The run directory; holds the prepared data, takes the adapters. All workers must see it.
        source: Fields of the ModelSource.
        head: Top-level module -> parameters of a new task head.
        metric: The metric that is the quality.
        head_seed: Seed of the new head, the same for all trials.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        threads: CPU threads of this worker.
        memory_share: Share of the device's memory that this worker may use.
        host_share: Share of the host's memory that this worker may use; without CUDA the same.
        reuse: Whether what frozen layers give is kept for later trials; these then take less time than they would.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        source: Mapping[str, Any],
        head: Mapping[str, int],
        metric: str,
        head_seed: int,
        device: str = "auto",
        threads: int | None = None,
        memory_share: float = 1.0,
        host_share: float = 1.0,
        reuse: bool = True,
    ) -> None:
        self._run_dir = Path(run_dir)
        if not (self._run_dir / "request.yaml").is_file():
            raise TrialError(f"{run_dir} is not visible here; put --out on a file system that all nodes share")
        if threads is not None:
            torch.set_num_threads(threads)
        self._source = ModelSource.from_dict(source)
        self._head, self._metric, self._seed = dict(head), metric, head_seed
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._data = read_prepared(self._run_dir / "data")
        judges_texts = "reference" in self._data.validation.column_names
        self._tokenizer = load_tokenizer(self._source.path) if judges_texts else None
        room = int(ROOM_FOR_BASES * memory_share * capacity_bytes(self._device))
        self._bases = Bases(self._load, limit_bytes=room, device=self._device)
        self._batches = TrainBatches(self._data)
        room = int(ROOM_FOR_STATES * host_share * capacity_bytes("cpu")) if reuse else 0
        self._states = States(limit_bytes=room)
        self._groups = Groups(task=self._source.task, device=self._device)

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

    def run_together(self, units: Sequence[WorkUnit]) -> list[Measurement | Exception]:
        """Run work units; of those that can be trained together, so many at once as pays on this device.

        Returns:
            For each unit what `run` would give, or the error that it would raise.
        """
        results: dict[int, Measurement | Exception] = {}
        while left := {i: unit for i, unit in enumerate(units) if i not in results}:
            some = self._groups.first(left)
            results |= self._run_group(some) or {i: self._run_alone(unit) for i, unit in some.items()}
        return [results[i] for i in range(len(units))]

    def _run_alone(self, unit: WorkUnit) -> Measurement | Exception:
        try:
            return self.run(unit)
        except Exception as error:  # noqa: BLE001 - it is this unit's outcome, and no other's
            return error

    def _run_group(self, units: Mapping[int, WorkUnit]) -> dict[int, Measurement | Exception]:
        """Run units together, or as many of the first as pay; gives nothing if none do, or it cannot be done."""
        plan = next(iter(units.values())).plan
        if len(units) == 1 or plan is None:
            return {}
        try:
            return self._on_base(plan.base, lambda base: self._train_group(units, base), what="a group of candidates")
        except Exception as error:  # noqa: BLE001 - whose fault it is, is seen when each is trained alone
            logging.getLogger(__name__).warning("candidates are trained one by one: %s", error)
            if ran_out_of_memory(error):
                self._groups.halve(units)
            elif isinstance(error, TrialError) and str(error).startswith("together:"):
                self._groups.limit(units, 1)  # it is the model's doing, or the method's, and will be again
        self._free()
        return {}

    def _train_group(self, units: Mapping[int, WorkUnit], base: Base) -> dict[int, Measurement | Exception]:
        begun = {i: state for i, unit in units.items() if (state := checkpoint.find(unit, run_dir=self._run_dir))}
        # One whose state is lost begins anew, and is not where the others are.
        units = {i: unit for i, unit in units.items() if not unit.first or i in begun}
        if len(units) < 2:
            return {}
        longest = max(units.values(), key=lambda unit: unit.whole)
        assert longest.plan is not None
        if longest.plan.recipe.packing and not base.keeps_texts_apart:
            return {}
        batches = self._batches.first(longest.whole, longest.plan.recipe, seed=longest.data_seed)
        results: dict[int, Measurement | Exception] = {}
        for i, adapted, training in self._groups.train(
            units,
            base.resident,
            Steps(lambda step: self._on_device(batches[step]), range(len(batches))),
            attach=lambda unit: self._attach(unit, base, batches[: unit.whole]),
            reusing=lambda adapted: self._reusing(adapted, base, longest),
            begun=begun,
        ):
            if isinstance(training, TrialError):
                results[i] = training
                continue
            with self._reusing(adapted, base, units[i]):
                results[i] = self._judge(units[i], base, adapted, training)
        return results

    def _attempt(self, unit: WorkUnit) -> Measurement | OutOfMemoryTrialError:
        plan = unit.plan
        assert plan is not None
        try:
            return self._on_base(plan.base, lambda base: self._train(unit, base), what=plan.method)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            told = OutOfMemoryTrialError(str(error).splitlines()[0], peak_bytes=in_use_bytes(self._device))
        # Only here are the frames of the error gone, and with them the tensors of the step.
        self._free()
        return told

    def _on_base(self, form: BaseFormat, work: Callable[[Base], T], *, what: str) -> T:
        """Do work on a base, and clean that whatever happened; one that was changed is given up.

        Raises:
            TrialError: If the work left the base changed.
        """
        base = self._bases.get(form)
        changed = True
        try:
            result = work(base)
        finally:
            try:
                base.resident.detach()
                changed = checksum(base.resident.model) != base.checksum
            finally:
                if changed:
                    self._bases.drop(form)
                    self._states.drop((form, base.checksum))
                self._free()
        if changed:
            raise TrialError(f"{what} changed the frozen base model; its result is not to be trusted")
        return result

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
        batches = self._batches.first(unit.whole, recipe, seed=unit.data_seed)
        adapted = self._attach(unit, base, batches)
        begun = checkpoint.find(unit, run_dir=self._run_dir, trained=trained_of(adapted))
        with self._reusing(adapted, base, unit):
            training = train(
                adapted,
                parts_at=lambda step: self._on_device(batches[step]),
                steps=unit.steps,
                recipe=recipe,
                seed=unit.seed,
                device=self._device,
                measured_step=largest(batches[: unit.steps]) if unit.steps else None,
                measuring=base.frozen.computed(),  # as the user's own training will be
                horizon=unit.whole,
                begun=begun,
                # CUDA counts all that lies on the device; the other resident bases are not this candidate's.
                beside_bytes=self._bases.held_bytes - base.held_bytes if self._device.startswith("cuda") else 0,
            )
            base.resident.settle(adapted)
            return replace(self._judge(unit, base, adapted, training), restarted=bool(unit.first) and begun is None)

    def _attach(self, unit: WorkUnit, base: Base, batches: Sequence[Sequence[Batch]]) -> Any:
        assert unit.plan is not None
        torch.manual_seed(unit.seed)
        return base.resident.attach(
            unit.plan,
            task=self._source.task,
            head=self._head,
            base=self._source.path,
            sample=[part for parts in batches[:SAMPLE] for part in self._on_device(parts)],
            dense=self._dense,
        )

    def _reusing(self, adapted: Any, base: Base, unit: WorkUnit) -> AbstractContextManager[None]:
        assert unit.plan is not None
        return base.frozen.reused(adapted, self._states, base=(unit.plan.base, base.checksum))

    def _on_device(self, parts: Sequence[Batch]) -> list[Batch]:
        return [{name: tensor.to(self._device) for name, tensor in part.items()} for part in parts]

    def _judge(self, unit: WorkUnit, base: Base, adapted: Any, training: Training) -> Measurement:
        """Evaluate and save what was trained."""
        assert unit.plan is not None
        start = time.monotonic()
        metrics: dict[str, float] = {}
        for split in unit.splits:
            found = evaluate(adapted, self._data, split, tokenizer=self._tokenizer, device=self._device)
            metrics |= {f"{split}_{name}": value for name, value in found.items()} if metrics else found
        evaluated = time.monotonic() - start
        adapter_bytes = self._save(adapted, unit.plan, unit.adapter_dir) if unit.adapter_dir else 0
        if (state := training.state) is not None and unit.state_dir:
            checkpoint.leave(state, unit, run_dir=self._run_dir)
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
