"""The adapters that PEFT lacks, each against the same thing made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers
from configurations import candidates
from families import LABELS, PAIRS, TOKENS, batch_of
from small_run import make_data, make_run_dir, make_unit, make_worker, pretrained
from torch import nn

import autopeft
from autopeft.binding import bind_space
from autopeft.candidates import BaseFormat, Candidate
from autopeft.errors import RequestError, SourceError, TrialError
from autopeft.methods import METHODS
from autopeft.objectives import OBJECTIVES
from autopeft.plans import plan_of
from autopeft.problem import Problem
from autopeft.recipe import rate_at
from autopeft.space_file import load_space
from autopeft.trial.adapters import Resident
from autopeft.trial.batches import train_parts
from autopeft.trial.model import AUTO_CLASSES, ModelSource, checksum, load_base, load_config
from autopeft.trial.own import Bottleneck
from autopeft.trial.reading import read_anatomy

OWN = ["serial_adapter", "parallel_adapter", "bitfit", "full", "top_layers"]
SITES = {
    "llama": {"self_attn.q_proj": "self_attn.o_proj", "mlp.up_proj": "mlp.down_proj"},
    "bert": {"attention.self.query": "attention.output.dense", "intermediate.dense": "output.dense"},
    "gpt2": {"attn.c_attn": "attn.c_proj", "mlp.c_fc": "mlp.c_proj"},
    "t5": {
        "layer.0.SelfAttention.q": "layer.0.SelfAttention.o",
        "layer.1.EncDecAttention.q": "layer.1.EncDecAttention.o",
        "layer.1.DenseReluDense.wi_1": "layer.1.DenseReluDense.wo",
        "layer.2.DenseReluDense.wi_1": "layer.2.DenseReluDense.wo",
    },
    "bart": {
        "self_attn.q_proj": "self_attn.out_proj",
        "encoder_attn.q_proj": "encoder_attn.out_proj",
        "fc1": "fc2",
    },
}
BLOCKS = {"llama": 3 * 2, "bert": 3 * 2, "gpt2": 3 * 2, "t5": 2 * 2 + 2 * 3, "bart": 2 * 2 + 2 * 3}
"""Blocks by family: a decoder that reads an encoder has a third in each layer."""


def plan_for(anatomy, method, **values):
    return plan_of(Candidate({"method": method, **{f"{method}.{k}": v for k, v in values.items()}}), anatomy)


def base_for(source, **options):
    auto = transformers.AutoModelForCausalLM
    if source.task == "text-classification":
        auto = transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(source.path, **options).requires_grad_(False).eval()


def logits_of(model, task):
    with torch.no_grad():
        return model(**{k: v for k, v in batch_of(task).items() if k != "labels"}).logits


def stir(adapted):
    """Move what is trained away from its start."""
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapted


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_a_block_reads_and_writes_where_its_architecture_does(family, task, anatomy_of):
    plan = plan_for(anatomy_of(family, task), "parallel_adapter")
    found = {}
    for reader, writer, _ in plan.config["sites"]:
        (pair,) = [(r, w) for r, w in SITES[family].items() if reader.endswith(r) and writer.endswith(w)]
        assert reader.removesuffix(pair[0]) == writer.removesuffix(pair[1])
        found[pair] = found.get(pair, 0) + 1
    assert sum(found.values()) == BLOCKS[family]
    serial = plan_for(anatomy_of(family, task), "serial_adapter")
    assert [site[1] for site in serial.config["sites"]] == [site[1] for site in plan.config["sites"]]


@pytest.mark.parametrize(("family", "task"), PAIRS)
@pytest.mark.parametrize("method", ["serial_adapter", "parallel_adapter"])
def test_the_count_is_that_of_linears_made_by_hand(family, task, method, anatomy_of):
    anatomy = anatomy_of(family, task)
    by_hand = nn.ModuleList([nn.Linear(64, 5), nn.Linear(5, 64)])
    plan = plan_for(anatomy, method, attention=5, feed_forward=5)
    assert plan.adapter_params == BLOCKS[family] * sum(p.numel() for p in by_hand.parameters())


class ByHand(nn.Module):
    """A block with a bottleneck behind or beside it, written out."""

    def __init__(self, block, adapter, *, parallel, activation, scaling):
        super().__init__()
        self.block, self.adapter, self.parallel = block, adapter, parallel
        self.activation, self.scaling = activation, scaling

    def forward(self, *args, **kwargs):
        out = self.block(*args, **kwargs)
        first, *rest = out if isinstance(out, tuple) else (out,)
        read = kwargs.get("hidden_states", args[0] if args else None) if self.parallel else first
        down, up = self.adapter.down, self.adapter.up
        hidden = self.activation(read @ down.weight.T + down.bias)
        first = first + self.scaling * (hidden @ up.weight.T + up.bias)
        return (first, *rest) if isinstance(out, tuple) else first


@pytest.mark.parametrize(("method", "parallel"), [("serial_adapter", False), ("parallel_adapter", True)])
@pytest.mark.parametrize(
    ("activation", "function", "scaling"), [("relu", torch.relu, 1.0), ("silu", nn.functional.silu, 4.0)]
)
def test_an_adapter_computes_what_it_does_by_hand(method, parallel, activation, function, scaling, source_of, llama):
    plan = plan_for(llama, method, attention=3, feed_forward=5, activation=activation, scaling=scaling)
    adapted = stir(Resident(base_for(source_of("llama", "causal-lm"))).attach(plan, task="causal-lm", head={}))
    logits = adapted(**batch_of("causal-lm")).logits
    hand = base_for(source_of("llama", "causal-lm"))
    for own, layer in zip(adapted.model.layers, hand.model.layers, strict=True):
        for block, writer in (("self_attn", own.self_attn.o_proj), ("mlp", own.mlp.down_proj)):
            adapter = writer.get_submodule(plan.config["position"])
            made = ByHand(layer.get_submodule(block), adapter, parallel=parallel, activation=function, scaling=scaling)
            setattr(layer, block, made)
    torch.testing.assert_close(hand(**batch_of("causal-lm")).logits, logits)
    assert not torch.allclose(logits, logits_of(base_for(source_of("llama", "causal-lm")), "causal-lm"), atol=1e-3)


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("t5", "text-classification")])
@pytest.mark.parametrize("method", ["serial_adapter", "parallel_adapter", "bitfit", "lora+parallel"])
def test_gradient_checkpointing_changes_no_gradient(family, task, method, source_of, anatomy_of):
    anatomy = anatomy_of(family, task)
    grads = []
    for checkpointing in (False, True):
        model = base_for(source_of(family, task))
        torch.manual_seed(0)
        adapted = stir(Resident(model).attach(plan_for(anatomy, method), task=task, head=anatomy.head))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        adapted.train()
        torch.manual_seed(3)
        adapted(**batch_of(task)).loss.backward()
        grads.append({n: p.grad for n, p in adapted.named_parameters() if p.requires_grad})
        assert any(isinstance(m, Bottleneck) and m._read is None for m in adapted.modules()) or method == "bitfit"
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient, msg=name)


def test_a_parallel_adapter_of_a_block_that_changes_the_tokens_is_an_error(source_of, bert):
    resident = Resident(base_for(source_of("bert", bert.task)))
    plan = plan_for(bert, "parallel_adapter")
    sites = [[reader, "bert.pooler.dense", size] for reader, _, size in plan.config["sites"][:1]]
    plan = replace(plan, config={**plan.config, "sites": sites}, sizes={"bert.pooler.dense.parallel": 16})
    plan = replace(plan, adapter_params=2 * 64 * 16 + 16 + 64)
    adapted = resident.attach(plan, task=bert.task, head=bert.head)
    with pytest.raises(TrialError, match="same tokens"):
        adapted(**batch_of(bert.task))


def test_longformer_whose_attention_turns_its_input_has_parallel_adapters_at_the_feed_forward_only(tmp_path):
    config = transformers.LongformerConfig(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_hidden_layers=2, attention_window=[4, 4]
    )
    config.save_pretrained(tmp_path)
    anatomy = read_anatomy(ModelSource(str(tmp_path), "text-classification", LABELS))
    assert {w.rsplit(".", 2)[-2] for _, w, _ in plan_for(anatomy, "parallel_adapter").config["sites"]} == {"output"}
    assert len(plan_for(anatomy, "parallel_adapter").config["sites"]) == 2
    assert len(plan_for(anatomy, "serial_adapter").config["sites"]) == 4


@pytest.mark.parametrize(("family", "task"), [("bert", "text-classification"), ("gpt2", "causal-lm")])
def test_the_gradients_of_bitfit_are_those_of_the_models_own_biases(family, task, source_of, anatomy_of):
    anatomy = anatomy_of(family, task)
    plain = base_for(source_of(family, task))
    biases = {n: p for n, p in plain.named_parameters() if n.endswith(".bias") and n.split(".")[0] not in anatomy.head}
    for bias in biases.values():
        bias.requires_grad_(True)
    plain(**batch_of(task)).loss.backward()
    model = base_for(source_of(family, task))
    adapted = Resident(model).attach(plan_for(anatomy, "bitfit"), task=task, head={})
    adapted(**batch_of(task)).loss.backward()
    trained = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained.keys() == biases.keys()
    assert all(torch.equal(trained[n], bias.grad) for n, bias in biases.items())


def test_new_biases_have_the_gradients_of_a_model_that_was_made_with_them(source_of, llama):
    source = source_of("llama", "causal-lm")
    config = transformers.AutoConfig.from_pretrained(source.path)
    config.attention_bias = config.mlp_bias = True
    plain = transformers.LlamaForCausalLM(config).eval()
    missing = plain.load_state_dict(base_for(source).state_dict(), strict=False).missing_keys
    for name in missing:
        nn.init.zeros_(plain.get_parameter(name))
    plain(**batch_of("causal-lm")).loss.backward()
    adapted = Resident(base_for(source)).attach(plan_for(llama, "bitfit"), task="causal-lm", head={})
    adapted(**batch_of("causal-lm")).loss.backward()
    grads = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert grads.keys() == set(missing)
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, plain.get_parameter(name).grad)
    assert plan_for(llama, "bitfit", new=False).adapter_params == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bias_on_a_quantised_base_stays_as_precise_as_it_is_trained(bits, source_of, bert):
    """bitsandbytes casts its own biases to whatever comes in."""
    model = load_base(source_of("bert", bert.task), BaseFormat(bits), device="cpu")
    adapted = Resident(model).attach(plan_for(bert, "bitfit"), task=bert.task, head=bert.head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapted(**batch_of(bert.task)).loss.backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}


@pytest.mark.parametrize(("family", "task"), PAIRS)
@pytest.mark.parametrize("method", OWN + [name for name in METHODS if "+" in name])
def test_attaching_needs_no_weights(family, task, method, source_of, anatomy_of):
    """So that memory can be predicted on a model without storage."""
    anatomy = anatomy_of(family, task)
    if METHODS[method].refuses({}, 32, anatomy):
        return
    with torch.device("meta"):
        model = AUTO_CLASSES[task].from_config(load_config(source_of(family, task))).requires_grad_(False)
        adapted = Resident(model).attach(plan_for(anatomy, method), task=task, head=anatomy.head)
    assert {p.device.type for p in adapted.parameters()} == {"meta"}


def test_tied_weights_stay_tied_and_the_originals_come_back(source_of, anatomy_of):
    model = base_for(source_of("gpt2", "causal-lm"))
    original, before = model.lm_head.weight, checksum(model)
    assert original is model.transformer.wte.weight
    resident = Resident(model)
    adapted = stir(resident.attach(plan_for(anatomy_of("gpt2", "causal-lm"), "full"), task="causal-lm", head={}))
    assert adapted.lm_head.weight is adapted.transformer.wte.weight is not original
    assert checksum(model) != before
    resident.detach()
    assert model.lm_head.weight is model.transformer.wte.weight is original
    assert checksum(model) == before


def plain_training(model, unit, data, names):
    """Train the named parameters with plain PyTorch, as a worker does it."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=unit.plan.learning_rate, weight_decay=0.0, fused=True)
    torch.manual_seed(unit.seed)
    model.train()
    for step in range(unit.steps):
        for group in optimizer.param_groups:
            group["lr"] = unit.plan.learning_rate * rate_at(step, unit.steps, unit.plan.recipe)
        (batch,) = train_parts(data, step, recipe=unit.plan.recipe, seed=0)
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize(
    ("family", "task"), [("bert", "text-classification"), ("llama", "causal-lm"), ("t5", "text-classification")]
)
@pytest.mark.parametrize("method", ["full", "top_layers", "bitfit"])
def test_three_steps_give_the_weights_that_plain_transformers_gets(family, task, method, tmp_path):
    source = pretrained(family, task, tmp_path / "model")
    anatomy = read_anatomy(source)
    if method == "bitfit" and not anatomy.biases:
        return
    run_dir = make_run_dir(tmp_path / "run", task)
    values = {"method": method, "lr_multiple": 10.0} | ({"bitfit.new": False} if method == "bitfit" else {})
    unit = make_unit(anatomy, values, steps=3, adapter_dir="adapter")
    make_worker(run_dir, source, anatomy).run(unit)
    loaded = autopeft.load(run_dir / "adapter")
    plain = load_base(source, BaseFormat(32), device="cpu")
    last = {"bert": "bert.encoder.layer.2.", "llama": "model.layers.2.", "t5": "transformer.decoder.block.1."}[family]
    all_names = [n for n, _ in plain.named_parameters()]
    names = {
        "full": all_names,
        "top_layers": [n for n in all_names if n.startswith(last) or n.split(".")[0] in anatomy.head],
        "bitfit": [n for n in all_names if n.endswith(".bias") or n.split(".")[0] in anatomy.head],
    }[method]
    before = {n: t.clone() for n, t in plain.state_dict().items()}
    plain_training(plain, unit, make_data(task), names)
    after, moved = loaded.state_dict(), 0
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-7)
        moved += not torch.equal(tensor, before[name])
    assert moved >= len(names) // 2


