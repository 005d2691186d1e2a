"""SearchRequest: one schema for YAML, command line and Python; it reports all its faults at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from autopeft.errors import RequestError
from autopeft.objectives import DEFAULT_METRIC, METRICS
from autopeft.recipe import BITS, Dimensions
from autopeft.registry import unknown
from autopeft.units import ParameterLimit, parse_bytes, parse_parameter_limit, parse_seconds, parse_steps

T = TypeVar("T")

_AUTO_RUNGS = 27  # steps of a trial below which a ninth of them tells nothing

NO_LIMIT = "none"
"""The budget that is no limit."""

COLUMN_ROLES = (
    "text", "text_pair", "label", "prompt", "completion", "instruction", "input", "output", "messages",
)  # fmt: skip
"""The roles that a column of the data can have; by default a column has its role's name."""


class SearchRequest(Dimensions):
    """What the user asks for. Every field has a default; `request.yaml` in a run directory holds them all.

    Sizes and times keep the form in which they were written ("0.5%", "16GiB", "30min").
    """

    model: str | None = Field(None, description="model folder or hub id; without it the embedded MiniLM encoder")
    data: str | None = Field(None, description="file, folder of splits, or hub id; without it the docstring data")
    task: Literal["auto", "text-classification", "causal-lm", "seq2seq-lm"] = Field(
        "auto", description="what the model learns"
    )
    columns: dict[str, str] = Field(default_factory=dict, description="role -> name of a column in the data")
    budget: str | int = Field("0.5%", description="most trainable parameters: a share of the model, a count, or none")
    memory: str | int | None = Field(None, description="most peak memory of a training, e.g. 16GiB")
    time: str | float | None = Field(None, description="most time of the search, e.g. 30min")
    trials: Annotated[int, Field(ge=1)] | None = Field(
        None, description="how many candidates to train; by default 24 if there is no other limit"
    )
    steps_total: Annotated[int, Field(ge=1)] | None = Field(
        None, description="most optimiser steps of the whole search, over all trials; finalists come on top"
    )
    until_converged: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="stop when less than this share of the front's volume is expected to be gained, e.g. 0.005"
    )
    steps: Annotated[int, Field(ge=1)] = Field(100, description="optimiser steps a trial")
    rungs: Literal["auto", "off"] | list[Annotated[int, Field(ge=1)]] = Field(
        "auto", description="steps after which only the best trials go on; auto: a ninth and a third of the steps"
    )
    final_seeds: Annotated[int, Field(ge=0, le=100)] = Field(
        3, description="other seeds to train the front's points again with, judged on the test split; 0 for none"
    )
    bits: list[int] | None = Field(None, description="bits of the frozen base to search; by default the space's")
    eval_rows: Annotated[int, Field(ge=1)] = Field(500, description="most rows to judge a trial on")
    generate_rows: Annotated[int, Field(ge=1)] = Field(
        100, description="most of these rows to generate an answer for, where the metric judges generated text"
    )
    space: str = Field("default", description="name of a search space, or a YAML file")
    metric: str | None = Field(None, description="the measure of quality; by default accuracy, or loss for texts")
    objectives: list[str] = Field(["quality", "params", "memory"], description="what to optimise")
    sampler: str = Field("known-cost", description="engine that proposes candidates")
    warm_from: list[str] = Field(
        default_factory=list, description="folders of earlier runs, which tell the engine where to look first"
    )
    executor: Literal["ray", "local"] = Field("ray", description="where trials run")
    workers: Annotated[int, Field(ge=1)] | None = Field(None, description="trials at once; by default what fits")
    together: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="candidates given to a worker at once, trained together where that pays"
    )
    gpus_per_worker: Annotated[float, Field(gt=0)] | None = Field(None, description="GPU share of a trial, e.g. 0.5")
    ray_address: str | None = Field(None, description="address of a running Ray cluster, or 'auto'")
    storage: str | None = Field(None, description="Optuna storage URL; by default SQLite in the run directory")
    out: str | None = Field(None, description="run directory; by default a new one under autopeft-runs/")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="seed of everything random")

    @field_validator("budget")
    @classmethod
    def _budget(cls, value: str | int) -> str | int:
        return (
            value
            if value == NO_LIMIT
            else _checked(value, parse_parameter_limit, "write e.g. 0.5%, 2M, 800000 or none")
        )

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str | int | None) -> str | int | None:
        return _checked(value, parse_bytes, "write e.g. 16GiB")

    @field_validator("time")
    @classmethod
    def _time(cls, value: str | float | None) -> str | float | None:
        return _checked(value, parse_seconds, "write e.g. 30min")

    @field_validator("bits", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return [value] if isinstance(value, int) else value

    @field_validator("bits")
    @classmethod
    def _bits(cls, value: list[int] | None) -> list[int] | None:
        for bits in value or ():
            if bits not in BITS:
                raise ValueError(f"a base has {', '.join(map(str, BITS))} bits, not {bits}")
        if value is not None and (not value or len(set(value)) != len(value)):
            raise ValueError("name each of them once, at least one, e.g. 4 or 16,4")
        return value

    @field_validator("rungs", mode="before")
    @classmethod
    def _rungs(cls, value: object) -> object:
        if value is False or value in ("auto", "off"):
            return value or "off"  # YAML reads off as false
        try:
            return parse_steps(value)
        except ValueError:
            raise ValueError("write auto, off, or steps that ascend, e.g. 10,30,100") from None

    @field_validator("columns")
    @classmethod
    def _columns(cls, value: dict[str, str]) -> dict[str, str]:
        for role in value:
            if role not in COLUMN_ROLES:
                raise ValueError(str(unknown(role, COLUMN_ROLES, what="column role")))
        return value

    @field_validator("metric")
    @classmethod
    def _metric(cls, value: str | None) -> str | None:
        if value is not None and value not in METRICS:
            raise ValueError(str(unknown(value, METRICS, what="metric")))
        return value

    @field_validator("objectives")
    @classmethod
    def _objectives(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one objective, e.g. quality,params,memory")
        if len(set(value)) != len(value):
            raise ValueError(f"{', '.join(value)}: an objective is named twice")
        return value

    @field_validator("warm_from", mode="before")
    @classmethod
    def _warm_from(cls, value: object) -> object:
        paths = list(map(str, value)) if isinstance(value, list | tuple) else [str(value)]
        real = [os.path.realpath(path) for path in paths]
        if twice := [paths[i] for i, path in enumerate(real) if path in real[:i]]:
            raise ValueError(f"{twice[0]} is named twice; name it once")
        return paths

    @model_validator(mode="after")
    def _together(self) -> SearchRequest:
        faults = []
        if self.model is not None and self.data is None:
            faults.append(f"model: {self.model!r} needs data to be judged on; add --data")
        if self.metric is not None and self.task != "auto" and self.task not in METRICS[self.metric].tasks:
            fitting = [m.name for m in METRICS.values() if self.task in m.tasks]
            faults.append(f"metric: {self.metric!r} is not for {self.task}; choose one of {', '.join(fitting)}")
        if isinstance(self.rungs, list) and self.rungs[-1] > self.steps:
            faults.append(f"rungs: {self.rungs[-1]} is beyond the {self.steps} steps of a trial; raise --steps")
        if self.until_converged and self.sampler != "known-cost":
            faults.append(f"until_converged: {self.sampler} expects nothing; use --sampler known-cost, or drop it")
        if self.warm_from and self.sampler != "known-cost":
            faults.append(f"warm_from: {self.sampler} knows no earlier runs; use --sampler known-cost, or drop it")
        if self.steps_total is not None and self.steps_total < self.steps:
            faults.append(f"steps_total: {self.steps_total} does not hold the {self.steps} steps of a trial; raise it")
        if self.executor == "local" and self.ray_address is not None:
            faults.append(f"ray_address: {self.ray_address!r} means nothing with --executor local; drop one of the two")
        if self.executor == "local" and self.gpus_per_worker is not None:
            gpus = self.gpus_per_worker
            faults.append(f"gpus_per_worker: {gpus} means nothing with --executor local; drop one of the two")
        if self.executor == "ray" and self.ray_address is not None and self.workers is None:
            faults.append("workers: how many on the cluster? Add --workers")
        if self.executor == "local" and self.workers not in (None, 1):
            faults.append(f"workers: {self.workers} with --executor local, which runs one trial at a time; use ray")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def parameter_limit(self) -> ParameterLimit | None:
        """The parameter budget; None for no limit."""
        return None if self.budget == NO_LIMIT else parse_parameter_limit(self.budget)

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit in bytes; None for no limit."""
        return None if self.memory is None else parse_bytes(self.memory)

    @property
    def time_seconds(self) -> float | None:
        """The time limit; None for no limit."""
        return None if self.time is None else parse_seconds(self.time)

    @property
    def pauses(self) -> tuple[int, ...]:
        """The steps at which trials pause, ascending; none without rungs.

        >>> SearchRequest(steps=100, rungs="auto").pauses, SearchRequest(steps=100, rungs=[10, 100]).pauses
        ((11, 33), (10,))
        """
        if isinstance(self.rungs, list):
            return tuple(step for step in self.rungs if step < self.steps)
        return (self.steps // 9, self.steps // 3) if self.rungs == "auto" and self.steps >= _AUTO_RUNGS else ()

    def metric_for(self, task: str) -> str:
        """Give the metric that measures quality on a task.

        Raises:
            RequestError: If the metric asked for is not one of the task's.
        """
        name = self.metric or DEFAULT_METRIC[task]
        if task not in METRICS[name].tasks:
            fitting = ", ".join(m.name for m in METRICS.values() if task in m.tasks)
            raise RequestError(f"metric: {name!r} is not for {task}; choose one of {fitting}")
        return name


def _checked(value: T, parse: Callable[[Any], object], remedy: str) -> T:
    if value is not None:
        try:
            parse(value)
        except ValueError as error:
            raise ValueError(f"{error}; {remedy}") from None
    return value
