"""Hybrids: each part is what it is alone, their counts add up, and a part of size 0 is off."""

from __future__ import annotations

import pytest
import torch
import transformers
from families import batch_of

from autopeft.anatomy import Anatomy
from autopeft.binding import bind_space
from autopeft.candidates import BaseFormat, Candidate
from autopeft.errors import RequestError
from autopeft.labels import describe
from autopeft.methods import METHODS
from autopeft.objectives import OBJECTIVES
from autopeft.plans import plan_of
from autopeft.problem import Problem
from autopeft.report.layers import _own_place, _places
from autopeft.space import settings_of
from autopeft.space_file import load_space, parse_space
from autopeft.trial.adapters import Resident
from autopeft.trial.compose import plain_name
from autopeft.trial.model import ModelSource, load_base
from autopeft.trial.reading import read_anatomy

HYBRIDS = [name for name in METHODS if "+" in name]
ALONE = {
    "lora": "lora",
    "serial": "serial_adapter",
    "parallel": "parallel_adapter",
    "prefix": "layer_prefix",
    "prompt": "prompt_tuning",
    "ia3": "ia3",
    "bitfit": "bitfit",
}
ATTENTION, FEED_FORWARD = ("query", "key", "value", "qkv", "output"), ("gate", "up", "down")
FIXED = {
    ("lora+serial", "lora"): {f"share[{kind}]": 1 for kind in ATTENTION},
    ("lora+parallel", "lora"): {f"share[{kind}]": 1 for kind in ATTENTION},
    ("lora+ia3", "lora"): {f"share[{kind}]": 1 for kind in FEED_FORWARD},
    ("lora+ia3", "ia3"): {f"kinds[{kind}]": 1 for kind in ("key", "value", "qkv")},
}
PAIRS = [("llama", "causal-lm"), ("bert", "text-classification"), ("gpt2", "text-classification")]


def alone(hybrid, part, anatomy: Anatomy):
    """Plan one part of a hybrid as a method of its own, where the hybrid has it."""
    fixed = dict(FIXED.get((hybrid, part), {}))
    if part in ("serial", "parallel"):
        fixed |= {"attention": 0}
    return plan_of(Candidate({"method": ALONE[part], **{f"{ALONE[part]}.{k}": v for k, v in fixed.items()}}), anatomy)


@pytest.mark.parametrize(("family", "task"), PAIRS)
@pytest.mark.parametrize("name", HYBRIDS)
def test_the_count_is_the_sum_of_the_parts_each_alone(name, family, task, anatomy_of):
    anatomy = anatomy_of(family, task)
    plan = plan_of(Candidate({"method": name}), anatomy)
    parts = [alone(name, part, anatomy) for part in name.split("+")]
    assert plan.adapter_params == sum(part.adapter_params for part in parts)
    assert dict(plan.sizes) == {module: size for part in parts for module, size in part.sizes.items()}
    assert plan.configs == tuple(part.config for part in parts)


def gradients(model, plan, anatomy, values):
    """Attach, give what is trained these values by plain name, and go back once; gives (gradients, values)."""
    resident = Resident(model)
    torch.manual_seed(0)
    try:
        adapted = resident.attach(plan, task=anatomy.task, head=anatomy.head)
        trained = {
            plain_name(n).replace("base_model.model.", "").replace("base_model.", ""): p
            for n, p in adapted.named_parameters()
            if p.requires_grad
        }
        for name, value in values.items():
            if name in trained:
                trained[name].data.copy_(value)
        adapted.eval()
        adapted(**batch_of(anatomy.task)).loss.backward()
        kept = {n: p.detach().clone() for n, p in trained.items()}
        return {n: p.grad.clone() for n, p in trained.items()}, kept
    finally:
        resident.detach()


@pytest.mark.parametrize(("family", "task"), PAIRS)
@pytest.mark.parametrize("name", [name for name in HYBRIDS if METHODS[name].starts_at_identity])
def test_at_its_start_each_part_has_the_gradient_that_it_has_alone(name, family, task, source_of, anatomy_of):
    """All parts start at the identity, so that none of them changes what the others see."""
    anatomy, model = anatomy_of(family, task), load_base(source_of(family, task), BaseFormat(32), device="cpu")
    together, values = gradients(model, plan_of(Candidate({"method": name}), anatomy), anatomy, {})
    compared = set()
    for part in name.split("+"):
        own, _ = gradients(model, alone(name, part, anatomy), anatomy, values)
        own = {n: g for n, g in own.items() if n.split(".")[0] not in anatomy.head}
        assert own
        for parameter, gradient in own.items():
            torch.testing.assert_close(together[parameter], gradient, rtol=1e-4, atol=1e-7, msg=parameter)
        assert not compared & own.keys()
        compared |= own.keys()
    assert compared == {n for n in together if n.split(".")[0] not in anatomy.head}


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_part_of_size_0_is_off(name, bert):
    sizes = [s for s in METHODS[name].settings if s.rpartition(".")[2] in ("rank", "feed_forward", "tokens")]
    whole = plan_of(Candidate({"method": name}), bert)
    for off in sizes:
        plan = plan_of(Candidate({"method": name, f"{name}.{off}": 0}), bert)
        assert len(plan.configs) == len(whole.configs) - 1
        assert 0 < plan.adapter_params < whole.adapter_params
        assert f"{off.partition('.')[0]} off" in describe(Candidate({"method": name, f"{name}.{off}": 0}))
    nothing = plan_of(Candidate({"method": name, **{f"{name}.{s}": 0 for s in METHODS[name].settings}}), bert)
    assert nothing.adapter_params == 0


