"""Training of several candidates at once, each as it would be trained alone: its own optimiser, stream, and end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autopeft.anatomy import Task
from autopeft.candidates import AdapterPlan
from autopeft.errors import TrialError
from autopeft.trial.checkpoint import capture
from autopeft.trial.initial import rewrites_base
from autopeft.trial.memory import held_by
from autopeft.trial.model import tensors_of
from autopeft.trial.together.group import Batch, Group
from autopeft.trial.together.lifted import Bare, Lifted
from autopeft.trial.together.streams import Stream
from autopeft.trial.train import Learner, Training, shares_of

ELEMENTWISE = ("adamw",)
"""Optimisers that do not ask how a matrix lies in memory."""
_LOCAL = ("weights", "biases", "bottleneck")
"""Adapters of our own that change what single modules give, and nothing else."""
_CUDA_BLOCK = 512
"""CUDA's allocator hands out multiples of so many bytes."""


@dataclass(slots=True)
class Trainee:
    """A candidate that is to be trained with others.

    Attributes:
        steps: Steps taken at the end.
        measured_step: The step that it takes alone, so that its memory can be counted.
        pauses: Whether its training is to be gone on with later.
        peak_bytes, seconds: Measured so far, by earlier units too.
    """

    plan: AdapterPlan
    lifted: Lifted
    learner: Learner
    stream: Stream
    steps: int
    measured_step: int
    pauses: bool = False
    peak_bytes: int = 0
    seconds: float = 0.0


def is_stacked(plan: AdapterPlan) -> bool:
    """Tell whether a candidate is nothing but plain LoRA products that can be stacked with those of others."""
    config = plan.config
    return (
        config.get("peft_type") == "LORA"
        and not config.get("use_dora")
        and not config.get("lora_bias")
        and plan.recipe.optimizer in ELEMENTWISE
    )


def why_alone(plan: AdapterPlan, *, device: str) -> str:
    """Say why a candidate cannot be trained together with others; "" if it can."""
    for config in plan.configs:
        kind = config.get("peft_type", config.get("adapter_type"))
        if (
            "num_virtual_tokens" in config
            or "adapter_len" in config
            or (kind not in _LOCAL and "adapter_type" in config)
        ):
            return "a prompt makes the rows longer that attention reads"
        if kind == "ADALORA":
            return "AdaLoRA adds to the loss of the whole model"
    if plan.method == "full":
        return "it leaves nothing frozen to share"
    if rewrites_base(plan) or plan.config.get("bias", "none") != "none":
        return "it changes parameters of the base while it is trained"
    if plan.base.bits == 8 and device.startswith("cuda"):
        return "bitsandbytes chooses the columns of outliers over the rows of all"
    if plan.recipe.gradient_checkpointing:
        return "layers that are computed again would draw other random numbers"
    return ""


def train_together(
    bare: Bare,
    trainees: Sequence[Trainee],
    *,
    parts_at: Callable[[int], Sequence[Batch]],
    task: Task,
    device: str,
) -> list[Training | TrialError]:
    """Train candidates on the same batches, their adapters lifted off the base before and after.

    A candidate leaves when it has taken its steps, or when it diverges, which touches no other. The step in which its
    memory is counted each takes alone: memory of several at once is nobody's.

    Args:
        trainees: All after the same number of steps.
        parts_at: Step -> the parts of its batch, on the device.

    Returns:
        For each candidate what its training gave; or the error with which it would have ended alone.

    Raises:
        TrialError: If they cannot be trained together after all; none of them is of use then.
    """
    ended: dict[int, TrialError] = {}
    step = len(trainees[0].learner.losses)
    while left := [i for i, t in enumerate(trainees) if i not in ended and t.steps > step]:
        if any(trainees[i].measured_step == step for i in left):
            for i in left:
                _step_alone(bare, trainees[i], parts_at(step), ended, i, device=device)
            step += 1
            continue
        pauses = (pause for i in left for pause in (trainees[i].steps, trainees[i].measured_step) if pause > step)
        step = _steps_together(
            bare, trainees, left, parts_at, range(step, min(pauses)), ended, task=task, device=device
        )
    return [_end(trainees[i], ended.get(i), device=device) for i in range(len(trainees))]


