"""The state of torch's random generators: taken down, and set again."""

from __future__ import annotations

import torch

State = tuple[torch.Tensor, ...]


def random_state(device: str) -> State:
    """Give the state of torch's generators: the CPU's, and that of a CUDA device."""
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.startswith("cuda") else states


def set_random_state(state: State, device: str) -> None:
    """Set the generators to a state."""
    torch.set_rng_state(state[0])
    if len(state) > 1 and device.startswith("cuda"):
        torch.cuda.set_rng_state(state[1], device)


def same_state(one: State, other: State) -> bool:
    """Tell whether nothing was drawn between two states."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