def test_a_hybrid_is_refused_with_any_part_that_is_on(anatomy_of):
    t5 = anatomy_of("t5", "text-classification")
    name = "serial+parallel+prefix"
    refuses = METHODS[name].refuses
    assert refuses({}, 32, t5).startswith("Prefixes at chosen layers: the attention of this t5 takes no keys")
    assert refuses({"prefix.tokens": 0}, 32, t5) == ""
    assert refuses(settings_of(Candidate({"method": name, f"{name}.prefix.tokens": 4}), name), 32, t5)


def test_layers_turn_all_parts_on_and_off(llama):
    name = "serial+parallel+prefix"
    plan = plan_of(Candidate({"method": name, f"{name}.layers[0]": 0, f"{name}.layers[1-2]": 1}), llama)
    assert {module.split(".")[2] for module in plan.sizes} == {"1", "2"}
    places = {(module.split(".")[3], module.rpartition(".")[2]) for module in plan.sizes}
    assert places == {("mlp", "serial"), ("mlp", "parallel"), ("self_attn", "prefix")}


def test_the_space_of_autopeft_is_that_of_the_paper(bert):
    space = bind_space(load_space("autopeft"), bert, cuda=False)
    name = "serial+parallel+prefix"
    widths = {f"{name}.{part}.feed_forward" for part in ("serial", "parallel")}
    for parameter in space:
        if parameter.name in widths:
            assert parameter.domain.values == (0, 1, 3, 6, 12, 24, 48, 96, 192, 384, 768)
    assert space.parameter(f"{name}.prefix.tokens").domain.values == (0, 1, 3, 6, 12, 24, 48, 96, 192)
    assert [p.name for p in space if p.base == f"{name}.layers"] == [f"{name}.layers[{i}]" for i in range(3)]
    problem = Problem(space, (OBJECTIVES["quality"],), bert, parameter_limit=bert.head_params + 5000)
    for start in space.start:
        fitted = problem.fit(space.complete(start))
        assert fitted is not None
        assert 0 < problem.cost(fitted).adapter_params <= 5000
    # One token of a prefix at one layer is the least: a key and a value of width 64. An adapter has a bias more.
    assert problem.smallest()[1] == 2 * 64 < 2 * 64 + 1 + 64


def test_the_smallest_of_the_space_is_one_token_of_a_prefix_at_one_layer_of_many(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=12,
        num_attention_heads=4,
        vocab_size=128,
        pad_token_id=0,
    )
    config.save_pretrained(tmp_path)
    anatomy = read_anatomy(ModelSource(str(tmp_path), "causal-lm"))
    problem = Problem(bind_space(load_space("autopeft"), anatomy, cuda=False), (OBJECTIVES["quality"],), anatomy)
    candidate, params = problem.smallest()
    assert params == 2 * 64
    assert list(problem.plan(candidate).sizes.values()) == [1]


def test_a_hybrid_of_one_part_that_peft_makes_is_saved_by_peft(bert):
    plan = plan_of(
        Candidate({"method": "lora+bitfit", "lora+bitfit.bitfit.layers": 0, "lora+bitfit.bitfit.outer": False}), bert
    )
    assert plan.config == plan_of(Candidate({"method": "lora"}), bert).config


def test_what_a_hybrid_fixes_cannot_be_set(bert):
    for setting in ("lora.share", "serial.attention", "lora.nothing"):
        fields = {"parameters": {"method": {"choices": ["lora+serial"]}, f"lora+serial.{setting}": {"ordinal": [0, 1]}}}
        with pytest.raises(RequestError, match=f"no setting of lora\\+serial '{setting}'|{setting}"):
            bind_space(parse_space(fields), bert, cuda=False)


@pytest.mark.parametrize(
    ("method", "columns"),
    [
        ("serial_adapter", {"serial at output", "serial at down"}),
        ("lora+parallel", {"query", "key", "value", "output", "parallel at down"}),
        ("lora+bitfit", {"query", "key", "value", "output", "up", "down", "bias"}),
    ],
)
def test_the_report_draws_each_part_in_its_own_column(method, columns, bert):
    places = _places(bert)
    plan = plan_of(Candidate({"method": method}), bert)
    drawn = [places.get(name) or _own_place(name, places) for name in plan.sizes]
    assert {place[1] for place in drawn if place} == columns
    # Outside the layers are the biases of the embedding's norm and of the pooler.
    assert sum(place is None for place in drawn) == (2 if "bitfit" in method else 0)
