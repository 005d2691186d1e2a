"""Peak memory of a training on a CUDA device, predicted without one: two steps on tensors that have no storage.

The model is built on PyTorch's meta device, its tensors become fake ones, the adapter is attached by PEFT itself, and
two steps run (the optimiser's state comes to life in the first). No weight is read and nothing is computed; what is
counted is every storage that is alive, when.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from autopeft.anatomy import Task
from autopeft.candidates import AdapterPlan
from autopeft.errors import SourceError
from autopeft.trial.adapters import attached, is_peft
from autopeft.trial.compose import trained_tensors
from autopeft.trial.model import AUTO_CLASSES, quantization, tensors_of
from autopeft.trial.prediction.allocator import EMPTY_CACHE, CachingAllocator, replay
from autopeft.trial.prediction.fakes import fake_model, no_storage
from autopeft.trial.prediction.kernels import DeviceKernels
from autopeft.trial.prediction.optimizers import traced_optimizer
from autopeft.trial.prediction.quantized import place_quantized
from autopeft.trial.prediction.setup import TrainingSetup
from autopeft.trial.prediction.steps import LayerWatch, StepMemory, held_bytes, layers_of, run_step, state_of
from autopeft.trial.prediction.storages import AllocationLog
from autopeft.trial.reading import head_of

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class MemoryTrace:
    """What a training holds in memory, in bytes.

    Attributes:
        peak_bytes: Most that is allocated at once from the second step on; torch.cuda.max_memory_allocated.
        reserved_bytes: What CUDA's caching allocator takes from the device for it; torch.cuda.max_memory_reserved.
            Neither counts the CUDA context, nor the workspaces of cuBLAS.
        base_bytes: The base model, its scales included.
        adapter_bytes: What attaching the adapter added, frozen projections included.
        state_bytes: What the optimiser keeps.
        saved_bytes: The tensors of the adapter's file.
        trained_params: Scalars that are trained.
        step: The second step in detail.
        seconds: Time that the trace took.
    """

    peak_bytes: int
    reserved_bytes: int
    base_bytes: int
    adapter_bytes: int
    state_bytes: int
    saved_bytes: int
    trained_params: int
    step: StepMemory
    seconds: float


def trace_peak(
    model_config: Any,
    adapter: AdapterPlan | PeftConfig | None,
    setup: TrainingSetup,
    *,
    task: Task = "causal-lm",
    steps: int = 2,
    make_optimizer: MakeOptimizer | None = None,
) -> MemoryTrace:
    """Predict what a training holds in memory.

    Args:
        model_config: The model's configuration, of transformers.
        adapter: A plan, or any configuration of PEFT; None for full fine-tuning.
        steps: Training steps to trace; the last one is what is reported.
        make_optimizer: An optimiser of the adapted model in place of the setup's.

    Raises:
        SourceError: If the model has no form for the task.
    """
    start = time.monotonic()
    model = _build_base(model_config, setup, task)
    with no_storage():
        fake_model(model)
        base = tensors_of(model).values()
        kernels = DeviceKernels(setup.device, autocast_dtype=setup.autocast_dtype)
        with kernels, AllocationLog(base, block_bytes=setup.block_bytes) as log:
            kernels.on_written = log.note_numbers
            base_bytes = log.live_bytes
            layers = layers_of(model)
            with _without_garbage():
                adapted = _attach(model, adapter, task)
                saved_bytes = _saved_bytes(adapted, by_peft=not isinstance(adapter, AdapterPlan) or is_peft(adapter))
                if setup.gradient_checkpointing:
                    _checkpoint(model, kernels)
                trained = _make_trainable(adapted, setup)
            adapter_bytes = log.live_bytes - base_bytes
            batch = _batch(setup, setup.earlier_length or setup.length, task)
            optimizer = make_optimizer(adapted) if make_optimizer else traced_optimizer(setup.optimizer, trained)
            watch = LayerWatch(layers, log)
            # What attaching left behind must not serve as the cache of the training.
            resident = log.alive()
            log.events.clear()
            keep: list[Any] | None = [] if setup.keeps_output else None
            adapted.train()
            for number in range(steps):
                if number == steps - 1:
                    log.restart_peak()
                    if setup.empties_cache:
                        log.events.append(EMPTY_CACHE)
                    if setup.earlier_length:
                        batch = _batch(setup, setup.length, task)
                last = run_step(
                    adapted,
                    batch,
                    optimizer=optimizer,
                    trained=trained,
                    kernels=kernels,
                    log=log,
                    watch=watch,
                    clip_norm=setup.clip_norm,
                    parts=2 if setup.accumulates else 1,
                    keep=keep,
                )
                state_bytes = held_bytes(state_of(optimizer, trained), setup.block_bytes)
        allocator = _replayed(resident, log.events)
    return MemoryTrace(
        peak_bytes=log.peak_bytes,
        reserved_bytes=allocator.reserved_bytes,
        base_bytes=base_bytes,
        adapter_bytes=adapter_bytes,
        state_bytes=state_bytes,
        saved_bytes=saved_bytes,
        trained_params=sum(p.numel() for p in trained),
        step=last,
        seconds=time.monotonic() - start,
    )


@contextmanager
def _without_garbage() -> Iterator[None]:
    """Collect the garbage of what is done meanwhile; to look at all that was there before would take far longer."""
    # A worker in this process has frozen its base, and what it collects after each trial must stay little.
    if frozen := gc.get_freeze_count():
        gc.collect()
    gc.freeze()
    try:
        yield
        gc.collect()
    finally:
        if not frozen:
            gc.unfreeze()


def _build_base(model_config: Any, setup: TrainingSetup, task: Task) -> Any:
    """Build the base at its bits on the meta device."""
    auto = AUTO_CLASSES[task]
    if type(model_config) not in auto._model_mapping:
        raise SourceError(f"model: a {model_config.model_type} has no {task} form in transformers")
    with torch.device("meta"):
        model = auto.from_config(model_config, dtype=setup.base_dtype)
    if setup.base.bits in (4, 8):
        place_quantized(model, quantization(setup.base, setup.base_dtype))
    model.config.use_cache = setup.use_cache
    return model


def _attach(model: Any, adapter: AdapterPlan | PeftConfig | None, task: Task) -> Any:
    if adapter is None:
        return model.requires_grad_(True)
    if isinstance(adapter, AdapterPlan):
        return attached(model, adapter, task=task, head=head_of(model, task))
    return get_peft_model(model, adapter)


@torch.no_grad()
def _saved_bytes(adapted: Any, *, by_peft: bool) -> int:
    if by_peft and isinstance(adapted, PeftModel):
        tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    else:
        tensors = trained_tensors(adapted)
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _checkpoint(model: Any, kernels: DeviceKernels) -> None:
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={
            "use_reentrant": False,
            "context_fn": lambda: (nullcontext(), kernels.recomputing()),
        }
    )
    # Only reentrant checkpoints need inputs with gradients, and the layers below the lowest adapter do not.
    model.disable_input_require_grads()


def _make_trainable(adapted: nn.Module, setup: TrainingSetup) -> list[nn.Parameter]:
    trained = [p for p in adapted.parameters() if p.requires_grad]
    if setup.autocast:
        for parameter in trained:
            parameter.data = parameter.data.float()
    return trained


def _batch(setup: TrainingSetup, length: int, task: Task) -> Mapping[str, torch.Tensor]:
    ids = torch.empty(setup.batch_size, length, dtype=torch.int64)
    batch = {"input_ids": ids}
    if setup.packed:
        batch["position_ids"] = torch.empty_like(ids)
    elif setup.padded:
        batch["attention_mask"] = torch.empty_like(ids)
    rows = (setup.batch_size,) if task == "text-classification" else ids.shape
    return {**batch, "labels": torch.empty(rows, dtype=torch.int64)}


def _replayed(resident: list[tuple[int, int]], events: list[tuple[int, int]]) -> CachingAllocator:
    """Replay the steps on an allocator that holds the model in one segment, as transformers loads it."""
    allocator = CachingAllocator()
    total = sum(size for _, size in resident)
    allocator.allocate(-1, total)
    allocator.release(-1)
    for key, size in sorted(resident, key=lambda item: -item[1]):
        allocator.allocate(key, size)
    return replay(events, allocator=allocator)
