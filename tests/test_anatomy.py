"""Layers, kinds and sizes, against what the configurations say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, SMALL
from families import CONFIGS, PAIRS, TOKENS
from hypothesis import given
from hypothesis import strategies as st

from autopeft.anatomy import KINDS, Anatomy
from autopeft.candidates import Candidate
from autopeft.errors import SourceError
from autopeft.layers import describe_linears, layer_groups, place_of
from autopeft.methods import METHODS
from autopeft.plans import unfit
from autopeft.trial.model import AUTO_CLASSES, ModelSource
from autopeft.trial.reading import read_anatomy


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Read the anatomy of a configuration; no weights are on disk."""

    def read(config, task, labels=("a", "b", "c", "d", "e")):
        folder = tmp_path_factory.mktemp("config")
        config.save_pretrained(folder)
        return read_anatomy(ModelSource(str(folder), task, labels if task == "text-classification" else ()))

    return read


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_kinds_and_layers_of_every_architecture(name, read):
    expected = ARCHITECTURES[name]
    anatomy = read(expected.config, expected.task)
    assert " ".join(anatomy.kinds) == expected.kinds
    assert anatomy.n_layers == expected.layers
    assert Counter(linear.layer for linear in anatomy.linears).keys() == set(range(expected.layers))
    outside = [norm for norm in anatomy.norms if norm.layer is None]
    assert (len(anatomy.norms) - len(outside), len(outside)) == (expected.norms_in_layers, expected.norms_outside)
    for kind, shape in (expected.sizes or {}).items():
        assert {(x.fan_in, x.fan_out) for x in anatomy.linears if x.kind == kind} == {shape}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_and_norm_is_a_module_of_the_real_model(name, read):
    expected = ARCHITECTURES[name]
    anatomy = read(expected.config, expected.task)
    expected.config.num_labels = 5
    with torch.device("meta"):
        model = AUTO_CLASSES[expected.task].from_config(expected.config)
    for linear in anatomy.linears:
        assert sorted(model.get_submodule(linear.name).weight.shape) == sorted((linear.fan_in, linear.fan_out))
        assert linear.name.partition(".")[0] not in anatomy.head
    for norm in anatomy.norms:
        assert sum(p.numel() for p in model.get_submodule(norm.name).parameters()) == norm.params
        assert norm.name.partition(".")[0] not in anatomy.head
    assert len({linear.name for linear in anatomy.linears}) == len(anatomy.linears)
    for kind in ("query", "key", "value", "qkv", "output", "up", "gate", "down"):
        counts = Counter(x.layer for x in anatomy.linears if x.kind == kind)
        # A decoder's layer has a second attention.
        assert not counts or set(counts.values()) <= {1, 2}
    assert model.num_parameters() == anatomy.base_params + anatomy.head_params
    assert model.get_input_embeddings().weight.shape[1] == anatomy.prompt.token_dim


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_peft_cannot_train_on_an_architecture_is_refused(name, read):
    expected = ARCHITECTURES[name]
    anatomy = read(expected.config, expected.task).on_data(TOKENS)
    for_task = [name for name, method in METHODS.items() if expected.task in method.tasks]
    refused = {name for name in for_task if unfit(Candidate({"method": name, **SMALL}), anatomy)}
    assert refused == {name for name in for_task if expected.refuses(name)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_biases_and_blocks_are_all_that_the_real_model_has(name, read):
    expected = ARCHITECTURES[name]
    anatomy = read(expected.config, expected.task)
    expected.config.num_labels = 5
    with torch.device("meta"):
        model = AUTO_CLASSES[expected.task].from_config(expected.config)
    real = {n: p.numel() for n, p in model.named_parameters() if n.partition(".")[0] not in anatomy.head}
    assert {b.name: b.params for b in anatomy.biases} == {n: size for n, size in real.items() if n.endswith(".bias")}
    kinds = {x.name: (x.kind, x.layer) for x in anatomy.linears} | {x.name: ("norm", x.layer) for x in anatomy.norms}
    for bias in anatomy.biases:
        assert kinds.get(bias.name.removesuffix(".bias"), (bias.kind, None)) == (bias.kind, bias.layer)
    assert [b.layer for b in anatomy.blocks] == list(range(expected.layers))
    for block in anatomy.blocks:
        assert block.params == sum(p.numel() for p in model.get_submodule(block.name).parameters())
        assert all(x.name.startswith(f"{block.name}.") for x in anatomy.linears if x.layer == block.layer)


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_kinds_of_the_families(family, task, anatomy_of):
    kinds = {
        "llama": "query key value output gate up down",
        "bert": "query key value output up down",
        "gpt2": "qkv output up down",
        "t5": "query key value output gate up down",
        "bart": "query key value output up down",
    }
    anatomy = anatomy_of(family, task)
    assert " ".join(anatomy.kinds) == kinds[family]
    assert anatomy.n_layers == {"t5": 4, "bart": 4}.get(family, 3)


def test_every_linear_of_llama_has_the_kind_of_its_name(llama):
    names = {"q": "query", "k": "key", "v": "value", "o": "output", "gate": "gate", "up": "up", "down": "down"}
    assert len(llama.linears) == 3 * 7
    for linear in llama.linears:
        assert linear.kind == names[linear.name.split(".")[-1].removesuffix("_proj")]
        assert f".layers.{linear.layer}." in linear.name


def test_every_linear_of_bert_has_its_kind(bert):
    first = {x.name.partition("layer.0.")[2]: x.kind for x in bert.linears if x.layer == 0}
    assert first == {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "output",
        "intermediate.dense": "up",
        "output.dense": "down",
    }
    assert not any("pooler" in x.name for x in bert.linears)


def test_conv1d_of_gpt2_is_read_the_right_way_round(anatomy_of):
    shapes = {x.kind: (x.fan_in, x.fan_out) for x in anatomy_of("gpt2", "causal-lm").linears}
    assert shapes == {"qkv": (64, 192), "output": (64, 64), "up": (64, 256), "down": (256, 64)}


def test_encoder_layers_of_t5_come_before_the_decoder(anatomy_of):
    anatomy = anatomy_of("t5", "text-classification")
    stacks = [("decoder" in x.name, x.layer) for x in anatomy.linears]
    assert stacks == sorted(stacks)
    assert {layer for decoder, layer in stacks if decoder} == {2, 3}
    crossed = [x.kind for x in anatomy.linears if "EncDecAttention" in x.name and x.layer == 2]
    assert crossed == ["query", "key", "value", "output"]


def test_shared_parameters_count_once(read):
    config = CONFIGS["gpt2"]()
    tied = read(config, "causal-lm").base_params
    config.tie_word_embeddings = False
    assert read(config, "causal-lm").base_params == tied + 128 * 64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bits_of_the_checkpoint_are_those_of_its_dtype(dtype, read):
    config = CONFIGS["bert"]()
    config.dtype = dtype
    assert read(config, "text-classification").dtype_bits == (32 if dtype == "float32" else 16)


def test_head_is_apart_from_the_base(anatomy_of):
    assert anatomy_of("llama", "causal-lm").head == {}
    assert anatomy_of("llama", "text-classification").head == {"score": 64 * 5}
    assert anatomy_of("bert", "text-classification").head == {"classifier": 64 * 5 + 5}
    assert anatomy_of("t5", "text-classification").head == {"classification_head": 64 * 64 + 64 + 64 * 5 + 5}


def test_a_model_without_a_form_for_the_task_is_refused(read):
    with pytest.raises(SourceError, match="has no causal-lm form"):
        read(CONFIGS["t5"](), "causal-lm")


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_anatomy_survives_json(family, task, anatomy_of):
    anatomy = anatomy_of(family, task)
    assert Anatomy.from_dict(json.loads(json.dumps(anatomy.to_dict()))) == anatomy


def test_reading_an_anatomy_loads_no_weights(read):
    huge = CONFIGS["llama"]()
    huge.hidden_size, huge.intermediate_size, huge.num_hidden_layers, huge.vocab_size = 8192, 28672, 80, 128_256
    huge.num_attention_heads, huge.num_key_value_heads, huge.head_dim = 64, 8, 128
    anatomy = read(huge, "causal-lm")
    assert anatomy.base_params == 70_553_706_496  # Llama 3 70B, as published


def test_names_without_a_layer_have_no_place():
    assert place_of("lm_head") is None
    assert place_of("encoder.3") is None
    assert place_of("0.attention") is None


def test_a_linear_of_no_kind_keeps_its_name():
    shapes = [("h.0.attn.q_proj", 8, 8), ("h.0.attn.o_proj", 8, 8), ("h.0.mix.square", 8, 8), ("h.0.mlp.up", 8, 32)]
    shapes += [("h.0.mlp.down", 32, 8), ("h.0.mlp.gate", 8, 3), ("h.0.mix.net.2", 8, 8)]
    kinds = [x.kind for x in describe_linears(shapes)]
    assert kinds == ["query", "output", "square", "up", "down", "router", "net.2"]


def test_own_kinds_come_after_the_known_ones(llama):
    odd = replace(llama.linears[0], kind="own", name="x")
    assert replace(llama, linears=(odd, *llama.linears)).kinds == (*(k for k in KINDS if k != "qkv"), "own")


@given(st.integers(1, 60), st.integers(1, 60) | st.just("each"))
def test_layer_groups_cut_all_layers_into_runs_of_like_length(n_layers, count):
    groups = layer_groups(n_layers, count)
    assert [layer for a, b in groups for layer in range(a, b + 1)] == list(range(n_layers))
    assert len(groups) == (n_layers if count == "each" else min(n_layers, count))
    lengths = [b - a + 1 for a, b in groups]
    assert max(lengths) - min(lengths) <= 1


def test_counting_needs_no_torch(bert, llama):
    """From an anatomy as JSON to exact counts, in a process of its own."""
    code = """
import json, sys
from autopeft.anatomy import Anatomy
from autopeft.candidates import Candidate
from autopeft.methods import METHODS
from autopeft.plans import plan_of
for line in sys.stdin:
    anatomy = Anatomy.from_dict(json.loads(line))
    print(*(plan_of(Candidate({"method": m, f"{m}.rank": 8}), anatomy).adapter_params for m in METHODS))
loaded = {"torch", "transformers", "peft", "optuna", "ray", "datasets", "bitsandbytes"} & set(sys.modules)
assert not loaded, loaded
"""
    text = "\n".join(json.dumps(a.to_dict()) for a in (bert, llama))
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
    rows = [[int(n) for n in line.split()] for line in done.stdout.splitlines()]
    width = 64
    assert rows[0][0] == 3 * 8 * (4 * (width + width) + 2 * (width + 96))
    assert rows[1][0] == 3 * 8 * (2 * (width + width) + 2 * (width + 32) + 3 * (width + 112))
