"""The bare training loop: a recipe's steps on the adapter, a schedule over the whole horizon, one seed for everything
random."""

from __future__ import annotations

import importlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from autopeft.errors import TrialError
from autopeft.recipe import OPTIMIZERS, rate_at
from autopeft.records import Recipe
from autopeft.trial.allocation import allocation, prune
from autopeft.trial.memory import StorageTracker, held_by
from autopeft.trial.model import tensors_of
from autopeft.trial.prepared import IGNORED

Batch = Mapping[str, torch.Tensor]

CLIP_NORM = 1.0

# On a CPU there is nothing to page, and the moments are plain ones.
warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")


@dataclass(frozen=True, slots=True)
class Training:
    """What a training gave: memory, time, and the loss of each step."""

    peak_bytes: int
    reserved_bytes: int
    memory_kind: str
    seconds: float
    losses: tuple[float, ...]


def make_optimizer(recipe: Recipe, trained: Sequence[torch.nn.Parameter]) -> Any:
    """Make the optimiser of a recipe."""
    optimizer = OPTIMIZERS[recipe.optimizer]
    module, _, name = optimizer.entry.partition(":")
    kind = getattr(importlib.import_module(module), name)
    return kind(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, **optimizer.options)


def shares_of(parts: Sequence[Batch]) -> list[float]:
    """Give what each part of a batch weighs: its share of the labels, for a loss is the mean over those of its part.

    >>> shares_of([{"labels": torch.tensor([1, 2, 3])}, {"labels": torch.tensor([4])}])
    [0.75, 0.25]
    """
    if len(parts) == 1:
        return [1.0]
    counts = [int((part["labels"] != IGNORED).sum()) for part in parts]
    return [count / sum(counts) for count in counts]


def train(
    adapted: Any,
    *,
    parts_at: Callable[[int], Sequence[Batch]],
    steps: int,
    recipe: Recipe,
    seed: int,
    device: str,
    measured_step: int | None,
    measuring: AbstractContextManager[None] | None = None,
) -> Training:
    """Train what requires gradients, in place.

    Args:
        adapted: A PEFT model whose trained parameters require gradients.
        parts_at: Step -> the parts of its batch, on the device; their gradients add up to that of the whole.
        recipe: Rate, schedule and optimiser; its rows and lengths are `parts_at`'s affair.
        steps: May be 0: nothing is trained, and the memory is what the model holds.
        measured_step: On CPU, the step whose tensors are counted; the one with the largest batch has the peak.
        measuring: Entered around that step, on any device.

    Raises:
        TrialError: If the loss is not a number.
    """
    trained = [p for p in adapted.parameters() if p.requires_grad]
    kept_types = [p.dtype for p in trained]
    # Half-precision parameters (norms, heads) are trained in fp32, as the adapters are; the base computes as it is.
    half = next((p.dtype for p in adapted.parameters() if p.dtype in (torch.bfloat16, torch.float16)), None)
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer, rate = make_optimizer(recipe, trained), recipe.learning_rate
    # fp16 has no room for small gradients (arXiv:1710.03740); with any other type the scaler does nothing.
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=half is torch.float16)
    torch.manual_seed(seed)
    adapted.train()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    losses: list[float] = []
    allocate = allocation(adapted, steps=steps)
    start = time.monotonic()

    def held() -> StorageTracker:
        return StorageTracker([*tensors_of(adapted).values(), *held_by(optimizer)])

    def one_step(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_at(step, steps, recipe)
        parts, total = parts_at(step), 0.0
        for part, share in zip(parts, shares_of(parts), strict=True):
            with torch.autocast(torch.device(device).type, dtype=half or torch.bfloat16, enabled=half is not None):
                loss = adapted(**part).loss
            loss = loss if share == 1.0 else loss * share
            scaler.scale(loss).backward()
            total += loss.item()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        allocate(step)
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        if not math.isfinite(total):
            raise TrialError(f"the loss is {total} at step {step}; the learning rate {rate:.2e} diverges")

    peak = 0 if steps or cuda else held().peak_bytes
    for step in range(steps):
        if step != measured_step:
            one_step(step)
            continue
        with measuring or nullcontext(), nullcontext() if cuda else held() as tracker:
            one_step(step)
        peak = tracker.peak_bytes if tracker else 0
    if not all(bool(torch.isfinite(p).all()) for p in trained):
        raise TrialError(f"the adapter is not a number at the end; the learning rate {rate:.2e} diverges")
    # As they will be saved and loaded: what is judged is what the user gets.
    for parameter, kept in zip(trained, kept_types, strict=True):
        parameter.data = parameter.data.to(kept)
    prune(adapted)
    adapted.eval()
    return Training(
        peak_bytes=torch.cuda.max_memory_allocated(device) if cuda else peak,
        reserved_bytes=torch.cuda.max_memory_reserved(device) if cuda else 0,
        memory_kind="cuda_allocated" if cuda else "tensor_storage",
        seconds=time.monotonic() - start,
        losses=tuple(losses),
    )
