"""Recipe and format of the base: one schema for request and space, and plans that are filled from both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from autopeft.binding import bind_space
from autopeft.candidates import BaseFormat, Candidate, Recipe
from autopeft.errors import InfeasibleError, RequestError
from autopeft.labels import describe
from autopeft.objectives import OBJECTIVES
from autopeft.plans import plan_of
from autopeft.problem import Problem
from autopeft.recipe import DIMENSIONS, OPTIMIZERS, SCHEDULERS, defaults, holds, rate_at
from autopeft.request import SearchRequest
from autopeft.request_fields import make_request
from autopeft.space_file import parse_space

LORA = {"choices": ["lora"]}


def problem(anatomy, parameters, *, bits=None, max_length=None, start=(), **request):
    fields = {"parameters": {"method": LORA, **parameters}, "start": list(start)}
    recipe, form = defaults(request, max_length=32)
    space = bind_space(parse_space(fields), anatomy, cuda=False, bits=bits, max_length=max_length)
    base = replace(form, bits=anatomy.dtype_bits)
    return Problem(space, (OBJECTIVES["quality"],), anatomy, recipe=recipe, base=base)


def test_every_field_of_a_recipe_but_the_rate_and_of_a_format_but_the_bits_is_a_dimension():
    fields = {*Recipe.__slots__, *BaseFormat.__slots__} - {"learning_rate", "bits"}
    assert fields == set(DIMENSIONS)
    assert set(DIMENSIONS) <= set(SearchRequest.model_fields)


def test_the_customary_values_are_those_of_the_request_and_of_the_records():
    recipe, form = defaults(make_request({}).model_dump(), max_length=0)
    assert recipe == Recipe(0.0)
    assert form == BaseFormat(0)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("optimizer", "adamw8bit", "no optimizer 'adamw8bit'; did you mean 'adamw_8bit'?"),
        ("warmup_ratio", 2, "warmup_ratio: 2: Input should be less than or equal to 1"),
        ("weight_decay", -0.1, "weight_decay: -0.1: Input should be greater than or equal to 0"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps: 0: "),
        ("lr_scheduler", "step", "lr_scheduler: 'step': "),
        ("quant_type", "int4", "quant_type: 'int4': "),
        ("bits", 5, "bits: 5: a base has 4, 8, 16, 32 bits, not 5"),
        ("bits", [4, 4], "bits: [4, 4]: name each of them once"),
        ("bits", "four", "bits: 'four': "),
    ],
)
def test_what_a_field_cannot_be_is_said_with_the_field(field, value, said):
    with pytest.raises(RequestError) as error:
        make_request({field: value})
    assert said in str(error.value)
    assert str(error.value).startswith(f"{field}: ")


def test_a_plan_is_filled_from_the_request_and_a_space_has_the_last_word(llama):
    parameters = {
        "batch_size": {"ordinal": [4, 16]},
        "optimizer": {"choices": ["adamw", "adafactor"]},
        "weight_decay": {"low": 0, "high": 0.1},
        "packing": {"choices": [False, True]},
    }
    built = problem(llama, parameters, batch_size=8, warmup_ratio=0.2, lr_scheduler="cosine", compute_dtype="bfloat16")
    values = {"batch_size": 16, "optimizer": "adafactor", "weight_decay": 0.05, "packing": True}
    recipe = built.plan(built.space.complete(values)).recipe
    assert recipe == Recipe(
        recipe.learning_rate, 16, 1, False, "adafactor", 0.05, 0.2, "cosine", 32, True
    )  # fmt: skip
    assert recipe.learning_rate > 0


def test_equal_plans_are_one_training_however_they_are_said(llama):
    fixed, free = problem(llama, {}, batch_size=16), problem(llama, {"batch_size": {"ordinal": [8, 16]}})
    whole = problem(llama, {"batch_size": {"low": 8, "high": 16, "integer": True}})
    said = Candidate({"method": "lora", "batch_size": 16})
    assert len({fixed.identity(Candidate({"method": "lora"})), free.identity(said), whole.identity(said)}) == 1
    assert free.identity(said) != free.identity(Candidate({"method": "lora", "batch_size": 8}))
    # What means nothing at these bits makes no difference.
    bits = problem(llama, {"bits": {"choices": [32, 4]}, "quant_type": {"choices": ["nf4", "fp4"]}})
    of = {
        (b, q): bits.identity(Candidate({"method": "lora", "bits": b, "quant_type": q}))
        for b in (32, 4)
        for q in ("nf4", "fp4")
    }
    assert of[32, "nf4"] == of[32, "fp4"]
    assert len(set(of.values())) == 3


def test_a_condition_on_bits_makes_a_parameter_come_and_go(llama):
    built = problem(
        llama, {"bits": {"choices": [32, 4]}, "quant_type": {"choices": ["fp4", "nf4"], "when": {"bits": [4]}}}
    )
    assert "quant_type" not in built.space.complete({"bits": 32}).values
    assert built.plan(built.space.complete({"bits": 4})).base == BaseFormat(4, "fp4")


def test_bits_of_the_request_take_the_place_of_those_of_the_space(llama):
    start = [{"bits": 16, "lora.rank": 4}, {"lora.rank": 4}]
    parameters = {"bits": {"choices": [32, 16]}, "lora.rank": {"ordinal": [4, 8]}}
    built = problem(llama, parameters, bits=[4, 8], start=start)
    assert built.space.parameter("bits").domain.values == (4, 8)
    assert len(built.space.start) == 1
    assert problem(llama, {}, bits=[4]).plan(Candidate({"method": "lora", "bits": 4})).bits == 4
    with pytest.raises(RequestError, match=r"bits: 32 is more than the checkpoint's own 16"):
        problem(replace(llama, dtype_bits=16), {}, bits=[32])


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ({"batch_size": {"ordinal": [0, 8]}}, "batch_size: 0 cannot be"),
        ({"batch_size": {"low": 1, "high": 8}}, "batch_size: 1.0 cannot be"),
        ({"optimizer": {"choices": ["adam"]}}, "optimizer: 'adam' cannot be"),
        ({"double_quant": {"ordinal": [0, 1]}}, "double_quant: 0 cannot be"),
        ({"warmup_ratio": {"low": 0, "high": 2}}, "warmup_ratio: 2.0 cannot be"),
        ({"batch_size": {"ordinal": [8], "per": "layers"}}, "batch_size: it cannot differ per layers"),
        ({"max_length": {"ordinal": [16, 64]}}, "max_length: 64 is more than the 32 tokens"),
        ({"batchsize": {"ordinal": [8]}}, "did you mean 'batch_size'"),
    ],
)
def test_what_a_space_cannot_ask_of_training_is_refused(parameter, said, llama):
    with pytest.raises(RequestError, match=said):
        problem(llama, parameter, max_length=32)


def test_packing_is_refused_for_classes_whoever_asks(bert):
    with pytest.raises(RequestError, match="packing: it is for causal-lm, not for text-classification"):
        problem(bert, {"packing": {"choices": [False, True]}})
    with pytest.raises(RequestError, match="packing: it is for causal-lm, not for text-classification"):
        problem(bert, {}, packing=True).check_feasible()


def test_more_parts_than_rows_are_refused(llama):
    with pytest.raises(RequestError, match="gradient_accumulation_steps: 16 is more than the 8 rows of a step"):
        problem(llama, {}, gradient_accumulation_steps=16).check_feasible()
    free = problem(llama, {"batch_size": {"ordinal": [8, 32]}}, gradient_accumulation_steps=16)
    free.check_feasible()
    assert "more than the 8 rows" in free.refusal(Candidate({"method": "lora", "batch_size": 8}))
    assert free.refusal(Candidate({"method": "lora", "batch_size": 32})) == ""
    with pytest.raises(InfeasibleError, match="more than the 8 rows"):
        problem(llama, {"batch_size": {"ordinal": [4, 8]}}, gradient_accumulation_steps=16).check_feasible()


def test_prompts_are_refused_where_they_would_be_another_method(llama):
    def refusal(method, **recipe):
        return Problem(
            bind_space(parse_space({"parameters": {"method": {"choices": [method]}}}), llama, cuda=False),
            (),
            llama,
            recipe=Recipe(0.0, **recipe),
        ).refusal(Candidate({"method": method}))

    for method in ("prompt_tuning", "prefix_tuning", "p_tuning"):
        assert "packing and a prompt" in refusal(method, packing=True)
    assert "trained keys and values do not go together" in refusal("prefix_tuning", gradient_checkpointing=True)
    assert refusal("prompt_tuning", gradient_checkpointing=True) == refusal("lora", packing=True) == ""


def test_predicted_memory_is_held_against_the_limit_with_its_margin(llama):
    space = bind_space(parse_space({"parameters": {"method": LORA}}), llama, cuda=False)
    built = Problem(space, (), llama, memory_limit_bytes=1000, predicted_bytes=lambda plan: 900)
    lora = Candidate({"method": "lora"})
    assert built.cost(lora).memory_bytes == 900
    assert built.refusal(lora) == built.refusal(lora, margin=1.1) == ""
    assert ", more than" in built.refusal(lora, margin=1.2)


@pytest.mark.parametrize("steps", [1, 7, 60])
@pytest.mark.parametrize("ratio", [0.0, 0.06, 0.5, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_after_the_warm_up_the_rate_is_that_of_transformers(name, ratio, steps):
    recipe = Recipe(1.0, warmup_ratio=ratio, lr_scheduler=name)
    rates = [rate_at(step, steps, recipe) for step in range(steps)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    kind = {"constant": "constant_with_warmup"}.get(name, name)
    warm = -int(-ratio * steps // 1)
    theirs = transformers.get_scheduler(kind, optimizer, num_warmup_steps=warm, num_training_steps=steps)
    for step in range(steps):
        if step >= warm:
            assert rates[step] == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert rates[:warm] == sorted(rates[:warm])
    assert all(0 < rate <= 1 for rate in rates)


def test_plan_of_alone_is_at_the_checkpoints_bits(bert):
    plan = plan_of(Candidate({"method": "lora"}), bert)
    assert plan.base == BaseFormat(32)
    assert plan.recipe == Recipe(plan.learning_rate)


def test_a_label_tells_candidates_apart_by_how_they_are_trained():
    values = {"method": "ia3", "batch_size": 16, "packing": True, "gradient_checkpointing": False, "optimizer": "adamw"}
    assert describe(Candidate(values)) == "ia3 batch_size=16 optimizer=adamw packing"


def test_optimizers_are_known_to_the_schema():
    assert all(holds("optimizer", name) for name in OPTIMIZERS)
