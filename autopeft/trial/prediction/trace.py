"""Peak memory of a training on a CUDA device, predicted without one: two steps on tensors that have no storage.

The model is built on PyTorch's meta device, its tensors become fake ones, the adapter is attached by PEFT itself, and
two steps run (the optimiser's state comes to life in the first). No weight is read and nothing is computed; what is
counted is every storage that is alive, when.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftConfig, get_peft_model
from torch import nn

from autopeft.errors import SourceError
from autopeft.records import AdapterPlan
from autopeft.trial.adapters import peft_config
from autopeft.trial.model import AUTO_CLASSES, ModelSource, _head, quantization, tensors_of
from autopeft.trial.prediction.allocator import BLOCK_BYTES, EMPTY_CACHE, CachingAllocator, replay
from autopeft.trial.prediction.fakes import fake_model, no_storage
from autopeft.trial.prediction.kernels import Device, DeviceKernels
from autopeft.trial.prediction.optimizers import OPTIMIZERS
from autopeft.trial.prediction.quantized import place_quantized
from autopeft.trial.prediction.steps import LayerMemory, LayerWatch, StepMemory, held_bytes, run_step, state_of
from autopeft.trial.prediction.storages import AllocationLog
from autopeft.trial.train import CLIP_NORM

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """How a training runs; the defaults are those of `autopeft.trial.train`.

    Attributes:
        batch_size, length: Rows of a batch, and tokens of each.
        bits: Of a base weight: 32 and 16 are fp32 and `half`, 8 is LLM.int8(), 4 is nf4 twice quantised.
        half: The type of what is not quantised in a base of 16 bits and less, and what autocast computes in.
        autocast: Whether a base of 16 bits and less trains under autocast, with what is trained in fp32.
        optimizer: A name in OPTIMIZERS.
        padded: Whether a batch has rows of different lengths, so that attention needs a mask.
        use_cache: Whether the model fills a cache of keys and values, as transformers does unless told otherwise.
        keeps_output: Whether the loop holds a forward pass's output until the next one's.
        empties_cache: Whether the allocator's cache is emptied before the step that is reported.
        earlier_length: Tokens of the batches before that step; None for as many as in it.
        four_bit_type, double_quant: The kind of 4 bits.
        clip_norm: Norm to which gradients are clipped; 0 for none.
        device: Whose kernels are counted; "cpu" is for comparison with a real step there.
    """

    batch_size: int
    length: int
    bits: int = 16
    half: Literal["bfloat16", "float16"] = "bfloat16"
    autocast: bool = True
    optimizer: str = "adamw_fused"
    gradient_checkpointing: bool = False
    padded: bool = True
    use_cache: bool = False
    keeps_output: bool = False
    empties_cache: bool = False
    earlier_length: int | None = None
    four_bit_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    clip_norm: float = CLIP_NORM
    device: Device = "cuda"

    @property
    def base_dtype(self) -> torch.dtype:
        """The type of base weights that are not quantised."""
        return torch.float32 if self.bits == 32 else getattr(torch, self.half)

    @property
    def block_bytes(self) -> int:
        """What a storage's size is rounded to."""
        return BLOCK_BYTES if self.device == "cuda" else 1


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
        trained_params: Scalars that are trained.
        step: The second step in detail.
        seconds: Time that the trace took.
    """

    peak_bytes: int
    reserved_bytes: int
    base_bytes: int
    adapter_bytes: int
    state_bytes: int
    trained_params: int
    step: StepMemory
    seconds: float

    @property
    def static_bytes(self) -> int:
        """What is held between two steps."""
        return self.base_bytes + self.adapter_bytes + self.state_bytes

    @property
    def layers(self) -> tuple[LayerMemory, ...]:
        """The layers of the second step."""
        return self.step.layers


def trace_peak(
    model_config: Any,
    adapter: AdapterPlan | PeftConfig | None,
    setup: TrainingSetup,
    *,
    task: Literal["causal-lm", "text-classification"] = "causal-lm",
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
    # What lives already is no garbage of the attaching, and looking at all of it takes a third of a second.
    gc.freeze()
    model = _build_base(model_config, setup, task)
    with no_storage():
        fake_model(model)
        base = tensors_of(model).values()
        kernels = DeviceKernels(setup.device, autocast_dtype=_autocast_dtype(setup))
        with kernels, AllocationLog(base, block_bytes=setup.block_bytes) as log:
            kernels.on_written = log.note_numbers
            base_bytes = log.live_bytes
            adapted = _attach(model, adapter, task)
            if setup.gradient_checkpointing:
                _checkpoint(adapted, kernels)
            trained = _make_trainable(adapted, setup)
            gc.collect()
            gc.unfreeze()
            adapter_bytes = log.live_bytes - base_bytes
            batch = _batch(setup, setup.earlier_length or setup.length, task)
            optimizer = make_optimizer(adapted) if make_optimizer else OPTIMIZERS[setup.optimizer](trained)
            watch = LayerWatch(adapted, log)
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
        trained_params=sum(p.numel() for p in trained),
        step=last,
        seconds=time.monotonic() - start,
    )


def _autocast_dtype(setup: TrainingSetup) -> torch.dtype | None:
    return getattr(torch, setup.half) if setup.autocast and setup.bits < 32 else None


def _build_base(model_config: Any, setup: TrainingSetup, task: str) -> Any:
    """Build the base at its bits on the meta device."""
    auto = AUTO_CLASSES[task]
    if type(model_config) not in auto._model_mapping:
        raise SourceError(f"model: a {model_config.model_type} has no {task} form in transformers")
    with torch.device("meta"):
        model = auto.from_config(model_config, dtype=setup.base_dtype)
    if setup.bits in (4, 8):
        place_quantized(model, _quantization(setup, task))
    model.config.use_cache = setup.use_cache
    return model


def _quantization(setup: TrainingSetup, task: Any) -> Any:
    config = quantization(setup.bits, getattr(torch, setup.half), ModelSource("", task))
    if setup.bits == 4:
        config.bnb_4bit_quant_type = setup.four_bit_type
        config.bnb_4bit_use_double_quant = setup.double_quant
    return config


def _attach(model: Any, adapter: AdapterPlan | PeftConfig | None, task: Any) -> Any:
    if adapter is None:
        return model.requires_grad_(True)
    head = _head(model, task)
    if isinstance(adapter, AdapterPlan):
        adapter = peft_config(adapter, task=task, head=head)
    return get_peft_model(model, adapter)


def _checkpoint(adapted: Any, kernels: DeviceKernels) -> None:
    # Without inputs that need gradients a checkpointed layer would build no graph; PEFT's users call this too.
    adapted.enable_input_require_grads()
    adapted.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={
            "use_reentrant": False,
            "context_fn": lambda: (nullcontext(), kernels.recomputing()),
        }
    )


def _make_trainable(adapted: nn.Module, setup: TrainingSetup) -> list[nn.Parameter]:
    trained = [p for p in adapted.parameters() if p.requires_grad]
    if setup.autocast:
        for parameter in trained:
            parameter.data = parameter.data.float()
    return trained


def _batch(setup: TrainingSetup, length: int, task: str) -> Mapping[str, torch.Tensor]:
    ids = torch.empty(setup.batch_size, length, dtype=torch.int64)
    batch = {"input_ids": ids}
    if setup.padded:
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
