"""The fast model of memory beside traces: random candidates of the default space on models that are shapes only."""

from __future__ import annotations

import csv
import dataclasses
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from published_memory import LLAMA_3B
from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config

from autopeft.anatomy import Task
from autopeft.binding import bind_space
from autopeft.candidates import Recipe, Scalar
from autopeft.domains import Choices, Domain, Ordinal
from autopeft.methods import METHODS
from autopeft.problem import Problem
from autopeft.space_file import load_space
from autopeft.trial.model import ModelSource, load_config
from autopeft.trial.prediction import MemoryPredictor
from autopeft.trial.reading import read_anatomy

LLAMA_1B = {**LLAMA_3B, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
SHAPES: dict[str, tuple[Callable[[], Any], Task, int]] = {
    "llama-3b": (lambda: LlamaConfig(**LLAMA_3B), "causal-lm", 512),
    "llama-1b": (lambda: LlamaConfig(**LLAMA_1B), "causal-lm", 256),
    "gpt2": (lambda: GPT2Config(pad_token_id=0), "causal-lm", 256),
    "bert-base": (BertConfig, "text-classification", 128),
    "minilm": (lambda: BertConfig(**MINILM), "text-classification", 64),
    "t5-small": (lambda: T5Config(decoder_start_token_id=0), "text-classification", 128),
}
"""A model's shape, its task, and the tokens of a batch."""


@dataclass(frozen=True)
class Answer:
    """What the fast model said of a candidate, and what its trace said, in bytes.

    Attributes:
        seen: Whether it only taught the model.
        by: "fit" if the answer took no trace, else "trace".
        traces: How many were made for the answer: of designs, and of the plan itself.
        milliseconds: CPU time of the answer.
    """

    seen: bool
    method: str
    bits: int
    by: str
    predicted: int
    traced: int
    error: float
    traces: int
    milliseconds: float


@dataclass(frozen=True)
class Asked:
    """Which candidates are asked for."""

    shape: str
    recipe: Recipe
    seed: int
    methods: tuple[str, ...]
    bits: int


def compare_model(asked: Asked, taught: int, count: int) -> Iterator[Answer]:
    """Ask about random candidates of the default space, no plan twice; those that only teach are not traced besides."""
    make, task, length = SHAPES[asked.shape]
    with tempfile.TemporaryDirectory() as folder:
        make().save_pretrained(folder)
        source = ModelSource(folder, task, ("a", "b") if task == "text-classification" else ())
        anatomy, config = read_anatomy(source), load_config(source)
    space = bind_space(load_space("default"), anatomy, cuda=True)
    problem = Problem(space, (), anatomy, recipe=asked.recipe)
    predictor = MemoryPredictor(config, anatomy, length=length)
    draw = random.Random(asked.seed)
    known: set[str] = set()
    while len(known) < taught + count:
        candidate = space.complete({p.name: drawn(p.domain, draw) for p in space})
        plan = problem.plan(candidate)
        if plan is None or problem.refusal(candidate) or problem.identity(candidate) in known:
            continue
        if plan.method not in (asked.methods if any(asked.methods) else METHODS) or asked.bits not in (0, plan.bits):
            continue
        known.add(problem.identity(candidate))
        seen = len(known) <= taught
        before, start = predictor.traces, time.process_time()
        predicted = predictor.peak(plan)
        milliseconds = 1000 * (time.process_time() - start)
        traces = predictor.traces - before
        traced = predicted if seen else predictor.trace(plan).peak_bytes
        gc.collect()
        by = "trace" if traces else "fit"
        error = round(predicted / traced - 1, 5)
        yield Answer(seen, plan.method, plan.bits, by, predicted, traced, error, traces, round(milliseconds, 3))


def shown(answers: Iterable[Answer], path: Path | None) -> Iterator[Answer]:
    """Pass answers on, each printed and written to a CSV when it comes."""
    with path.open("w", newline="", encoding="utf-8") if path else nullcontext() as file:
        writer = csv.writer(file, lineterminator="\n") if file else None
        if writer:
            writer.writerow([f.name for f in dataclasses.fields(Answer)])
        for answer in answers:
            if writer and file:
                writer.writerow(dataclasses.astuple(answer))
                file.flush()
            said = f"{answer.by:5}  {answer.error:+.4f}" if not answer.seen else f"{answer.traces} traces"
            print(f"{answer.method:22} {answer.bits:2} bits  {answer.predicted / 2**30:6.2f} GiB  {said}", flush=True)
            yield answer


def drawn(domain: Domain, draw: random.Random) -> Scalar:
    """Draw a value of a domain."""
    if isinstance(domain, Choices | Ordinal):
        return draw.choice(domain.values)
    return draw.uniform(domain.low, domain.high)


def summarize_model(answers: Sequence[Answer]) -> str:
    """Give what was answered of the candidates never seen, in lines: those by the fit by method, then how many."""
    fresh = [answer for answer in answers if not answer.seen]
    fitted = [answer for answer in fresh if answer.by == "fit"]
    lines = []
    for method in sorted({answer.method for answer in fresh}):
        errors = [abs(answer.error) for answer in fitted if answer.method == method]
        quantiles = f"median {statistics.median(errors):.4f}  largest {max(errors):.4f}" if errors else ""
        traced = sum(answer.method == method for answer in fresh) - len(errors)
        lines.append(f"{method:22} by the fit {len(errors):3}  by a trace {traced:3}  {quantiles}")
    seen = [answer for answer in answers if answer.seen]
    lines.append(f"taught by {len(seen)} candidates, {sum(answer.traces for answer in seen)} traces")
    if fitted:
        errors, times = sorted(abs(a.error) for a in fitted), sorted(a.milliseconds for a in fitted)
        lines.append(
            f"{len(fitted)} of {len(fresh)} never seen answered by the fit: error median "
            f"{statistics.median(errors):.4f}, 90% below {quantile(errors, 0.9):.4f}, largest {errors[-1]:.4f}, "
            f"{sum(error <= 0.02 for error in errors)} within 2%; CPU time median {statistics.median(times):.2f} ms, "
            f"99% below {quantile(times, 0.99):.2f} ms"
        )
    traces = sum(answer.traces for answer in fresh)
    lines.append(f"{len(fresh) - len(fitted)} of {len(fresh)} answered by a trace, {traces} traces")
    return "\n".join(lines)


def quantile(values: Sequence[float], share: float) -> float:
    """Give the value that a share of sorted values does not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))]
