"""The least that a trial can cost: the operations of the frozen base, at the rate of large matrix products.

Run as a script, it prints the rate of this machine: floating-point operations a CPU second of one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from autopeft.assembly import Assembly
from autopeft.candidates import Candidate, Recipe
from autopeft.compute import forward_flops, training_flops
from autopeft.plans import plan_of

SIDE = 1024
REPEATS = 12


def trial_flops(assembly: Assembly, *, steps: int, rows: int, seed: int) -> int:
    """Count the operations of a trial that adapts every layer: its steps, forward and backward, and its evaluation.

    Those of the adapter itself, some per cent, are not counted, nor is anything but matrix products.
    """
    from autopeft.trial.batches import evaluation_batches, train_parts

    data, anatomy = assembly.data, assembly.problem.anatomy
    assert data is not None
    assert anatomy is not None
    plan = plan_of(Candidate({"method": "lora", "lora.rank": 8}), anatomy)
    recipe, found = Recipe(0.0, batch_size=rows), 0
    for step in range(steps):
        (batch,) = train_parts(data, step, recipe=recipe, seed=seed)
        n, length = batch["input_ids"].shape
        found += training_flops(anatomy, plan, rows=n, length=length)
    for batch in evaluation_batches(data, "validation", batch_size=64):
        n, length = batch["input_ids"].shape
        found += sum(forward_flops(anatomy, rows=n, length=length)) + 2 * n * length * anatomy.outer_linear
    return found


def matmul_rate() -> float:
    """Measure the operations a CPU second of a product of two fp32 matrices of SIDE x SIDE, the best of some."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    best = min(_seconds(lambda: a @ b) for _ in range(REPEATS))
    return 2 * SIDE**3 / best


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    print(matmul_rate())