MERGED = [
    ("lora", {"lora.rank": 4}, 32),
    ("lora", {"lora.rank": 4, "lora.dora": True}, 32),
    ("lora", {"lora.rank": 4}, 16),
    ("ia3", {}, 32),
    ("ln_tuning", {}, 32),
    ("bitfit", {"bitfit.new": False}, 32),
    ("full", {}, 32),
    ("top_layers", {}, 16),
    ("lora+bitfit", {"lora+bitfit.lora.rank": 4, "lora+bitfit.bitfit.new": False}, 32),
    ("lora+ia3", {}, 32),
]


@pytest.mark.parametrize(("family", "task"), [("bert", "text-classification"), ("gpt2", "causal-lm")])
@pytest.mark.parametrize(("method", "values", "bits"), MERGED)
def test_a_merged_model_gives_the_logits_of_the_adapter(family, task, method, values, bits, tmp_path, monkeypatch):
    monkeypatch.setattr("autopeft.trial.merge.load_tokenizer", lambda path: Tokenizer())
    source, folder = saved(family, task, {"method": method, "bits": bits, **values}, tmp_path)
    judged = logits_of(autopeft.load(folder), task)
    assert autopeft.merge(folder, tmp_path / "merged") == ()
    merged = base_for(ModelSource(str(tmp_path / "merged"), task), dtype="auto")
    assert merged.dtype == (torch.float32 if bits == 32 else torch.bfloat16)
    assert (tmp_path / "merged" / "tokenizer").exists()
    assert not [n for n, _ in merged.named_modules() if "lora" in n or "base_layer" in n]
    tolerance = 1e-5 if bits == 32 else 0.02
    torch.testing.assert_close(logits_of(merged, task).float(), judged.float(), rtol=tolerance, atol=tolerance)
    assert not torch.allclose(
        judged.float(), logits_of(load_base(source, BaseFormat(bits), device="cpu"), task).float()
    )
    assert merged.config.use_cache == base_for(source).config.use_cache


