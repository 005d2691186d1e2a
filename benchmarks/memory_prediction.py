"""How well the memory of a training is predicted: against published GPU runs, and the fast model against the traces.

The published runs are those of PEFT's method comparison (MetaMathQA; Llama-3.2-3B in bf16, batches of 4): a JSON list
of objects with `name`, `cfg` (the run's adapter_config.json; null for full fine-tuning) and `max` (the most that CUDA's
allocator had reserved, in bytes). Prints a table and quantiles, and writes a CSV and, if asked, a plot.

    python benchmarks/memory_prediction.py runs.json --csv benchmarks/results/memory_prediction.csv
    python benchmarks/memory_prediction.py runs.json --scan 640,672,704,736,768    # which length the runs peaked at

Without runs, it asks the fast model about random candidates of the default space and compares what it says with their
traces: first about some that only teach it, then about others, which it has never seen. What is said without a trace
is the fit's:

    python benchmarks/memory_prediction.py --shape minilm --taught 300 --candidates 60 --csv minilm.csv
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gc
import json
import random
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config

from autopeft.anatomy import Task
from autopeft.binding import bind_space
from autopeft.candidates import Recipe, Scalar
from autopeft.domains import Choices, Domain, Ordinal
from autopeft.methods import METHODS
from autopeft.problem import Problem
from autopeft.space_file import load_space
from autopeft.trial.model import ModelSource, load_config
from autopeft.trial.prediction import MemoryPredictor, TrainingSetup, trace_peak
from autopeft.trial.reading import read_anatomy

LENGTH = 702
"""Tokens of the longest batch. It is not published (the texts are cut at 768); see `--scan` and the report."""
EARLIER_LENGTH = 80
"""Tokens of the batch before, about the shortest 4 of 80: the loop sorts 20 batches from long to short, and empties the
allocator's cache every 10, so that a longest batch meets an empty cache and the small output of the batch before."""
NO_CONFIG = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "peft_type",
        "peft_version",
        "inference_mode",
        "tokenizer_name_or_path",
    ]
)
NEEDS_DATA = frozenset(["eva", "corda", "loftq", "lora_ga"])
"""Starts of LoRA that read data or weights; trained as any other."""


def published_setup(name: str, length: int) -> TrainingSetup:
    """Give the training loop of the comparison (its run.py and training_params.json).

    It keeps a step's output in a variable until the next one's, with the cache of keys and values that transformers
    fills by default, empties the allocator's cache every ten steps, and takes PyTorch's default AdamW.
    """
    return TrainingSetup(
        batch_size=2 if "batch_size-2" in name else 4,
        length=length,
        autocast=False,
        optimizer="adamw_foreach",
        use_cache=True,
        keeps_output=True,
        empties_cache=True,
        earlier_length=EARLIER_LENGTH,
    )


def published_adapter(cfg: dict[str, Any] | None) -> Any:
    """Make PEFT's configuration of a published one."""
    if cfg is None:
        return None
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[cfg["peft_type"]]
    known = {f.name for f in dataclasses.fields(kind) if f.init} - NO_CONFIG
    fields = {key: value for key, value in cfg.items() if key in known}
    if cfg["peft_type"] == "PROMPT_TUNING":  # a start from text needs a tokenizer, and trains as any other
        fields = {k: v for k, v in fields.items() if k != "prompt_tuning_init_text"} | {"prompt_tuning_init": "RANDOM"}
    if fields.get("init_lora_weights") in NEEDS_DATA:
        fields["init_lora_weights"] = True
    if "progressbar" in fields:
        fields["progressbar"] = False
    return kind(**{**fields, "task_type": "CAUSAL_LM"})


@dataclass(frozen=True)
class Row:
    """One run: what was predicted and what was measured, in bytes."""

    name: str
    predicted: int
    allocated: int
    measured: int
    ratio: float
    seconds: float
    error: str = ""


def predict_run(run: dict[str, Any], length: int) -> Row:
    start = time.monotonic()
    try:
        trace = trace_peak(
            LlamaConfig(**LLAMA_3B),
            published_adapter(run["cfg"]),
            published_setup(run["name"], length),
        )
    except Exception as error:  # noqa: BLE001 - a method that cannot be traced is a row of the table
        text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        return Row(run["name"], 0, 0, run["max"], 0.0, round(time.monotonic() - start, 2), text[:200])
    finally:
        gc.collect()
    ratio = round(trace.reserved_bytes / run["max"], 4)
    return Row(run["name"], trace.reserved_bytes, trace.peak_bytes, run["max"], ratio, round(trace.seconds, 2))


