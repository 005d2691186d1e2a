"""Problems on a small model, and records whose values come from a formula in place of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.anatomy import Anatomy
from autopeft.binding import bind_space
from autopeft.objectives import OBJECTIVES
from autopeft.problem import Problem
from autopeft.records import TrialRecord
from autopeft.search.sampler import SAMPLERS
from autopeft.search.study import Proposal
from autopeft.space_file import load_space, parse_space

ENGINES = [name for name in SAMPLERS if name != "autopeft"]
"""All but the peer that takes BoTorch a second a proposal; what is its own is in `test_known_cost`."""

THREE = tuple(OBJECTIVES[name] for name in ("quality", "params", "memory"))


def problem_on(anatomy: Anatomy, *, space: str | Mapping[str, Any] = "default", limit: int | None = None) -> Problem:
    loaded = load_space(space) if isinstance(space, str) else parse_space(space)
    return Problem(bind_space(loaded, anatomy, cuda=True), THREE, anatomy, parameter_limit=limit)


def told_by_hand(problem: Problem, proposal: Proposal, state: str = "complete", reason: str = "") -> TrialRecord:
    """Make the record of a trial: better with a learning rate near 5 times the customary one, dearer with its size."""
    candidate, cost = proposal.candidate, problem.cost(proposal.candidate)
    size = cost.trainable_params if cost else 1000
    rate = float(candidate.values.get("lr_multiple", 1.0))
    quality = -abs(math.log(rate / 5)) - (0.5 if candidate.values.get("method") == "prompt_tuning" else 0)
    values = {"quality": quality, "params": float(size), "memory": 1e6 * float(candidate.values.get("bits", 32)) + size}
    plan = problem.plan(candidate)
    kept = values if state == "complete" else {}
    return TrialRecord(proposal.number, state, candidate, 0, cost, plan, values=kept, reason=reason)  # type: ignore[arg-type]


def records_of(problem: Problem, proposals: Sequence[Proposal]) -> list[TrialRecord]:
    return [told_by_hand(problem, proposal) for proposal in proposals]
