"""The bare training loop: a recipe's steps on the adapter, a schedule over the whole horizon, one seed for everything
random."""

from __future__ import annotations

import importlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from autopeft.candidates import Recipe
from autopeft.errors import TrialError
from autopeft.recipe import OPTIMIZERS, rate_at
from autopeft.trial.allocation import allocation, prune
from autopeft.trial.checkpoint import Checkpoint, capture, restore
from autopeft.trial.generators import random_state, set_random_state
from autopeft.trial.memory import StorageTracker, held_by
from autopeft.trial.model import tensors_of
from autopeft.trial.prepared import IGNORED

Batch = Mapping[str, torch.Tensor]

CLIP_NORM = 1.0

# On a CPU there is nothing to page, and the moments are plain ones.
warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")


@dataclass(frozen=True, slots=True)
class Training:
    """What a training gave, from its first step on: memory, time, and the loss of each step.

    Attributes:
        checkpoint: What it can be gone on from, but for what was measured; None if it is over.
    """

    peak_bytes: int
    reserved_bytes: int
    memory_kind: str
    seconds: float
    losses: tuple[float, ...]
    checkpoint: Checkpoint | None = None

    @property
    def state(self) -> Checkpoint | None:
        """What it can be gone on from; None if it is over."""
        if self.checkpoint is None:
            return None
        return replace(
            self.checkpoint, peak_bytes=self.peak_bytes, reserved_bytes=self.reserved_bytes, seconds=self.seconds
        )


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


def trained_of(adapted: Any) -> dict[str, torch.nn.Parameter]:
    """Give what is trained of a model, by its name."""
    return {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}


