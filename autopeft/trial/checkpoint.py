"""A training between two steps: all that it takes to go on, on any worker, as if it had never stopped.

What an adapter begins with (frozen projections, what PiSSA takes out of the base) is made again from plan and seed when
it is attached; kept is only what training changes. The cursor in the data is the number of steps taken.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from autopeft.errors import TrialError
from autopeft.plain import digest
from autopeft.trial.allocation import allocated, set_allocated
from autopeft.trial.generators import State
from autopeft.work import WorkUnit

if TYPE_CHECKING:
    from autopeft.trial.train import Learner

_TRAINED, _OPTIMIZER, _ALLOCATION, _RANDOM = "trained/", "optimizer/", "allocation/", "random/"
_FIELDS, _DIGEST = "checkpoint", "digest"


class CheckpointError(TrialError):
    """A state that cannot be gone on from: it is missing, damaged, or that of another training."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training after some steps.

    Attributes:
        tensors: Copies on the host: what is trained, in the precision in which it is trained; what the optimiser and
            AdaLoRA keep; the generators.
        optimizer: Parameter -> what the optimiser keeps of it: plain values, and names of tensors as {"tensor": name}.
        scaler: State of the gradient scaler.
        allocation: What AdaLoRA has allocated.
        losses: Training loss of each step so far.
        peak_bytes, reserved_bytes, seconds: Measured so far.
    """

    tensors: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Any]]
    scaler: Mapping[str, Any]
    allocation: Mapping[str, Any]
    losses: tuple[float, ...]
    peak_bytes: int = 0
    reserved_bytes: int = 0
    seconds: float = 0.0

    @property
    def random(self) -> State:
        """The state of the generators."""
        return tuple(self.tensors[name] for name in sorted(self.tensors) if name.startswith(_RANDOM))

    def check(self, trained: Mapping[str, Tensor]) -> None:
        """Make sure that it is one of the adapter of which these are trained.

        Raises:
            CheckpointError: If it is not.
        """
        wanted = {_TRAINED + name: parameter.shape for name, parameter in trained.items()}
        if wanted != {name: t.shape for name, t in self.tensors.items() if name.startswith(_TRAINED)}:
            raise CheckpointError("what is trained differs from what was")


def capture(learner: Learner, random: State) -> Checkpoint:
    """Copy the state of a training, before it is turned into what is judged."""
    tensors = {_TRAINED + name: _copied(p) for name, p in learner.named.items()}
    held: dict[int, str] = {}  # bitsandbytes lets all parameters share one table

    def said(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in held:
            held[id(value)] = f"{_OPTIMIZER}{len(held)}"
            tensors[held[id(value)]] = _copied(value)
        return {"tensor": held[id(value)]}

    state = learner.optimizer.state
    optimizer = {name: {key: said(v) for key, v in state[p].items()} for name, p in learner.named.items() if p in state}
    kept, pattern = allocated(learner.adapted)
    tensors |= {_ALLOCATION + name: _copied(tensor) for name, tensor in kept.items()}
    tensors |= {f"{_RANDOM}{i}": _copied(generator) for i, generator in enumerate(random)}
    return Checkpoint(
        tensors,
        optimizer,
        learner.scaler.state_dict(),
        pattern,
        tuple(learner.losses),
    )


def restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Put a new learner in the state of its training; the generators are the caller's.

    Raises:
        CheckpointError: If it is the state of another adapter.
    """
    checkpoint.check(learner.named)
    given: dict[str, Tensor] = {}

    def found(value: Any, parameter: Tensor) -> Any:
        if not isinstance(value, dict):
            return value
        if (name := value["tensor"]) not in given:
            given[name] = _laid_as(parameter, checkpoint.tensors[name])
        return given[name]

    for name, parameter in learner.named.items():
        parameter.data.copy_(checkpoint.tensors[_TRAINED + name])
        if name in checkpoint.optimizer:
            kept = checkpoint.optimizer[name]
            learner.optimizer.state[parameter] = {key: found(value, parameter) for key, value in kept.items()}
    if checkpoint.scaler:
        learner.scaler.load_state_dict(dict(checkpoint.scaler))
    of_ranks = {n.removeprefix(_ALLOCATION): t for n, t in checkpoint.tensors.items() if n.startswith(_ALLOCATION)}
    set_allocated(learner.adapted, of_ranks, checkpoint.allocation)
    learner.losses = list(checkpoint.losses)


def path_of(unit: WorkUnit, step: int) -> Path:
    """Give where the state of a trial lies after some steps, relative to the run directory."""
    return Path(unit.state_dir) / f"{step}.safetensors"


def leave(checkpoint: Checkpoint, unit: WorkUnit, *, run_dir: Path) -> None:
    """Write the state that a unit ends with, whole or not at all."""
    fields: dict[str, Any] = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}
    tensors = fields.pop("tensors")
    text = json.dumps({**fields, "of": _identity(unit)})
    path = run_dir / path_of(unit, unit.steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    # An orphan of a killed driver may still be writing the same state.
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    safetensors.torch.save_file(tensors, partial, metadata={_FIELDS: text, _DIGEST: _digest(tensors, text)})
    partial.replace(path)


def find(unit: WorkUnit, *, run_dir: Path, trained: Mapping[str, Tensor] | None = None) -> Checkpoint | None:
    """Read the state that a unit goes on from; None if it begins, or must begin anew because that is lost.

    Args:
        trained: What is trained of its adapter, by name, where that is known.
    """
    if not unit.first:
        return None
    try:
        checkpoint = _read(run_dir / path_of(unit, unit.first), unit)
        if trained is not None:
            checkpoint.check(trained)
        return checkpoint
    except CheckpointError as error:
        told = "trial %s begins anew, for its state at step %s is lost: %s"
        logging.getLogger(__name__).warning(told, unit.trial, unit.first, error)
        return None


def _read(path: Path, unit: WorkUnit) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if said[_DIGEST] != _digest(tensors, said[_FIELDS]):
            raise CheckpointError(f"{path.name} is damaged")
        fields = json.loads(said[_FIELDS])
        if fields.pop("of") != _identity(unit) or len(fields["losses"]) != unit.first:
            raise CheckpointError(f"{path.name} is the state of another training")
        return Checkpoint(tensors, **{**fields, "losses": tuple(fields["losses"])})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from None


def _identity(unit: WorkUnit) -> str:
    """Give what makes trainings the same one."""
    assert unit.plan is not None
    return digest([unit.plan.to_dict(), unit.seed, unit.data_seed, unit.whole])


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Checksum tensors, their names, and what is said beside them."""
    hashed = xxhash.xxh3_64(text.encode())
    for name in sorted(tensors):
        hashed.update(name.encode())
        hashed.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _laid_as(parameter: Tensor, kept: Tensor) -> Tensor:
    """Copy what an optimiser keeps to a parameter's device; its kernels go through both as raw memory."""
    if kept.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=kept.dtype).copy_(kept)
    return kept.to(parameter.device, copy=True)
