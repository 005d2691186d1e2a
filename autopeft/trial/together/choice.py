"""How many candidates to train together: what pays on this device, model and batch, by trying it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from autopeft.anatomy import Task
from autopeft.trial.memory import ran_out_of_memory
from autopeft.trial.together.group import Batch
from autopeft.trial.together.lifted import Bare
from autopeft.trial.together.train import Trainee, backward, group_of

PAYS = 1.05
"""Times faster than one after the other that candidates together must be; below, each is trained alone."""
WORSE = 0.9
"""Larger numbers are not tried once one was so many times as good as the one before; less may be chance."""
_REPEATS = 3


def choose_size(
    bare: Bare,
    trainees: Sequence[Trainee],
    parts: Sequence[Batch],
    *,
    task: Task,
    device: str,
    reusing: Callable[[Any], AbstractContextManager[None]],
) -> tuple[int, dict[int, float]]:
    """Time the forward and backward pass of these candidates, one by one and 2, 4, 8, ... together.

    Nothing is trained by it, and no stream of random numbers moves.

    Args:
        reusing: Given the model with an adapter on, the context in which it would be trained alone.

    Returns:
        The best number, 1 if none pays; and number -> how many times faster it is than one after the other, 0 if memory
        did not hold so many.
    """
    states = [trainee.stream.state for trainee in trainees]
    alone = 0.0
    gains = {1: 1.0}
    timed = 0
    while (size := 2 * max(gains)) <= len(trainees):
        try:
            for trainee in trainees[timed:size]:
                alone += _seconds_alone(bare, trainee, parts, device, reusing)
            timed = size
            gains[size] = alone / _seconds_together(bare, trainees[:size], parts, task, device)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            gains[size] = 0.0
        if gains[size] < WORSE * gains[size // 2]:
            break
    for trainee, state in zip(trainees, states, strict=True):
        trainee.stream.state = state
        trainee.learner.optimizer.zero_grad()
    if not gains[max(gains)]:  # the frames of the error are gone now, and with them its tensors
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    best = max(gains, key=gains.__getitem__)
    return (best if gains[best] > PAYS else 1), gains


def _seconds_alone(
    bare: Bare,
    trainee: Trainee,
    parts: Sequence[Batch],
    device: str,
    reusing: Callable[[Any], AbstractContextManager[None]],
) -> float:
    learner = trainee.learner

    def once() -> None:
        learner.backward(parts)
        learner.optimizer.zero_grad()

    trainee.lifted.put_on(bare.model)
    learner.adapted.train()
    try:
        with reusing(learner.adapted), trainee.stream:
            return _least_seconds(once, device)
    finally:
        bare.strip()


def _seconds_together(
    bare: Bare, trainees: Sequence[Trainee], parts: Sequence[Batch], task: Task, device: str
) -> float:
    with group_of(bare, trainees, task=task, device=device) as group:

        def once() -> None:
            backward(group, trainees, parts)
            for trainee in trainees:
                trainee.learner.optimizer.zero_grad(set_to_none=False)

        return _least_seconds(once, device)


def _least_seconds(once: Callable[[], None], device: str) -> float:
    """Time something that was done once before; the least of a few.

    On a CPU that of this process, so that others on the machine do not decide.
    """
    cuda = device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    once()
    seconds = []
    for _ in range(_REPEATS):
        if cuda:
            torch.cuda.synchronize(device)
        start = clock()
        once()
        if cuda:
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    return min(seconds)
