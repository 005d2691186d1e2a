"""The checksum of a base, and loading what can be loaded."""

from __future__ import annotations

import pytest
import torch
from families import CONFIGS, PAIRS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LEDConfig

from autopeft.candidates import BaseFormat
from autopeft.errors import SourceError
from autopeft.trial.model import (
    ModelSource,
    _checksum_on_device,
    answering_task,
    checksum,
    load_base,
    load_config,
    position_limit,
)
from autopeft.trial.reading import read_anatomy


def model_of(*tensors):
    model = nn.Module()
    for i, tensor in enumerate(tensors):
        model.register_buffer(f"t{i}", tensor)
    return model


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data())
def test_any_single_bit_changes_the_checksum(size, data):
    tensor = torch.arange(size, dtype=torch.float32)
    before, on_device = checksum(model_of(tensor)), _checksum_on_device(tensor.view(torch.uint8))
    bits = tensor.view(torch.int32)
    where, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 31))
    bits[where] ^= torch.tensor(-(2**31) if bit == 31 else 1 << bit, dtype=torch.int32)
    assert checksum(model_of(tensor)) != before
    assert _checksum_on_device(tensor.view(torch.uint8)) != on_device


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, torch.uint8, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_any_element_of_any_type_counts(dtype, size):
    tensor = torch.ones(size).to(dtype)
    before, on_device = checksum(model_of(tensor)), _checksum_on_device(tensor.view(torch.uint8))
    for i in range(size):
        changed = tensor.clone()
        changed[i] = 0
        assert checksum(model_of(changed)) != before
        assert _checksum_on_device(changed.view(torch.uint8)) != on_device


def test_order_and_place_count():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    sums = [
        checksum(model_of(*x))
        for x in ((a, b), (b, a), (a, a.clone()), (torch.cat([a, b]),), (a,), (a, b, torch.zeros(0)))
    ]
    assert len(set(sums)) == len(sums)


def test_a_view_and_a_copy_have_one_checksum():
    matrix = torch.randn(7, 5)
    assert checksum(model_of(matrix.t())) == checksum(model_of(matrix.t().contiguous()))


def test_the_checksum_is_the_same_in_every_process():
    tensors = torch.arange(10, dtype=torch.float32), torch.tensor([1, 2, 3], dtype=torch.uint8)
    assert checksum(model_of(*tensors)) == "1b2b71cdab2f8558"


@pytest.mark.parametrize(("family", "task"), PAIRS)
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_loading_twice_gives_one_checksum(family, task, bits, source_of):
    source = source_of(family, task)
    torch.manual_seed(bits)
    one = checksum(load_base(source, BaseFormat(bits), device="cpu"))
    torch.manual_seed(bits + 1)
    assert checksum(load_base(source, BaseFormat(bits), device="cpu")) == one


@pytest.mark.parametrize("bits", [8, 4])
def test_the_scales_of_quantised_weights_are_in_the_checksum(bits, source_of):
    model = load_base(source_of("llama", "causal-lm"), BaseFormat(bits), device="cpu")
    before = checksum(model)
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        (weight.SCB if bits == 8 else weight.quant_state.state2.absmax).view(-1)[0] *= 2
    assert checksum(model) != before


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_the_base_is_frozen_and_in_eval_mode(family, task, source_of):
    model = load_base(source_of(family, task), BaseFormat(32), device="cpu")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(SourceError, match="is no folder here, and as a hub id it cannot be loaded"):
        load_config(ModelSource("no/such-model", "causal-lm"))
    with pytest.raises(SourceError, match=r"the folder .* is no model: it has no config.json"):
        load_config(ModelSource(str(tmp_path), "causal-lm"))
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(SourceError):
        read_anatomy(ModelSource(str(tmp_path), "causal-lm"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError):
        read_anatomy(ModelSource(str(tmp_path), "causal-lm"))


def test_a_model_without_its_weights_is_refused(source_of, tmp_path):
    config = load_config(source_of("bert", "text-classification"))
    config.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="cannot read the folder"):
        load_base(ModelSource(str(tmp_path), "text-classification", ("a", "b")), BaseFormat(32), device="cpu")


def test_the_positions_of_a_model_are_its_limit(source_of):
    assert position_limit(source_of("bert", "text-classification").path) == 64
    assert position_limit(source_of("t5", "text-classification").path) is None
    assert position_limit(source_of("bart", "seq2seq-lm").path) == 64


def test_a_limit_on_either_side_is_one_on_both(tmp_path):
    LEDConfig(max_encoder_position_embeddings=4096, max_decoder_position_embeddings=32).save_pretrained(tmp_path)
    assert position_limit(str(tmp_path)) == 32


def test_an_encoder_decoder_answers_from_sequence_to_sequence(source_of):
    assert answering_task(source_of("t5", "seq2seq-lm").path) == "seq2seq-lm"
    assert answering_task(source_of("bart", "seq2seq-lm").path) == "seq2seq-lm"
    assert answering_task(source_of("llama", "causal-lm").path) == "causal-lm"
    assert answering_task(source_of("bert", "text-classification").path) == "causal-lm"


def test_a_decoder_that_does_not_know_how_to_begin_is_refused(tmp_path):
    config = CONFIGS["t5"]()
    config.decoder_start_token_id = None
    config.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="has no decoder_start_token_id"):
        load_config(ModelSource(str(tmp_path), "seq2seq-lm"))