def _steps_together(
    bare: Bare,
    trainees: Sequence[Trainee],
    left: Sequence[int],
    parts_at: Callable[[int], Sequence[Batch]],
    steps: range,
    ended: dict[int, TrialError],
    *,
    task: Task,
    device: str,
) -> int:
    """Take steps until the last of them is done, or a candidate has diverged; gives the step that is next."""
    some = [trainees[i] for i in left]
    start = time.monotonic()
    try:
        with group_of(bare, some, task=task, device=device) as group:
            for trainee in some:
                trainee.learner.align()
            for step in steps:
                totals = backward(group, some, parts_at(step))
                for i, loss in zip(left, totals, strict=True):
                    try:
                        trainees[i].learner.update(loss, keep_gradients=True)
                    except TrialError as error:
                        ended[i] = error
                if any(i in ended for i in left):
                    return step + 1
            return steps.stop
    finally:
        for trainee in some:
            trainee.seconds += (time.monotonic() - start) / len(some)
            trainee.learner.optimizer.zero_grad()


def group_of(bare: Bare, trainees: Sequence[Trainee], *, task: Task, device: str) -> Group:
    """Put candidates on the base together."""
    return Group(
        bare,
        [t.lifted for t in trainees],
        [t.stream for t in trainees],
        task=task,
        device=device,
        stacked=[t.plan.recipe.optimizer in ELEMENTWISE for t in trainees],
    )


def backward(group: Group, trainees: Sequence[Trainee], parts: Sequence[Batch]) -> list[float]:
    """Add the gradients of a batch; gives each candidate's loss."""
    totals = torch.zeros(len(trainees), dtype=torch.float64)
    for part, share in zip(parts, shares_of(parts), strict=True):
        with trainees[0].learner.autocast():
            losses = group.losses(part)
        scaled = [t.learner.scaled(loss, share) for t, loss in zip(trainees, losses, strict=True)]
        torch.stack(scaled).sum().backward()
        seen = torch.stack([loss.detach() if share == 1.0 else loss.detach() * share for loss in losses])
        totals += seen.double().cpu()
    return totals.tolist()


def _step_alone(
    bare: Bare, trainee: Trainee, parts: Sequence[Batch], ended: dict[int, TrialError], i: int, *, device: str
) -> None:
    start = time.monotonic()
    learner, cuda = trainee.learner, device.startswith("cuda")
    trainee.lifted.put_on(bare.model)
    learner.adapted.train()
    measured = trainee.measured_step == len(learner.losses)
    try:
        with trainee.stream:
            if measured and not cuda:
                with learner.tracker() as tracker:
                    learner.step(parts)
                trainee.peak_bytes = tracker.peak_bytes
            elif measured:
                others = torch.cuda.memory_allocated(device) - _held_bytes(learner)
                torch.cuda.reset_peak_memory_stats(device)
                learner.step(parts)
                trainee.peak_bytes = torch.cuda.max_memory_allocated(device) - others
            else:
                learner.step(parts)
    except TrialError as error:
        ended[i] = error
    finally:
        bare.strip()
        trainee.seconds += time.monotonic() - start


def _held_bytes(learner: Learner) -> int:
    """Count what CUDA has allocated for the base, a candidate's adapter and its optimiser."""
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (*tensors_of(learner.adapted).values(), *held_by(learner.optimizer))
    }
    return sum(-(-size // _CUDA_BLOCK) * _CUDA_BLOCK for size in held.values())


def _end(trainee: Trainee, error: TrialError | None, *, device: str) -> Training | TrialError:
    checkpoint = capture(trainee.learner, trainee.stream.state) if trainee.pauses and error is None else None
    if error is None:
        try:
            trainee.learner.finish()
        except TrialError as diverged:
            error = diverged
    if error is not None:
        return error
    return Training(
        peak_bytes=trainee.peak_bytes,
        reserved_bytes=0,
        memory_kind="cuda_allocated" if device.startswith("cuda") else "tensor_storage",
        seconds=trainee.seconds,
        losses=tuple(trainee.learner.losses),
        checkpoint=checkpoint,
    )
