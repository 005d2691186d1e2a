"""The bare training loop: AdamW on the adapter, a schedule over the whole horizon, one seed for everything random."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autopeft.errors import TrialError
from autopeft.trial.allocation import allocation, prune
from autopeft.trial.memory import StorageTracker, held_by
from autopeft.trial.model import tensors_of

Batch = Mapping[str, torch.Tensor]

WARMUP = 0.06
"""Fraction of the steps over which the learning rate rises; it falls linearly to 0 after (Hu et al. 2021)."""
CLIP_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Training:
    """What a training gave: memory, time, and the loss of each step."""

    peak_bytes: int
    reserved_bytes: int
    memory_kind: str
    seconds: float
    losses: tuple[float, ...]


def rate_at(step: int, steps: int) -> float:
    """Give the learning rate of a step as a fraction of the peak.

    >>> rate_at(0, 100), rate_at(5, 100), rate_at(100, 100)
    (0.16666666666666666, 1.0, 0.0)
    """
    warm = max(1, math.ceil(WARMUP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def train(
    adapted: Any,
    *,
    batch_at: Callable[[int], Batch],
    steps: int,
    learning_rate: float,
    seed: int,
    device: str,
    measured_step: int,
) -> Training:
    """Train what requires gradients, in place.

    Args:
        adapted: A PEFT model whose trained parameters require gradients.
        batch_at: Step -> batch, on the device.
        measured_step: On CPU, the step whose tensors are counted; the one with the largest batch has the peak.

    Raises:
        TrialError: If the loss is not a number.
    """
    trained = [p for p in adapted.parameters() if p.requires_grad]
    kept_types = [p.dtype for p in trained]
    # Half-precision parameters (norms, heads) are trained in fp32, as the adapters are; the base computes as it is.
    mixed = any(p.dtype in (torch.bfloat16, torch.float16) for p in adapted.parameters())
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, fused=True)
    torch.manual_seed(seed)
    adapted.train()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    losses: list[float] = []
    allocate = allocation(adapted, steps=steps)
    peak, start = 0, time.monotonic()

    def one_step(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate_at(step, steps)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=mixed):
            loss = adapted(**batch_at(step)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        allocate(step)
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise TrialError(f"the loss is {losses[-1]} at step {step}; the learning rate {learning_rate:.2e} diverges")

    for step in range(steps):
        if step == measured_step and not cuda:
            with StorageTracker([*tensors_of(adapted).values(), *held_by(optimizer)]) as tracker:
                one_step(step)
            peak = tracker.peak_bytes
        else:
            one_step(step)
    if not all(bool(torch.isfinite(p).all()) for p in trained):
        raise TrialError(f"the adapter is not a number at the end; the learning rate {learning_rate:.2e} diverges")
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
