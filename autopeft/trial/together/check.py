"""Whether candidates together compute what each computes alone, tried on a batch: models differ in how rows lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autopeft.anatomy import Task
from autopeft.trial.together.group import Batch
from autopeft.trial.together.lifted import Bare
from autopeft.trial.together.streams import Stream
from autopeft.trial.together.train import Trainee, backward, group_of

_NOISE = 0.01
"""Added to what is trained: many an adapter does nothing at first, and candidates would all be alike."""
_TOLERANCE, _TOLERANCE_HALF = 1e-4, 5e-2
"""Relative; of a loss, and of the norm of a candidate's gradients: in fp32, and where 16 bits are computed with."""


def is_as_alone(bare: Bare, trainees: Sequence[Trainee], parts: Sequence[Batch], *, task: Task, device: str) -> bool:
    """Compare the losses and gradients of candidates together with those of each alone.

    Nothing is trained by it, and no stream of random numbers moves.

    Args:
        parts: Those of a batch, on the device.

    Raises:
        TrialError: If they cannot be trained together.
    """
    states = [trainee.stream.state for trainee in trainees]
    weights = [[p.detach().clone() for p in trainee.learner.trained] for trainee in trainees]
    try:
        with Stream(0, device):
            for parameter in (p for trainee in trainees for p in trainee.learner.trained):
                parameter.data.add_(torch.randn_like(parameter), alpha=_NOISE)
        alone = [_alone(bare, trainee, parts) for trainee in trainees]
        for trainee, state in zip(trainees, states, strict=True):
            trainee.stream.state = state
        with group_of(bare, trainees, task=task, device=device) as group:
            losses = backward(group, trainees, parts)
            together = [(loss, _slopes(trainee)) for loss, trainee in zip(losses, trainees, strict=True)]
        return all(
            _are_close(*pair, tolerance=_TOLERANCE if trainee.learner.half is None else _TOLERANCE_HALF)
            for trainee, *pair in zip(trainees, alone, together, strict=True)
        )
    finally:
        for trainee, state, kept in zip(trainees, states, weights, strict=True):
            trainee.stream.state = state
            trainee.learner.optimizer.zero_grad()
            for parameter, values in zip(trainee.learner.trained, kept, strict=True):
                parameter.data.copy_(values)


def _alone(bare: Bare, trainee: Trainee, parts: Sequence[Batch]) -> tuple[float, Tensor]:
    learner = trainee.learner
    trainee.lifted.put_on(bare.model)
    learner.adapted.train()
    try:
        with trainee.stream:
            return learner.backward(parts), _slopes(trainee)
    finally:
        learner.optimizer.zero_grad()
        bare.strip()


def _slopes(trainee: Trainee) -> Tensor:
    """Give all gradients of a candidate in one row; zeros where there is none."""
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).detach().flatten() for p in trainee.learner.trained]
    )


def _are_close(alone: tuple[float, Tensor], together: tuple[float, Tensor], *, tolerance: float) -> bool:
    """Compare losses and gradients; with numbers that are none a candidate fails in either way."""
    (loss, slopes), (other_loss, other) = alone, together
    if not (torch.tensor(loss).isfinite() and slopes.isfinite().all()):
        return True
    return abs(loss - other_loss) <= tolerance * abs(loss) and bool(
        (slopes - other).norm() <= tolerance * slopes.norm()
    )
