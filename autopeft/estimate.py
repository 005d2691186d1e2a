"""What configurations cost, before any training: parameters, peak memory on a GPU, size on disk, time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopeft.assembly import Assembly, assemble
from autopeft.candidates import AdapterPlan, Candidate, Cost
from autopeft.errors import RequestError
from autopeft.forecast import memory_predictor, seconds_of
from autopeft.labels import describe
from autopeft.problem import Problem
from autopeft.request import SearchRequest
from autopeft.space_file import read_space
from autopeft.yaml_file import read_yaml

_MOST_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a configuration before training.

    Attributes:
        cost: Its exact parameters, and the predicted peak of allocated memory on a CUDA device, in bytes.
        adapter_bytes: The tensors of the saved adapter.
        seconds: A trial's training on this machine, alone on it; judging comes on top.
        largest_batch: Most rows of a forward pass that the memory limit is predicted to hold; None without a limit.
        refusal: Why it would not be trained; "" if it would.
    """

    configuration: str
    candidate: Candidate
    plan: AdapterPlan
    cost: Cost
    base_params: int
    adapter_bytes: int
    seconds: float
    largest_batch: int | None
    refusal: str

    @property
    def fits(self) -> bool:
        """Tell whether a search would train it."""
        return not self.refusal

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, for JSON."""
        return {
            "configuration": self.configuration,
            "adapter_params": self.cost.adapter_params,
            "head_params": self.cost.head_params,
            "trainable_params": self.cost.trainable_params,
            "memory_bytes": self.cost.memory_bytes,
            "adapter_bytes": self.adapter_bytes,
            "seconds": self.seconds,
            "largest_batch": self.largest_batch,
            "fits": self.fits,
            "refusal": self.refusal,
            "candidate": dict(self.candidate.values),
            "adapter_config": dict(self.plan.config),
        }


def estimates(request: SearchRequest, candidates: Sequence[Mapping[str, Any]] | None) -> list[Estimate]:
    """Estimate the candidates, or the space's own configurations and its smallest; trains nothing.

    Raises:
        AutopeftError: Of the kind that says what is wrong.
    """
    # Whatever this machine is, it is a GPU that is asked about: what only a GPU is offered is offered here.
    assembly = assemble(request, space=read_space(request.space), cuda=True)
    problem, anatomy = assembly.problem, assembly.problem.anatomy
    assert anatomy is not None
    predictor = memory_predictor(assembly.info, anatomy, "cuda")
    problem = replace(problem, predicted_bytes=lambda plan: predictor.trace(plan).peak_bytes)
    if candidates is None:
        # What does not fit the memory is shown, with the rows that would.
        replace(problem, memory_limit_bytes=None).check_feasible()
        chosen = list(_standard(problem))
    else:
        chosen = list(_read(problem, candidates))
    distinct = {problem.identity(candidate): candidate for candidate in chosen}
    return [_estimate(assembly, problem, candidate) for candidate in distinct.values()]


def _read(problem: Problem, candidates: Sequence[Mapping[str, Any]]) -> Iterator[Candidate]:
    """Complete candidates, or tell the faults of them all."""
    faults = []
    for number, values in enumerate(candidates, start=1):
        try:
            yield problem.space.complete(values)
        except RequestError as error:
            remedy = "name another --space (autopeft spaces lists them), or one of your own that has it"
            faults += [f"candidate {number}: {fault}; {remedy}" for fault in error.faults]
    if faults:
        raise RequestError(*faults)


def _standard(problem: Problem) -> Iterator[Candidate]:
    """Give the configurations that a search would start with, and the smallest of all."""
    yield from problem.starts()
    yield from problem.last_resort()


def _estimate(assembly: Assembly, problem: Problem, candidate: Candidate) -> Estimate:
    from autopeft.trial.batches import typical_length  # torch comes with it

    anatomy, info, data = problem.anatomy, assembly.info, assembly.data
    plan = problem.plan(candidate)
    assert anatomy is not None
    assert plan is not None
    assert data is not None
    refusal = replace(problem, memory_limit_bytes=None).refusal(candidate)
    if refusal:
        # What cannot be trained cannot be traced either.
        cost = Cost(plan.adapter_params, anatomy.head_params)
        return Estimate(describe(candidate), candidate, plan, cost, anatomy.base_params, 0, 0.0, None, refusal)
    predictor = memory_predictor(info, anatomy, "cuda")
    trace = predictor.trace(plan)
    limit = problem.memory_limit_bytes
    rows = None
    if limit is not None:
        rows = largest_that_fits(lambda rows: predictor.trace(plan, rows=rows).peak_bytes, limit)
    length = plan.recipe.max_length if plan.recipe.packing else typical_length(data, plan.recipe.batch_size)
    return Estimate(
        configuration=describe(candidate),
        candidate=candidate,
        plan=plan,
        cost=Cost(plan.adapter_params, anatomy.head_params, trace.peak_bytes),
        base_params=anatomy.base_params,
        adapter_bytes=trace.saved_bytes,
        seconds=seconds_of(info, anatomy, plan, length=length, steps=info.request["steps"]),
        largest_batch=rows,
        refusal=problem.refusal(candidate),
    )


def largest_that_fits(peak: Callable[[int], int], limit: int, *, most: int = _MOST_ROWS) -> int:
    """Give the most rows whose peak is within a limit, up to `most`; 0 if not even one row's is.

    The peak grows with the rows, nearly in a line: a line through two of them leads close, with few peaks asked for.

    >>> largest_that_fits(lambda rows: 100 + 7 * rows, 1000)
    128
    """
    fits, too_many, guess = 0, most + 1, 1
    known: dict[int, int] = {}
    while too_many - fits > 1:
        known[guess] = peak(guess)
        if known[guess] <= limit:
            fits = guess
        else:
            too_many = guess
        below = sorted(known)[-2:] if too_many > most else [fits, too_many]
        # Where the peak is no line, every third guess halves what is left.
        steep = len(below) == 2 and all(rows in known for rows in below) and known[below[1]] > known[below[0]]
        if steep and len(known) % 3:
            slope = (known[below[1]] - known[below[0]]) / (below[1] - below[0])
            guess = int(below[0] + (limit - known[below[0]]) / slope)
        else:
            guess = 2 * guess if too_many > most else (fits + too_many) // 2
        guess = min(max(guess, fits + 1), too_many - 1)
    return fits


def read_candidates(path: Path) -> list[dict[str, Any]]:
    """Read configurations from YAML or JSON: a mapping of settings to values, as under `start` in a space, or a list.

    Raises:
        RequestError: If the file is not there, or holds something else.
    """
    found = read_yaml(path, field="candidate", form="neither YAML nor JSON")
    rows = found if isinstance(found, list) else [found]
    if not rows or not all(isinstance(row, dict) and all(isinstance(name, str) for name in row) for row in rows):
        raise RequestError(
            f"candidate: {path} must hold settings and their values, e.g. {{method: lora, lora.rank: 8}}"
        )
    return rows
