"""Published GPU runs beside what is predicted of them: PEFT's method comparison, whose training loop is set up here."""

from __future__ import annotations

import csv
import dataclasses
import gc
import resource
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from transformers import LlamaConfig

from autopeft.trial.prediction import TrainingSetup, trace_peak

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
