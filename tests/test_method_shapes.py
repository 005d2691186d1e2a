"""Sizes that do not divide: the block each method takes, and what is refused with which remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from peft.tuners.oft.layer import OFTLayer

from autopeft.anatomy import Anatomy, Linear
from autopeft.binding import bind_space
from autopeft.candidates import Candidate
from autopeft.errors import RequestError
from autopeft.methods import METHODS, c3a, oft
from autopeft.plans import plan_of, unfit
from autopeft.space_file import parse_space


def with_linear(anatomy, kind, fan_in, fan_out):
    """Give the anatomy with one linear of another shape."""
    found = next(linear for linear in anatomy.linears if linear.kind == kind)
    other = replace(found, fan_in=fan_in, fan_out=fan_out)
    return replace(anatomy, linears=tuple(other if x is found else x for x in anatomy.linears))


def test_the_block_of_oft_is_the_one_that_peft_takes():
    for fan_in in (1, 2, 16, 64, 112, 172, 384, 385, 1009):
        for block in (2, 4, 7, 32, 100, 5000):
            # PEFT asks for another one only where the wanted one does not fit.
            fits = block <= fan_in and fan_in % block == 0
            expected = block if fits else OFTLayer.adjust_oft_parameters(None, fan_in, block)
            assert oft.block_at(fan_in, block) == expected, (fan_in, block)


def test_the_block_of_c3a_is_the_largest_that_cuts_both_sides():
    for fan_in, fan_out in ((64, 112), (384, 1536), (64, 1), (35, 21)):
        for block in (1, 5, 16, 1000):
            cuts = [b for b in range(1, block + 1) if fan_in % b == fan_out % b == 0]
            assert c3a.block_at(Linear("x", "up", 0, fan_in, fan_out), block) == max(cuts)


@pytest.mark.parametrize(
    ("values", "shape", "reason"),
    [
        ({"method": "oft", "oft.block": 32}, (1009, 64), "has 1009 inputs, which no block near 32 divides"),
        ({"method": "boft", "boft.block": 8}, (100, 64), "blocks of 8 do not cut the 100 inputs"),
        ({"method": "boft", "boft.block": 8}, (100, 64), "; 4 cuts all"),
        ({"method": "road"}, (64, 33), "33, do not make pairs"),
        ({"method": "trainable_tokens", "trainable_tokens.tokens": 5000}, (64, 64), "126 different tokens; 5000"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(values, shape, reason, llama):
    assert reason in unfit(Candidate(values), with_linear(llama, "query", *shape))


def test_coefficients_are_no_more_than_the_weight_has(llama):
    small = with_linear(llama, "query", 3, 5)
    name = next(x.name for x in small.linears if x.kind == "query")
    assert plan_of(Candidate({"method": "fourierft", "fourierft.coefficients": 1000}), small).sizes[name] == 15


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("oft.block", 1),
        ("oft.shared", 2),
        ("boft.block", 3),
        ("hra.rank", 5),
        ("fourierft.coefficients", 2.5),
        ("waveft.scaling", 0),
        ("c3a.block", 0),
        ("road.variant", "3"),
        ("cartridge.tokens", 1),
        ("adaption_prompt.top", 0),
        ("trainable_tokens.tokens", 0),
    ],
)
def test_a_value_that_a_setting_cannot_have_is_named(setting, value, llama):
    method = setting.partition(".")[0]
    space = parse_space({"parameters": {"method": {"choices": [method]}, setting: {"choices": [value]}}})
    with pytest.raises(RequestError, match=f"{setting}: {value!r} cannot be"):
        bind_space(space, llama, cuda=False)


def test_trained_tokens_are_counted_once_where_the_output_layer_shares_them(anatomy_of):
    """GPT-2's output layer is its embedding; the untied Llama's is not."""
    candidate = Candidate({"method": "trainable_tokens", "trainable_tokens.tokens": 3})
    tied, untied = (plan_of(candidate, anatomy_of(family, "causal-lm")) for family in ("gpt2", "llama"))
    assert tied.sizes == {"transformer.wte": 3, "lm_head": 3}
    assert untied.sizes == {"model.embed_tokens": 3}
    assert tied.adapter_params == untied.adapter_params == 3 * 64


def test_an_anatomy_keeps_the_tokens_of_its_data(llama):
    again = Anatomy.from_dict(llama.to_dict())
    assert again == llama
    assert again.vocabulary.frequent[:3] == (1, 3, 4)


def test_adaption_prompts_are_on_the_top_layers(llama):
    plan = plan_of(Candidate({"method": "adaption_prompt", "adaption_prompt.top": 2}), llama)
    assert list(plan.sizes) == ["model.layers.1.self_attn", "model.layers.2.self_attn"]


def test_only_prompts_before_the_text_take_positions():
    assert {name for name, method in METHODS.items() if method.takes_positions} == {
        "prompt_tuning", "prefix_tuning", "p_tuning", "cartridge"
    }  # fmt: skip