class Learner:
    """One candidate while it is trained: what is trained of it, its optimiser and schedule, and its losses.

    Args:
        adapted: A PEFT model whose trained parameters require gradients.
        steps: All of its training.

    Attributes:
        named, trained: What is trained, by its name in the model when the adapter is on it, and in the same order.
        losses: Of each step so far.
        scaler: Keeps small gradients of fp16 above zero.
        half: The type of 16 bits that the base computes in; None in fp32.
    """

    def __init__(self, adapted: Any, *, steps: int, recipe: Recipe, device: str) -> None:
        self.adapted, self._steps, self._recipe, self._device = adapted, steps, recipe, device
        self.named = trained_of(adapted)
        self.trained = list(self.named.values())
        self._kept_types = [p.dtype for p in self.trained]
        # Half-precision parameters (norms, heads) are trained in fp32, as the adapters are; the base computes as it is.
        self.half = next((p.dtype for p in adapted.parameters() if p.dtype in (torch.bfloat16, torch.float16)), None)
        for parameter in self.trained:
            parameter.data = parameter.data.float()
        self.optimizer = make_optimizer(recipe, self.trained)
        # fp16 has no room for small gradients (arXiv:1710.03740); with any other type the scaler does nothing.
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=self.half is torch.float16)
        self._allocate = allocation(adapted, steps=steps)
        self.losses: list[float] = []

    def align(self) -> None:
        """Lay what the optimiser keeps as the parameters lie now: its kernels go through both as raw memory."""
        for parameter, state in self.optimizer.state.items():
            for name, kept in state.items():
                if (
                    isinstance(kept, torch.Tensor)
                    and kept.shape == parameter.shape
                    and kept.stride() != parameter.stride()
                ):
                    state[name] = torch.empty_like(parameter, dtype=kept.dtype).copy_(kept)

    def autocast(self) -> torch.autocast:
        """Give the context in which the base computes."""
        dtype = self.half or torch.bfloat16
        return torch.autocast(torch.device(self._device).type, dtype=dtype, enabled=self.half is not None)

    def scaled(self, loss: torch.Tensor, share: float) -> torch.Tensor:
        """Give what gradients are taken of, for a part of a batch."""
        return self.scaler.scale(loss if share == 1.0 else loss * share)

    def step(self, parts: Sequence[Batch]) -> None:
        """Take the next step.

        Raises:
            TrialError: If the loss is not a number.
        """
        self.update(self.backward(parts))

    def backward(self, parts: Sequence[Batch]) -> float:
        """Add the gradients of a batch; gives its loss."""
        total = 0.0
        for part, share in zip(parts, shares_of(parts), strict=True):
            with self.autocast():
                loss = self.adapted(**part).loss
            self.scaled(loss, share).backward()
            total += (loss if share == 1.0 else loss * share).item()
        return total

    def update(self, loss: float, *, keep_gradients: bool = False) -> None:
        """Do what follows the backward pass of a step.

        Args:
            keep_gradients: Whether gradients stay where they are, as zeros.

        Raises:
            TrialError: If the loss is not a number.
        """
        step, rate = len(self.losses), self._recipe.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * rate_at(step, self._steps, self._recipe)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._allocate(step)
        self.optimizer.zero_grad(set_to_none=not keep_gradients)
        self.losses.append(loss)
        if not math.isfinite(loss):
            raise TrialError(f"the loss is {loss} at step {step}; the learning rate {rate:.2e} diverges")

    def finish(self) -> None:
        """Turn what was trained into what will be saved and loaded: what is judged is what the user gets.

        Raises:
            TrialError: If it is not a number.
        """
        if not all(bool(torch.isfinite(p).all()) for p in self.trained):
            rate = self._recipe.learning_rate
            raise TrialError(f"the adapter is not a number at the end; the learning rate {rate:.2e} diverges")
        for parameter, kept in zip(self.trained, self._kept_types, strict=True):
            parameter.data = parameter.data.to(kept).contiguous()
        prune(self.adapted)
        self.adapted.eval()

    def tracker(self) -> StorageTracker:
        """Give what counts the memory of a step on a CPU."""
        return StorageTracker([*tensors_of(self.adapted).values(), *held_by(self.optimizer)])


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
    horizon: int = 0,
    begun: Checkpoint | None = None,
    beside_bytes: int = 0,
) -> Training:
    """Train what requires gradients, in place.

    Args:
        adapted: A PEFT model whose trained parameters require gradients.
        parts_at: Step -> the parts of its batch, on the device; their gradients add up to that of the whole.
        recipe: Rate, schedule and optimiser; its rows and lengths are `parts_at`'s affair.
        steps: Steps taken at the end. May be 0: nothing is trained, and the memory is what the model holds.
        measured_step: On CPU, the step whose tensors are counted; the one with the largest batch has the peak.
            Where an earlier unit took it, what was counted then is the peak.
        measuring: Entered around that step, on any device.
        horizon: Steps of the whole training; 0 for `steps`.
        begun: The state to go on from, one that fits.
        beside_bytes: Of what CUDA has allocated, what is not this training's.

    Raises:
        TrialError: If the loss is not a number.
        CheckpointError: If the state is that of another adapter.
    """
    learner = Learner(adapted, steps=horizon or steps, recipe=recipe, device=device)
    torch.manual_seed(seed)
    if begun is not None:
        restore(learner, begun)
        set_random_state(begun.random, device)
    adapted.train()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.monotonic()
    peak = 0 if steps or cuda else learner.tracker().peak_bytes
    for step in range(len(learner.losses), steps):
        if step != measured_step:
            learner.step(parts_at(step))
            continue
        with measuring or nullcontext(), nullcontext() if cuda else learner.tracker() as tracker:
            learner.step(parts_at(step))
        peak = tracker.peak_bytes if tracker else 0
    checkpoint = capture(learner, random_state(device)) if steps < horizon else None
    learner.finish()
    seconds, reserved = time.monotonic() - start, 0
    if cuda:
        peak = torch.cuda.max_memory_allocated(device) - beside_bytes
        reserved = max(0, torch.cuda.max_memory_reserved(device) - beside_bytes)
    if begun is not None:
        peak = max(peak, begun.peak_bytes) if cuda else peak or begun.peak_bytes
        reserved, seconds = max(reserved, begun.reserved_bytes), seconds + begun.seconds
    return Training(
        peak_bytes=peak,
        reserved_bytes=reserved,
        memory_kind="cuda_allocated" if cuda else "tensor_storage",
        seconds=seconds,
        losses=tuple(learner.losses),
        checkpoint=checkpoint,
    )