OTHERS_MERGED = sorted({m.name for m in METHODS.values() if m.mergeable} - {method for method, *_ in MERGED})


@pytest.mark.parametrize("method", OTHERS_MERGED)
def test_every_other_method_that_is_said_to_merge_does(method, tmp_path, monkeypatch):
    monkeypatch.setattr("autopeft.trial.merge.load_tokenizer", lambda path: Tokenizer())
    values = {**candidates(method)[0].values, "lr_multiple": 30.0 if method == "adalora" else 3.0}
    source, folder = saved("llama", "causal-lm", values, tmp_path)
    judged = logits_of(autopeft.load(folder), "causal-lm")
    assert autopeft.merge(folder, tmp_path / "merged") == ()
    merged = base_for(ModelSource(str(tmp_path / "merged"), "causal-lm"), dtype="auto")
    torch.testing.assert_close(logits_of(merged, "causal-lm"), judged, rtol=1e-4, atol=1e-4)
    plain = logits_of(load_base(source, BaseFormat(32), device="cpu"), "causal-lm")
    assert (judged - plain).abs().max() > 1e-3 * plain.abs().max()


class Tokenizer:
    """The small models have none."""

    def save_pretrained(self, folder):
        with open(f"{folder}/tokenizer", "w") as file:
            file.write("")


