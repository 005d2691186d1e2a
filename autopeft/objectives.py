"""OBJECTIVES: what a search optimises; each is a function of a Measurement with a goal and a unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from autopeft.candidates import Candidate
from autopeft.errors import RequestError
from autopeft.registry import Table
from autopeft.work import Measurement

Goal = Literal["maximize", "minimize"]


@dataclass(frozen=True, slots=True)
class Objective:
    """A named function of a Measurement, the direction that is better, and the unit of its value.

    Attributes:
        known: Candidate -> the value that will be measured, for a cost that can be computed before any training. The
            default engine asks it of hundreds of candidates a proposal, and learns the objective only if it was wrong.
    """

    name: str
    goal: Goal
    unit: str
    measure: Callable[[Measurement], float]
    known: Callable[[Candidate], float] | None = None

    def __post_init__(self) -> None:
        """Refuse what only a search would find out.

        Raises:
            RequestError: If the goal is neither, or `known` cannot be called.
        """
        if self.goal not in ("maximize", "minimize"):
            raise RequestError(f'objectives: goal {self.goal!r} of {self.name}; write "maximize" or "minimize"')
        if self.known is not None and not callable(self.known):
            raise RequestError(f"objectives: `known` of {self.name} is {self.known!r}; give a function of a candidate")

    def loss(self, value: float) -> float:
        """Turn a value so that smaller is better."""
        return -value if self.goal == "maximize" else value

    def known_loss(self, candidate: Candidate) -> float:
        """Give the value that will be measured, turned so that smaller is better.

        Raises:
            RequestError: If the function for it fails, or gives no finite number.
        """
        assert self.known is not None
        try:
            value = float(self.known(candidate))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise RequestError(f"objectives: `known` of {self.name}: {why}, for {candidate.written_out}") from error
        if not math.isfinite(value):
            raise RequestError(
                f"objectives: `known` of {self.name} gave {value}, for {candidate.written_out}; return a finite number"
            )
        return self.loss(value)


def objective(
    *, goal: Goal, unit: str = "", name: str = "", known: Callable[[Candidate], float] | None = None
) -> Callable[[Callable[[Measurement], float]], Objective]:
    """Make an Objective of a function.

    Args:
        known: Candidate -> the value that will be measured; see `Objective`.

    >>> @objective(goal="minimize", unit="s")
    ... def training_time(measurement):
    ...     return measurement.train_seconds
    >>> training_time.name, training_time.measure(Measurement(quality=1, train_seconds=2.5))
    ('training_time', 2.5)
    """

    def make(function: Callable[[Measurement], float]) -> Objective:
        return Objective(name or function.__name__, goal, unit, function, known)

    return make


OBJECTIVES: Table[Objective] = Table(
    {
        o.name: o
        for o in (
            Objective("quality", "maximize", "", lambda m: m.quality),
            Objective("params", "minimize", "parameters", lambda m: float(m.trainable_params)),
            Objective("memory", "minimize", "bytes", lambda m: float(m.memory_bytes)),
            Objective("train_seconds", "minimize", "s", lambda m: m.train_seconds),
            Objective("adapter_bytes", "minimize", "bytes", lambda m: float(m.adapter_bytes)),
        )
    }
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A measure of quality on held-out data: which direction is better, its unit, and the tasks it is for.

    Attributes:
        generated: Whether it judges texts that the model generates, which takes far longer than to read the answers.
    """

    name: str
    goal: Goal
    unit: str
    tasks: tuple[str, ...]
    title: str
    generated: bool = False


_LM = ("causal-lm", "seq2seq-lm")

METRICS: Table[Metric] = Table(
    {
        m.name: m
        for m in (
            Metric("accuracy", "maximize", "", ("text-classification",), "share of rows classified right"),
            Metric("f1_macro", "maximize", "", ("text-classification",), "F1 averaged over the classes"),
            Metric("matthews", "maximize", "", ("text-classification",), "Matthews correlation"),
            Metric("loss", "minimize", "nats", ("text-classification", *_LM), "mean cross-entropy"),
            Metric("perplexity", "minimize", "", _LM, "exp of the mean cross-entropy a token"),
            Metric("bits_per_byte", "minimize", "bits", _LM, "cross-entropy a byte of the answer (UTF-8)"),
            Metric("token_accuracy", "maximize", "", _LM, "share of answer tokens predicted right"),
            Metric("exact_match", "maximize", "", _LM, "share of generated answers that are the reference", True),
            Metric("rouge_l", "maximize", "", _LM, "ROUGE-L F1 of generated answers, 0 to 1", True),
            Metric("bleu", "maximize", "", _LM, "BLEU of generated answers, 0 to 100 (sacreBLEU)", True),
            Metric("chrf", "maximize", "", _LM, "chrF of generated answers, 0 to 100 (sacreBLEU)", True),
        )
    }
)
"""Metrics by name; `trial.evaluate` computes them."""

DEFAULT_METRIC = {"text-classification": "accuracy", "causal-lm": "loss", "seq2seq-lm": "loss"}
"""For texts the loss: it judges every token of every row in one pass, where a generated answer is right or wrong."""


def quality_of(metric: Metric) -> Objective:
    """Give the objective "quality" the direction and the unit of a metric."""
    return replace(OBJECTIVES["quality"], goal=metric.goal, unit=metric.unit)