def summarize(rows: Iterable[Row]) -> str:
    """Give the quantiles of the ratio, in a line."""
    good = [row for row in rows if not row.error]
    ratios = sorted(row.ratio for row in good)
    if not ratios:
        return "nothing was traced"
    middle = statistics.median(ratios)

    def within(share: float) -> str:
        hits = sum(abs(ratio - 1) <= share for ratio in ratios)
        return f"{hits} of {len(ratios)} within {share:.0%}"

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = statistics.median(row.seconds for row in good)
    return (
        f"ratio predicted / measured: median {middle:.4f}, from {ratios[0]:.4f} to {ratios[-1]:.4f}; {within(0.01)}, "
        f"{within(0.02)}, {within(0.03)}; a trace takes {seconds:.1f} s, the process {resident:.2f} GiB"
    )


def write_csv(rows: Sequence[Any], path: Path) -> None:
    """Write dataclasses of one kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f.name for f in dataclasses.fields(rows[0])])
        writer.writerows(dataclasses.astuple(row) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", help="JSON list of published runs")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of the longest batch")
    parser.add_argument("--scan", default="", help="lengths to compare instead, separated by commas")
    parser.add_argument("--only", default="", help="only runs whose name holds this")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    parser.add_argument("--plot", type=Path, help="where to write a plot (SVG)")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-1b", help="without runs: a model")
    parser.add_argument("--batch-size", type=int, default=8, help="without runs: rows of a batch")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="without runs")
    parser.add_argument("--optimizer", default="adamw", help="without runs: a name of a recipe's optimiser")
    parser.add_argument("--taught", type=int, default=300, help="without runs: how many to ask for before")
    parser.add_argument("--candidates", type=int, default=60, help="without runs: how many others to compare")
    parser.add_argument("--methods", default="", help="without runs: only these methods, separated by commas")
    parser.add_argument("--bits", type=int, default=0, help="without runs: only this many; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="without runs: of the candidates")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.runs is None:
        recipe = Recipe(
            1e-3,
            batch_size=options.batch_size,
            gradient_checkpointing=options.gradient_checkpointing,
            optimizer=options.optimizer,
        )
        asked = Asked(options.shape, recipe, options.seed, tuple(options.methods.split(",")), options.bits)
        answers = list(shown(compare_model(asked, options.taught, options.candidates), options.csv))
        print(summarize_model(answers))
        return
    runs = [run for run in json.loads(options.runs.read_text(encoding="utf-8")) if options.only in run["name"]]
    if options.scan:
        for length in map(int, options.scan.split(",")):
            rows = [predict_run(run, length) for run in runs]
            ratios = [row.ratio for row in rows if not row.error]
            print(f"{length} tokens: spread {statistics.pstdev(ratios):.4f}; {summarize(rows)}", flush=True)
        return
    rows = []
    for run in runs:
        rows.append(row := predict_run(run, options.length))
        told = row.error or f"{row.predicted / 2**30:6.2f} {row.measured / 2**30:6.2f} GiB  {row.ratio:.4f}"
        print(f"{row.name:55} {told}  {row.seconds:.1f} s", flush=True)
    print(summarize(rows))
    if options.csv:
        write_csv(rows, options.csv)
    if options.plot:
        write_plot(rows, options.plot)


# --- the fast model against the traces --------------------------------------------------------------------------------


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


LLAMA_3B = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
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


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """Write predicted against measured as SVG; grey lines are 3% off."""
    good = [row for row in rows if not row.error]
    gib, size, margin = 2**30, 440, 50
    low = min(min(r.predicted, r.measured) for r in good) / gib - 0.5
    high = max(max(r.predicted, r.measured) for r in good) / gib + 0.5

    def at(value: float) -> float:
        return margin + (value - low) / (high - low) * (size - 2 * margin)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" font-family="sans-serif" font-size="11">',
        f'<rect width="{size}" height="{size}" fill="white"/>',
    ]
    for factor, colour in ((0.97, "#bbb"), (1.03, "#bbb"), (1.0, "#333")):
        ends = [(x, x * factor) for x in (low, high)]
        line = " ".join(f"{at(x):.1f},{size - at(y):.1f}" for x, y in ends)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
    for tick in range(int(low) + 1, int(high) + 1):
        parts.append(f'<text x="{at(tick):.1f}" y="{size - margin + 16}" text-anchor="middle">{tick}</text>')
        parts.append(f'<text x="{margin - 8}" y="{size - at(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    for row in good:
        x, y = at(row.measured / gib), size - at(row.predicted / gib)
        title = f"<title>{row.name}: {row.ratio:.3f}</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#1f77b4" fill-opacity="0.6">{title}</circle>')
    parts.append(f'<text x="{size / 2}" y="{size - 12}" text-anchor="middle">measured: reserved on the GPU, GiB</text>')
    parts.append(
        f'<text x="14" y="{size / 2}" text-anchor="middle" transform="rotate(-90 14 {size / 2})">predicted, GiB</text>'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
