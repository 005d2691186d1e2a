"""The memory predictor against traces that it has not seen, and against trainings."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import CONFIGS, LABELS, batch_of

from autopeft.anatomy import Anatomy
from autopeft.candidates import AdapterPlan, BaseFormat, Recipe
from autopeft.methods import METHODS
from autopeft.trial.adapters import Resident
from autopeft.trial.model import AUTO_CLASSES, ModelSource, load_config
from autopeft.trial.prediction import MemoryPredictor, MemoryTrace, trace_peak
from autopeft.trial.prediction.sites import structure_of
from autopeft.trial.reading import read_anatomy
from autopeft.trial.train import train

LENGTH, ROWS = 64, 6
SHAPE: dict[str, Any] = {"vocab_size": 512}
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 6, **SHAPE}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**WIDE, num_key_value_heads=2, intermediate_size=512, pad_token_id=0),
    "bert": lambda: transformers.BertConfig(**WIDE, intermediate_size=512),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=256, n_layer=6, n_head=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SHAPE
    ),
    "t5": lambda: transformers.T5Config(
        d_model=256, d_kv=64, d_ff=512, num_layers=4, num_heads=4, pad_token_id=0, decoder_start_token_id=0, **SHAPE
    ),
}
TASKS = {"llama": "causal-lm", "gpt2": "causal-lm", "bert": "text-classification", "t5": "text-classification"}
UPPER = {"0-3": 0, "4-5": 1}


def read(family: str, folder: Path) -> tuple[Any, Anatomy]:
    """Give a model of narrow layers: large enough that layers weigh more than the rounding of small tensors."""
    task: Any = TASKS[family]
    FAMILIES[family]().save_pretrained(folder)
    source = ModelSource(str(folder), task, LABELS if task == "text-classification" else ())
    return load_config(source), read_anatomy(source)


def plan_of(
    method: str, anatomy: Anatomy, bits: int = 16, recipe: Recipe | None = None, **settings: Any
) -> AdapterPlan:
    build = METHODS[method].build(settings, anatomy)
    recipe = recipe or Recipe(1e-3, batch_size=ROWS)
    return AdapterPlan(method, dict(build.sizes), dict(build.config), build.params, BaseFormat(bits), recipe)


@pytest.fixture(scope="module", params=["llama", "bert"])
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """Give a model, and a predictor that the tests of this module teach."""
    config, anatomy = read(request.param, tmp_path_factory.mktemp(request.param))
    return config, anatomy, MemoryPredictor(config, anatomy, length=LENGTH)


def check(predictor: MemoryPredictor, plan: AdapterPlan, *, within: float = 0.02, rows: int | None = None) -> None:
    """Compare an answer, that must need no trace, with the trace of two steps."""
    made = predictor.traces
    answer = predictor.peak(plan, rows=rows)
    assert predictor.traces == made, f"{plan.method} was traced"
    assert answer == pytest.approx(predictor.trace(plan, rows=rows).peak_bytes, rel=within), plan.method


NEVER_SEEN: dict[str, tuple[tuple[str, dict[str, Any], dict[str, Any]], ...]] = {
    "llama": (
        ("lora", {"rank": 16}, {"rank": {"0-1": 4, "2-5": 8}}),
        # One rank for all: PEFT reads no rank of a module here.
        ("hira", {"rank": 32}, {"rank": 24, "layers": UPPER}),
        ("serial_adapter", {}, {"attention": 8, "feed_forward": {"0-1": 4, "2-5": 48}}),
        ("p_tuning", {}, {"tokens": 20, "width": 100}),
    ),
    "bert": (
        ("lora", {"rank": 16}, {"rank": 4, "share": {"query": 1, "down": 0.5}}),
        ("ln_tuning", {"outer": False}, {"layers": UPPER, "outer": False}),
        ("vera", {"rank": 256}, {"rank": 100, "layers": UPPER}),
        ("lora+prompt", {}, {"lora.rank": {"0-1": 0, "2-5": 4}, "prompt.tokens": 20}),
    ),
}
"""Method, what is asked for first, and what is then answered by what its designs taught."""


def test_answers_for_plans_never_seen_are_those_of_the_trace(known: tuple[Any, ...]) -> None:
    config, anatomy, predictor = known
    for method, first, then in NEVER_SEEN[config.model_type]:
        predictor.calibrate([plan_of(method, anatomy, **first)])
        check(predictor, plan_of(method, anatomy, **then))
    check(predictor, plan_of("lora", anatomy, rank=8), rows=9)


def test_answers_hold_on_gpt2(tmp_path: Path) -> None:
    config, anatomy = read("gpt2", tmp_path)
    predictor = MemoryPredictor(config, anatomy, length=LENGTH)
    predictor.calibrate([plan_of("lora+bitfit", anatomy)])
    check(predictor, plan_of("lora+bitfit", anatomy, **{"lora.rank": {"0-1": 4, "2-5": 8}, "bitfit.layers": UPPER}))


def test_what_answers_wrongly_is_traced(known: tuple[Any, ...]) -> None:
    config, anatomy, _ = known

    def twice(*args: Any, **settings: Any) -> MemoryTrace:
        trace = trace_peak(*args, **settings)
        return replace(trace, peak_bytes=2 * trace.peak_bytes)

    predictor = MemoryPredictor(config, anatomy, length=LENGTH, trace=twice)
    plans = [plan_of("prompt_tuning", anatomy, tokens=tokens) for tokens in (3, 5, 7, 9)]
    before = 0
    for plan in plans:
        assert predictor.peak(plan) == predictor.trace(plan).peak_bytes
        assert predictor.traces > before
        before = predictor.traces


def test_an_encoder_and_a_decoder_are_traced(tmp_path: Path) -> None:
    config, anatomy = read("t5", tmp_path)
    predictor = MemoryPredictor(config, anatomy, length=LENGTH)
    plan = plan_of("lora", anatomy, rank=4)
    assert predictor.peak(plan) == predictor.trace(plan).peak_bytes
    assert predictor.traces == 1


@pytest.mark.parametrize(
    ("bits", "recipe"),
    [
        (16, Recipe(1e-3, batch_size=ROWS, gradient_checkpointing=True)),
        (4, Recipe(1e-3, batch_size=ROWS, optimizer="adamw_8bit")),
        (32, Recipe(1e-3, batch_size=2 * ROWS, gradient_accumulation_steps=2, packing=True, max_length=LENGTH)),
    ],
    ids=["checkpointed", "4 bits", "accumulated and packed"],
)
def test_answers_follow_the_recipe(bits: int, recipe: Recipe, tmp_path: Path) -> None:
    config, anatomy = read("llama", tmp_path)
    predictor = MemoryPredictor(config, anatomy, length=LENGTH)
    # The first answer may be wrong; then it teaches.
    predictor.calibrate(plan_of("lora", anatomy, bits, recipe, rank=rank) for rank in (16, {"0-1": 4, "2-5": 16}))
    plan = plan_of("lora", anatomy, bits, recipe, rank={"0-1": 2, "2-3": 4, "4-5": 32})
    if recipe.gradient_checkpointing:
        predictor.calibrate([plan])  # least linear, as layers are computed again: more may have to be traced
    check(predictor, plan)


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_trace_is_what_a_training_on_cpu_measures(settings: dict[str, Any], tmp_path: Path) -> None:
    config, anatomy = read("llama", tmp_path)
    recipe = Recipe(1e-3, batch_size=8, **settings)
    plan = plan_of("lora", anatomy, 32, recipe, rank=4)
    base = AUTO_CLASSES["causal-lm"].from_config(config, dtype=torch.float32).requires_grad_(False)
    base.config.use_cache = False
    adapted = Resident(base).attach(plan, task="causal-lm", head={})
    parts = recipe.gradient_accumulation_steps
    batches = [batch_of("causal-lm", rows=8 // parts, length=LENGTH)] * parts
    batches[0]["attention_mask"][0, :2] = 0  # else no mask would be made
    measured = train(
        adapted, parts_at=lambda _: batches, steps=2, recipe=recipe, seed=0, device="cpu", measured_step=1
    ).peak_bytes
    predictor = MemoryPredictor(config, anatomy, length=LENGTH, device="cpu")
    # The loop's own scalars, and the batch, which lies in the data there.
    assert predictor.trace(plan).peak_bytes == pytest.approx(measured, abs=2 * 3 * 8 * LENGTH * 8)


def trace_every_method(folder: Path) -> None:
    """Trace every method in this process, at 4 bits where it can be trained at them, and print what was found."""
    left = set(METHODS)
    for family, task in (("bert", "text-classification"), ("llama", "causal-lm")):
        CONFIGS[family]().save_pretrained(folder / family)
        source = ModelSource(str(folder / family), task, LABELS if task == "text-classification" else ())
        config, anatomy = load_config(source), read_anatomy(source)
        predictor = MemoryPredictor(config, anatomy, length=12)
        for name in sorted(left):
            bits = [b for b in METHODS[name].bits if not METHODS[name].refuses({}, b, anatomy)]
            if bits and (plan := plan_of(name, anatomy, min(bits))).adapter_params:
                trace = predictor.trace(plan)
                assert trace.trained_params == plan.adapter_params + anatomy.head_params, name
                assert trace.reserved_bytes >= trace.peak_bytes > trace.base_bytes, name
                left.remove(name)
    gc.collect()
    print(sorted(left))


def test_every_method_is_traced_as_planned_and_leaves_memory_whole(tmp_path: Path) -> None:
    """In a process of its own, whose C library checks its heap: a stray write shows only long after."""
    checked = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
    if library := find_library("c_malloc_debug"):  # glibc's
        checked["LD_PRELOAD"] = library
    here = Path(__file__)
    folders = [str(here.parent), str(here.parents[1])]
    call = f"trace_every_method(Path({str(tmp_path)!r}))"
    script = f"import sys; sys.path[:0] = {folders}; from {here.stem} import *; {call}"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **checked},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.splitlines()[-1] == str(["trainable_tokens"])  # it needs frequent tokens of some data


def test_a_part_of_a_batch_is_what_counts(known: tuple[Any, ...]) -> None:
    _, anatomy, predictor = known
    recipe = Recipe(1e-3, batch_size=24, gradient_accumulation_steps=5)
    assert predictor.setup(plan_of("ia3", anatomy, recipe=recipe)).batch_size == 5
    assert predictor.setup(plan_of("ia3", anatomy, recipe=replace(recipe, max_length=32))).length == 32


def test_places_sizes_and_rates_are_no_structure_but_bits_and_variants_are(known: tuple[Any, ...]) -> None:
    _, anatomy, _ = known
    base = structure_of(plan_of("lora", anatomy, rank=8))
    assert base == structure_of(plan_of("lora", anatomy, rank=2, share={"query": 1}, alpha="16"))
    assert base == structure_of(plan_of("lora", anatomy, rank=8, recipe=Recipe(1e-4, batch_size=2)))
    assert base != structure_of(plan_of("lora", anatomy, rank=8, dora=True))
    assert base != structure_of(plan_of("lora", anatomy, 8, rank=8))
    dropped = [structure_of(plan_of("lora", anatomy, rank=8, dropout=rate)) for rate in (0.05, 0.1)]
    assert dropped[0] == dropped[1] != base


def test_what_cannot_be_varied_is_traced_until_nothing_is_new(tmp_path: Path) -> None:
    config, anatomy = read("gpt2", tmp_path)
    predictor = MemoryPredictor(config, anatomy, length=LENGTH)
    plans = [plan_of("adaption_prompt", anatomy, tokens=tokens) for tokens in (4, 32, 16, 24)]
    traced = trace_peak(config, plans[0], predictor.setup(plans[0]), task=anatomy.task).peak_bytes
    assert predictor.peak(plans[0]) == traced
    for plan in plans[1:3]:
        predictor.peak(plan)
    assert predictor.traces == 3  # of them, the third was answered and found right
    check(predictor, plans[3])