def saved(family, task, values, folder):
    """Train in a worker and save; gives (source, adapter folder)."""
    source = pretrained(family, task, folder / "model")
    anatomy = read_anatomy(source).on_data(TOKENS)
    run_dir = make_run_dir(folder / "run", task)
    make_worker(run_dir, source, anatomy).run(
        make_unit(anatomy, {"lr_multiple": 30.0, **values}, steps=3, adapter_dir="a")
    )
    return source, run_dir / "a"


def test_an_adapter_of_4_bits_is_merged_into_the_checkpoints_own_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("autopeft.trial.merge.load_tokenizer", lambda path: Tokenizer())
    _, folder = saved("bert", "text-classification", {"method": "lora", "lora.rank": 4, "bits": 4}, tmp_path)
    (caveat,) = autopeft.merge(folder, tmp_path / "merged")
    assert "4 bits and is merged into one of 32" in caveat
    merged = base_for(ModelSource(str(tmp_path / "merged"), "text-classification"))
    # What the same factors give on the unquantised base, by PEFT itself.
    import peft

    base = base_for(ModelSource(str(tmp_path / "model"), "text-classification"), num_labels=len(LABELS))
    expected = logits_of(peft.PeftModel.from_pretrained(base, str(folder)).eval(), "text-classification")
    torch.testing.assert_close(logits_of(merged, "text-classification"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "values", "why"),
    [
        ("bert", {"method": "serial_adapter"}, "acts on what passes through the model"),
        ("bert", {"method": "lora+prompt"}, "acts on what passes through the model"),
        ("llama", {"method": "bitfit"}, "no place for the biases"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(family, values, why, tmp_path):
    _, folder = saved(family, "text-classification", values, tmp_path)
    with pytest.raises(RequestError, match=why):
        autopeft.merge(folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merging_into_a_folder_that_is_not_empty_is_refused(tmp_path):
    _, folder = saved("bert", "text-classification", {"method": "full"}, tmp_path)
    with pytest.raises(RequestError, match="is not empty"):
        autopeft.merge(folder, tmp_path)


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    _, folder = saved("bert", "text-classification", {"method": "serial_adapter"}, tmp_path)
    about = json.loads((folder / "autopeft.json").read_text())
    other = {**about, "plan": plan_for(read_anatomy(source_in(about)), "parallel_adapter").to_dict()}
    (folder / "autopeft.json").write_text(json.dumps(other))
    with pytest.raises(SourceError, match="is not of this adapter"):
        autopeft.load(folder)
    (folder / "autopeft.json").write_text(json.dumps(about))
    autopeft.load(folder)
    whole = (folder / "autopeft.safetensors").read_bytes()
    (folder / "autopeft.safetensors").write_bytes(whole[:-100])
    with pytest.raises(SourceError, match="cannot be read"):
        autopeft.load(folder)
    (folder / "autopeft.safetensors").unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        autopeft.load(folder)


def source_in(about):
    return ModelSource(**{**about["source"], "label_names": tuple(about["source"]["label_names"])})


@pytest.mark.parametrize("method", ["full", "top_layers"])
def test_a_reference_is_never_under_a_budget_and_never_quantised(method, bert):
    space = bind_space(load_space("reference"), bert, cuda=False)
    budgeted = Problem(space, (OBJECTIVES["quality"],), bert, parameter_limit=10**9)
    free = Problem(space, (OBJECTIVES["quality"],), bert)
    candidate = space.complete({"method": method})
    assert "--budget none" in budgeted.refusal(candidate)
    assert free.refusal(candidate) == ""
    assert METHODS[method].bits == (16, 32)
    assert budgeted.smallest()[0]["method"] not in ("full", "top_layers")
