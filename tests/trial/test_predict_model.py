"""The fast model of memory against traces that it has not seen."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from autopeft.anatomy import Anatomy
from autopeft.methods import METHODS
from autopeft.records import AdapterPlan
from autopeft.trial.model import ModelSource, load_config, read_anatomy
from autopeft.trial.prediction import MemoryModel, TrainingSetup, trace_peak
from autopeft.trial.prediction.sites import structure_of
from tests.families import LABELS

SETUP = TrainingSetup(batch_size=6, length=64)
UPPER = {"0-3": 0, "4-5": 1}


def model_of(family: str, folder: Path) -> tuple[Any, Anatomy]:
    """Give a model of six narrow layers: large enough that layers weigh more than the rounding of small tensors."""
    shape = {"num_hidden_layers": 6, "hidden_size": 256, "num_attention_heads": 4, "vocab_size": 512}
    if family == "bert":
        config = transformers.BertConfig(**shape, intermediate_size=512)
        source = ModelSource(str(folder), "text-classification", LABELS)
    else:
        config = transformers.LlamaConfig(**shape, num_key_value_heads=2, intermediate_size=512, pad_token_id=0)
        source = ModelSource(str(folder), "causal-lm")
    config.save_pretrained(folder)
    return load_config(source), read_anatomy(source)


def plan_of(method: str, anatomy: Anatomy, bits: int = 16, **settings: Any) -> AdapterPlan:
    build = METHODS[method].build(settings, anatomy)
    return AdapterPlan(method, bits, dict(build.sizes), dict(build.config), build.params, 1e-3)


@pytest.fixture(scope="module", params=[("llama", "causal-lm"), ("bert", "text-classification")], ids=lambda p: p[0])
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Anatomy, str]:
    family, task = request.param
    config, anatomy = model_of(family, tmp_path_factory.mktemp(family))
    return config, anatomy, task


def test_model_answers_as_the_trace_does(known: tuple[Any, Anatomy, str]) -> None:
    config, anatomy, task = known
    model = MemoryModel(config, anatomy, SETUP, task=task)
    plans = [
        plan_of("lora", anatomy, rank=16),
        plan_of("lora", anatomy, rank=4, share={"query": 1, "down": 0.5}),
        plan_of("lora", anatomy, rank={"0-1": 0, "2-5": 8}),
        plan_of("ia3", anatomy, layers=UPPER),
        plan_of("ln_tuning", anatomy, layers=UPPER, outer=False),
        plan_of("prompt_tuning", anatomy, tokens=8),
    ]
    model.calibrate(plans)
    made = model.traces
    for plan in plans:
        for batch in (SETUP.batch_size, 9):
            traced = trace_peak(config, plan, replace(SETUP, batch_size=batch), task=task).peak_bytes
            assert model.predict(plan, batch_size=batch) == pytest.approx(traced, rel=0.02), (plan.method, batch)
    assert model.traces == made


def test_an_answer_takes_less_than_a_millisecond(known: tuple[Any, Anatomy, str]) -> None:
    config, anatomy, task = known
    model = MemoryModel(config, anatomy, SETUP, task=task)
    plan = plan_of("ia3", anatomy)
    model.calibrate([plan])
    model.predict(plan)
    quickest = 1.0
    for _ in range(20):
        start = time.perf_counter()
        model.predict(plan)
        quickest = min(quickest, time.perf_counter() - start)
    assert quickest < 1e-3


def test_model_holds_under_gradient_checkpointing_and_few_bits(tmp_path: Path) -> None:
    config, anatomy = model_of("llama", tmp_path)
    setup = replace(SETUP, gradient_checkpointing=True)
    model = MemoryModel(config, anatomy, setup)
    for bits in (16, 4):
        plan = plan_of("lora", anatomy, bits, rank={"0-1": 0, "2-3": 4, "4-5": 32})
        traced = trace_peak(config, plan, replace(setup, bits=bits)).peak_bytes
        assert model.predict(plan) == pytest.approx(traced, rel=0.02)


def test_largest_batch_is_the_last_that_fits(known: tuple[Any, Anatomy, str]) -> None:
    config, anatomy, task = known
    model = MemoryModel(config, anatomy, SETUP, task=task)
    plan = plan_of("ia3", anatomy)
    for rows in (1, 2, 7, 8, 23):
        limit = model.predict(plan, batch_size=rows)
        assert model.largest_batch(plan, limit) == rows
        assert model.largest_batch(plan, limit - 1) == rows - 1
    assert model.largest_batch(plan, 2**40, most=100) == 100


def test_places_sizes_and_rates_are_no_structure_but_bits_and_variants_are(known: tuple[Any, Anatomy, str]) -> None:
    _, anatomy, _ = known
    base = structure_of(plan_of("lora", anatomy, rank=8))
    assert base == structure_of(plan_of("lora", anatomy, rank=2, share={"query": 1}, alpha="16"))
    assert base != structure_of(plan_of("lora", anatomy, rank=8, dora=True))
    assert base != structure_of(plan_of("lora", anatomy, 8, rank=8))
    dropped = [structure_of(plan_of("lora", anatomy, rank=8, dropout=rate)) for rate in (0.05, 0.1)]
    assert dropped[0] == dropped[1] != base


def test_a_method_without_sizes_by_module_is_traced_once(known: tuple[Any, Anatomy, str]) -> None:
    config, anatomy, task = known
    model = MemoryModel(config, anatomy, SETUP, task=task)
    targets = [linear.name for linear in anatomy.linears if linear.kind == "query"]
    plan = AdapterPlan(
        "vera", 16, dict.fromkeys(targets, 8), {"peft_type": "VERA", "r": 8, "target_modules": targets}, 0, 1e-3
    )
    assert model.predict(plan) == trace_peak(config, plan, SETUP, task=task).peak_bytes == model.predict(plan)
    assert model.traces == 1
